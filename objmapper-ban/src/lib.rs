//! A ban: the tests by which responses are invalidated.
//!
//! The types carry no format. Crate `varnishd` decodes varnishd's form into them, `objmapper-records` writes them into
//! the invalidation log and evaluates them.

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
        /// Seconds.
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
