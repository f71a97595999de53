//! `twinflux doctor`: examines the machine and each backend, and names the command that corrects
//! each problem. Works before the relay starts and while it runs.
//!
//! Never changes anything, except that it writes, syncs and removes a file of some megabytes in
//! `data_dir`. Reports what this user may not see as such. Bounds: [`TRIAL_BYTES`] written,
//! [`EXAMINE_TIMEOUT`] for each backend.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytesize::ByteSize;
use clap::Args;
use rustix::process::{Resource, getrlimit};

use crate::batch::Destination;
use crate::cli::outcome::{Ended, Failure, print};
use crate::cli::socket;
use crate::config::{Config, Overrides};
use crate::deliver::Backend;
use crate::deliver::examination::Sign;
use crate::observe::Status;
use crate::receive::Inherited;
use crate::sys::dumps;
use crate::sys::text::{printable, write_line};

/// Bytes written to measure the disk's speed.
const TRIAL_BYTES: usize = 8 << 20;
/// Number of syncs that are timed.
const TRIAL_SYNCS: usize = 5;
/// A longer sync is slow for a journal that syncs each record.
const SLOW_SYNC: Duration = Duration::from_millis(50);
/// The longest time for examining one backend.
const EXAMINE_TIMEOUT: Duration = Duration::from_secs(20);
/// The most that the wall clock may drift from the monotonic clock during the examination.
const MAX_STEP: Duration = Duration::from_millis(50);

/// Options of `doctor`.
#[derive(Args, Clone, Debug)]
pub struct Doctor {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// The findings so far.
#[derive(Default)]
struct Report {
    text: String,
    wrong: usize,
}

impl Report {
    fn head(&mut self, about: &str) {
        write_line(&mut self.text, format_args!("{about}"));
    }

