//! The parser's view of tokens: keywords, names, signs, and regular expressions where one may
//! occur.
//!
//! Bounds: [`MAX_DEPTH`] nested brackets and subqueries, [`MAX_OPERATORS`].

use super::lexer::{Token, Wrong};
use super::parser::Parser;

/// Maximum depth of nested brackets and subqueries.
const MAX_DEPTH: usize = 100;
/// Maximum number of operators in a text: an expression is as deep as it has operators in a row.
pub(super) const MAX_OPERATORS: usize = 2000;

/// Access to tokens, one by one.
impl<'a> Parser<'a> {
    pub(super) fn peek(&mut self) -> Result<&Token, Wrong> {
        if self.peeked.is_none() {
            let mut ahead = self.lexer.clone();
            ahead.skip()?;
            let start = ahead.at();
            let token = ahead.next()?;
            self.peeked = Some((token, start, ahead));
        }
        Ok(self.peeked.as_ref().map_or(&Token::End, |(token, ..)| token))
    }

    pub(super) fn next(&mut self) -> Result<Token, Wrong> {
        self.peek()?;
        match self.peeked.take() {
            Some((token, _, ahead)) => {
                self.lexer = ahead;
                Ok(token)
            }
            None => Ok(Token::End),
        }
    }

    /// Returns the next token without consuming it.
    pub(super) fn ahead(&mut self) -> Result<Token, Wrong> {
        self.peek().cloned()
    }

    /// Returns the offset of the next token.
    pub(super) fn position(&mut self) -> Result<usize, Wrong> {
        self.peek()?;
        Ok(self.peeked.as_ref().map_or_else(|| self.lexer.at(), |(_, start, _)| *start))
    }

    pub(super) fn wrong(&self, what: impl Into<std::borrow::Cow<'static, str>>) -> Wrong {
        self.lexer.wrong(what)
    }

    pub(super) fn is_end(&mut self) -> Result<bool, Wrong> {
        Ok(*self.peek()? == Token::End)
    }

    /// Consumes a keyword, if it is the next token.
    pub(super) fn takes(&mut self, keyword: &str) -> Result<bool, Wrong> {
        let is_next = matches!(self.peek()?, Token::Word(word) if word.eq_ignore_ascii_case(keyword));
        if is_next {
            self.next()?;
        }
        Ok(is_next)
    }

    pub(super) fn takes_sign(&mut self, sign: &str) -> Result<bool, Wrong> {
        let is_next = matches!(self.peek()?, Token::Sign(known) if *known == sign);
        if is_next {
            self.next()?;
        }
        Ok(is_next)
    }

    pub(super) fn keyword(&mut self, keyword: &str) -> Result<(), Wrong> {
        if self.takes(keyword)? { Ok(()) } else { Err(self.wrong(format!("{keyword} is expected"))) }
    }

    pub(super) fn keywords(&mut self, keywords: &[&str]) -> Result<(), Wrong> {
        keywords.iter().try_for_each(|keyword| self.keyword(keyword))
    }

    pub(super) fn sign(&mut self, sign: &str) -> Result<(), Wrong> {
        if self.takes_sign(sign)? { Ok(()) } else { Err(self.wrong(format!("{sign} is expected"))) }
    }

    /// Reads a keyword; returns it in capitals.
    pub(super) fn word(&mut self) -> Result<String, Wrong> {
        match self.next()? {
            Token::Word(word) => Ok(word.to_ascii_uppercase()),
            _ => Err(self.wrong("a keyword is expected")),
        }
    }

    /// Reads a name: bare or quoted, or a parameter for one.
    pub(super) fn name(&mut self) -> Result<String, Wrong> {
        match self.next()? {
            Token::Word(name) if !is_keyword(&name) => Ok(name),
            Token::Quoted(name) => Ok(name),
            _ => Err(self.wrong("a name is expected")),
        }
    }

    pub(super) fn text(&mut self) -> Result<(), Wrong> {
        match self.next()? {
            Token::Text(_) => Ok(()),
            _ => Err(self.wrong("text in single quotes is expected")),
        }
    }

    pub(super) fn integer(&mut self) -> Result<(), Wrong> {
        match self.next()? {
            Token::Integer(Some(_)) | Token::Parameter => Ok(()),
            _ => Err(self.wrong("a whole number is expected")),
        }
    }

    pub(super) fn duration(&mut self) -> Result<(), Wrong> {
        match self.next()? {
            Token::Duration(Some(_)) => Ok(()),
            Token::Word(word) if word.eq_ignore_ascii_case("INF") => Ok(()),
            _ => Err(self.wrong("a duration is expected")),
        }
    }

    /// Reads a regular expression, which must follow.
    pub(super) fn regex(&mut self) -> Result<(), Wrong> {
        if self.takes_regex()? { Ok(()) } else { Err(self.wrong("a regular expression is expected")) }
    }

    /// Reads a regular expression, if one follows.
    pub(super) fn takes_regex(&mut self) -> Result<bool, Wrong> {
        // The peeked token was not consumed; it is read again.
        self.peeked = None;
        self.lexer.regex()
    }

    /// Parses one level of brackets or subqueries deeper.
    pub(super) fn deeper<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T, Wrong>) -> Result<T, Wrong> {
        if self.depth >= MAX_DEPTH {
            return Err(self.wrong("too many brackets within each other"));
        }
        self.depth += 1;
        let parsed = parse(self)?;
        self.depth -= 1;
        Ok(parsed)
    }
}

/// Words that are never a bare name.
pub(super) fn is_keyword(word: &str) -> bool {
    KEYWORDS.iter().any(|keyword| keyword.eq_ignore_ascii_case(word))
}

/// Every keyword of InfluxDB's scanner.
const KEYWORDS: &[&str] = &[
    "AND",
    "OR",
    "TRUE",
    "FALSE",
    "ALL",
    "ALTER",
    "ANALYZE",
    "ANY",
    "AS",
    "ASC",
    "BEGIN",
    "BY",
    "CARDINALITY",
    "CREATE",
    "CONTINUOUS",
    "DATABASE",
    "DATABASES",
    "DEFAULT",
    "DELETE",
    "DESC",
    "DESTINATIONS",
    "DIAGNOSTICS",
    "DISTINCT",
    "DROP",
    "DURATION",
    "END",
    "EVERY",
    "EXACT",
    "EXPLAIN",
    "FIELD",
    "FOR",
    "FROM",
    "GRANT",
    "GRANTS",
    "GROUP",
    "GROUPS",
    "IN",
    "INF",
    "INSERT",
    "INTO",
    "KEY",
    "KEYS",
    "KILL",
    "LIMIT",
    "SHOW",
    "MEASUREMENT",
    "MEASUREMENTS",
    "NAME",
    "OFFSET",
    "ON",
    "ORDER",
    "PASSWORD",
    "POLICY",
    "POLICIES",
    "PRIVILEGES",
    "QUERIES",
    "QUERY",
    "READ",
    "REPLICATION",
    "RESAMPLE",
    "RETENTION",
    "REVOKE",
    "SELECT",
    "SERIES",
    "SET",
    "SHARD",
    "SHARDS",
    "SLIMIT",
    "SOFFSET",
    "STATS",
    "SUBSCRIPTION",
    "SUBSCRIPTIONS",
    "TAG",
    "TO",
    "USER",
    "USERS",
    "VALUES",
    "WHERE",
    "WITH",
    "WRITE",
];
