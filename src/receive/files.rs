//! The limit of open files, and how many of them connections may use.
//!
//! Lowers `max_connections` where the system allows fewer files than the listeners want. Never
//! opens or closes files.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::ListenerConfig;

/// Files that are open besides client connections: sockets, segments, requests to backends, and
/// some connections to the admin listener.
const OTHER_FILES: u64 = 256;
/// Maximum number of concurrent connections to the admin listener; enough for a hundred people with
/// the page open.
const ADMIN_CONNECTIONS: usize = 480;
/// The same limit when the system allows few open files.
const FEW_ADMIN_CONNECTIONS: usize = 72;

/// Number of files that a relay needs whose listeners may have this many connections.
pub fn wanted(connections: u64) -> u64 {
    connections + OTHER_FILES + ADMIN_CONNECTIONS as u64
}

/// Raises the process's limit of open files to what its listeners need, as far as the system
/// allows. If that is not enough, lowers the listeners' connection limits so that delivery and the
/// journal keep enough files.
///
/// Returns how many connections the admin listener may have.
pub fn share(listeners: &mut [ListenerConfig]) -> usize {
    let wanted = wanted(connections(listeners));
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let Some(limit) = current.filter(|current| *current < wanted) else { return ADMIN_CONNECTIONS };
    let raised = maximum.map_or(wanted, |maximum| maximum.min(wanted));
    let is_raised = setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum }).is_ok();
    let limit = if is_raised { raised } else { limit };
    if limit >= wanted {
        return ADMIN_CONNECTIONS;
    }
    let admin = usize::try_from(limit / 8).unwrap_or(FEW_ADMIN_CONNECTIONS).clamp(1, FEW_ADMIN_CONNECTIONS);
    if limit >= connections(listeners) + OTHER_FILES {
        return admin;
    }
    limit_connections(listeners, limit);
    tracing::warn!(
        limit,
        wanted,
        max_connections = connections(listeners),
        "few files may be open: listeners take fewer connections, to leave files for delivery and the journal; raise \
         the limit (LimitNOFILE=), or lower max_connections"
    );
    admin
}

/// Sum of all listeners' connection limits.
fn connections(listeners: &[ListenerConfig]) -> u64 {
    let connections = listeners.iter().map(|setup| match setup {
        ListenerConfig::Udp(_) => 0,
        ListenerConfig::Tcp(setup) => setup.max_connections as u64,
        ListenerConfig::Http(setup) => setup.max_connections as u64,
    });
    connections.sum()
}

/// Lowers each listener's connection limit in proportion, so that [`OTHER_FILES`] of `limit` stay
/// free. If the limit is too small for that, connections get a quarter of it.
fn limit_connections(listeners: &mut [ListenerConfig], limit: u64) {
    let room = limit.saturating_sub(OTHER_FILES).max(limit / 4);
    let wanted = connections(listeners).max(1);
    for setup in listeners {
        let most = match setup {
            ListenerConfig::Udp(_) => continue,
            ListenerConfig::Tcp(setup) => &mut setup.max_connections,
            ListenerConfig::Http(setup) => &mut setup.max_connections,
        };
        let share = u128::from(room) * *most as u128 / u128::from(wanted);
        *most = usize::try_from(share).unwrap_or(*most).max(1);
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::batch::Destination;
    use crate::intake::IntakeConfig;
    use crate::protocol::line::MAX_LINE_BYTES;
    use crate::protocol::{Mapping, Precision, Unsigned};
    use crate::receive::tcp;

    fn listener(max_connections: usize) -> ListenerConfig {
        let destination = Arc::new(Destination::new("db", "", Precision::Nanoseconds));
        ListenerConfig::Tcp(tcp::TcpConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            intake: IntakeConfig {
                destination,
                format: None,
                mapping: Mapping::path(),
                max_line: MAX_LINE_BYTES,
                unsigned: Unsigned::Refuse,
                allow: crate::intake::Allow::default(),
            },
            proxies: Vec::new(),
            tls: None,
            max_connections,
            max_connections_per_source: max_connections,
            idle_timeout: Duration::from_secs(60),
            line_timeout: Duration::from_secs(60),
            first_line_timeout: Duration::from_secs(60),
        })
    }

    #[test]
    fn connections_leave_files_for_everything_else() {
        for (most, limit, expected) in [
            (&[4096][..], 1024, &[768][..]),
            (&[4096, 1024], 1024, &[614, 153]),
            (&[4096], 256, &[64]),
            (&[4096], 64, &[16]),
            (&[900, 1], 64, &[15, 1]),
            (&[1, 1], 4, &[1, 1]),
        ] {
            let mut setups: Vec<ListenerConfig> = most.iter().copied().map(listener).collect();
            limit_connections(&mut setups, limit);
            let got: Vec<u64> = setups.iter().map(|setup| connections(std::slice::from_ref(setup))).collect();
            assert_eq!(got, expected, "{most:?} with {limit} files");
        }
    }
}
