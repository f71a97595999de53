//! The InfluxQL statements that writers send at their start: creating a database or a retention
//! policy. A pure function.
//!
//! Owns: reading and rewriting such a statement. Only statements that are understood to the last
//! word are accepted. They are rewritten from what was read, so that nothing else is passed on.
//! Never does: reading more than one statement; a final semicolon is allowed. Bounds: statements of
//! [`MAX_BYTES`].

use std::fmt;

/// Maximum length of a statement, in bytes.
const MAX_BYTES: usize = 4096;

/// A statement that creates a database or a retention policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Create {
    /// The database to create, or the one that gets the retention policy.
    pub database: String,
    /// Whether the statement creates the database.
    pub is_database: bool,
    text: String,
}

impl fmt::Display for Create {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Create {
    /// Parses a statement; `None` if it is another one, or not understood.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > MAX_BYTES {
            return None;
        }
        let mut words = Words { rest: text.trim_matches([' ', '\t', '\n', '\r', ';']) };
        words.keyword("CREATE")?;
        match words.next()? {
            Word::Bare(word) if word.eq_ignore_ascii_case("DATABASE") => words.database(),
            Word::Bare(word) if word.eq_ignore_ascii_case("RETENTION") => words.policy(),
            _ => None,
        }
    }
}

/// Quotes a name for InfluxQL.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Word {
    /// A keyword, a bare name, a number or a duration.
    Bare(String),
    Quoted(String),
}

struct Words<'a> {
    rest: &'a str,
}

impl Words<'_> {
    /// `NAME [WITH [DURATION d] [REPLICATION n] [SHARD DURATION d] [NAME policy]]`
    fn database(&mut self) -> Option<Create> {
        let database = self.name()?;
        let mut text = format!("CREATE DATABASE {}", quoted(&database));
        if !self.is_over() {
            self.keyword("WITH")?;
            let options = self.options(&["DURATION", "REPLICATION", "SHARD", "NAME"])?;
            text.push_str(" WITH");
            text.push_str(&options);
        }
        Some(Create { database, is_database: true, text })
    }

    /// `POLICY name ON database DURATION d REPLICATION n [SHARD DURATION d] [DEFAULT]`
    fn policy(&mut self) -> Option<Create> {
        self.keyword("POLICY")?;
        let policy = self.name()?;
        self.keyword("ON")?;
        let database = self.name()?;
        let options = self.options(&["DURATION", "REPLICATION", "SHARD", "DEFAULT"])?;
        let text = format!("CREATE RETENTION POLICY {} ON {}{options}", quoted(&policy), quoted(&database));
        Some(Create { database, is_database: false, text })
    }

    /// Reads options to the end of the statement: at least one, each at most once.
    fn options(&mut self, known: &[&'static str]) -> Option<String> {
        let (mut text, mut seen) = (String::new(), Vec::new());
        while !self.is_over() {
            let Word::Bare(word) = self.next()? else { return None };
            let option = *known.iter().find(|option| option.eq_ignore_ascii_case(&word))?;
            if seen.contains(&option) {
                return None;
            }
            seen.push(option);
            text.push_str(&match option {
                "DEFAULT" => " DEFAULT".to_owned(),
                "NAME" => format!(" NAME {}", quoted(&self.name()?)),
                "REPLICATION" => {
                    format!(" REPLICATION {}", self.value(|word| word.bytes().all(|b| b.is_ascii_digit()))?)
                }
                "SHARD" => {
                    self.keyword("DURATION")?;
                    format!(" SHARD DURATION {}", self.value(is_duration)?)
                }
                _ => format!(" DURATION {}", self.value(is_duration)?),
            });
        }
        (!seen.is_empty()).then_some(text)
    }

    fn keyword(&mut self, keyword: &str) -> Option<()> {
        matches!(self.next()?, Word::Bare(word) if word.eq_ignore_ascii_case(keyword)).then_some(())
    }

    fn name(&mut self) -> Option<String> {
        match self.next()? {
            Word::Quoted(name) => Some(name).filter(|name| !name.is_empty()),
            Word::Bare(name) => Some(name).filter(|name| !name.starts_with(|c: char| c.is_ascii_digit())),
        }
    }

    fn value(&mut self, is_fit: impl Fn(&str) -> bool) -> Option<String> {
        match self.next()? {
            Word::Bare(word) if is_fit(&word) => Some(word),
            _ => None,
        }
    }

    fn is_over(&self) -> bool {
        self.rest.trim_start().is_empty()
    }

    fn next(&mut self) -> Option<Word> {
        let text = self.rest.trim_start();
        if let Some(inner) = text.strip_prefix('"') {
            return self.quoted(inner);
        }
        let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == 'µ')).unwrap_or(text.len());
        let (word, rest) = text.split_at(end);
        // A word ends at white space, or at the end of the text.
        let is_whole = rest.is_empty() || rest.starts_with([' ', '\t', '\n', '\r']);
        self.rest = rest;
        (!word.is_empty() && is_whole).then(|| Word::Bare(word.to_owned()))
    }

    fn quoted(&mut self, inner: &str) -> Option<Word> {
        let (mut name, mut characters) = (String::new(), inner.char_indices());
        while let Some((at, c)) = characters.next() {
            match c {
                '"' => {
                    let rest = inner.len() - at - 1;
                    self.rest = &self.rest[self.rest.len() - rest..];
                    return Some(Word::Quoted(name));
                }
                '\n' => return None,
                '\\' => match characters.next()?.1 {
                    'n' => name.push('\n'),
                    c @ ('"' | '\\') => name.push(c),
                    _ => return None,
                },
                c => name.push(c),
            }
        }
        None
    }
}

