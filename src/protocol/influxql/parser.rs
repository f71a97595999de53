//! Statements, by the grammar of InfluxDB's parser: of each what it is, which databases it names, and which times it reads.

use std::collections::BTreeSet;
use std::ops::Range;

use super::lexer::{Lexer, Token, Wrong};
use super::{MOST_BYTES, range};
use crate::protocol::Span;

/// Brackets and subqueries within each other.
const MOST_DEPTH: usize = 100;

/// What a statement is.
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
    /// What there is in a database: measurements, series, keys, values, cardinalities, retention policies.
    ShowData,
    /// What is the same on all servers, and for administrators: users, grants, continuous queries, subscriptions.
    ShowAdmin,
    /// What each server says of itself: shards, statistics, diagnostics, queries.
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
    /// What means something on one server only: `KILL QUERY`, `DROP SHARD`.
    OneServer,
}

impl Kind {
    /// Whether it changes nothing.
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
    /// What it is.
    pub kind: Kind,
    /// Its text, as bytes of the whole.
    pub text: Range<usize>,
    /// The databases that it names.
    pub databases: BTreeSet<String>,
    /// Whether it is about the request's database as well.
    pub uses_default: bool,
    /// The times of the points that it may read.
    pub points: Span,
    /// Where `now()` stands, but for those that an interval's offset is made of.
    pub nows: Vec<Range<usize>>,
}

/// Reads the statements of a text; `now` is the time in nanoseconds since 1970.
///
/// # Errors
/// What is wrong with it.
pub fn parse(text: &str, now: i64) -> Result<Vec<Statement>, Wrong> {
    let mut parser = Parser { lexer: Lexer::new(text), peeked: None, depth: 0, found: Found::default(), now };
    if text.len() > MOST_BYTES {
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

/// What is found of one statement on the way.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) databases: BTreeSet<String>,
    pub(super) uses_default: bool,
    pub(super) nows: Vec<Range<usize>>,
}

/// Reads one text.
pub(super) struct Parser<'a> {
    pub(super) lexer: Lexer<'a>,
    /// The next token, where it begins, and the lexer behind it.
    peeked: Option<(Token, usize, Lexer<'a>)>,
    pub(super) depth: usize,
    pub(super) found: Found,
    pub(super) now: i64,
}

/// Where a statement begins, and what the words are that it may begin with.
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

    fn show(&mut self) -> Result<Kind, Wrong> {
        let word = self.word()?;
        Ok(match word.as_str() {
            "DATABASES" => Kind::ShowDatabases,
            "USERS" | "SUBSCRIPTIONS" => Kind::ShowAdmin,
            "CONTINUOUS" => {
                self.keyword("QUERIES")?;
                Kind::ShowAdmin
            }
            "GRANTS" => {
                self.keyword("FOR")?;
                self.name()?;
                Kind::ShowAdmin
            }
            "SHARDS" | "QUERIES" => Kind::ShowServer,
            "SHARD" => {
                self.keyword("GROUPS")?;
                Kind::ShowServer
            }
            "STATS" | "DIAGNOSTICS" => {
                if self.takes("FOR")? {
                    self.text()?;
                }
                Kind::ShowServer
            }
            "RETENTION" => {
                self.keyword("POLICIES")?;
                self.on()?;
                Kind::ShowData
            }
            "MEASUREMENT" => {
                self.takes("EXACT")?;
                self.keyword("CARDINALITY")?;
                self.show_rest()?
            }
            "MEASUREMENTS" => {
                self.on()?;
                if self.takes("WITH")? {
                    self.keyword("MEASUREMENT")?;
                    self.match_name()?;
                }
                self.show_rest()?
            }
            "SERIES" => {
                self.cardinality()?;
                self.show_rest()?
            }
            "TAG" => self.show_tag()?,
            "FIELD" => {
                self.keyword("KEY").or_else(|_| self.keyword("KEYS"))?;
                self.cardinality()?;
                self.show_rest()?
            }
            _ => return Err(self.wrong(format!("SHOW {word} is not known"))),
        })
    }

    fn show_tag(&mut self) -> Result<Kind, Wrong> {
        let word = self.word()?;
        match word.as_str() {
            "KEYS" => {}
            "KEY" => self.cardinality()?,
            "VALUES" => {
                self.cardinality()?;
                self.on()?;
                if self.takes("FROM")? {
                    self.sources()?;
                }
                self.keywords(&["WITH", "KEY"])?;
                self.match_keys()?;
            }
            _ => return Err(self.wrong(format!("SHOW TAG {word} is not known"))),
        }
        self.show_rest()
    }

    /// `[EXACT] CARDINALITY`, if it stands there.
    fn cardinality(&mut self) -> Result<(), Wrong> {
        if self.takes("EXACT")? { self.keyword("CARDINALITY") } else { self.takes("CARDINALITY").map(drop) }
    }

    /// `[ON db] [FROM …] [WITH KEY …] [WHERE …] [GROUP BY …] [ORDER BY …] [LIMIT …]`
    fn show_rest(&mut self) -> Result<Kind, Wrong> {
        self.on()?;
        if self.takes("FROM")? {
            self.sources()?;
        }
        if self.takes("WITH")? {
            self.keyword("KEY")?;
            self.match_keys()?;
        }
        self.tail()?;
        Ok(Kind::ShowData)
    }

    /// `= name`, `!= name`, `=~ /…/`, `!~ /…/`
    fn match_name(&mut self) -> Result<(), Wrong> {
        if self.takes_sign("=~")? || self.takes_sign("!~")? {
            return self.regex();
        }
        if !self.takes_sign("=")? && !self.takes_sign("!=")? {
            self.sign("<>")?;
        }
        self.name().map(drop)
    }

    /// The same, or `IN (name, …)`.
    fn match_keys(&mut self) -> Result<(), Wrong> {
        if !self.takes("IN")? {
            return self.match_name();
        }
        self.sign("(")?;
        loop {
            self.name()?;
            if !self.takes_sign(",")? {
                return self.sign(")");
            }
        }
    }

    /// `ON db`; without it the request's database is meant.
    fn on(&mut self) -> Result<(), Wrong> {
        if self.takes("ON")? {
            let database = self.name()?;
            self.found.databases.insert(database);
        } else if self.found.databases.is_empty() {
            self.found.uses_default = true;
        }
        Ok(())
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
                self.policy_on_behind_retention()?;
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

    /// `[FROM …] [WHERE …]`, at least one of them.
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
        self.policy_on_behind_retention()
    }

    fn policy_on_behind_retention(&mut self) -> Result<(), Wrong> {
        self.keyword("POLICY")?;
        self.name()?;
        self.keyword("ON")?;
        self.database()
    }

    /// `DURATION d`, `REPLICATION n`, `SHARD DURATION d`, `NAME p`, `DEFAULT`, and those of 1.12, at least one.
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
        self.found.databases.insert(name);
        Ok(())
    }
}

