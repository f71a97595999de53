//! `SHOW`, in all its forms.

use super::lexer::Wrong;
use super::parser::{Kind, Parser};

impl Parser<'_> {
    pub(super) fn show(&mut self) -> Result<Kind, Wrong> {
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

    /// Reads `[EXACT] CARDINALITY`, if present.
    fn cardinality(&mut self) -> Result<(), Wrong> {
        if self.takes("EXACT")? { self.keyword("CARDINALITY") } else { self.takes("CARDINALITY").map(drop) }
    }

    /// Reads `[ON db] [FROM …] [WITH KEY …] [WHERE …] [GROUP BY …] [ORDER BY …] [LIMIT …]`.
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

    /// Reads `= name`, `!= name`, `=~ /…/` or `!~ /…/`.
    fn match_name(&mut self) -> Result<(), Wrong> {
        if self.takes_sign("=~")? || self.takes_sign("!~")? {
            return self.regex();
        }
        if !self.takes_sign("=")? && !self.takes_sign("!=")? {
            self.sign("<>")?;
        }
        self.name().map(drop)
    }

    /// Reads the same, or `IN (name, …)`.
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

    /// Reads `ON db`; without it, the statement uses the request's database.
    fn on(&mut self) -> Result<(), Wrong> {
        if self.takes("ON")? {
            let database = self.name()?;
            self.found.add(database);
        } else if self.found.databases.is_empty() {
            self.found.uses_default = true;
        }
        Ok(())
    }
}