    fn add(&mut self, sign: &Sign) {
        let (word, what, to_do) = match sign {
            Sign::Well(what) => ("ok", what, None),
            Sign::Wrong(what, to_do) => ("WRONG", what, Some(to_do)),
            Sign::Doubtful(what, to_do) => ("doubt", what, Some(to_do)),
            Sign::Unseen(what) => ("cannot see", what, None),
        };
        self.wrong += usize::from(matches!(sign, Sign::Wrong(..)));
        write_line(&mut self.text, format_args!("  {word:<10} {what}"));
        if let Some(to_do) = to_do.filter(|to_do| !to_do.is_empty()) {
            write_line(&mut self.text, format_args!("  {:<10} do: {to_do}", ""));
        }
    }
}

impl Doctor {
    /// Examines everything, and prints the findings.
    ///
    /// # Errors
    /// Something is wrong, or the configuration cannot be read.
    pub fn run(&self) -> Ended {
        let (begun, wall) = (Instant::now(), SystemTime::now());
        let config = Config::load(self.config.as_deref(), Overrides::default())?;
        if config.holds_secrets() {
            dumps::forbid();
        }
        let mut report = Report::default();
        report.head("configuration");
        let warnings = config.warnings();
        if warnings.is_empty() {
            report.add(&Sign::Well("nothing to say".to_owned()));
        }
        warnings.into_iter().for_each(|warning| report.add(&Sign::Doubtful(warning, String::new())));
        report.head("machine");
        let running = socket::status(&config.data_dir).ok();
        receive_buffers(&config, running.as_ref()).into_iter().for_each(|found| report.add(&found));
        report.add(&files(&config));
        report.head(&format!("data_dir {}", config.data_dir.display()));
        disk(&config).into_iter().for_each(|found| report.add(&found));
        report.head("listeners");
        ports(&config, running.is_some()).into_iter().for_each(|found| report.add(&found));
        report.add(&firewall(&config));
        backends(&config, &mut report);
        pair(&config, &mut report);
        report.head("clock");
        report.add(&clock(begun, wall));
        report.add(&synchronisation());
        print(&report.text)?;
        match report.wrong {
            0 => Ok(()),
            wrong => Err(Failure::Failed(format!("{wrong} of these are wrong"))),
        }
    }
}

/// Compares the largest receive buffer that the system allows with what the listeners want.
fn receive_buffers(config: &Config, running: Option<&Status>) -> Vec<Sign> {
    const FILE: &str = "/proc/sys/net/core/rmem_max";
    let Some(wanted) = config.udp.iter().map(|udp| udp.receive_buffer.as_u64()).max() else { return Vec::new() };
    let of_udp = |status: &Status| status.receive.iter().filter(|one| one.kind == "udp").count();
    let has_all = |status: &Status| status.receive.iter().all(|one| one.receive_buffer >= one.receive_buffer_wanted);
    // What a running relay was given counts for more than the limit for others: the relay may have
    // the right to exceed it.
    if running.is_some_and(|status| of_udp(status) > 0 && has_all(status)) {
        return vec![Sign::Well("the relay's receive buffers have what was asked for".to_owned())];
    }
    vec![match read_number(FILE) {
        None => Sign::Unseen(format!("{FILE}, the largest receive buffer")),
        Some(most) if most >= wanted => Sign::Well(format!("receive buffers may have {}", ByteSize::b(most))),
        Some(most) => Sign::Wrong(
            format!(
                "receive buffers may have {} only, and {} is asked for: bursts are dropped",
                ByteSize::b(most),
                ByteSize::b(wanted)
            ),
            format!(
                "sysctl -w net.core.rmem_max={wanted}, and in /etc/sysctl.d/twinflux.conf: net.core.rmem_max = {wanted}"
            ),
        ),
    }]
}

/// Compares the limit of open files with the connections that the listeners may have.
fn files(config: &Config) -> Sign {
    let of_tcp = config.tcp.iter().map(|tcp| u64::from(tcp.max_connections));
    let connections: u64 = of_tcp.chain(config.http.iter().map(|http| u64::from(http.max_connections))).sum();
    let wanted = crate::receive::files::wanted(connections);
    match getrlimit(Resource::Nofile).maximum {
        Some(most) if most < wanted => Sign::Doubtful(
            format!("{most} files may be open, and {wanted} are wanted: listeners take fewer connections"),
            format!("in the unit: LimitNOFILE={wanted}; else: ulimit -n {wanted}, or lower max_connections"),
        ),
        _ => Sign::Well(format!("{wanted} files may be open")),
    }
}

fn disk(config: &Config) -> Vec<Sign> {
    let folder = &config.data_dir;
    let own = format!("install -d -m 700 -o twinflux {}", folder.display());
    // If the folder is missing, the relay will create it below the nearest existing ancestor.
    let Some(there) = folder.ancestors().find(|folder| folder.exists()) else {
        return vec![Sign::Wrong("it cannot be created".to_owned(), own)];
    };
    let mut found = Vec::new();
    match rustix::fs::statvfs(there) {
        Err(error) => found.push(Sign::Unseen(format!("its room: {error}"))),
        Ok(volume) => {
            let free = volume.f_bavail * volume.f_frsize;
            let held = folder_bytes(&folder.join("journal"));
            let bound = config.journal.disk.as_u64();
            found.push(if free + held >= bound {
                Sign::Well(format!(
                    "{} are free, and the journal takes {} at most",
                    ByteSize::b(free),
                    ByteSize::b(bound)
                ))
            } else {
                Sign::Doubtful(
                    format!(
                        "{} are free, less than the {} that the journal may take",
                        ByteSize::b(free),
                        ByteSize::b(bound)
                    ),
                    "make room, or lower [journal] disk".to_owned(),
                )
            });
        }
    }
    if there == folder {
        found.push(match trial(folder) {
            Ok((per_second, sync)) => {
                let speed =
                    format!("writes {}/s, syncs in {:.1} ms", ByteSize::b(per_second), sync.as_secs_f64() * 1000.0);
                match config.journal.durability {
                    crate::journal::Durability::Synced if sync > SLOW_SYNC => Sign::Doubtful(
                        format!("{speed}: slow for durability = \"synced\""),
                        "use a faster disk, or durability = \"written\"".to_owned(),
                    ),
                    _ => Sign::Well(speed),
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                Sign::Unseen(format!("whether the relay's user can write: this one cannot ({error})"))
            }
            Err(error) => Sign::Wrong(format!("cannot be written: {error}"), own),
        });
    } else {
        found.push(Sign::Well(format!("is not there yet: the relay creates it in {}", there.display())));
    }
    found
}

/// Writes, syncs and removes a file; returns bytes a second, and the median time of the syncs.
fn trial(folder: &Path) -> std::io::Result<(u64, Duration)> {
    let path = folder.join(format!("doctor-{}", std::process::id()));
    let result = OpenOptions::new().write(true).create_new(true).open(&path).and_then(|file| timed(&file));
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => result,
    }
}

fn timed(mut file: &File) -> std::io::Result<(u64, Duration)> {
    let block = vec![b'x'; TRIAL_BYTES / TRIAL_SYNCS];
    let (mut syncs, begun) = (Vec::new(), Instant::now());
    for _ in 0..TRIAL_SYNCS {
        file.write_all(&block)?;
        let written = Instant::now();
        file.sync_data()?;
        syncs.push(written.elapsed());
    }
    syncs.sort();
    let milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
    Ok((TRIAL_BYTES as u64 * 1000 / milliseconds, syncs[TRIAL_SYNCS / 2]))
}

/// Checks that the listeners' ports are the relay's own, or free.
fn ports(config: &Config, is_running: bool) -> Vec<Sign> {
    if is_running {
        return vec![Sign::Well("the relay runs, and has its ports".to_owned())];
    }
    let setups = match config.listeners(None) {
        Ok(setups) => setups,
        Err(error) => return vec![Sign::Wrong(error.to_string(), "correct the configuration".to_owned())],
    };
    let found = setups.into_iter().map(|setup| {
        let (kind, address) = (setup.kind(), setup.listen());
        match crate::receive::Listener::bind(setup, &mut Inherited::default()) {
            Ok(_) => Sign::Well(format!("{kind} {address} is free")),
            // The relay may hold it, which this user cannot ask, or systemd for it.
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Sign::Doubtful(
                format!("{kind} {address} cannot be used: another program has it"),
                format!("see that it is the relay, or systemd for it: ss -lnp 'sport = {}'", address.port()),
            ),
            Err(error) => Sign::Wrong(
                format!("{kind} {address} cannot be used: {error}"),
                "correct the address: ip -brief address".to_owned(),
            ),
        }
    });
    found.collect()
}

/// Checks, as far as visible, whether a firewall that drops by default lets the UDP ports through.
fn firewall(config: &Config) -> Sign {
    let is_for = |listen: std::net::IpAddr, is_ipv6: bool| listen.is_unspecified() || listen.is_ipv6() == is_ipv6;
    let ports = |is_ipv6: bool| -> Vec<u16> {
        config.udp.iter().filter(|udp| is_for(udp.listen.ip(), is_ipv6)).map(|udp| udp.listen.port()).collect()
    };
    let all: Vec<u16> = config.udp.iter().map(|udp| udp.listen.port()).collect();
    // Where iptables is a front end of nftables, a rule of iptables is the better advice, so ask it
    // first.
    let seen = [
        ("iptables", &["-S"][..], ports(false)),
        ("ip6tables", &["-S"], ports(true)),
        ("nft", &["-s", "list", "ruleset"], all),
    ];
    let mut is_seen = false;
    for (tool, arguments, ports) in seen {
        let Ok(listed) = Command::new(tool).args(arguments).output() else { continue };
        if !listed.status.success() {
            continue;
        }
        is_seen = true;
        if let Some(sign) = unnamed(tool, &String::from_utf8_lossy(&listed.stdout), &ports) {
            return sign;
        }
    }
    if is_seen {
        return Sign::Well("no firewall that this machine shows keeps the UDP ports from hosts".to_owned());
    }
    Sign::Unseen("the firewall's rules (iptables -S, nft -s list ruleset)".to_owned())
}

/// Finds a port that these rules do not name although they drop by default.
fn unnamed(tool: &str, rules: &str, ports: &[u16]) -> Option<Sign> {
    let names = |port: u16| rules.split(|c: char| !c.is_ascii_digit()).any(|word| word == port.to_string());
    let port = ports.iter().find(|port| !names(**port))?;
    let to_do = if tool == "nft" {
        let (table, chain) = dropping_chain(rules)?;
        format!("nft add rule {table} {chain} udp dport {port} accept")
    } else {
        rules.lines().find(|line| line.starts_with("-P INPUT DROP"))?;
        format!("{tool} -I INPUT -p udp --dport {port} -j ACCEPT, or the same in the words of ufw or firewalld")
    };
    Some(Sign::Doubtful(
        format!("the firewall drops what its rules do not name, and none names UDP port {port}"),
        to_do,
    ))
}

/// Returns the nftables table (family and name) and chain that drop incoming packets by default.
fn dropping_chain(rules: &str) -> Option<(String, String)> {
    let (mut table, mut chain) = (String::new(), String::new());
    for line in rules.lines().map(str::trim) {
        let named = |word: &str| line.strip_prefix(word).map(|rest| rest.trim_end_matches('{').trim().to_owned());
        if let Some(name) = named("table ") {
            table = name;
        } else if let Some(name) = named("chain ") {
            chain = name;
        } else if line.contains("hook input") && line.contains("policy drop") {
            return Some((table, chain));
        }
    }
    None
}

fn backends(config: &Config, report: &mut Report) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let destinations = destinations(config);
    for setup in config.backends() {
        report.head(&format!("backend {}", setup.name));
        let signs = match (Backend::new(setup), &runtime) {
            (Err(error), _) => vec![Sign::Wrong(error.to_string(), "correct the file that it names".to_owned())],
            (Ok(_), Err(error)) => vec![Sign::Doubtful(format!("cannot look: {error}"), String::new())],
            (Ok(backend), Ok(runtime)) => runtime.block_on(async {
                let late =
                    || vec![Sign::Wrong(format!("no answer within {} s", EXAMINE_TIMEOUT.as_secs()), String::new())];
                tokio::time::timeout(EXAMINE_TIMEOUT, backend.examine(&destinations)).await.unwrap_or_else(|_| late())
            }),
        };
        signs.iter().for_each(|sign| report.add(sign));
    }
}

