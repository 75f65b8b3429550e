//! What can go wrong with a local cluster.

use std::io;
use std::time::Duration;

/// A local cluster could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterError {
    /// No PostgreSQL server is installed where one was looked for.
    #[error(
        "no PostgreSQL server (initdb and postgres, version 14 or later) was found; install one \
         (Debian: `apt-get install postgresql`), or run `scripts/postgres`, which gets one, or \
         name the folder of its programs in DIESEL_REPLICATED_PG_BIN; looked in: {}",
        .looked.join(", ")
    )]
    NoServer {
        /// The places.
        looked: Vec<String>,
    },

    /// The server is too old.
    #[error("PostgreSQL in {directory} is version {version}; version 14 or later is needed")]
    TooOld {
        /// Where it is.
        directory: String,
        /// What it calls itself.
        version: String,
    },

    /// Run as root, and there is no unprivileged user that PostgreSQL could run as.
    #[error(
        "PostgreSQL refuses to run as root, and there is no user `postgres` or `nobody` to run it \
         as; run as an ordinary user"
    )]
    NoUser,

    /// A program could not be run, or failed.
    #[error("`{program}` failed: {message}")]
    Program {
        /// Which one.
        program: String,
        /// What it said.
        message: String,
    },

    /// A server ended while it was starting.
    #[error("the server `{node}` did not start; the end of its log:\n{log}")]
    NotStarted {
        /// The node.
        node: String,
        /// The end of its log.
        log: String,
    },

    /// No free port was found.
    #[error("no free port on 127.0.0.1 between {from} and {to}")]
    NoPort {
        /// The first that was tried.
        from: u16,
        /// The last that was tried.
        to: u16,
    },

    /// Something did not happen in time.
    #[error("{what}: not within {waited:?}")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// For how long.
        waited: Duration,
    },

    /// A statement failed, or the node cannot be reached.
    #[error("node `{node}`: {message}")]
    Sql {
        /// The node.
        node: String,
        /// What it said.
        message: String,
    },

    /// The configuration makes no sense.
    #[error("{0}")]
    Config(String),

    /// The operating system refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// What the operating system said.
        source: io::Error,
    },
}

/// Names what was being done when the operating system refused.
pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> ClusterError {
    let what = what.into();
    move |source| ClusterError::Io { what, source }
}
