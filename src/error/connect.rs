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
    /// The source of credentials failed; see [`credentials`](crate::credentials).
    Credentials,
    /// TLS could not be begun: the server has none, its certificate is not trusted, or a file cannot be read.
    Tls,
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

impl ConnectErrorKind {
    /// What a pooler means that cannot lead on to a server. PgBouncer has one code for all.
    pub(crate) fn of_pooler(message: &str) -> Option<Self> {
        const FULL: [&str; 3] = [
            "query_wait_timeout",
            "no more connections allowed",
            "too many active clients",
        ];
        const AWAY: [&str; 4] = [
            "server_login_retry",
            "server login has been failing",
            "cannot connect to server",
            "failed to connect to remote server",
        ];
        let says = |texts: &[&str]| texts.iter().any(|text| message.contains(text));
        // PgBouncer says so of a password that is wrong.
        if message.contains("authentication failed") {
            return Some(Self::Authentication);
        }
        if says(&FULL) {
            return Some(Self::TooManyConnections);
        }
        says(&AWAY).then_some(Self::NotAccepting)
    }
}

impl std::fmt::Display for ConnectErrorKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Refused => "nothing listens there",
            Self::Unreachable => "the host cannot be reached",
            Self::TimedOut => "no answer in time",
            Self::Authentication => "the server does not let this user in",
            Self::Credentials => "there is nothing to log in with",
            Self::Tls => "TLS failed",
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
                None => Self::of_driver(node, error),
            };
        };
        let sqlstate = SqlState::from_bytes(server.code().code().as_bytes());
        let kind = ConnectErrorKind::of_pooler(server.message());
        let hint = if server.message().contains("unsupported startup parameter") {
            ": a pooler is in between; remove `options` from the URL, and `PGOPTIONS`, `PGTZ` and `PGDATESTYLE` from the \
             environment, and let the role have the settings"
        } else {
            ""
        };
        let message = format!("{}{hint}", server.message());
        Self {
            sqlstate,
            ..Self::new(node, kind.unwrap_or_else(|| kind_of(sqlstate)), message)
        }
    }

    /// What tokio-postgres itself does not like.
    fn of_driver(node: &str, error: &tokio_postgres::Error) -> Self {
        let source = std::error::Error::source(error);
        let source = source.map_or_else(String::new, |source| format!(": {source}"));
        let message = format!("{error}{source}");
        // Its words for an answer that is missing.
        if message.ends_with("password missing") {
            let message = "the server asks for a password, and none is given";
            return Self::new(node, ConnectErrorKind::Authentication, message);
        }
        let kind = if message.starts_with("authentication error") {
            ConnectErrorKind::Authentication
        } else {
            ConnectErrorKind::Other
        };
        Self::new(node, kind, message)
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

    /// Whether another address of the same name may do.
    pub(crate) fn is_of_the_address(&self) -> bool {
        matches!(
            self.kind,
            ConnectErrorKind::Refused
                | ConnectErrorKind::Unreachable
                | ConnectErrorKind::TimedOut
                | ConnectErrorKind::NotAccepting
                | ConnectErrorKind::Tls
        )
    }

    /// Whether another user or password may do.
    pub(crate) fn is_of_the_login(&self) -> bool {
        self.kind == ConnectErrorKind::Authentication && self.sqlstate.is_some()
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