/// Tokens, one by one.
impl<'a> Parser<'a> {
    fn peek(&mut self) -> Result<&Token, Wrong> {
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

    /// The next token, without taking it.
    pub(super) fn ahead(&mut self) -> Result<Token, Wrong> {
        self.peek().cloned()
    }

    /// Where the next token begins.
    pub(super) fn place(&mut self) -> Result<usize, Wrong> {
        self.peek()?;
        Ok(self.peeked.as_ref().map_or_else(|| self.lexer.at(), |(_, start, _)| *start))
    }

    pub(super) fn wrong(&self, what: impl Into<std::borrow::Cow<'static, str>>) -> Wrong {
        self.lexer.wrong(what)
    }

    fn is_end(&mut self) -> Result<bool, Wrong> {
        Ok(*self.peek()? == Token::End)
    }

    /// Takes a keyword, if it is the next token.
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

    /// A keyword, in capitals.
    fn word(&mut self) -> Result<String, Wrong> {
        match self.next()? {
            Token::Word(word) => Ok(word.to_ascii_uppercase()),
            _ => Err(self.wrong("a keyword is expected")),
        }
    }

    /// A name: bare or quoted, or a parameter for one.
    pub(super) fn name(&mut self) -> Result<String, Wrong> {
        match self.next()? {
            Token::Word(name) if !is_keyword(&name) => Ok(name),
            Token::Quoted(name) => Ok(name),
            _ => Err(self.wrong("a name is expected")),
        }
    }

    fn text(&mut self) -> Result<(), Wrong> {
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

    fn duration(&mut self) -> Result<(), Wrong> {
        match self.next()? {
            Token::Duration(Some(_)) => Ok(()),
            Token::Word(word) if word.eq_ignore_ascii_case("INF") => Ok(()),
            _ => Err(self.wrong("a duration is expected")),
        }
    }

    /// A regular expression that must stand here.
    pub(super) fn regex(&mut self) -> Result<(), Wrong> {
        if self.takes_regex()? { Ok(()) } else { Err(self.wrong("a regular expression is expected")) }
    }

    /// Takes a regular expression, where one may stand.
    pub(super) fn takes_regex(&mut self) -> Result<bool, Wrong> {
        // What was looked at ahead was not taken yet.
        self.peeked = None;
        self.lexer.regex()
    }

    /// One bracket or subquery deeper.
    pub(super) fn deeper<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T, Wrong>) -> Result<T, Wrong> {
        if self.depth >= MOST_DEPTH {
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
