//! Why a connection to a node could not be opened.

use std::io;

use super::SqlState;

/// A connection to a node could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot connect to node `{node}`: {kind}: {message}")]
#[non_exhaustive]
pub struct ConnectError {
    /// The node.
    pub node: String,
    /// What kind of failure it was.
    pub kind: ConnectErrorKind,
    /// The server's or the operating system's own words.
    pub message: String,
    /// The server's code, where the server answered.
    pub sqlstate: Option<SqlState>,
}

/// The kinds of [`ConnectError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConnectErrorKind {
    /// Nothing listens at the address.
    Refused,
    /// The host name is unknown, or the network does not reach it.
    Unreachable,
    /// No answer within `connect_timeout`.
    TimedOut,
    /// The server does not accept this user, password or client address.
    Authentication,
    /// The server is at its connection limit, or the role or database at theirs.
    TooManyConnections,
    /// The server is starting up, shutting down or not accepting connections (SQLSTATE `57P03`).
    NotAccepting,
    /// There is no database of that name.
    NoDatabase,
    /// The connection was opened, but a set-up statement failed.
    SetUp,
    /// The node was removed from the pool, or the pool is closed.
    Retired,
    /// Anything else.
    Other,
}

impl std::fmt::Display for ConnectErrorKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Refused => "nothing listens there",
            Self::Unreachable => "the host cannot be reached",
            Self::TimedOut => "no answer in time",
            Self::Authentication => "the server does not let this user in",
            Self::TooManyConnections => "the server has too many connections",
            Self::NotAccepting => "the server does not accept connections now",
            Self::NoDatabase => "the database does not exist",
            Self::SetUp => "a set-up statement failed",
            Self::Retired => "no longer one of the pool's nodes",
            Self::Other => "the attempt failed",
        })
    }
}

impl ConnectError {
    pub(crate) fn new(node: &str, kind: ConnectErrorKind, message: impl Into<String>) -> Self {
        Self {
            node: node.to_owned(),
            kind,
            message: message.into(),
            sqlstate: None,
        }
    }

    pub(crate) fn from_io(node: &str, error: &io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => ConnectErrorKind::Refused,
            io::ErrorKind::TimedOut => ConnectErrorKind::TimedOut,
            _ => ConnectErrorKind::Unreachable,
        };
        Self::new(node, kind, error.to_string())
    }

    pub(crate) fn from_postgres(node: &str, error: &tokio_postgres::Error) -> Self {
        let Some(server) = error.as_db_error() else {
            let source = std::error::Error::source(error);
            return match source.and_then(|source| source.downcast_ref::<io::Error>()) {
                Some(io) => Self::from_io(node, io),
                None => Self::new(node, ConnectErrorKind::Other, error.to_string()),
            };
        };
        let sqlstate = SqlState::from_bytes(server.code().code().as_bytes());
        Self {
            sqlstate,
            ..Self::new(node, kind_of(sqlstate), server.message())
        }
    }

    /// Whether the server itself is away, so that another may take its place.
    pub(crate) fn is_outage(&self) -> bool {
        matches!(
            self.kind,
            ConnectErrorKind::Refused
                | ConnectErrorKind::Unreachable
                | ConnectErrorKind::TimedOut
                | ConnectErrorKind::NotAccepting
                | ConnectErrorKind::Retired
                | ConnectErrorKind::Other
        )
    }

    /// Whether waiting for a free connection can help: the server lives and is only full.
    pub(crate) fn is_transient(&self) -> bool {
        self.kind == ConnectErrorKind::TooManyConnections
    }
}

fn kind_of(sqlstate: Option<SqlState>) -> ConnectErrorKind {
    match sqlstate {
        Some(SqlState::TOO_MANY_CONNECTIONS) => ConnectErrorKind::TooManyConnections,
        Some(
            SqlState::CANNOT_CONNECT_NOW | SqlState::ADMIN_SHUTDOWN | SqlState::CRASH_SHUTDOWN,
        ) => ConnectErrorKind::NotAccepting,
        Some(SqlState::INVALID_CATALOG_NAME) => ConnectErrorKind::NoDatabase,
        Some(code) if code.is_of_class(b"28") => ConnectErrorKind::Authentication,
        _ => ConnectErrorKind::Other,
    }
}
