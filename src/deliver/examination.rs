//! `twinflux doctor`'s check of one backend: what answers, whether it accepts lines, whether it can
//! be read, and its clock.
//!
//! Never does: change anything there, or create a missing database. Bounds: the time limits of
//! requests.

use std::sync::Arc;
use std::time::SystemTime;

use super::flusher::advice;
use super::influx::{Influx, Ran};
use super::outcome::Fate;
use super::probe::Probed;
use crate::batch::Destination;
use crate::protocol::influxql::quoted;

/// Tolerated clock difference in seconds: the answer's date has whole seconds.
const MAX_SECONDS: u64 = 3;

/// A certificate that expires in fewer days should be renewed, as with our own.
const SOON_DAYS: u64 = 14;

/// A finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sign {
    /// Everything is as it should be.
    Well(String),
    /// A fault, and how to fix it.
    Wrong(String, String),
    /// A possible fault, and how to fix it.
    Doubtful(String, String),
    /// Not visible to this user, or to a hardened unit.
    Unseen(String),
}

/// Examines a backend for these destinations.
pub(super) async fn examine(probed: Probed, destinations: &[Arc<Destination>]) -> Vec<Sign> {
    match probed {
        Probed::Influx(mut influx) => of_influx(&mut influx, destinations).await,
        Probed::Archive(archive) if !archive.folder().exists() => {
            let folder = archive.folder().display();
            vec![Sign::Well(format!("{folder} is not there yet: the relay makes it"))]
        }
        Probed::Archive(archive) => match archive.check().await {
            Ok(what) => vec![Sign::Well(what)],
            Err(error) => {
                vec![Sign::Wrong(error.to_string(), "let the relay's user write there, and make room".to_owned())]
            }
        },
        Probed::Relay(host) => {
            let found = tokio::net::lookup_host(&*host).await.map(Iterator::count);
            vec![match found {
                Ok(1..) => Sign::Well(format!("{host} has an address; UDP gives no answer, so no more can be seen")),
                Ok(0) => Sign::Wrong(format!("{host} has no address"), NAME.to_owned()),
                Err(error) => Sign::Wrong(format!("cannot resolve {host}: {error}"), NAME.to_owned()),
            }]
        }
    }
}

/// How to fix a name.
const NAME: &str = "correct the url, or the name service: getent hosts NAME";

async fn of_influx(influx: &mut Influx, destinations: &[Arc<Destination>]) -> Vec<Sign> {
    let begun = SystemTime::now();
    let pong = match influx.ping().await {
        Ok(pong) => pong,
        Err(missed) => {
            let to_do = match missed.fate {
                Fate::HoldBackend => "correct the url: something else answers there, or it speaks TLS",
                _ => "start the server, correct the url, or let the firewall pass it",
            };
            return vec![Sign::Wrong(missed.text, to_do.to_owned())];
        }
    };
    let version = pong.version.as_deref().unwrap_or("without a version");
    let mut signs = vec![Sign::Well(format!("InfluxDB {version} answers"))];
    if let Ok(Some(expires)) = influx.certificate_expires().await {
        signs.push(of_certificate(expires, SystemTime::now()));
    }
    signs.extend(pong.date.map(|date| of_clock(date, begun, SystemTime::now())));
    for destination in destinations {
        of_database(&mut signs, influx, destination).await;
    }
    signs
}

/// Reports a trusted certificate and its expiry.
fn of_certificate(expires: SystemTime, now: SystemTime) -> Sign {
    let days = expires.duration_since(now).unwrap_or_default().as_secs() / (24 * 3600);
    let what = format!("its certificate is trusted, and expires in {days} days");
    if days < SOON_DAYS {
        return Sign::Doubtful(what, "renew it on the server: once it has expired, its lines wait".to_owned());
    }
    Sign::Well(what)
}

/// Compares the server's clock, in whole seconds, with ours before the request and after the
/// answer.
fn of_clock(date: SystemTime, begun: SystemTime, ended: SystemTime) -> Sign {
    let behind = begun.duration_since(date).unwrap_or_default().as_secs();
    let ahead = date.duration_since(ended).unwrap_or_default().as_secs();
    match behind.max(ahead) {
        0..=MAX_SECONDS => Sign::Well("its clock is ours".to_owned()),
        seconds => {
            let how = if behind > ahead { "behind" } else { "ahead" };
            let to_do = "run chrony or systemd-timesyncd on both machines".to_owned();
            Sign::Wrong(format!("its clock is {seconds} s {how} of this machine's"), to_do)
        }
    }
}

