//! InfluxQL: the kinds of a query's statements, and the times that they read. Pure functions.
//!
//! A statement that reads may go to any one copy; a statement that changes something must go to
//! all. Neither may be taken for the other. The lexer and the grammar follow InfluxDB's own
//! ([influxql](https://github.com/influxdata/influxql) 1.0 to 1.4) to the byte: comments, strings
//! and regular expressions end exactly where InfluxDB ends them. Anything that is not understood is
//! an error.
//!
//! | part | owns |
//! |---|---|
//! | `lexer`, `tokens` | tokens, and the parser's expectations of them |
//! | `parser`, `select`, `show` | statements and their expressions |
//! | `range` | the times that a statement reads |
//! | `create` | rewriting the statements that writers send at their start |
//!
//! Bounds: a text of [`MAX_BYTES`], nesting of `tokens::MAX_DEPTH`, `tokens::MAX_OPERATORS`.

mod create;
mod lexer;
mod parser;
mod range;
mod select;
mod show;
mod tokens;

pub use create::{Create, quoted};
pub use parser::{Kind, Statement, parse};
pub use range::LONGEST_IN_LINE;

/// Maximum length of a text, in bytes.
pub const MAX_BYTES: usize = 1 << 20;

/// Every statement that changes something contains one of these words, here in lower case.
const WORDS_THAT_WRITE: [&str; 9] = ["into", "drop", "delete", "create", "alter", "grant", "revoke", "set", "kill"];

/// Returns whether a text certainly changes nothing, even if it cannot be parsed. Keywords are
/// plain letters and cannot be escaped.
pub fn only_reads(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    // The server ignores a NUL within a word.
    !text.contains('\0') && !WORDS_THAT_WRITE.iter().any(|word| text.contains(word))
}

#[cfg(test)]
mod tests;
