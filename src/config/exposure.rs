//! Finds folders, secret files and credentials that others on this machine, or on the way to a
//! backend, may read or change.
//!
//! Owns the warnings, each one sentence that says what would be right. Never changes or refuses
//! anything: a relay that receives metrics is worth more than one that does not start.

use std::net::{IpAddr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use http::Uri;

use crate::config::url::BackendUrl;
use crate::config::{Backend, Config};

/// Mode bits that must not be set: a service's group may read, but nobody else may write.
const WRITABLE: u32 = 0o022;
/// With this bit on a folder, only an entry's owner may replace it.
const STICKY: u32 = 0o1000;

/// Returns the warnings of a configuration; none for files that are missing.
pub(super) fn warnings(config: &Config) -> Vec<String> {
    let mut warnings: Vec<_> = folder(&config.data_dir, "data_dir").into_iter().collect();
    for backend in &config.backend {
        let who = format!("backend {:?}", backend.name);
        // A folder inside the data folder is as accessible as that is.
        if let BackendUrl::Archive(path) = &backend.url
            && !path.starts_with(&config.data_dir)
        {
            warnings.extend(folder(path, &who));
        }
        warnings.extend(of_credentials(backend, &who));
    }
    warnings.extend(of_pair(config));
    warnings
}

/// Returns the warnings of the pair's token, which may administer the other relay.
fn of_pair(config: &Config) -> Vec<String> {
    let Some(path) = &config.pair.token_file else { return Vec::new() };
    let mut warnings: Vec<String> =
        open_file(path, "token_file of pair").into_iter().chain(replaceable(path, "token_file of pair")).collect();
    let peer: Option<Uri> = config.pair.peer.as_ref().and_then(|peer| peer.parse().ok());
    let plain = peer.filter(|peer| peer.scheme_str() == Some("http"));
    if let Some(host) = plain.as_ref().and_then(Uri::host).filter(|host| !is_here(host)) {
        warnings.push(format!(
            "the token of pair goes to {host} over plain http://, readable by whoever is on the way: use https://"
        ));
    }
    warnings
}

/// Returns the warnings of one backend's credentials; `who` names the backend.
pub(crate) fn of_credentials(backend: &Backend, who: &str) -> Vec<String> {
    let mut warnings = Vec::new();
    let files = [
        (&backend.password_file, "password_file"),
        (&backend.token_file, "token_file"),
        (&backend.query_password_file, "query_password_file"),
        (&backend.query_token_file, "query_token_file"),
        (&backend.admin_password_file, "admin_password_file"),
    ];
    for (file, key) in files {
        let Some(path) = file else { continue };
        let what = format!("{key} of {who}");
        warnings.extend(open_file(path, &what));
        warnings.extend(replaceable(path, &what));
    }
    if holds_secrets(backend)
        && let BackendUrl::Influx { base, .. } = &backend.url
        && base.scheme_str() == Some("http")
        && let Some(host) = base.host().filter(|host| !is_here(host))
    {
        warnings.push(format!(
            "the credentials of {who} go to {host} over plain http://, readable by whoever is on the way: use https://"
        ));
    }
    warnings
}

/// Whether a backend has a password or a token.
pub(crate) fn holds_secrets(backend: &Backend) -> bool {
    backend.password_file.is_some() || backend.token_file.is_some()
}

fn folder(path: &Path, what: &str) -> Option<String> {
    let mode = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_dir)?.mode();
    open(path, what, mode)
}

fn open_file(path: &Path, what: &str) -> Option<String> {
    open(path, what, std::fs::metadata(path).ok()?.mode())
}

fn open(path: &Path, what: &str, mode: u32) -> Option<String> {
    let may = match (mode & 0o005 != 0, mode & WRITABLE != 0) {
        (true, true) => "read and written",
        (true, false) => "read",
        (false, true) => "written",
        (false, false) => return None,
    };
    let (path, mode) = (path.display(), mode & 0o7777);
    Some(format!("{path} ({what}) may be {may} by others (mode {mode:04o}): chmod g-w,o-rwx {path}"))
}

