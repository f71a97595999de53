//! Statements as readers send them, difficult input for the lexer, and ranges of time.

use super::parser::{Kind, Statement, parse};
use super::{Create, MAX_BYTES, only_reads};
use crate::protocol::Span;

const SECOND: i64 = 1_000_000_000;
/// The time of all queries: the morning of 2026-11-27.
const NOW: i64 = 1_795_770_000 * SECOND;
const SLACK: i64 = 2 * SECOND;

fn one(text: &str) -> Statement {
    let mut statements = parse(text, NOW).unwrap_or_else(|wrong| panic!("{text}: {wrong}"));
    assert_eq!(statements.len(), 1, "{text}");
    statements.remove(0)
}

fn kinds(text: &str) -> Vec<Kind> {
    let statements = parse(text, NOW).unwrap_or_else(|wrong| panic!("{text}: {wrong}"));
    statements.iter().map(|statement| statement.kind).collect()
}

#[test]
fn every_kind_of_statement_is_known() {
    use Kind::{
        ChangePolicy, ContinuousQuery, Create, Explain, OneServer, Remove, Select, SelectInto, ShowAdmin, ShowData,
        ShowDatabases, ShowServer, Subscription, Users,
    };
    for (text, kind) in [
        (
            "SELECT mean(\"usage\") FROM \"cpu\" WHERE time >= 1ms and time <= 2ms GROUP BY time(10s), \"host\" fill(null)",
            Select,
        ),
        ("select * from /cpu.*/, db.rp.m, db..m limit 5 slimit 1", Select),
        ("SELECT a / b FROM (SELECT mean(x) AS a, max(y)/2 AS b FROM m GROUP BY time(1m)) tz('Europe/Berlin')", Select),
        ("SELECT DISTINCT v FROM m", Select),
        ("SELECT distinct(v), *::tag, /x/, v::float, top(v, host, 3) FROM m ORDER BY time DESC", Select),
        (
            "SELECT percentile(v, 95) - -3 FROM m WHERE host =~ /a\\/b;--\"'/ AND v != 'x' OR (v <> 3 AND b = true)",
            Select,
        ),
        ("SELECT * INTO x FROM m", SelectInto),
        ("SELECT v INTO db.rp.:MEASUREMENT FROM /.*/ GROUP BY *", SelectInto),
        ("SELECT a FROM (SELECT v INTO x FROM m)", Select),
        ("EXPLAIN ANALYZE SELECT v FROM m", Explain),
        ("EXPLAIN SELECT v INTO x FROM m", SelectInto),
        ("SHOW DATABASES", ShowDatabases),
        ("SHOW RETENTION POLICIES ON \"db\"", ShowData),
        ("SHOW RETENTION POLICIES", ShowData),
        ("SHOW MEASUREMENTS WITH MEASUREMENT =~ /(?i)x/ LIMIT 100", ShowData),
        ("SHOW measurements", ShowData),
        ("SHOW SERIES EXACT CARDINALITY ON db", ShowData),
        ("SHOW MEASUREMENT CARDINALITY", ShowData),
        ("SHOW TAG KEYS FROM rp.\"m\" WHERE host = 'a'", ShowData),
        ("SHOW TAG VALUES ON db FROM cpu WITH KEY = \"host\" WHERE \"a\" =~ /^$/", ShowData),
        ("SHOW TAG VALUES WITH KEY IN (\"a\", b)", ShowData),
        ("SHOW FIELD KEYS FROM m", ShowData),
        ("SHOW FIELD KEY CARDINALITY", ShowData),
        ("SHOW USERS", ShowAdmin),
        ("SHOW GRANTS FOR \"me\"", ShowAdmin),
        ("SHOW CONTINUOUS QUERIES", ShowAdmin),
        ("SHOW SUBSCRIPTIONS", ShowAdmin),
        ("SHOW SHARDS", ShowServer),
        ("SHOW SHARD GROUPS", ShowServer),
        ("SHOW STATS FOR 'runtime'", ShowServer),
        ("SHOW DIAGNOSTICS", ShowServer),
        ("SHOW QUERIES", ShowServer),
        ("CREATE DATABASE x WITH DURATION 30d REPLICATION 1 SHARD DURATION 1h NAME week", Create),
        ("CREATE RETENTION POLICY week ON db DURATION INF REPLICATION 1 DEFAULT", Create),
        ("ALTER RETENTION POLICY week ON db DURATION 1w", ChangePolicy),
        ("DROP RETENTION POLICY week ON db", ChangePolicy),
        ("DROP DATABASE x", Remove),
        ("DROP MEASUREMENT \"a b\"", Remove),
        ("DROP SERIES FROM m WHERE host = 'a'", Remove),
        ("DELETE WHERE time < now() - 1d", Remove),
        ("DELETE FROM /x/", Remove),
        ("CREATE USER me WITH PASSWORD 'x' WITH ALL PRIVILEGES", Users),
        ("DROP USER me", Users),
        ("SET PASSWORD FOR me = 'x'", Users),
        ("GRANT ALL PRIVILEGES TO me", Users),
        ("GRANT READ ON db TO me", Users),
        ("REVOKE ALL ON db FROM me", Users),
        (
            "CREATE CONTINUOUS QUERY q ON db RESAMPLE EVERY 1m FOR 2m BEGIN SELECT mean(v) INTO x FROM m GROUP BY time(1m) END",
            ContinuousQuery,
        ),
        ("DROP CONTINUOUS QUERY q ON db", ContinuousQuery),
        ("CREATE SUBSCRIPTION s ON \"db\".\"rp\" DESTINATIONS ALL 'udp://h:1', 'http://h:2'", Subscription),
        ("DROP SUBSCRIPTION s ON db.rp", Subscription),
        ("KILL QUERY 36", OneServer),
        ("DROP SHARD 3", OneServer),
    ] {
        assert_eq!(kinds(text), [kind], "{text}");
        if !only_reads(text) {
            continue;
        }
        assert!(kind.is_read(), "{text}");
    }
}