/// Examines the pair's other relay.
fn pair(config: &Config, report: &mut Report) {
    let Ok(Some(setup)) = config.pair.setup() else { return };
    report.head("pair");
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    report.add(&match runtime.block_on(crate::pair::look(&setup)) {
        Ok(said) => Sign::Well(format!("{} answers: a relay of version {}", setup.peer, said.version)),
        Err(error) => Sign::Wrong(
            format!("{} does not say how it is: {error}", setup.peer),
            "start it, or see [pair] here, and [admin] listen, users and hosts there".to_owned(),
        ),
    });
}

/// Returns the destinations of the listeners, one for each database.
fn destinations(config: &Config) -> Vec<Arc<Destination>> {
    let mut all: Vec<Arc<Destination>> = Vec::new();
    for setup in config.listeners(None).unwrap_or_default() {
        let destination = &setup.intake().destination;
        let is_known = all.iter().any(|known| known.database() == destination.database());
        if !destination.database().is_empty() && !is_known {
            all.push(Arc::clone(destination));
        }
    }
    all
}

/// Checks that the wall clock did not step during the examination.
fn clock(begun: Instant, wall: SystemTime) -> Sign {
    let passed = begun.elapsed();
    let shown = SystemTime::now().duration_since(wall).unwrap_or_default();
    if passed.abs_diff(shown) > MAX_STEP {
        let what = format!("it stepped by {} ms meanwhile", passed.abs_diff(shown).as_millis());
        return Sign::Wrong(what, "let one program set it: chrony or systemd-timesyncd".to_owned());
    }
    Sign::Well("it did not step meanwhile".to_owned())
}