/// Returns whether a word is `INF`, or numbers with units.
fn is_duration(word: &str) -> bool {
    if word.eq_ignore_ascii_case("inf") {
        return true;
    }
    let mut rest = word;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 {
            return false;
        }
        rest = &rest[digits..];
        let unit = ["ns", "ms", "u", "µ", "s", "m", "h", "d", "w"].iter().find(|unit| rest.starts_with(**unit));
        let Some(unit) = unit else { return false };
        rest = &rest[unit.len()..];
    }
    !word.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_writers_send_is_understood_and_written_anew() {
        for (text, database, expected) in [
            ("CREATE DATABASE telegraf", "telegraf", r#"CREATE DATABASE "telegraf""#),
            ("create database \"my db\";", "my db", r#"CREATE DATABASE "my db""#),
            (" CREATE\nDATABASE  \"a\\\"b\\\\\" ; ", "a\"b\\", r#"CREATE DATABASE "a\"b\\""#),
            (
                r#"CREATE DATABASE x WITH DURATION 30d REPLICATION 1 SHARD DURATION 1h30m NAME "week""#,
                "x",
                r#"CREATE DATABASE "x" WITH DURATION 30d REPLICATION 1 SHARD DURATION 1h30m NAME "week""#,
            ),
            (
                r#"CREATE RETENTION POLICY "week" ON telegraf DURATION INF REPLICATION 1 DEFAULT"#,
                "telegraf",
                r#"CREATE RETENTION POLICY "week" ON "telegraf" DURATION INF REPLICATION 1 DEFAULT"#,
            ),
        ] {
            let found = Create::parse(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!((&*found.database, found.to_string()), (database, expected.to_owned()), "{text}");
            assert_eq!(Create::parse(expected), Some(found), "it is understood again");
        }
    }

    #[test]
    fn nothing_else_is() {
        for text in [
            "",
            "CREATE DATABASE",
            "CREATE DATABASE x; DROP DATABASE y",
            "CREATE DATABASE x -- y",
            "CREATE DATABASE x /* y */",
            "CREATE DATABASE x y",
            "CREATE DATABASE x WITH",
            "CREATE DATABASE x WITH DURATION",
            "CREATE DATABASE x WITH DURATION 1",
            "CREATE DATABASE x WITH DURATION 1x",
            "CREATE DATABASE x WITH REPLICATION 1 REPLICATION 2",
            "CREATE DATABASE x WITH DEFAULT",
            "CREATE DATABASE 1x",
            "CREATE DATABASE x.y",
            "CREATE DATABASE \"x",
            "CREATE DATABASE \"x\ny\"",
            "CREATE DATABASE \"\"",
            "CREATE USER x WITH PASSWORD 'y'",
            "CREATE RETENTION POLICY x ON y",
            "DROP DATABASE x",
            "SELECT * INTO a FROM b",
            "EXPLAIN CREATE DATABASE x",
        ] {
            assert_eq!(Create::parse(text), None, "{text}");
        }
        assert_eq!(Create::parse(&format!("CREATE DATABASE \"{}\"", "x".repeat(5_000))), None);
    }
}