#[test]
fn what_ends_a_comment_a_string_or_an_expression_is_what_the_server_takes_for_it() {
    use Kind::{Remove, Select, SelectInto, ShowDatabases};
    for (text, expected) in [
        ("SHOW DATABASES -- x\r;DROP DATABASE y", &[ShowDatabases, Remove][..]),
        ("SHOW DATABASES -- x\n;DROP DATABASE y", &[ShowDatabases, Remove]),
        ("SHOW DATABASES -- x ;DROP DATABASE y", &[ShowDatabases]),
        ("SHOW DATABASES /* ;DROP DATABASE y */", &[ShowDatabases]),
        ("SHOW DATABASES /* /* */ ; DROP DATABASE y", &[ShowDatabases, Remove]),
        ("SELECT v FROM /a--b/;DROP MEASUREMENT y", &[Select, Remove]),
        ("SELECT v FROM /a\"b/ WHERE x =~ /c\"d/; DROP DATABASE y", &[Select, Remove]),
        ("SELECT v FROM m WHERE x =~ /;/", &[Select]),
        ("SELECT v FROM/\\\\/--/;DROP DATABASE y", &[Select, Remove]),
        ("SELECT v FROM /a\\\\/ -- /;DROP DATABASE victim", &[Select, Remove]),
        ("D\0ROP DATABASE v", &[]),
        ("SELECT v IN\0TO x FROM m", &[]),
        ("SELECT a / b INTO x FROM c / d", &[]),
        ("SELECT a / b INTO x FROM c", &[SelectInto]),
        ("SELECT value+1.INTO x FROM m", &[SelectInto]),
        ("SELECT \"x;DROP DATABASE y\" FROM m", &[Select]),
        ("SELECT 'a\\';DROP DATABASE y' FROM m", &[Select]),
        ("SELECT 'a''b' FROM m", &[]),
        ("SELECT v FROM m WHERE x = 'a\n'", &[]),
        ("SELECT INTO\"x\" FROM m", &[Select]),
        ("SELECT v FROM m;;SHOW DATABASES;", &[Select, ShowDatabases]),
        ("SELECT v FROM m SHOW DATABASES", &[]),
        ("", &[]),
        ("SHOW DATABASES \u{a0}", &[]),
        ("SHOW DATABASES -- x\0;DROP DATABASE y", &[]),
        ("DROP DATABASE y -- \u{212a}", &[Remove]),
        ("\u{212a}ILL QUERY 3", &[]),
        ("SELECT now /**/ () FROM m", &[]),
        ("SELECT v FROM /*x*/ m", &[]),
        ("DELETE", &[]),
        ("INSERT x v=1", &[]),
        ("USE db; DROP DATABASE x", &[]),
    ] {
        let found = parse(text, NOW).map(|found| found.iter().map(|one| one.kind).collect::<Vec<_>>());
        match found {
            Ok(found) => assert_eq!(found, expected, "{text:?}"),
            Err(_) => assert!(expected.is_empty(), "{text:?}"),
        }
    }
    for text in ["D\0ROP DATABASE v", "SELECT v IN\0TO x FROM m"] {
        assert!(!only_reads(text), "the server passes over a NUL");
    }
    let deep = format!("SELECT {}v{} FROM m", "(".repeat(5_000), ")".repeat(5_000));
    assert!(parse(&deep, NOW).is_err());
    let deep = format!("SELECT {}v FROM m", "- ".repeat(5_000));
    assert!(parse(&deep, NOW).is_err());
}

