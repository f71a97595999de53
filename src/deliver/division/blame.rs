//! Finds the lines that an answer names: a pure function of the answer's text and the lines.
//!
//! InfluxDB names an unparsable line by its text, and a type conflict by measurement, field and
//! type. It names lines beyond retention only by their number, which are then the oldest; 3.x names
//! every line by its number. The named lines need not be all that are wrong, and another shard may
//! accept a line that looks the same. The result is therefore a set of candidates to send apart
//! from the others.
//!
//! Never does: decide what is rejected. Bounds: the answer, and one pass over the lines per
//! conflict that it names.

use std::collections::HashMap;

use crate::deliver::outcome::dropped;
use crate::protocol::line::anatomy;

/// Text before and after a quoted unparsable line.
const UNPARSABLE: (&str, &str) = ("unable to parse '", "': ");

/// The lines that an answer names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Named {
    /// Sorted indices of the lines. Empty if the answer names none.
    pub lines: Vec<usize>,
    /// Whether the answer names each line individually, not a common property.
    pub one_by_one: bool,
}

/// A field's type in conflict with the type that the measurement has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Conflict {
    measurement: String,
    field: String,
    /// Type in the line.
    kind: String,
}

/// Returns the lines that an answer names.
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

/// Returns the lines of a 3.x answer, which lists the number of each line, from 1 on.
fn numbered(json: &serde_json::Value, lines: usize) -> Vec<usize> {
    let listed = json.get("data").and_then(serde_json::Value::as_array);
    let numbers = listed.into_iter().flatten().filter_map(|one| one.get("line_number")?.as_u64());
    let indexes = numbers.filter_map(|number| usize::try_from(number.checked_sub(1)?).ok());
    indexes.filter(|index| *index < lines).collect()
}

/// Returns the lines that the text quotes as unparsable.
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
        // The line itself may contain the text that follows a quoted line.
        let ends = quoted.match_indices(UNPARSABLE.1).map(|(end, _)| end);
        named.extend(ends.filter_map(|end| indexes.get(&quoted.as_bytes()[..end])).flatten());
    }
    named
}

/// Returns the lines that have a field with the conflicting type.
fn in_conflict(text: &str, lines: &[&[u8]]) -> Vec<usize> {
    let of = |conflict: Conflict| lines.iter().enumerate().filter(move |(_, line)| conflict.fits(line));
    Conflict::of_text(text).flat_map(of).map(|(index, _)| index).collect()
}

impl Conflict {
    /// Returns the conflicts that an answer's body names.
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

    /// Whether the line has the field with this type.
    pub(super) fn fits(&self, line: &[u8]) -> bool {
        *anatomy::measurement(line) == *self.measurement.as_bytes()
            && anatomy::fields(line).any(|(name, its)| *name == *self.field.as_bytes() && its == self.kind)
    }
}

/// Returns the error text of a JSON answer, as 1.x and 2.x name it.
fn error_of(json: &serde_json::Value) -> Option<&str> {
    json.get("error").or_else(|| json.get("message"))?.as_str()
}

/// Returns the `count` lines with the smallest timestamps.
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
