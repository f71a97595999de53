//! Statements, by the grammar of InfluxDB's parser: each one's kind, the databases it names, and
//! the times it reads.

use std::collections::BTreeSet;
use std::ops::Range;

use super::lexer::{Lexer, Token, Wrong};
use super::{MAX_BYTES, range};
use crate::protocol::Span;

/// The kind of a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `SELECT` without `INTO`.
    Select,
    /// `SELECT … INTO`.
    SelectInto,
    /// `EXPLAIN`.
    Explain,
    /// `SHOW DATABASES`.
    ShowDatabases,
    /// The contents of a database: measurements, series, keys, values, cardinalities, retention
    /// policies.
    ShowData,
    /// For administrators, and the same on all servers: users, grants, continuous queries,
    /// subscriptions.
    ShowAdmin,
    /// Each server's own state: shards, statistics, diagnostics, queries.
    ShowServer,
    /// `CREATE DATABASE` and `CREATE RETENTION POLICY`.
    Create,
    /// `ALTER RETENTION POLICY` and `DROP RETENTION POLICY`.
    ChangePolicy,
    /// `DROP DATABASE`, `DROP MEASUREMENT`, `DROP SERIES` and `DELETE`.
    Remove,
    /// Users and their rights.
    Users,
    /// `CREATE CONTINUOUS QUERY` and `DROP CONTINUOUS QUERY`.
    ContinuousQuery,
    /// `CREATE SUBSCRIPTION` and `DROP SUBSCRIPTION`.
    Subscription,
    /// Meaningful on one server only: `KILL QUERY`, `DROP SHARD`.
    OneServer,
}

impl Kind {
    /// Returns whether the statement changes nothing.
    pub fn is_read(self) -> bool {
        matches!(
            self,
            Self::Select | Self::Explain | Self::ShowDatabases | Self::ShowData | Self::ShowAdmin | Self::ShowServer
        )
    }
}

/// One statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// Its kind.
    pub kind: Kind,
    /// Its byte range in the whole text.
    pub text: Range<usize>,
    /// The databases that it names.
    pub databases: BTreeSet<String>,
    /// Whether it also uses the request's database.
    pub uses_default: bool,
    /// The times of the points that it may read.
    pub points: Span,
    /// The ranges of `now()`, except those in an interval's offset.
    pub nows: Vec<Range<usize>>,
}

/// Parses the statements of a text; `now` is the time in nanoseconds since 1970.
///
/// # Errors
/// The first syntax error.
pub fn parse(text: &str, now: i64) -> Result<Vec<Statement>, Wrong> {
    let mut parser =
        Parser { lexer: Lexer::new(text), peeked: None, depth: 0, operators: 0, found: Found::default(), now };
    if text.len() > MAX_BYTES {
        return Err(parser.lexer.wrong("a text of more than 1 MiB"));
    }
    if let Some(at) = text.find('\0') {
        return Err(Wrong { at, what: "a NUL".into() });
    }
    let mut statements = Vec::new();
    loop {
        while parser.takes_sign(";")? {}
        if parser.is_end()? {
            return Ok(statements);
        }
        statements.push(parser.statement()?);
        if !parser.is_end()? {
            parser.sign(";")?;
        }
    }
}

/// What was found in the current statement so far.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) databases: BTreeSet<String>,
    pub(super) uses_default: bool,
    pub(super) nows: Vec<Range<usize>>,
}

impl Found {
    /// Adds a database; an empty name stands for the request's own.
    pub(super) fn add(&mut self, database: String) {
        if database.is_empty() {
            self.uses_default = true;
        } else {
            self.databases.insert(database);
        }
    }
}

/// Parses one text.
pub(super) struct Parser<'a> {
    pub(super) lexer: Lexer<'a>,
    /// The next token, its offset, and the lexer after it.
    pub(super) peeked: Option<(Token, usize, Lexer<'a>)>,
    pub(super) depth: usize,
    pub(super) operators: usize,
    pub(super) found: Found,
    pub(super) now: i64,
}

