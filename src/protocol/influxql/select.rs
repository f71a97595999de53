//! `SELECT`: fields, sources, conditions and the clauses after them. Keeps only what determines the
//! times that are read.

use super::lexer::{Token, Wrong};
use super::parser::Parser;
use super::tokens::{MAX_OPERATORS, is_keyword};

/// An expression, as far as it determines times.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Expression {
    /// Two of them with an operator between.
    Binary(&'static str, Box<Self>, Box<Self>),
    /// A field, a tag, or `time`.
    Name(String),
    /// A whole number; `None` if it does not fit.
    Integer(Option<i64>),
    /// A duration in nanoseconds.
    Duration(Option<i64>),
    /// Text in single quotes.
    Text(String),
    /// A call of a function, by its name in lower case, with its arguments.
    Call(String, Vec<Self>),
    /// Anything else.
    Other,
}

/// A `SELECT`, as far as it determines times.
#[derive(Clone, Debug, Default)]
pub(super) struct Select {
    pub(super) has_into: bool,
    pub(super) fields: Vec<Expression>,
    /// Whether any source is not a subquery.
    pub(super) has_measurement: bool,
    pub(super) subqueries: Vec<Self>,
    pub(super) condition: Option<Expression>,
    /// The interval of `GROUP BY time()` in nanoseconds, if any.
    pub(super) interval: Option<i64>,
    /// Whether the statement has `tz()`.
    pub(super) has_zone: bool,
}

/// Binary operators, by increasing precedence.
const OPERATORS: [&[&str]; 5] = [
    &["OR"],
    &["AND"],
    &["=", "!=", "<>", "=~", "!~", "<", "<=", ">", ">="],
    &["+", "-", "|", "^"],
    &["*", "/", "%", "&"],
];

