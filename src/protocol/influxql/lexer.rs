//! InfluxQL's tokens, byte by byte as InfluxDB's scanner reads them.
//!
//! Only the grammar knows whether a `/` begins a regular expression: the parser asks for one where
//! one may occur.

use std::borrow::Cow;

/// One token.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// A keyword or a bare name.
    Word(String),
    /// A name in double quotes.
    Quoted(String),
    /// Text in single quotes.
    Text(String),
    /// A whole number; `None` if it does not fit.
    Integer(Option<i64>),
    /// A number with a point.
    Number,
    /// A duration in nanoseconds; `None` if it is invalid or does not fit.
    Duration(Option<i64>),
    /// `$name`
    Parameter,

    /// Anything else: an operator, a bracket, a comma.
    Sign(&'static str),
    /// The end of the text.
    End,
}

/// A syntax error, for the author of the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {at}")]
pub struct Wrong {
    /// Offset in bytes.
    pub at: usize,
    /// What was expected, or is not allowed.
    pub what: Cow<'static, str>,
}

/// Operators and punctuation, longer ones first.
const SIGNS: [&str; 23] = [
    "=~", "!~", "!=", "<>", "<=", ">=", "::", "(", ")", ",", ";", ":", ".", "+", "-", "*", "/", "%", "&", "|", "^",
    "=", "<",
];

/// Reads tokens from a text.
#[derive(Clone, Debug)]
pub(super) struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// Returns the offset of the next token, including white space and comments before it.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn wrong(&self, what: impl Into<Cow<'static, str>>) -> Wrong {
        Wrong { at: self.at, what: what.into() }
    }

    /// Skips white space and comments.
    pub(super) fn skip(&mut self) -> Result<(), Wrong> {
        loop {
            let rest = self.rest();
            let blanks = rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r']).len();
            self.at += blanks;
            let rest = self.rest();
            if rest.starts_with("--") {
                // A lone CR ends a line, too.
                self.at += rest.find(['\n', '\r']).unwrap_or(rest.len());
            } else if let Some(comment) = rest.strip_prefix("/*") {
                let end = comment.find("*/").ok_or_else(|| self.wrong("a comment without an end"))?;
                self.at += end + 4;
            } else {
                return Ok(());
            }
        }
    }

    /// Returns the next token.
    pub(super) fn next(&mut self) -> Result<Token, Wrong> {
        self.skip()?;
        let rest = self.rest();
        let Some(first) = rest.bytes().next() else { return Ok(Token::End) };
        match first {
            b'"' => self.quoted(b'"').map(Token::Quoted),
            b'\'' => self.quoted(b'\'').map(Token::Text),
            b'a'..=b'z' | b'A'..=b'Z' | b'_' => self.word(),
            b'$' => self.parameter(),
            b'0'..=b'9' => Ok(self.number()),
            b'.' if rest[1..].starts_with(|c: char| c.is_ascii_digit()) => Ok(self.number()),
            _ => self.sign(),
        }
    }

    /// Reads a regular expression where one may occur. `false`: the next token is another one, and
    /// nothing was read.
    pub(super) fn regex(&mut self) -> Result<bool, Wrong> {
        // Comments are not skipped here: they begin like a regular expression.
        let rest = self.rest();
        let blanks = rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r']).len();
        if !rest[blanks..].starts_with('/') {
            return Ok(false);
        }
        self.at += blanks + 1;
        let mut is_escaped = false;
        for (at, byte) in self.rest().bytes().enumerate() {
            match byte {
                b'\n' | b'\r' => return Err(self.wrong("a regular expression holds no line feed")),
                b'/' if !is_escaped => {
                    self.at += at + 1;
                    return Ok(true);
                }
                // InfluxDB reads `\\/` as an escaped slash: the first backslash does not escape the
                // second.
                _ => is_escaped = byte == b'\\',
            }
        }
        Err(self.wrong("a regular expression without an end"))
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// Reads text in quotes, with its escapes.
    fn quoted(&mut self, quote: u8) -> Result<String, Wrong> {
        let begun = self.at;
        self.at += 1;
        let (mut text, mut escaped) = (String::new(), false);
        for (at, c) in self.rest().char_indices() {
            match (escaped, c) {
                (_, '\n' | '\r') => return Err(self.wrong("a line feed in quotes")),
                (true, 'n') => text.push('\n'),
                (true, '\\' | '"' | '\'') => text.push(c),
                (true, _) => return Err(self.wrong("only \\n, \\\\, \\\" and \\' are escapes")),
                (false, '\\') => {
                    escaped = true;
                    continue;
                }
                (false, c) if c as u32 == u32::from(quote) => {
                    self.at += at + 1;
                    return Ok(text);
                }
                (false, c) => text.push(c),
            }
            escaped = false;
        }
        self.at = begun;
        Err(self.wrong("a quote without an end"))
    }

    /// Reads a bare word. If a quote follows immediately, the quoted text replaces the word.
    fn word(&mut self) -> Result<Token, Wrong> {
        let rest = self.rest();
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
        self.at += end;
        if rest[end..].starts_with('"') {
            return self.quoted(b'"').map(Token::Quoted);
        }
        Ok(Token::Word(rest[..end].to_owned()))
    }

    fn parameter(&mut self) -> Result<Token, Wrong> {
        self.at += 1;
        let rest = self.rest();
        if rest.starts_with('"') {
            return self.quoted(b'"').map(|_| Token::Parameter);
        }
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
        if end == 0 {
            return Err(self.wrong("a name is expected after $"));
        }
        self.at += end;
        Ok(Token::Parameter)
    }

    /// Reads a number, or a duration: digits immediately followed by a letter.
    fn number(&mut self) -> Token {
        let rest = self.rest();
        let digits = |from: usize| rest[from..].bytes().take_while(u8::is_ascii_digit).count();
        let whole = digits(0);
        if rest[whole..].starts_with('.') {
            self.at += whole + 1 + digits(whole + 1);
            return Token::Number;
        }
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == 'µ';
        if rest[whole..].starts_with(|c: char| c.is_ascii_alphabetic() || c == 'µ') {
            let end = rest.find(|c: char| !is_part(c)).unwrap_or(rest.len());
            self.at += end;
            return Token::Duration(duration(&rest[..end]));
        }
        self.at += whole;
        Token::Integer(rest[..whole].parse().ok())
    }

    fn sign(&mut self) -> Result<Token, Wrong> {
        let rest = self.rest();
        let sign = SIGNS.into_iter().chain([">"]).find(|sign| rest.starts_with(sign));
        let sign = sign.ok_or_else(|| self.wrong("a character that InfluxQL does not know"))?;
        self.at += sign.len();
        Ok(Token::Sign(sign))
    }
}

/// Returns the nanoseconds of digits with units, such as `1h30m`; `None` if it is not a duration,
/// or does not fit.
fn duration(text: &str) -> Option<i64> {
    let (mut rest, mut sum) = (text, 0_i64);
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (count, unit) = (rest[..digits].parse::<i64>().ok()?, &rest[digits..]);
        let units: [(&str, i64); 10] = [
            ("ns", 1),
            ("ms", 1_000_000),
            ("u", 1_000),
            ("µ", 1_000),
            ("s", 1_000_000_000),
            ("m", 60_000_000_000),
            ("h", 3_600_000_000_000),
            ("d", 86_400_000_000_000),
            ("w", 604_800_000_000_000),
            ("n", 1),
        ];
        let (name, length) = units.into_iter().find(|(name, _)| unit.starts_with(name))?;
        sum = sum.checked_add(count.checked_mul(length)?)?;
        rest = &unit[name.len()..];
    }
    Some(sum)
}