/// Checks, as far as visible, whether a time service keeps the clock right.
fn synchronisation() -> Sign {
    const TIMESYNCD: &str = "/run/systemd/timesync/synchronized";
    if Path::new(TIMESYNCD).exists() {
        return Sign::Well("systemd-timesyncd keeps it right".to_owned());
    }
    match Command::new("chronyc").arg("tracking").output() {
        Ok(said) if said.status.success() => {
            let said = String::from_utf8_lossy(&said.stdout).into_owned();
            let offset = said.lines().find_map(|line| line.strip_prefix("System time     : "));
            Sign::Well(format!("chrony keeps it right: {}", printable(offset.unwrap_or("it does not tell how well"))))
        }
        _ => Sign::Unseen("what keeps it right (neither systemd-timesyncd nor chronyc answers)".to_owned()),
    }
}

fn read_number(file: &str) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Sums the sizes of the files directly in a folder.
fn folder_bytes(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_firewall_that_drops_is_told_with_the_rule_that_is_missing() {
        let nft = "table ip other {\n}\ntable inet site {\n chain incoming {\n  type filter hook input priority 0; policy drop;\n  \
                   udp dport 8089 accept\n";
        let iptables =
            "-P INPUT DROP\n-A INPUT -i lo -j ACCEPT\n-A ufw-user-input -p udp -m udp --dport 8089 -j ACCEPT\n";
        for (tool, rules, port, expected) in [
            ("nft", nft, 8089, None),
            ("nft", nft, 808, Some("nft add rule inet site incoming udp dport 808 accept")),
            ("iptables", iptables, 8089, None),
            ("ip6tables", iptables, 8090, Some("ip6tables -I INPUT -p udp --dport 8090 -j ACCEPT, or")),
            ("iptables", "-P INPUT ACCEPT\n", 8090, None),
            (
                "nft",
                "table inet filter {\n chain input {\n  type filter hook input priority 0; policy accept;\n",
                8090,
                None,
            ),
        ] {
            let found = unnamed(tool, rules, &[port]).map(|sign| match sign {
                Sign::Doubtful(_, to_do) => to_do,
                other => panic!("{other:?}"),
            });
            let is_expected = match (&found, expected) {
                (Some(found), Some(expected)) => found.starts_with(expected),
                (found, expected) => found.is_none() && expected.is_none(),
            };
            assert!(is_expected, "{tool}: {found:?}");
        }
    }
}