/// The beginning of a statement, by its first words.
impl Parser<'_> {
    fn statement(&mut self) -> Result<Statement, Wrong> {
        self.found = Found::default();
        self.peek()?;
        let start = self.peeked.as_ref().map_or(0, |(_, start, _)| *start);
        let mut points = Span::ALWAYS;
        let word = self.word()?;
        let kind = match word.as_str() {
            "SELECT" => {
                let select = self.select()?;
                points = range::of(&select, self.now);
                if select.has_into { Kind::SelectInto } else { Kind::Select }
            }
            "EXPLAIN" => {
                self.takes("ANALYZE")?;
                self.takes("VERBOSE")?;
                self.keyword("SELECT")?;
                let select = self.select()?;
                points = range::of(&select, self.now);
                if select.has_into { Kind::SelectInto } else { Kind::Explain }
            }
            "SHOW" => self.show()?,
            "CREATE" => self.create()?,
            "ALTER" => {
                self.policy_on()?;
                self.policy_options()?;
                Kind::ChangePolicy
            }
            "DROP" => self.drop()?,
            "DELETE" => {
                self.removal()?;
                Kind::Remove
            }
            "GRANT" => {
                self.rights("TO")?;
                Kind::Users
            }
            "REVOKE" => {
                self.rights("FROM")?;
                Kind::Users
            }
            "SET" => {
                self.keywords(&["PASSWORD", "FOR"])?;
                self.name()?;
                self.sign("=")?;
                self.text()?;
                Kind::Users
            }
            "KILL" => {
                self.keyword("QUERY")?;
                self.integer()?;
                if self.takes("ON")? {
                    self.name()?;
                }
                Kind::OneServer
            }
            _ => return Err(self.wrong(format!("{word} begins no statement"))),
        };
        let Found { databases, uses_default, nows } = std::mem::take(&mut self.found);
        Ok(Statement { kind, text: start..self.lexer.at(), databases, uses_default, points, nows })
    }

    fn create(&mut self) -> Result<Kind, Wrong> {
        let word = self.word()?;
        match word.as_str() {
            "DATABASE" => {
                self.database()?;
                if self.takes("WITH")? {
                    self.policy_options()?;
                }
                Ok(Kind::Create)
            }
            "RETENTION" => {
                self.keyword("POLICY")?;
                self.name()?;
                self.keyword("ON")?;
                self.database()?;
                self.policy_options()?;
                Ok(Kind::Create)
            }
            "USER" => {
                self.name()?;
                self.keywords(&["WITH", "PASSWORD"])?;
                self.text()?;
                if self.takes("WITH")? {
                    self.keywords(&["ALL", "PRIVILEGES"])?;
                }
                Ok(Kind::Users)
            }
            "CONTINUOUS" => {
                self.keyword("QUERY")?;
                self.name()?;
                self.keyword("ON")?;
                self.database()?;
                if self.takes("RESAMPLE")? {
                    for word in ["EVERY", "FOR"] {
                        if self.takes(word)? {
                            self.duration()?;
                        }
                    }
                }
                self.keywords(&["BEGIN", "SELECT"])?;
                self.select()?;
                self.keyword("END")?;
                Ok(Kind::ContinuousQuery)
            }
            "SUBSCRIPTION" => {
                self.subscription()?;
                self.keyword("DESTINATIONS")?;
                self.keyword("ALL").or_else(|_| self.keyword("ANY"))?;
                loop {
                    self.text()?;
                    if !self.takes_sign(",")? {
                        return Ok(Kind::Subscription);
                    }
                }
            }
            _ => Err(self.wrong(format!("CREATE {word} is not known"))),
        }
    }

    fn drop(&mut self) -> Result<Kind, Wrong> {
        let word = self.word()?;
        Ok(match word.as_str() {
            "DATABASE" => {
                self.database()?;
                Kind::Remove
            }
            "MEASUREMENT" => {
                self.name()?;
                self.found.uses_default = true;
                Kind::Remove
            }
            "SERIES" => {
                self.removal()?;
                Kind::Remove
            }
            "SHARD" => {
                self.integer()?;
                Kind::OneServer
            }
            "RETENTION" => {
                self.policy_on_after_retention()?;
                Kind::ChangePolicy
            }
            "USER" => {
                self.name()?;
                Kind::Users
            }
            "CONTINUOUS" => {
                self.keyword("QUERY")?;
                self.name()?;
                self.keyword("ON")?;
                self.database()?;
                Kind::ContinuousQuery
            }
            "SUBSCRIPTION" => {
                self.subscription()?;
                Kind::Subscription
            }
            _ => return Err(self.wrong(format!("DROP {word} is not known"))),
        })
    }

    /// Reads `[FROM …] [WHERE …]`, at least one of them.
    fn removal(&mut self) -> Result<(), Wrong> {
        let has_from = self.takes("FROM")?;
        if has_from {
            self.sources()?;
        }
        let has_where = self.takes("WHERE")?;
        if has_where {
            self.expression()?;
        }
        if !has_from && !has_where {
            return Err(self.wrong("FROM or WHERE is expected"));
        }
        self.found.uses_default |= self.found.databases.is_empty() || !has_from;
        Ok(())
    }

    fn policy_on(&mut self) -> Result<(), Wrong> {
        self.keyword("RETENTION")?;
        self.policy_on_after_retention()
    }

    fn policy_on_after_retention(&mut self) -> Result<(), Wrong> {
        self.keyword("POLICY")?;
        self.name()?;
        self.keyword("ON")?;
        self.database()
    }

    /// Reads `DURATION d`, `REPLICATION n`, `SHARD DURATION d`, `NAME p`, `DEFAULT`, and the
    /// options of 1.12; at least one.
    fn policy_options(&mut self) -> Result<(), Wrong> {
        let mut count = 0;
        loop {
            if self.takes("DURATION")? {
                self.duration()?;
            } else if self.takes("REPLICATION")? {
                self.integer()?;
            } else if self.takes("SHARD")? {
                self.keyword("DURATION")?;
                self.duration()?;
            } else if self.takes("FUTURE")? || self.takes("PAST")? {
                self.keyword("LIMIT")?;
                self.duration()?;
            } else if self.takes("NAME")? {
                self.name()?;
            } else if !self.takes("DEFAULT")? {
                break;
            }
            count += 1;
        }
        if count == 0 { Err(self.wrong("an option of a retention policy is expected")) } else { Ok(()) }
    }

    /// `p ON db.rp`
    fn subscription(&mut self) -> Result<(), Wrong> {
        self.name()?;
        self.keyword("ON")?;
        self.database()?;
        self.sign(".")?;
        self.name().map(drop)
    }

    /// `READ|WRITE|ALL [PRIVILEGES] [ON db] TO|FROM user`
    fn rights(&mut self, direction: &str) -> Result<(), Wrong> {
        if self.takes("ALL")? {
            self.takes("PRIVILEGES")?;
        } else if !self.takes("READ")? {
            self.keyword("WRITE")?;
        }
        if self.takes("ON")? {
            self.database()?;
        }
        self.keyword(direction)?;
        self.name().map(drop)
    }

    fn database(&mut self) -> Result<(), Wrong> {
        let name = self.name()?;
        self.found.add(name);
        Ok(())
    }
}