#[test]
fn databases_are_those_that_are_named_and_the_requests_own() {
    for (text, named, uses_default) in [
        ("SELECT v FROM m", &[][..], true),
        ("SELECT v FROM rp.m", &[], true),
        ("SELECT v FROM a.rp.m, b..m", &["a", "b"], false),
        ("SELECT v FROM a../x/, m", &["a"], true),
        ("SELECT v FROM (SELECT v FROM a.b.c)", &["a"], false),
        ("SELECT v INTO x..y FROM a.b.c", &["a", "x"], false),
        ("SHOW TAG KEYS ON x FROM m", &["x"], true),
        ("SHOW MEASUREMENTS ON x", &["x"], false),
        ("SHOW SERIES", &[], true),
        ("DROP MEASUREMENT m", &[], true),
        ("DROP DATABASE x", &["x"], false),
        ("DELETE FROM m WHERE time < 5", &[], true),
        ("DELETE WHERE host = 'a'", &[], true),
        ("SELECT v FROM \"\"..m", &[], true),
        ("SHOW MEASUREMENTS ON \"\"", &[], true),
    ] {
        let found = one(text);
        let names: Vec<&str> = found.databases.iter().map(String::as_str).collect();
        assert_eq!(names, named, "{text}");
        assert!(found.uses_default || !uses_default, "{text}");
    }
}

