//! The times of the points that a `SELECT` reads, or a wider range.
//!
//! InfluxDB intersects all comparisons with `time`, whatever operators connect them. Here a
//! comparison that is not understood does not narrow the range.

use super::select::{Expression, Select};
use crate::protocol::Span;

/// Maximum difference of the clocks of relay and server, in nanoseconds.
const CLOCK_SLACK: i64 = 2_000_000_000;
/// Maximum time that a query may queue, in nanoseconds. The last group ends when the server runs
/// the query.
pub const LONGEST_IN_LINE: i64 = 5_000_000_000;
/// Maximum distance of a time zone from UTC, in nanoseconds, with a margin.
const ZONE_SLACK: i64 = 15 * 3_600_000_000_000;
/// Functions that read intervals before the first one.
const LOOK_BACK: [&str; 14] = [
    "derivative",
    "non_negative_derivative",
    "difference",
    "non_negative_difference",
    "elapsed",
    "cumulative_sum",
    "moving_average",
    "exponential_moving_average",
    "double_exponential_moving_average",
    "triple_exponential_moving_average",
    "triple_exponential_derivative",
    "relative_strength_index",
    "kaufmans_efficiency_ratio",
    "chande_momentum_oscillator",
];

/// Returns the times that a statement may read; `now` in nanoseconds since 1970.
pub(super) fn of(select: &Select, now: i64) -> Span {
    let read = within(select, Span::ALWAYS, now);
    Span { from: read.from.saturating_sub(CLOCK_SLACK), until: read.until.saturating_add(CLOCK_SLACK) }
}

/// Returns the times that a statement may read within the range of its outer query.
fn within(select: &Select, outer: Span, now: i64) -> Span {
    let slack = if select.has_zone { ZONE_SLACK } else { 0 };
    let own = select.condition.as_ref().map_or(Span::ALWAYS, |condition| of_condition(condition, now, slack));
    let mut own = Span { from: own.from.max(outer.from), until: own.until.min(outer.until) };
    // Without an upper bound, groups end now.
    if select.interval.is_some() && own.until == i64::MAX {
        own.until = now.saturating_add(LONGEST_IN_LINE);
    }
    if let Some(interval) = select.interval {
        let back = select.fields.iter().map(look_back).max().unwrap_or(0);
        // The first and the last group are read completely.
        let wider = interval.saturating_mul(back.saturating_add(1));
        own = Span { from: own.from.saturating_sub(wider), until: own.until.saturating_add(wider) };
    }
    let inner = select.subqueries.iter().map(|subquery| within(subquery, own, now));
    let plain = select.has_measurement.then_some(own);
    let read = inner.chain(plain).fold(Span::NONE, Span::and);
    // An empty range may read nothing at all; then any copy will do.
    if read.is_none() { own } else { read }
}

/// Returns how many intervals before the first one a field's functions read.
fn look_back(field: &Expression) -> i64 {
    match field {
        Expression::Binary(_, left, right) => look_back(left).max(look_back(right)),
        Expression::Call(name, arguments) => {
            let inner = arguments.iter().map(look_back).max().unwrap_or(0);
            let own = if LOOK_BACK.contains(&name.as_str()) || name.starts_with("holt_winters") {
                let counts = arguments.iter().map(|one| match one {
                    Expression::Integer(Some(count)) => *count,
                    _ => 1,
                });
                counts.max().unwrap_or(1).max(1)
            } else {
                0
            };
            inner.saturating_add(own)
        }
        _ => 0,
    }
}

/// Returns the intersection of all comparisons with time in a condition.
fn of_condition(condition: &Expression, now: i64, slack: i64) -> Span {
    let Expression::Binary(operator, left, right) = condition else { return Span::ALWAYS };
    match *operator {
        "AND" | "OR" => {
            let (left, right) = (of_condition(left, now, slack), of_condition(right, now, slack));
            Span { from: left.from.max(right.from), until: left.until.min(right.until) }
        }
        "=" | "<" | "<=" | ">" | ">=" => {
            let (operator, value) = match (is_time(left), is_time(right)) {
                (true, false) => (*operator, right),
                (false, true) => (mirrored(operator), left),
                _ => return Span::ALWAYS,
            };
            let Some((time, slack)) = time_of(value, now, slack) else { return Span::ALWAYS };
            let (low, high) = (time.saturating_sub(slack), time.saturating_add(slack));
            match operator {
                "=" => Span { from: low, until: high },
                "<" | "<=" => Span { from: i64::MIN, until: high },
                _ => Span { from: low, until: i64::MAX },
            }
        }
        _ => Span::ALWAYS,
    }
}

fn is_time(expression: &Expression) -> bool {
    matches!(expression, Expression::Name(name) if name.eq_ignore_ascii_case("time"))
}

/// Returns the operator with its sides swapped.
fn mirrored(operator: &'static str) -> &'static str {
    match operator {
        "<" => ">",
        "<=" => ">=",
        ">" => "<",
        ">=" => "<=",
        other => other,
    }
}

/// Returns a time in nanoseconds since 1970, and its possible error; `slack` applies to times that
/// depend on a zone.
fn time_of(expression: &Expression, now: i64, slack: i64) -> Option<(i64, i64)> {
    match expression {
        Expression::Integer(number) => number.map(|number| (number, 0)),
        Expression::Duration(length) => length.map(|length| (length, 0)),
        Expression::Text(text) => date(text).map(|time| (time, slack)),
        Expression::Call(name, arguments) if name == "now" && arguments.is_empty() => Some((now, 0)),
        Expression::Binary(operator @ ("+" | "-"), left, right) => {
            let ((left, slack), (right, other)) = (time_of(left, now, slack)?, time_of(right, now, slack)?);
            let sum = if *operator == "+" { left.checked_add(right) } else { left.checked_sub(right) };
            Some((sum?, slack.max(other)))
        }
        _ => None,
    }
}

/// Parses `2006-01-02`, `2006-01-02 15:04:05.999999999`, or RFC 3339.
fn date(text: &str) -> Option<i64> {
    let (date, time) = match text.split_once(['T', ' ']) {
        Some((date, time)) => (date, time),
        None => (text, "00:00:00"),
    };
    let rest = time.trim_end_matches('Z');
    let zone_at = rest.find(['+', '-']).unwrap_or(rest.len());
    let (clock, zone) = rest.split_at(zone_at);
    let whole = format!("{date}T{clock}Z");
    let time = humantime::parse_rfc3339(&whole).ok()?;
    let nanoseconds = match time.duration_since(std::time::UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_nanos()).ok()?,
        Err(before) => -i64::try_from(before.duration().as_nanos()).ok()?,
    };
    let offset = match zone.split_once(':') {
        Some((hours, minutes)) => {
            let sign = if hours.starts_with('-') { -1 } else { 1 };
            let hours: i64 = hours[1..].parse().ok()?;
            sign * (hours * 3600 + minutes.parse::<i64>().ok()?) * 1_000_000_000
        }
        None if zone.is_empty() => 0,
        None => return None,
    };
    nanoseconds.checked_sub(offset)
}
