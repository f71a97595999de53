//! Every answer that a backend can give, and the right thing done for each. In every case the
//! backend's own set of lines and the ledger agree to the line.
//!
//! All cases run side by side: one relay with a backend for each, and one server that answers each
//! by its path.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use twinflux::config::Backend;

use crate::support::{Answer, Running, Scripted, config, influx_error, no_content, wait_for};

/// Good lines.
const GOOD: usize = 40;

/// What is to become of the lines.
#[derive(Clone, Debug)]
enum Expected {
    /// All are delivered, after some tries.
    Delivered,
    /// The bad ones are refused by this class, and the others delivered.
    Refused(&'static str),
    /// All wait, and the backend is in one of these states.
    Waits(&'static [&'static str]),
}

/// What the backend says to these lines, at its `n`th request from 0; none to take them.
type Rule = Box<dyn Fn(usize, &[String]) -> Option<Answer> + Send + Sync>;

struct Case {
    name: String,
    rule: Rule,
    expected: Expected,
}

impl Case {
    fn new(
        name: String,
        expected: Expected,
        rule: impl Fn(usize, &[String]) -> Option<Answer> + Send + Sync + 'static,
    ) -> Self {
        Self { name, expected, rule: Box::new(rule) }
    }
}

/// Bad lines: of another type, and older than any other.
fn bad() -> Vec<String> {
    vec!["m,host=bad v=7i 5".to_owned(), "m,host=bad v=8i,s=\"two,lines\" 6".to_owned(), "m,host=bad v=9i 7".to_owned()]
}

fn is_bad(line: &str) -> bool {
    line.contains("host=bad")
}

fn good() -> Vec<String> {
    (0..GOOD).map(|line| format!("m,host=h{} v={line} {}", line % 4, 1_000_000 + line)).collect()
}

/// Refusals of lines: each text in each version's way to answer.
fn refusals(cases: &mut Vec<Case>) {
    let conflict =
        "field type conflict: input field \"v\" on measurement \"m\" is type integer, already exists as type float";
    for (class, text) in [
        ("field_type", conflict),
        ("retention", "points beyond retention policy"),
        ("series_limit", "max-series-per-database limit exceeded: (3)"),
        ("series_limit", "max-values-per-tag limit exceeded (1/1): measurement=\"m\" tag=\"host\" value=\"bad\""),
        ("unparsable", "unable to parse 'something else': bad timestamp"),
        ("other", "a column limit of 250 is exceeded"),
    ] {
        for style in ["1.x", "1.x by shards", "2.x", "2.x partial", "3.x", "3.x all or nothing", "by line"] {
            let rule = move |_: usize, lines: &[String]| {
                let bad: Vec<&String> = lines.iter().filter(|line| is_bad(line)).collect();
                let first = bad.first()?;
                Some(match style {
                    "1.x" => influx_error(400, &format!("partial write: {text} dropped={}", bad.len())),
                    "1.x by shards" => influx_error(400, &format!("partial write: {text} dropped=1")),
                    "2.x" => (400, Vec::new(), json!({"code": "invalid", "message": text}).to_string()),
                    "2.x partial" => {
                        let text =
                            format!("failure writing points to database: partial write: {text} dropped={}", bad.len());
                        (422, Vec::new(), json!({"code": "unprocessable entity", "message": text}).to_string())
                    }
                    "3.x" => {
                        let listed: Vec<_> = lines.iter().enumerate().filter(|(_, line)| is_bad(line)).collect();
                        let listed: Vec<_> = listed
                            .into_iter()
                            .map(|(place, line)| json!({"original_line": line, "line_number": place + 1, "error_message": text}))
                            .collect();
                        let body = json!({"error": format!("partial write of line protocol occurred: {text}"), "data": listed});
                        (400, Vec::new(), body.to_string())
                    }
                    "3.x all or nothing" => {
                        let place = lines.iter().position(|line| line == *first).unwrap_or_default() + 1;
                        let data = json!([{"original_line": first, "line_number": place, "error_message": text}]);
                        (400, Vec::new(), json!({"error": format!("write failed: {text}"), "data": data}).to_string())
                    }
                    _ => influx_error(400, &format!("unable to parse '{first}': {text}")),
                })
            };
            let class = if style == "by line" { "unparsable" } else { class };
            cases.push(Case::new(format!("{class}, {text}, {style}"), Expected::Refused(class), rule));
        }
    }
}