#[test]
fn the_times_that_are_read_are_never_less_than_they_are() {
    let day = 86_400 * SECOND;
    let span = |from: i64, until: i64| Span { from: from.saturating_sub(SLACK), until: until.saturating_add(SLACK) };
    let (always_from, always_until) = (i64::MIN, i64::MAX);
    let date = 1_136_160_000 * SECOND;
    for (condition, expected) in [
        ("time >= 1000ms and time <= 2000ms", span(SECOND, 2 * SECOND)),
        ("time >= 1000000000 AND \"time\" < 3s", span(SECOND, 3 * SECOND)),
        ("TIME > now() - 1h", span(NOW - 3600 * SECOND, always_until)),
        ("now() - 1h < time", span(NOW - 3600 * SECOND, always_until)),
        ("time < now() + 2d - 1d", span(always_from, NOW + day)),
        ("time = '2006-01-02'", span(date, date)),
        (
            "time >= '2006-01-02 00:00:01.5' and time < '2006-01-02T00:00:02Z'",
            span(date + 3 * SECOND / 2, date + 2 * SECOND),
        ),
        ("time >= '2006-01-02T02:00:00+02:00'", span(date, always_until)),
        ("(time > 5s OR time < 3s)", span(5 * SECOND, 3 * SECOND)),
        ("host = 'a' AND (time > 1s AND (time < 2s OR v > 3))", span(SECOND, 2 * SECOND)),
        ("time - 1h > 3s", Span::ALWAYS),
        ("time > $from", Span::ALWAYS),
        ("time > 'nonsense'", Span::ALWAYS),
        ("v > 5", Span::ALWAYS),
    ] {
        assert_eq!(one(&format!("SELECT v FROM m WHERE {condition}")).points, expected, "{condition}");
    }
    for (text, expected) in [
        ("SELECT v FROM m", Span::ALWAYS),
        ("SELECT mean(v) FROM m WHERE time > 100s GROUP BY time(10s)", span(90 * SECOND, NOW + 15 * SECOND)),
        (
            "SELECT derivative(mean(v)) FROM m WHERE time > 100s AND time < 200s GROUP BY time(10s)",
            span(80 * SECOND, 220 * SECOND),
        ),
        (
            "SELECT moving_average(mean(v), 5) FROM m WHERE time > 100s AND time < 200s GROUP BY time(10s)",
            span(40 * SECOND, 260 * SECOND),
        ),
        (
            "SELECT max(a) FROM (SELECT mean(v) AS a FROM m WHERE time > 5s GROUP BY time(1s)) WHERE time < 9s",
            span(4 * SECOND, 10 * SECOND),
        ),
        (
            "SELECT a FROM (SELECT v FROM m WHERE time > 5s), (SELECT v FROM m WHERE time > 7s)",
            span(5 * SECOND, always_until),
        ),
        ("SELECT v FROM m WHERE time > '2006-01-02' tz('Asia/Tokyo')", span(date - 15 * 3600 * SECOND, always_until)),
    ] {
        assert_eq!(one(text).points, expected, "{text}");
    }
}

#[test]
fn every_now_is_found_but_those_of_an_interval() {
    let text = "DELETE FROM m WHERE time < now() - 1d AND time > now( ) - 2d";
    let nows: Vec<&str> = one(text).nows.iter().map(|range| &text[range.clone()]).collect();
    assert_eq!(nows, ["now()", "now( )"]);
    assert!(one("SELECT v FROM m GROUP BY time(1d, now())").nows.is_empty());
}

#[test]
fn an_expression_of_any_length_is_read_or_refused_on_a_listeners_stack() {
    for operator in ["+v", " AND v", " OR v=1", "*v"] {
        let text = |count| format!("SELECT v FROM m WHERE v{}", operator.repeat(count));
        assert!(parse(&text(900), NOW).is_ok());
        let long = text(MAX_BYTES / operator.len() - 100);
        assert!(parse(&long, NOW).is_err_and(|wrong| wrong.what.contains("operators")));
        assert!(only_reads(&long));
    }
}

#[test]
fn what_writers_create_is_known_here_too() {
    for text in ["CREATE DATABASE telegraf", "CREATE RETENTION POLICY \"w\" ON telegraf DURATION 1w REPLICATION 1"] {
        assert!(Create::parse(text).is_some() && kinds(text) == [Kind::Create], "{text}");
    }
}

proptest::proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,120}") {
        drop(parse(&text, NOW));
    }

    #[test]
    fn any_mixture_is_read_or_refused_and_what_only_reads_changes_nothing(
        parts in proptest::collection::vec(proptest::sample::select(vec![
            "SELECT ", "v", " FROM ", "m", " WHERE ", "time", " > ", "now()", "1h", "'x'", "\"y\"", "/", "-", "--", "/*", "*/", "\n", "\r",
            ";", "(", ")", ",", " GROUP BY ", "time(", " INTO ", "DROP ", "DATABASE ", "SHOW ", "DATABASES", "=~", ".", "::", "1.", "*", " AND ",
        ]), 0..30),
    ) {
        let text = parts.concat();
        if let Ok(found) = parse(&text, NOW) {
            if only_reads(&text) {
                proptest::prop_assert!(found.iter().all(|one| one.kind.is_read()), "{}", text);
            }
            for statement in &found {
                proptest::prop_assert!(text.is_char_boundary(statement.text.start) && statement.text.end <= text.len());
            }
        }
    }
}