/// The rest of a statement after `SELECT`, and its parts that other statements share.
impl Parser<'_> {
    pub(super) fn select(&mut self) -> Result<Select, Wrong> {
        let mut select = Select::default();
        loop {
            select.fields.push(self.field()?);
            if !self.takes_sign(",")? {
                break;
            }
        }
        if self.takes("INTO")? {
            select.has_into = true;
            self.target()?;
        }
        self.keyword("FROM")?;
        let (has_measurement, subqueries) = self.sources()?;
        (select.has_measurement, select.subqueries) = (has_measurement, subqueries);
        let Tail { condition, interval, has_zone } = self.tail()?;
        Ok(Select { condition, interval, has_zone, ..select })
    }

    /// Reads an expression and its alias, if any.
    fn field(&mut self) -> Result<Expression, Wrong> {
        let field = if self.takes_regex()? { Expression::Other } else { self.expression()? };
        if self.takes("AS")? {
            self.name()?;
        }
        Ok(field)
    }

    /// Reads the target of `INTO`: up to three names, the last of which may be `:MEASUREMENT`.
    fn target(&mut self) -> Result<(), Wrong> {
        let database = self.segments(true)?;
        match database {
            Some(database) => self.found.add(database),
            None => self.found.uses_default = true,
        }
        Ok(())
    }

    /// Reads `name[.[name].name]`, the last of which may be a regular expression. Returns the
    /// database, if one is named.
    fn segments(&mut self, is_target: bool) -> Result<Option<String>, Wrong> {
        let first = self.name()?;
        let mut parts = 1;
        while self.takes_sign(".")? {
            parts += 1;
            if parts > 3 {
                return Err(self.wrong("a measurement has a database and a retention policy at most"));
            }
            if is_target && self.takes_sign(":")? {
                self.keyword("MEASUREMENT")?;
                break;
            }
            if !is_target && self.takes_regex()? {
                break;
            }
            // The retention policy may be empty.
            if parts == 2 && self.ahead()? == Token::Sign(".") {
                continue;
            }
            self.name()?;
        }
        // Two parts are a retention policy and a measurement or regular expression.
        Ok((parts == 3).then_some(first))
    }

    /// Reads measurements, regular expressions and subqueries. Returns whether any source is not a
    /// subquery, and the subqueries.
    pub(super) fn sources(&mut self) -> Result<(bool, Vec<Select>), Wrong> {
        let (mut has_measurement, mut subqueries) = (false, Vec::new());
        loop {
            if self.takes_regex()? {
                has_measurement = true;
                self.found.uses_default = true;
            } else if self.takes_sign("(")? {
                self.keyword("SELECT")?;
                subqueries.push(self.deeper(Self::select)?);
                self.sign(")")?;
            } else {
                has_measurement = true;
                match self.segments(false)? {
                    Some(database) => self.found.add(database),
                    None => self.found.uses_default = true,
                }
            }
            if !self.takes_sign(",")? {
                return Ok((has_measurement, subqueries));
            }
        }
    }

    /// Reads `[WHERE …] [GROUP BY …] [fill(…)] [ORDER BY …] [LIMIT n] [OFFSET n] [SLIMIT n]
    /// [SOFFSET n] [tz('…')]`.
    pub(super) fn tail(&mut self) -> Result<Tail, Wrong> {
        let mut tail = Tail::default();
        if self.takes("WHERE")? {
            tail.condition = Some(self.expression()?);
        }
        if self.takes("GROUP")? {
            self.keyword("BY")?;
            tail.interval = self.dimensions()?;
        }
        if self.takes("FILL")? {
            self.sign("(")?;
            self.expression()?;
            self.sign(")")?;
        }
        if self.takes("ORDER")? {
            self.keyword("BY")?;
            self.order()?;
        }
        for keyword in ["LIMIT", "OFFSET", "SLIMIT", "SOFFSET"] {
            if self.takes(keyword)? {
                self.integer()?;
            }
        }
        if self.takes("TZ")? {
            self.sign("(")?;
            self.expression()?;
            self.sign(")")?;
            tail.has_zone = true;
        }
        Ok(tail)
    }

    /// Reads tags, regular expressions and `time(…)`; returns its interval.
    fn dimensions(&mut self) -> Result<Option<i64>, Wrong> {
        let mut interval = None;
        loop {
            if !self.takes_regex()? {
                let known = self.found.nows.len();
                if let Expression::Call(name, arguments) = self.expression()?
                    && name == "time"
                {
                    interval = match arguments.first() {
                        Some(Expression::Duration(Some(length))) => Some(*length),
                        _ => Some(i64::MAX),
                    };
                    // The offset must be a duration or now(); nothing may be substituted for it.
                    self.found.nows.truncate(known);
                }
            }
            if !self.takes_sign(",")? {
                return Ok(interval);
            }
        }
    }

    /// Reads `[time] ASC|DESC`; the grammar allows several.
    fn order(&mut self) -> Result<(), Wrong> {
        loop {
            if !self.takes("ASC")? && !self.takes("DESC")? {
                self.name()?;
                if !self.takes("ASC")? {
                    self.takes("DESC")?;
                }
            }
            if !self.takes_sign(",")? {
                return Ok(());
            }
        }
    }

    pub(super) fn expression(&mut self) -> Result<Expression, Wrong> {
        self.deeper(|parser| parser.binary(0))
    }

    /// Reads expressions joined by operators of at least this precedence.
    fn binary(&mut self, strength: usize) -> Result<Expression, Wrong> {
        let Some(operators) = OPERATORS.get(strength) else { return self.unary() };
        let mut left = self.binary(strength + 1)?;
        while let Some(operator) = self.takes_operator(operators)? {
            self.operators += 1;
            if self.operators > MAX_OPERATORS {
                return Err(self.wrong(format!("more than {MAX_OPERATORS} operators")));
            }
            let right = match operator {
                "=~" | "!~" => {
                    self.regex()?;
                    Expression::Other
                }
                _ => self.binary(strength + 1)?,
            };
            left = Expression::Binary(operator, Box::new(left), Box::new(right));
        }
        Ok(left)
    }

    fn takes_operator(&mut self, operators: &[&'static str]) -> Result<Option<&'static str>, Wrong> {
        for operator in operators {
            let is_word = operator.starts_with(|c: char| c.is_ascii_alphabetic());
            if if is_word { self.takes(operator)? } else { self.takes_sign(operator)? } {
                return Ok(Some(operator));
            }
        }
        Ok(None)
    }

    fn unary(&mut self) -> Result<Expression, Wrong> {
        let start = self.position()?;
        Ok(match self.next()? {
            Token::Sign("(") => {
                let inner = self.expression()?;
                self.sign(")")?;
                inner
            }
            Token::Sign("-") => negated(&self.deeper(Self::unary)?),
            Token::Sign("+") => self.deeper(Self::unary)?,
            Token::Sign("*") => {
                if self.takes_sign("::")? {
                    self.keyword("FIELD").or_else(|_| self.keyword("TAG"))?;
                }
                Expression::Other
            }
            Token::Integer(number) => Expression::Integer(number),
            Token::Duration(length) => Expression::Duration(length),
            Token::Text(text) => Expression::Text(text),
            Token::Number | Token::Parameter => Expression::Other,
            Token::Word(word) if word.eq_ignore_ascii_case("TRUE") || word.eq_ignore_ascii_case("FALSE") => {
                Expression::Other
            }
            // `DISTINCT x`, or a call of the function of this name.
            Token::Word(word) if word.eq_ignore_ascii_case("DISTINCT") => {
                if self.ahead()? == Token::Sign("(") {
                    self.call("distinct", start)?
                } else {
                    self.reference(None)?
                }
            }
            Token::Word(word) if is_keyword(&word) => return Err(self.wrong(format!("{word} is a keyword"))),
            // A function's bracket follows immediately.
            Token::Word(word) if self.is_bracket_next() => self.call(&word, start)?,
            Token::Word(name) | Token::Quoted(name) => self.reference(Some(name))?,
            _ => return Err(self.wrong("an expression is expected")),
        })
    }

    fn is_bracket_next(&self) -> bool {
        let mut ahead = self.lexer.clone();
        let at = ahead.at();
        matches!(ahead.next(), Ok(Token::Sign("("))) && ahead.at() == at + 1
    }

    /// Reads a function's arguments; its name was read and began at `start`.
    fn call(&mut self, name: &str, start: usize) -> Result<Expression, Wrong> {
        self.sign("(")?;
        let mut arguments = Vec::new();
        if !self.takes_sign(")")? {
            loop {
                arguments.push(if self.takes_regex()? { Expression::Other } else { self.expression()? });
                if !self.takes_sign(",")? {
                    break;
                }
            }
            self.sign(")")?;
        }
        let name = name.to_ascii_lowercase();
        if name == "now" && arguments.is_empty() {
            self.found.nows.push(start..self.lexer.at());
        }
        Ok(Expression::Call(name, arguments))
    }

    /// Reads a name with parts and a type; the first part may have been read already.
    fn reference(&mut self, first: Option<String>) -> Result<Expression, Wrong> {
        let mut name = match first {
            Some(name) => name,
            None => self.name()?,
        };
        while self.takes_sign(".")? {
            name.push('.');
            name.push_str(&self.name()?);
        }
        if self.takes_sign("::")? {
            match self.next()? {
                Token::Word(_) => {}
                _ => return Err(self.wrong("a type is expected")),
            }
        }
        Ok(Expression::Name(name))
    }
}

/// The clauses after the sources.
#[derive(Debug, Default)]
pub(super) struct Tail {
    condition: Option<Expression>,
    interval: Option<i64>,
    has_zone: bool,
}

fn negated(expression: &Expression) -> Expression {
    match *expression {
        Expression::Integer(number) => Expression::Integer(number.and_then(i64::checked_neg)),
        Expression::Duration(length) => Expression::Duration(length.and_then(i64::checked_neg)),
        _ => Expression::Other,
    }
}
