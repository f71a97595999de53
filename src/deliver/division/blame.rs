//! Which lines of a request its answer names: a pure function over the answer's text and the lines.
//!
//! InfluxDB names a line that it cannot read by its text, a type in conflict by measurement, field and type, what is beyond
//! retention by nothing but its number (the oldest lines then), and 3.x every line by its number. What an answer names need
//! not be all that is wrong, and another line that looks like it may be stored well in another shard. So the lines are
//! candidates, to be sent apart from the others.

use std::collections::HashMap;

use crate::deliver::outcome::dropped;
use crate::protocol::line::anatomy;

/// What stands before a line that could not be read, and behind it.
const UNPARSABLE: (&str, &str) = ("unable to parse '", "': ");

/// What an answer names of the lines that it is about.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Named {
    /// The places of these lines, in order; none where it names none.
    pub lines: Vec<usize>,
    /// Whether it names each of them for itself, and not what they have in common.
    pub one_by_one: bool,
}

/// A field's type that is in conflict with the type that the measurement has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Conflict {
    measurement: String,
    field: String,
    /// The line's type.
    kind: String,
}

/// What an answer names of these lines.
pub(super) fn named(body: &str, lines: &[&[u8]]) -> Named {
    let json: Option<serde_json::Value> = serde_json::from_str(body).ok();
    let text = json.as_ref().and_then(error_of).unwrap_or(body);
    let mut named = json.as_ref().map(|json| numbered(json, lines.len())).unwrap_or_default();
    named.extend(unparsable(text, lines));
    let one_by_one = !named.is_empty();
    if !one_by_one {
        named = in_conflict(text, lines);
    }
    if named.is_empty() && text.contains("beyond retention policy") {
        named = oldest(dropped(text), lines);
    }
    named.sort_unstable();
    named.dedup();
    Named { lines: named, one_by_one }
}

/// 3.x: a list with the number of each line, from 1 on.
fn numbered(json: &serde_json::Value, lines: usize) -> Vec<usize> {
    let listed = json.get("data").and_then(serde_json::Value::as_array);
    let numbers = listed.into_iter().flatten().filter_map(|one| one.get("line_number")?.as_u64());
    let indexes = numbers.filter_map(|number| usize::try_from(number.checked_sub(1)?).ok());
    indexes.filter(|index| *index < lines).collect()
}

/// Lines that are quoted as ones which cannot be read.
fn unparsable(text: &str, lines: &[&[u8]]) -> Vec<usize> {
    if !text.contains(UNPARSABLE.0) {
        return Vec::new();
    }
    let mut indexes: HashMap<&[u8], Vec<usize>> = HashMap::new();
    for (index, line) in lines.iter().enumerate() {
        indexes.entry(line).or_default().push(index);
    }
    let mut named = Vec::new();
    for quoted in text.split(UNPARSABLE.0).skip(1) {
        // A line may hold what stands behind lines.
        let ends = quoted.match_indices(UNPARSABLE.1).map(|(end, _)| end);
        named.extend(ends.filter_map(|end| indexes.get(&quoted.as_bytes()[..end])).flatten());
    }
    named
}

/// Lines with a field in the type that is in conflict.
fn in_conflict(text: &str, lines: &[&[u8]]) -> Vec<usize> {
    let of = |conflict: Conflict| lines.iter().enumerate().filter(move |(_, line)| conflict.fits(line));
    Conflict::of_text(text).flat_map(of).map(|(index, _)| index).collect()
}

impl Conflict {
    /// Those that an answer's body names.
    pub(super) fn all(body: &str) -> impl Iterator<Item = Self> {
        let json: Option<serde_json::Value> = serde_json::from_str(body).ok();
        let text = json.as_ref().and_then(error_of).unwrap_or(body);
        Self::of_text(text).collect::<Vec<_>>().into_iter()
    }

    fn of_text(text: &str) -> impl Iterator<Item = Self> {
        text.split("input field \"").skip(1).filter_map(|conflict| {
            let (field, rest) = conflict.split_once("\" on measurement \"")?;
            let (measurement, rest) = rest.split_once("\" is type ")?;
            let kind = rest.split_once(',')?.0;
            Some(Self { measurement: measurement.to_owned(), field: field.to_owned(), kind: kind.to_owned() })
        })
    }

    /// Whether a line has the field in this type.
    pub(super) fn fits(&self, line: &[u8]) -> bool {
        *anatomy::measurement(line) == *self.measurement.as_bytes()
            && anatomy::fields(line).any(|(name, its)| *name == *self.field.as_bytes() && its == self.kind)
    }
}

/// The text of a JSON answer's error, as 1.x and 2.x name it.
fn error_of(json: &serde_json::Value) -> Option<&str> {
    json.get("error").or_else(|| json.get("message"))?.as_str()
}

/// So many of the lines with the smallest timestamps.
fn oldest(count: Option<u64>, lines: &[&[u8]]) -> Vec<usize> {
    let count = count.and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
    let mut by_time: Vec<(i64, usize)> =
        lines.iter().enumerate().filter_map(|(index, line)| Some((anatomy::timestamp(line)?, index))).collect();
    by_time.sort_unstable();
    by_time.into_iter().take(count).map(|(_, index)| index).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers as InfluxDB 1.6.7, 2.x and 3.x write them.
    #[test]
    fn what_an_answer_names_is_found() {
        let lines: Vec<&[u8]> =
            [&br#"m,host=a v=1 30"#[..], br#"m,host=b v=1i 10"#, br#"n\ 1 v=1i,w="x': y" 20"#, br#"n\ 1 w=2i,v="z" 5"#]
                .to_vec();
        let conflict = |measurement: &str, field: &str, kind: &str| {
            format!(
                "partial write: field type conflict: input field \"{field}\" on measurement \"{measurement}\" is type \
                 {kind}, already exists as type float dropped=1"
            )
        };
        let unparsable = r#"partial write: unable to parse 'm,host=b v=1i 10': x
unable to parse 'n\ 1 v=1i,w="x': y" 20': bad timestamp dropped=0"#;
        for (text, expected) in [
            (conflict("m", "v", "integer"), &[1][..]),
            (conflict("n 1", "v", "integer"), &[2]),
            (conflict("n 1", "v", "string"), &[3]),
            (conflict("o", "v", "integer"), &[]),
            (unparsable.to_owned(), &[1, 2]),
            ("unable to parse 'something else': x".to_owned(), &[]),
            ("partial write: points beyond retention policy dropped=2".to_owned(), &[1, 3]),
            ("points beyond retention policy".to_owned(), &[]),
            ("something new".to_owned(), &[]),
        ] {
            for body in [
                serde_json::json!({ "error": text }).to_string(),
                serde_json::json!({ "code": "invalid", "message": text }).to_string(),
                text.clone(),
            ] {
                let found = named(&body, &lines);
                assert_eq!((&found.lines[..], found.one_by_one), (expected, expected == [1, 2]), "{body}");
            }
        }
        let listed = r#"{"error":"partial write of line protocol occurred","data":[{"original_line":"m","line_number":4,"error_message":"x"},{"line_number":1},{"line_number":0},{"line_number":5},{"line_number":9}]}"#;
        assert_eq!(named(listed, &lines), Named { lines: vec![0, 3], one_by_one: true });
    }
}