async fn of_database(signs: &mut Vec<Sign>, influx: &mut Influx, destination: &Destination) {
    let database = destination.database();
    match influx.run(&format!("SHOW RETENTION POLICIES ON {}", quoted(database)), None).await {
        Ran::Done(answer) => signs.push(of_retention(&answer, destination)),
        Ran::Refused(error) if error.contains("database not found") => {
            let create = format!("CREATE DATABASE {}", quoted(database));
            let to_do = format!("make it there: influx -execute '{create}'; or set create_database = true");
            signs.push(Sign::Wrong(format!("it has no database {database}"), to_do));
            return;
        }
        Ran::Refused(error) | Ran::Later(error) | Ran::Unsure(error) => {
            let to_do =
                format!("let its user read {database}, or name a query_username, if readers are to be sent there");
            signs.push(Sign::Doubtful(format!("{database} cannot be read: {error}"), to_do));
        }
    }
    let outcome = influx.ask(destination).await;
    match outcome.fate {
        Fate::HoldDestination | Fate::HoldBackend | Fate::Down | Fate::Stalled => {
            let (_, to_do) = advice(&outcome, destination);
            signs.push(Sign::Wrong(format!("{database} takes no lines: {}", outcome.text), to_do));
        }
        Fate::Delivered | Fate::Rejected { .. } | Fate::TooLarge => {
            signs.push(Sign::Well(format!("{database} takes lines")));
        }
        _ => {
            let to_do = "look at the server's log, and at what stands before it".to_owned();
            signs.push(Sign::Doubtful(format!("{database} may take no lines: {}", outcome.text), to_do));
        }
    }
}

/// Checks that the destination's retention policy exists, and reports how long it keeps points.
fn of_retention(answer: &str, destination: &Destination) -> Sign {
    let (database, retention_policy) = (destination.database(), destination.retention_policy());
    let json: serde_json::Value = serde_json::from_str(answer).unwrap_or_default();
    let series = &json["results"][0]["series"][0];
    let column = |name: &str| series["columns"].as_array().and_then(|all| all.iter().position(|one| one == name));
    let (name, duration, default) = (column("name"), column("duration"), column("default"));
    let rows = series["values"].as_array().map_or(&[][..], Vec::as_slice);
    let cell = |row: &serde_json::Value, at: Option<usize>| at.map(|at| row[at].clone()).unwrap_or_default();
    let wanted = rows.iter().find(|row| match retention_policy {
        "" => cell(row, default) == true,
        wanted => cell(row, name) == wanted,
    });
    match wanted {
        Some(row) => {
            let (name, kept) = (cell(row, name), cell(row, duration));
            let kept = match kept.as_str() {
                Some("0s") | None => "for ever".to_owned(),
                Some(kept) => format!("for {kept}: older points are refused"),
            };
            Sign::Well(format!("{database} can be read; {} keeps points {kept}", name.as_str().unwrap_or("its policy")))
        }
        None if retention_policy.is_empty() => Sign::Well(format!("{database} can be read")),
        None => Sign::Wrong(
            format!("{database} has no retention policy {retention_policy}"),
            format!(
                "make it there: CREATE RETENTION POLICY {} ON {} DURATION INF REPLICATION 1",
                quoted(retention_policy),
                quoted(database)
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::protocol::Precision;

    #[test]
    fn a_certificate_that_expires_soon_is_told() {
        let now = SystemTime::UNIX_EPOCH;
        let in_days = |days: u64| of_certificate(now + Duration::from_secs(days * 24 * 3600 + 1), now);
        assert!(matches!(in_days(14), Sign::Well(what) if what.ends_with("in 14 days")));
        assert!(matches!(in_days(13), Sign::Doubtful(what, _) if what.ends_with("in 13 days")));
    }

    #[test]
    fn clocks_may_differ_by_what_an_answer_cannot_tell() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_400_726);
        let sign = |seconds: i64| {
            let date = if seconds < 0 {
                now - Duration::from_secs(seconds.unsigned_abs())
            } else {
                now + Duration::from_secs(seconds.unsigned_abs())
            };
            match of_clock(date, now, now) {
                Sign::Wrong(what, _) => what,
                _ => "well".to_owned(),
            }
        };
        assert_eq!([0, 3, -3].map(sign), ["well"; 3]);
        assert_eq!(sign(-100), "its clock is 100 s behind of this machine's");
        assert_eq!(sign(3600), "its clock is 3600 s ahead of this machine's");
    }

    #[test]
    fn the_policy_that_lines_go_to_is_looked_for() {
        let answer = r#"{"results":[{"series":[{"columns":["name","duration","groupDuration","replicaN","default"],
            "values":[["autogen","0s","168h0m0s",1,false],["week","168h0m0s","24h0m0s",1,true]]}]}]}"#;
        let sign = |policy: &str| {
            let (database, retention_policy) = ("db".to_owned(), policy.to_owned());
            match of_retention(answer, &Destination::new(database, retention_policy, Precision::Nanoseconds)) {
                Sign::Well(what) | Sign::Wrong(what, _) | Sign::Doubtful(what, _) | Sign::Unseen(what) => what,
            }
        };
        assert_eq!(sign(""), "db can be read; week keeps points for 168h0m0s: older points are refused");
        assert_eq!(sign("autogen"), "db can be read; autogen keeps points for ever");
        assert_eq!(sign("year"), "db has no retention policy year");
    }
}