/// Answers that pass: three times, then the lines are taken.
fn passing(cases: &mut Vec<Case>) {
    let mut add = |status: u16, body: String| {
        let name = format!("{status} {body} for a while");
        cases.push(Case::new(name, Expected::Delivered, move |n, _| {
            (n < 3).then(|| (status, Vec::new(), body.clone()))
        }));
    };
    for status in (400..=431).chain([451, 499, 500, 501, 502, 503, 504, 505, 507, 508, 511, 520, 529, 599, 200, 302]) {
        add(status, "<html>not now</html>".to_owned());
    }
    for text in [
        "partial write: write /x: no space left on device dropped=43",
        "disk quota exceeded",
        "engine: cache-max-memory-size exceeded: (1 / 0)",
        "mmap: cannot allocate memory",
        "timeout",
        "read tcp: i/o timeout",
        "context canceled",
        "context deadline exceeded",
        "unexpected EOF",
        "engine is closed",
        "shard is disabled",
        "shard 7 was removed",
        "shard is being deleted",
        "too many open files",
        "open /x: permission denied",
        "read-only file system",
        "input/output error",
        "upstream connect error or disconnect/reset before headers",
        "no healthy upstream",
        "database is required",
        "please provide either org or orgID",
        "invalid database name",
    ] {
        for status in [400, 422, 500] {
            add(status, json!({"error": text}).to_string());
        }
        add(400, json!({"code": "invalid", "message": text}).to_string());
    }
    for status in [401, 403, 404] {
        add(status, String::new());
        add(status, json!({"error": "database not found: \"x\""}).to_string());
        add(status, json!({"code": "not found", "message": "bucket \"x\" not found"}).to_string());
    }
    // What nobody has heard of yet.
    add(400, json!({"error": "something new"}).to_string());
    add(422, json!({"code": "new", "message": "something new"}).to_string());
    add(413, String::new());
}

/// Answers that stay: nothing is given up, and the state says so.
fn lasting(cases: &mut Vec<Case>) {
    let held = |status: u16| {
        let by_many_tries = matches!(status, 400 | 402 | 406 | 409..=412 | 414..=431 | 499);
        if by_many_tries { &["held", "retrying"][..] } else { &["held"] }
    };
    for status in
        [400, 401, 402, 403, 404, 405, 406, 407, 409, 410, 411, 415, 418, 421, 423, 431, 499, 501, 505, 200, 302]
    {
        cases.push(Case::new(format!("{status} for ever"), Expected::Waits(held(status)), move |_, _| {
            Some((status, Vec::new(), "<html>no</html>".to_owned()))
        }));
    }
    for text in ["something new", "database is required", "invalid database name", "please provide either org or orgID"]
    {
        cases.push(Case::new(format!("{text} for ever"), Expected::Waits(&["held"]), move |_, _| {
            Some(influx_error(400, text))
        }));
    }
    cases.push(Case::new("413 to everything".into(), Expected::Waits(&["held"]), |_, _| {
        Some((413, Vec::new(), String::new()))
    }));
    for status in [429, 500, 502, 503, 504, 507] {
        cases.push(Case::new(format!("{status} for ever"), Expected::Waits(&["retrying"]), move |_, _| {
            Some((status, Vec::new(), String::new()))
        }));
    }
}

