//! A ban: the tests by which responses are invalidated.
//!
//! The types carry no format. Crate `varnishd` decodes varnishd's form into them, `objmapper-records` writes them into
//! the invalidation log and evaluates them.

use std::fmt;

/// The left side of a test whose right side is a text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Subject {
    /// `req.url`
    Url,
    /// `req.http.NAME`
    RequestHeader(Vec<u8>),
    /// `obj.http.NAME`
    ObjectHeader(Vec<u8>),
    /// `obj.status`, as three digits
    Status,
}

/// The left side of a test whose right side is a duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DurationOf {
    /// `obj.ttl`
    Ttl,
    /// `obj.age`
    Age,
    /// `obj.grace`
    Grace,
    /// `obj.keep`
    Keep,
}

/// A comparison with a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextOper {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `~`
    Match,
    /// `!~`
    NoMatch,
}

/// A comparison with a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NumberOper {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
}

/// One test of a ban.
#[derive(Debug, Clone, PartialEq)]
pub enum Test {
    /// Compares a text.
    Text {
        /// The text that is compared.
        subject: Subject,
        /// The comparison.
        oper: TextOper,
        /// The text, or the regular expression (PCRE2), that it is compared with.
        text: Vec<u8>,
    },
    /// Compares a duration.
    Number {
        /// The duration that is compared.
        subject: DurationOf,
        /// The comparison.
        oper: NumberOper,
        /// The number of seconds that it is compared with.
        number: f64,
    },
}

/// A ban. It matches a response if all its tests do.
#[derive(Debug, Clone, PartialEq)]
pub struct Ban {
    /// When it was made, seconds since 1970. Tests of age and ttl depend on it.
    pub time: f64,
    /// True if its meaning does not depend on [`Self::time`], so that it covers older bans with the same tests.
    pub timeless: bool,
    /// The tests. A ban without tests matches everything.
    pub tests: Vec<Test>,
}

impl Ban {
    /// Makes a ban that matches everything. It stands for a ban that cannot be decoded.
    #[must_use]
    pub fn matching_everything(time: f64) -> Self {
        Self { time, timeless: true, tests: Vec::new() }
    }

    /// Returns true if the newer of the two covers both.
    #[must_use]
    pub fn is_duplicate_of(&self, other: &Self) -> bool {
        self.timeless && other.timeless && self.tests == other.tests
    }
}

/// As an operator writes it, such as `req.url ~ ^/a && obj.status != 200`. What is not printable is escaped.
impl fmt::Display for Ban {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.tests.is_empty() {
            return f.write_str("of everything");
        }
        for (index, test) in self.tests.iter().enumerate() {
            if index > 0 {
                f.write_str(" && ")?;
            }
            write!(f, "{test}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text { subject, oper, text } => {
                match subject {
                    Subject::Url => f.write_str("req.url")?,
                    Subject::RequestHeader(name) => write!(f, "req.http.{}", name.escape_ascii())?,
                    Subject::ObjectHeader(name) => write!(f, "obj.http.{}", name.escape_ascii())?,
                    Subject::Status => f.write_str("obj.status")?,
                }
                let oper = match oper {
                    TextOper::Equal => "==",
                    TextOper::NotEqual => "!=",
                    TextOper::Match => "~",
                    TextOper::NoMatch => "!~",
                };
                write!(f, " {oper} {}", text.escape_ascii())
            }
            Self::Number { subject, oper, number } => {
                let subject = match subject {
                    DurationOf::Ttl => "obj.ttl",
                    DurationOf::Age => "obj.age",
                    DurationOf::Grace => "obj.grace",
                    DurationOf::Keep => "obj.keep",
                };
                let oper = match oper {
                    NumberOper::Equal => "==",
                    NumberOper::NotEqual => "!=",
                    NumberOper::Greater => ">",
                    NumberOper::GreaterOrEqual => ">=",
                    NumberOper::Less => "<",
                    NumberOper::LessOrEqual => "<=",
                };
                write!(f, "{subject} {oper} {number}s")
            }
        }
    }
}
