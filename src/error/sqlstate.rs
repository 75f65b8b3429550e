//! SQLSTATE codes and what they mean for routing.
//!
//! See <https://www.postgresql.org/docs/current/errcodes-appendix.html>.

use std::fmt;

/// A five-character SQLSTATE, PostgreSQL's language-independent name of an error.
///
/// ```
/// use diesel_replicated::error::SqlState;
///
/// let code: SqlState = "57P01".parse()?;
/// assert_eq!(code.as_str(), "57P01");
/// # Ok::<(), diesel_replicated::error::InvalidSqlState>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SqlState([u8; 5]);

/// A text that is not a SQLSTATE: five of the characters `0-9` and `A-Z` are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a SQLSTATE is five of the characters 0-9 and A-Z")]
pub struct InvalidSqlState;

impl SqlState {
    pub(crate) const READ_ONLY_SQL_TRANSACTION: Self = Self(*b"25006");
    pub(crate) const FEATURE_NOT_SUPPORTED: Self = Self(*b"0A000");
    pub(crate) const NOT_IN_PREREQUISITE_STATE: Self = Self(*b"55000");
    pub(crate) const QUERY_CANCELED: Self = Self(*b"57014");
    pub(crate) const INTERNAL_ERROR: Self = Self(*b"XX000");
    pub(crate) const SERIALIZATION_FAILURE: Self = Self(*b"40001");
    pub(crate) const INVALID_PARAMETER_VALUE: Self = Self(*b"22023");
    pub(crate) const INVALID_STATEMENT_NAME: Self = Self(*b"26000");
    pub(crate) const DEADLOCK_DETECTED: Self = Self(*b"40P01");
    pub(crate) const TOO_MANY_CONNECTIONS: Self = Self(*b"53300");
    pub(crate) const ADMIN_SHUTDOWN: Self = Self(*b"57P01");
    pub(crate) const CRASH_SHUTDOWN: Self = Self(*b"57P02");
    pub(crate) const CANNOT_CONNECT_NOW: Self = Self(*b"57P03");
    pub(crate) const DATABASE_DROPPED: Self = Self(*b"57P04");
    pub(crate) const INVALID_AUTHORIZATION: Self = Self(*b"28000");
    pub(crate) const INVALID_CATALOG_NAME: Self = Self(*b"3D000");
    const DATATYPE_MISMATCH: Self = Self(*b"42804");
    const SYNTAX_ERROR: Self = Self(*b"42601");
    const UNDEFINED_FUNCTION: Self = Self(*b"42883");
    pub(crate) const UNDEFINED_OBJECT: Self = Self(*b"42704");
    const INVALID_SCHEMA_NAME: Self = Self(*b"3F000");
    const INVALID_TEXT_REPRESENTATION: Self = Self(*b"22P02");
    const INVALID_BINARY_REPRESENTATION: Self = Self(*b"22P03");
    const DISK_FULL: Self = Self(*b"53100");

    /// The code as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Only ASCII gets in.
        std::str::from_utf8(&self.0).unwrap_or("?????")
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let code: [u8; 5] = bytes.try_into().ok()?;
        code.iter()
            .all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase())
            .then_some(Self(code))
    }

    /// Whether the error's class (its first two characters) is this one.
    pub(crate) fn is_of_class(&self, class: &[u8; 2]) -> bool {
        self.0.starts_with(class)
    }

    /// Whether the server sends it to say that the session is over.
    pub(crate) fn ends_the_session(self) -> bool {
        [
            Self::ADMIN_SHUTDOWN,
            Self::CRASH_SHUTDOWN,
            Self::DATABASE_DROPPED,
        ]
        .contains(&self)
    }

    /// Whether the transaction was in the way of another, and may succeed another time.
    pub(crate) fn is_conflict(self) -> bool {
        [Self::SERIALIZATION_FAILURE, Self::DEADLOCK_DETECTED].contains(&self)
    }

    /// Whether the OID of a custom type may have been out of date.
    pub(crate) fn may_mean_stale_types(self) -> bool {
        [
            Self::UNDEFINED_OBJECT,
            Self::UNDEFINED_FUNCTION,
            Self::DATATYPE_MISMATCH,
        ]
        .contains(&self)
    }

    /// Whether a statement may get it only because the replica is behind: an object, a privilege, a
    /// column's type or an enum's label has not arrived there, a materialized view is not filled yet.
    pub(crate) fn may_come_of_lag(self) -> bool {
        // The whole class of what is resolved by the catalog, but for mere syntax.
        (self.is_of_class(b"42") && self != Self::SYNTAX_ERROR)
            || [
                Self::INVALID_SCHEMA_NAME,
                Self::INVALID_TEXT_REPRESENTATION,
                Self::INVALID_BINARY_REPRESENTATION,
                Self::NOT_IN_PREREQUISITE_STATE,
                Self::FEATURE_NOT_SUPPORTED,
                Self::INTERNAL_ERROR,
            ]
            .contains(&self)
    }

    /// Whether it tells of trouble with the server's own disk or files, met by this statement.
    pub(crate) fn is_trouble_of_a_server(self) -> bool {
        self.is_of_class(b"58") || self.is_of_class(b"XX") || self == Self::DISK_FULL
    }
}

impl std::str::FromStr for SqlState {
    type Err = InvalidSqlState;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::from_bytes(text.as_bytes()).ok_or(InvalidSqlState)
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SqlState({self})")
    }
}
