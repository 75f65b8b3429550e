//! The ways to a row that are compared, and the work that all of them do.

use std::fmt;
use std::str::FromStr;

/// How many connections an application has for reads, whichever way it goes. This pool and a router by hand have
/// them over two replicas, [`FOR_EACH_SERVER`] to each.
pub(crate) const FOR_READS: u32 = 20;

/// What this crate opens to each server by default; the router by hand is given the same.
pub(crate) const FOR_EACH_SERVER: u32 = 10;

/// The most tasks that do something at once.
pub(crate) const TASKS: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// One connection for each task, which keeps it: no pool at all.
    Held,
    /// As bb8 and diesel-async are by default.
    Bb8Ping,
    Bb8,
    /// As deadpool and diesel-async are by default.
    Deadpool,
    /// Two pools, and an application that knows which of its statements read.
    Router,
    HaProxy,
    PgBouncer,
    /// What Debian 12 has knows nothing of prepared statements, so transaction mode breaks them.
    PgBouncerSession,
    Odyssey,
    Pgpool,
    Ours,
}

impl Way {
    pub(crate) const ALL: [Self; 11] = [
        Self::Held,
        Self::Bb8,
        Self::Bb8Ping,
        Self::Deadpool,
        Self::Router,
        Self::Ours,
        Self::HaProxy,
        Self::PgBouncer,
        Self::PgBouncerSession,
        Self::Odyssey,
        Self::Pgpool,
    ];

    /// What the ratios are to.
    pub(crate) const BASE: Self = Self::Bb8;

    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::Held => "a connection held, no pool",
            Self::Bb8Ping => "bb8, as it is (ping)",
            Self::Bb8 => "bb8 without ping",
            Self::Deadpool => "deadpool, as it is (ping)",
            Self::Router => "two pools, routed by hand",
            Self::HaProxy => "the same through HAProxy",
            Self::PgBouncer => "PgBouncer, transactions",
            Self::PgBouncerSession => "PgBouncer 1.18, sessions",
            Self::Odyssey => "Odyssey, transactions",
            Self::Pgpool => "pgpool-II, load balancing",
            Self::Ours => "this crate",
        }
    }

    /// The proxy that it goes through, by its name in `scripts/poolers`.
    pub(crate) const fn proxy(self) -> Option<&'static str> {
        match self {
            Self::HaProxy => Some("haproxy"),
            Self::PgBouncer => Some("pgbouncer"),
            Self::PgBouncerSession => Some("pgbouncer_1_18"),
            Self::Odyssey => Some("odyssey"),
            Self::Pgpool => Some("pgpool"),
            Self::Held | Self::Bb8Ping | Self::Bb8 | Self::Deadpool | Self::Router | Self::Ours => {
                None
            }
        }
    }

    /// Where it reads.
    pub(crate) const fn reads_on(self) -> &'static str {
        match self {
            Self::Router | Self::HaProxy | Self::Pgpool | Self::Ours => "replicas",
            Self::Held
            | Self::Bb8Ping
            | Self::Bb8
            | Self::Deadpool
            | Self::PgBouncer
            | Self::PgBouncerSession
            | Self::Odyssey => "primary",
        }
    }

    /// Its place among all, by which its rows are its own.
    pub(crate) fn place(self) -> usize {
        Self::ALL.iter().position(|way| *way == self).unwrap_or(0)
    }
}

impl FromStr for Way {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut named = Self::ALL.into_iter();
        named
            .find(|way| format!("{way:?}") == text)
            .ok_or_else(|| format!("there is no way `{text}`"))
    }
}

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Gets a connection and reads one row by its key.
    Read,
    /// Gets a connection, writes one row, and reads nine, the first of which is the one just written. The ways with
    /// two pools get one for the write, give it back, and get another for the reads.
    Request,
}

impl FromStr for Work {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "Read" => Ok(Self::Read),
            "Request" => Ok(Self::Request),
            _ => Err(format!("there is no work `{text}`")),
        }
    }
}

/// The runtime of an application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flavour {
    CurrentThread,
    /// With two workers.
    MultiThread,
}

impl FromStr for Flavour {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "CurrentThread" => Ok(Self::CurrentThread),
            "MultiThread" => Ok(Self::MultiThread),
            _ => Err(format!("there is no runtime `{text}`")),
        }
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CurrentThread => "current-thread runtime",
            Self::MultiThread => "multi-thread runtime",
        })
    }
}
