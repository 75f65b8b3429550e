//! What a read must see, and how long it may wait for a replica that shows it.

use std::fmt;
use std::time::Duration;

use super::declare::{as_text, named, settings};
use super::duration;
use super::setting::Text;

/// What a read must see.
///
/// Stronger levels cost nothing on the wire while replicas keep up: what is known of their positions
/// in the log decides, and only when that does not suffice is anybody asked.
///
/// ```
/// use diesel_replicated::{Consistency, ReplicatedPool};
///
/// let builder = ReplicatedPool::builder().consistency(Consistency::Causal);
/// assert_eq!("causal".parse(), Ok(Consistency::Causal));
/// assert_eq!(builder.config().consistency.level.to_string(), "causal");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Consistency {
    /// Whatever any usable replica has. In text: `eventual`.
    Eventual,
    /// Data that is at most this old. In text: `bounded_staleness:5s`.
    ///
    /// A replica is as old as the moment at which the primary was last seen to have written no more than
    /// the replica has applied; clocks of servers play no part. One of which that is not known is not
    /// used.
    ///
    /// With [`write_quorum`](super::Config::write_quorum) a majority of the nodes has answered
    /// within this time, too, or the read fails. Without it, a process that is cut off together with a
    /// primary that was replaced does not know that, and may read what is older.
    BoundedStaleness(Duration),
    /// Everything that the session wrote, or with [`WriteScope::Pool`] everything that was written
    /// through this pool. In text: `read_your_writes`.
    #[default]
    ReadYourWrites,
    /// As [`ReadYourWrites`](Self::ReadYourWrites), and nothing older than what the session has
    /// seen already, also when it moves to another node. In text: `causal`.
    Causal,
    /// Everything that anyone's commit had acknowledged before the read began. In text: `strong`.
    ///
    /// With [`write_quorum`](super::Config::write_quorum) a majority of the nodes has answered
    /// since the read began, too, or it fails; that costs a question to each node, in parallel. Without
    /// it, a process that is cut off together with a primary that was replaced does not know that, and
    /// misses what is written to the new one.
    Strong,
}

impl Text for Consistency {
    const EXPECTED: &'static str =
        "`eventual`, `bounded_staleness:5s`, `read_your_writes`, `causal` or `strong`";

    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl fmt::Display for Consistency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Eventual => f.write_str("eventual"),
            Self::BoundedStaleness(bound) => {
                write!(f, "bounded_staleness:{}", duration::format(*bound))
            }
            Self::ReadYourWrites => f.write_str("read_your_writes"),
            Self::Causal => f.write_str("causal"),
            Self::Strong => f.write_str("strong"),
        }
    }
}

/// A text that names no [`Consistency`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a level of consistency; expected {}", Consistency::EXPECTED)]
#[non_exhaustive]
pub struct InvalidConsistency;

impl std::str::FromStr for Consistency {
    type Err = InvalidConsistency;

    fn from_str(text: &str) -> Result<Self, InvalidConsistency> {
        match text.split_once(':') {
            Some(("bounded_staleness", bound)) => duration::parse(bound)
                .map(Self::BoundedStaleness)
                .ok_or(InvalidConsistency),
            Some(_) => Err(InvalidConsistency),
            None => match text {
                "eventual" => Ok(Self::Eventual),
                "read_your_writes" => Ok(Self::ReadYourWrites),
                "causal" => Ok(Self::Causal),
                "strong" => Ok(Self::Strong),
                _ => Err(InvalidConsistency),
            },
        }
    }
}

as_text!(Consistency);

/// Whose writes a session reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum WriteScope {
    /// Its own. In text: `session`.
    ///
    /// For applications that keep to one connection, or carry a [`SessionToken`](crate::SessionToken): more
    /// reads stay on replicas while others write.
    Session,
    /// Those of every session of this pool, as with a pool of one server: what one connection has written, the
    /// next one reads. In text: `pool`.
    ///
    /// For a moment after each write, reads find no replica that is known to have it. The primary serves them,
    /// as many as [`fallback_share`](super::Config::fallback_share) leaves room for; the others wait for a
    /// replica, up to [`wait`](ConsistencyConfig::wait). Other processes' writes are theirs: a
    /// [`SessionToken`](crate::SessionToken) tells of those.
    ///
    /// Of a write whose outcome was [`Unknown`](crate::Outcome::Unknown) others read what the primary has
    /// made of it by then, for a minute.
    #[default]
    Pool,
}

named! {
    WriteScope: "`session` or `pool`" {
        Session = "session",
        Pool = "pool",
    }
}

settings! {
    /// What reads must see, and what they may wait for.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct ConsistencyConfig {
        /// What a read must see where a connection does not say otherwise. Default:
        /// [`Consistency::ReadYourWrites`].
        level: Consistency = Consistency::default();
        /// Whose writes count as one's own. Default: [`WriteScope::Pool`].
        write_scope: WriteScope = WriteScope::default(), set;
        /// How long a read waits for a replica to catch up before the primary serves it. Zero does not
        /// wait. Default: 5 milliseconds.
        ///
        /// A connection that holds the primary's, because it has written, does not wait for a replica that has what it
        /// wrote: until one is known to have it, it reads on the primary.
        #[cfg_attr(feature = "serde", serde(with = "duration::human"))]
        wait: Duration = Duration::from_millis(5), set;
        /// Whether a read that has to wait for a position has the replica's server wait, where that can: PostgreSQL 19
        /// and later, by `WAIT FOR LSN`. The wait is sent together with the read. Half of the connections to a replica
        /// may wait so. Elsewhere, and with `false`, the pool asks the replicas again and again. Default: `true`.
        wait_for_lsn: bool = true, set;
        /// Whether reads with [`Consistency::Strong`] go to replicas that have reached the position
        /// which the primary had when the read began. Default: `false`, the primary serves them.
        ///
        /// A replica shows a commit a moment before the primary does. A read that the primary has to serve
        /// for want of a replica therefore waits until the primary shows what the replicas have shown.
        strong_reads_on_replicas: bool = false, set;
        /// How far replicas are behind at the most that do not tell their position. Default: `None`; one that tells
        /// none serves only reads that need no position.
        ///
        /// Some servers refuse the functions that tell it, as readers of Aurora do. What this says of them nobody can
        /// check, and reads are as right as it is. Such a replica then serves what must show writes of at least
        /// this age, and [`Consistency::BoundedStaleness`] with a bound of at least this. With
        /// [`Consistency::Causal`] what the session has read counts as what it wrote. [`Consistency::Strong`] reads
        /// stay on the primary. Of a name over several servers it holds for those that tell none. Better is a [`PositionSource`](crate::PositionSource), if the server tells its
        /// position in another way.
        #[cfg_attr(feature = "serde", serde(with = "duration::human"))]
        assumed_lag: Option<Duration> = None, into;
    }
}

impl From<Consistency> for ConsistencyConfig {
    fn from(level: Consistency) -> Self {
        Self {
            level,
            ..Self::default()
        }
    }
}
