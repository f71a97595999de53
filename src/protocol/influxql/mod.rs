//! InfluxQL: what a query's statements are, and which times they read. Pure functions.
//!
//! A reader's statement may go to any one copy, a statement that changes something must go to all: so none may pass for the other.
//! The lexer and the grammar follow InfluxDB's own ([influxql](https://github.com/influxdata/influxql) 1.0 to 1.4) to the byte:
//! what it would take for the end of a comment, a string or a regular expression is one here. What is not understood is an error.
//!
//! | part | owns |
//! |---|---|
//! | `lexer`, `tokens` | tokens, as they come and as they are expected |
//! | `parser`, `select`, `show` | statements and their expressions |
//! | `range` | the times that a statement reads |
//! | `create` | statements that writers send at their start, written anew |
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

/// The longest text, in bytes.
pub const MAX_BYTES: usize = 1 << 20;

/// The words without which nothing is changed, in lower case.
const WORDS_THAT_WRITE: [&str; 9] = ["into", "drop", "delete", "create", "alter", "grant", "revoke", "set", "kill"];

/// Whether a text certainly changes nothing, whatever it is: keywords are plain letters, and cannot be escaped.
pub fn only_reads(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    // A NUL within a word is passed over by the server.
    !text.contains('\0') && !WORDS_THAT_WRITE.iter().any(|word| text.contains(word))
}

#[cfg(test)]
mod tests;