/// Bad lines that break every request they are in.
fn breaking(cases: &mut Vec<Case>) {
    for (status, body) in [
        (500, "panic"),
        (502, ""),
        (503, ""),
        (504, ""),
        (418, ""),
        (406, "blocked by the firewall"),
        (400, "<html>Bad Request</html>"),
        (500, r#"{"error":"engine: index out of range"}"#),
    ] {
        cases.push(Case::new(format!("{status} {body} for a line"), Expected::Refused("poison"), move |_, lines| {
            lines.iter().any(|line| is_bad(line)).then(|| (status, Vec::new(), body.to_owned()))
        }));
    }
}

/// What a backend of a case has.
#[derive(Default)]
struct Stored {
    requests: usize,
    lines: BTreeSet<String>,
}

#[test]
fn every_answer_has_its_meaning_and_the_backends_lines_are_the_ledgers() {
    let mut cases = Vec::new();
    refusals(&mut cases);
    passing(&mut cases);
    lasting(&mut cases);
    breaking(&mut cases);
    assert!(cases.len() >= 200, "{}", cases.len());
    let cases = Arc::new(cases);
    let stored: Arc<Mutex<HashMap<usize, Stored>>> = Arc::default();
    let (of_server, all) = (Arc::clone(&cases), Arc::clone(&stored));
    let server = Scripted::start(move |_, request| {
        let number: usize = request.uri.path()[2..].split('/').next().expect("a part").parse().expect("a number");
        let lines: Vec<String> = request.text().lines().map(str::to_owned).collect();
        let mut all = all.lock().expect("no panic");
        let stored = all.entry(number).or_default();
        stored.requests += 1;
        match (of_server[number].rule)(stored.requests - 1, &lines) {
            Some(answer) => answer,
            None => {
                stored.lines.extend(lines);
                no_content()
            }
        }
    });
    let mut config = config(&[]);
    config.backend = (0..cases.len())
        .map(|number| {
            let url = format!("http://{}/c{number}", server.address).parse().expect("a URL");
            let mut backend = Backend::new(format!("c{number}"), url);
            // Long enough for all lines to come.
            backend.linger = Duration::from_millis(500);
            backend
        })
        .collect();
    let relay = Running::start(config);
    let (good, bad) = (good(), bad());
    // In among them.
    let mut lines = good.clone();
    for (place, line) in [(0, 0), (17, 1), (lines.len() - 1, 2)] {
        lines.insert(place, bad[line].clone());
    }
    let count = lines.len() as u64;
    relay.send(&[lines.join("\n")]);

    // What waits has been tried often enough once everything else is over.
    wait_for("every case that ends", || {
        let status = relay.status();
        let is_over = |(case, backend): (&Case, &twinflux::observe::status::Backend)| match case.expected {
            Expected::Waits(_) => backend.requests >= 6,
            _ => backend.pending_lines == 0,
        };
        let open: Vec<&str> = cases
            .iter()
            .zip(&status.backends)
            .filter(|pair| !is_over((pair.0, pair.1)))
            .map(|(case, _)| case.name.as_str())
            .collect();
        open.is_empty().then_some(())
    });
    let status = relay.status();
    let all = stored.lock().expect("no panic");
    let (good, whole): (BTreeSet<_>, BTreeSet<_>) = (good.into_iter().collect(), lines.into_iter().collect());
    for (number, (case, backend)) in cases.iter().zip(&status.backends).enumerate() {
        let about = format!("{}: {backend:?}", case.name);
        let lines = &all[&number].lines;
        let refused: BTreeMap<&str, u64> = backend
            .rejected_lines
            .iter()
            .filter(|(_, lines)| **lines > 0)
            .map(|(class, lines)| (class.as_str(), *lines))
            .collect();
        match case.expected {
            Expected::Delivered => {
                assert_eq!((lines, refused), (&whole, BTreeMap::new()), "{about}");
                assert_eq!((backend.delivered_lines, backend.state.as_str()), (count, "up"), "{about}");
            }
            Expected::Refused(class) => {
                assert_eq!((lines, refused), (&good, BTreeMap::from([(class, 3)])), "{about}");
                assert_eq!((backend.delivered_lines, backend.state.as_str()), (count - 3, "up"), "{about}");
                // 2k(log2(n/k)+2) for 3 among 43, and the first; a breaking line costs its tries as
                // well.
                let most = if class == "poison" { 120 } else { 36 };
                assert!(all[&number].requests <= most, "{} requests: {about}", all[&number].requests);
            }
            Expected::Waits(states) => {
                assert_eq!((lines.len(), refused, backend.pending_lines), (0, BTreeMap::new(), count), "{about}");
                assert!(states.contains(&backend.state.as_str()), "{about}");
                // A whole backend has no database.
                let is_told = backend
                    .held
                    .iter()
                    .all(|held| !held.what_to_do.is_empty() && (held.database == "telegraf" || held.reason == "setup"));
                assert_eq!(backend.state == "held", !backend.held.is_empty(), "{about}");
                assert!(is_told && backend.last_error.is_some(), "{about}");
            }
        }
    }
}