/// Whether others may replace a secret's file by another.
fn replaceable(path: &Path, what: &str) -> Option<String> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let mode = std::fs::metadata(parent).ok()?.mode();
    let is_open = mode & WRITABLE != 0 && mode & STICKY == 0;
    let parent = parent.display();
    is_open.then(|| {
        format!("others may replace the {what} (folder {parent}, mode {:04o}): chmod go-w {parent}", mode & 0o7777)
    })
}

/// Whether a host is this machine, as far as that is known without a DNS query.
fn is_here(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase();
    match host.parse::<IpAddr>() {
        // Only an address of this machine can be bound.
        Ok(address) => address.to_canonical().is_loopback() || UdpSocket::bind((address, 0)).is_ok(),
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn backend(url: &str) -> Backend {
        Backend::new("a".to_owned(), url.parse().expect("a URL"))
    }

    #[test]
    fn folders_and_secrets_that_others_may_read_or_write_are_told() {
        let folder = tempfile::tempdir().expect("folder");
        let (data, secret) = (folder.path().join("data"), folder.path().join("secret"));
        std::fs::create_dir(&data).expect("a folder");
        std::fs::write(&secret, "x").expect("write");
        let mut config = Config { data_dir: data.clone(), ..Config::default() };
        config.backend.push(Backend { password_file: Some(secret.clone()), ..backend("http://127.0.0.1:8086") });
        for (of_data, of_secret, expected) in [
            (0o700, 0o600, &[][..]),
            (0o750, 0o440, &[]),
            (0o755, 0o400, &["(data_dir) may be read by others (mode 0755)"]),
            (0o777, 0o600, &["(data_dir) may be read and written by others (mode 0777)"]),
            (0o1733, 0o600, &["(data_dir) may be read and written by others (mode 1733)"]),
            (0o720, 0o600, &["(data_dir) may be written by others"]),
            (0o700, 0o644, &["(password_file of backend \"a\") may be read by others (mode 0644): chmod g-w,o-rwx "]),
            (0o705, 0o602, &["(data_dir)", "(password_file of backend \"a\") may be written"]),
        ] {
            set_permissions(&data, Permissions::from_mode(of_data)).expect("permissions");
            set_permissions(&secret, Permissions::from_mode(of_secret)).expect("permissions");
            let told = warnings(&config);
            assert_eq!(told.len(), expected.len(), "{of_data:o} {of_secret:o}: {told:?}");
            for (told, expected) in told.iter().zip(expected) {
                assert!(told.contains(expected), "{told}");
            }
        }
        set_permissions(&data, Permissions::from_mode(0o700)).expect("permissions");
        set_permissions(&secret, Permissions::from_mode(0o600)).expect("permissions");
        set_permissions(folder.path(), Permissions::from_mode(0o777)).expect("permissions");
        assert!(warnings(&config)[0].starts_with("others may replace the password_file of backend \"a\""));
        set_permissions(folder.path(), Permissions::from_mode(0o1777)).expect("permissions");
        assert_eq!(warnings(&config), Vec::<String>::new());
        config.backend[0].password_file = Some("/nowhere/at/all".into());
        assert_eq!(warnings(&config), Vec::<String>::new());
    }

    #[test]
    fn credentials_over_plain_http_to_another_machine_are_told() {
        for (url, is_told) in [
            ("http://192.0.2.7:8086", true),
            ("http://influx.example:8086", true),
            ("http://[2001:db8::7]:8086", true),
            ("http://localhost.example:8086", true),
            ("https://influx.example:8086", false),
            ("http://localhost:8086", false),
            ("http://LOCALHOST:8086", false),
            ("http://127.0.0.2:8086", false),
            ("http://[::1]:8086", false),
        ] {
            let with_token = Backend { token_file: Some("/nowhere/token".into()), ..backend(url) };
            let told = of_credentials(&with_token, "backend \"a\"");
            assert_eq!(told.len(), usize::from(is_told), "{url}: {told:?}");
            assert!(told.iter().all(|told| told.contains("https://") && told.contains("backend \"a\"")), "{told:?}");
            assert_eq!(of_credentials(&backend(url), "a"), Vec::<String>::new());
        }
    }
}
