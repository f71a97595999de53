//! What writers by HTTP were answered, and how long that took.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Different answers that are told apart; the others are one.
const MOST_NAMES: usize = 20;
/// How much of an answer's text is its name, in characters.
const NAME_CHARS: usize = 120;
/// The longest time that is told from longer ones: ten minutes, in microseconds.
const MOST_MICROSECONDS: u64 = 600_000_000;

/// All answers.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Answers {
    /// Batches that were taken: answered 204.
    pub taken: u64,
    /// What else came, by name, and how often.
    pub others: BTreeMap<String, u64>,
    /// Lines of batches that were given up. What became of them is not known.
    pub given_up_lines: u64,
    /// From a request's first byte to its whole answer, in milliseconds: the median, the 99th
    /// percentile, the 99.9th, the longest.
    pub answer_ms: [f64; 4],
    /// From the start to the last batch that was taken.
    pub seconds: f64,
}

/// One answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    status: u16,
    text: String,
    /// Whether the server ends the connection.
    pub(crate) closes: bool,
}

impl Answer {
    /// That of a listener that gives none.
    pub(crate) fn none() -> Self {
        Self { status: 204, text: String::new(), closes: false }
    }

    /// Reads an answer; none while it is not whole.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let end = memchr::memmem::find(bytes, b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let length = header("content-length:").and_then(|length| length.parse().ok()).unwrap_or(0_usize);
        let body = bytes[end + 4..].get(..length)?;
        let text = String::from_utf8_lossy(body).trim().chars().take(NAME_CHARS).collect();
        Some(Self { status, text, closes: header("connection:") == Some("close") })
    }

    /// Its status, and the beginning of its text.
    pub(crate) fn name(&self) -> String {
        format!("{} {}", self.status, self.text)
    }

    /// Whether the lines are the server's now.
    pub(crate) fn is_taken(&self) -> bool {
        self.status == 204
    }

    /// Whether sending the batch again is of no use.
    pub(crate) fn is_final(&self) -> bool {
        self.status < 500
    }
}

/// The answers so far.
#[derive(Debug)]
pub(crate) struct Told {
    answers: Answers,
    times: Histogram<u64>,
}

impl Default for Told {
    fn default() -> Self {
        let times = Histogram::new_with_bounds(1, MOST_MICROSECONDS, 3).expect("BUG: constant bounds are valid");
        Self { answers: Answers::default(), times }
    }
}

impl Told {
    pub(crate) fn note(&mut self, answer: &Answer, took: Duration) {
        self.times.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        if answer.is_taken() {
            self.answers.taken += 1;
        } else {
            self.note_error(&answer.name());
        }
    }

    pub(crate) fn note_error(&mut self, name: &str) {
        let others = &mut self.answers.others;
        let name = if others.len() < MOST_NAMES || others.contains_key(name) { name } else { "others" };
        *others.entry(name.to_owned()).or_default() += 1;
    }

    pub(crate) fn give_up(&mut self, lines: u64) {
        self.answers.given_up_lines += lines;
    }

    #[expect(clippy::cast_precision_loss, reason = "times are far below 2^52 microseconds")]
    pub(crate) fn answers(self, seconds: f64) -> Answers {
        let at = |quantile| self.times.value_at_quantile(quantile) as f64 / 1e3;
        let answer_ms = [at(0.5), at(0.99), at(0.999), self.times.max() as f64 / 1e3];
        Answers { answer_ms, seconds, ..self.answers }
    }
}

impl Answers {
    /// The answers for people.
    pub fn to_text(&self) -> String {
        let [median, high, higher, longest] = self.answer_ms;
        let mut text = format!(
            "answers     {} batches taken in {:.2} s; after {median:.2} ms median, {high:.2} ms p99, {higher:.2} ms p99.9, {longest:.2} ms longest",
            self.taken, self.seconds
        );
        for (name, count) in &self.others {
            text.push_str(&format!("\n            {count} times {name}"));
        }
        if self.given_up_lines > 0 {
            text.push_str(&format!("\n            {} lines given up", self.given_up_lines));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_once_it_is_whole() {
        let bytes = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 5\r\nConnection: Close\r\n\r\nwrong";
        for end in 0..bytes.len() {
            assert_eq!(Answer::read(&bytes[..end]), None);
        }
        let answer = Answer::read(bytes).expect("an answer");
        assert_eq!(answer, Answer { status: 400, text: "wrong".to_owned(), closes: true });
        assert!(answer.is_final() && !answer.is_taken());
        let taken = Answer::read(b"HTTP/1.1 204 No Content\r\nDate: now\r\n\r\n").expect("an answer");
        assert!(taken.is_taken() && !taken.closes);
    }
}
