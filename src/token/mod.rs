//! Session tokens: what a session was promised, in a form that travels between processes.
//!
//! Pure: no clock, no I/O. What a token means for a read is decided elsewhere.

mod encoding;
#[cfg(feature = "signed")]
mod seal;
#[cfg(test)]
mod tests;

use crate::position::Position;

pub use self::encoding::InvalidToken;
#[cfg(feature = "signed")]
pub use self::seal::{TokenKeys, WeakKey};

/// What a database session has written and seen, in a few dozen characters.
///
/// Whoever goes on with the session elsewhere, or later, brings its token: in a cookie, a header, a job's payload, a
/// message. Reads then come from a node that has what the session wrote; with
/// [`Consistency::Causal`](crate::Consistency) they also see nothing older than what it saw.
///
/// ```
/// use diesel_replicated::SessionToken;
///
/// let cookie = "AWj7rAnFSZ1xAsiw0ZvrAgLIsNOb6wI";
/// let token: SessionToken = cookie.parse()?;
/// assert_eq!(token.written().unwrap().to_string(), "16/B3745848 on timeline 1");
/// assert_eq!(token.to_string(), cookie);
/// # Ok::<(), diesel_replicated::token::InvalidToken>(())
/// ```
///
/// # As text
///
/// [`Display`](std::fmt::Display) and [`FromStr`](std::str::FromStr), and `serde` with the feature
/// of that name, write and read a text of letters, digits, `-` and `_`, which needs no escaping in
/// URLs, cookies and headers. It has at most 34 characters as long as the cluster has had no more
/// than 125 failovers and 512 TiB of log, and never more than 52. There is one text for each token:
/// those that are equal have equal texts, and no other text is accepted.
///
/// # Tokens of strangers
///
/// What comes from a browser may be forged. A forged token opens nothing and changes no result. It decides only which
/// node a read goes to, and how long the read waits first. A read under a position that no server has reached costs
/// at most one bounded wait and one read on the primary.
/// Two things remain to the application:
///
/// - Do not [`merge`](Self::merge) a stranger's token into one that others share: it would make
///   all of them wait. Merged into his own session, it costs that session alone.
/// - Where even that is too much, seal tokens: with the feature `signed`, `TokenKeys` adds a
///   signature, and tokens that were not made with the key are refused before they cost anything.
///
/// A token holds no secret, but it is not encrypted either, sealed or not: it tells the cluster's
/// identifier, in which is the time of its creation, and positions in its log. Who collects tokens
/// learns how much the cluster writes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionToken {
    cluster: u64,
    written: Option<Position>,
    seen: Option<Position>,
}

/// Stands for a cluster whose identifier has not been learnt yet.
pub(crate) const UNKNOWN: u64 = 0;

impl SessionToken {
    pub(crate) fn new(cluster: u64, written: Option<Position>, seen: Option<Position>) -> Self {
        Self {
            cluster,
            written,
            seen,
        }
    }

    /// The cluster whose log the positions are in: PostgreSQL's system identifier.
    #[must_use]
    pub fn cluster(&self) -> u64 {
        self.cluster
    }

    /// A position that covers all that the session has written; `None` if it wrote nothing.
    #[must_use]
    pub fn written(&self) -> Option<Position> {
        self.written
    }

    /// The position of the newest data that the session has read; `None` if it read nothing.
    #[must_use]
    pub fn seen(&self) -> Option<Position> {
        self.seen
    }

    /// Whether it promises nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.written.is_none() && self.seen.is_none()
    }

    /// What both promise: of `written` and of `seen` the later one.
    ///
    /// A token of another cluster is ignored: its positions mean nothing here. So call `merge` on the token of the
    /// cluster that you read. Among tokens of one cluster neither order nor repetition matters. A token whose maker
    /// did not know the cluster yet ([`cluster`](Self::cluster) is 0) fits every cluster.
    ///
    /// ```
    /// use diesel_replicated::SessionToken;
    ///
    /// let wrote: SessionToken = "AWj7rAnFSZ1xAsiw0ZvrAgA".parse()?;
    /// let read: SessionToken = "AWj7rAnFSZ1xAALIsNOb6wI".parse()?;
    /// let both = wrote.merge(&read);
    /// assert_eq!((both.written(), both.seen()), (wrote.written(), read.seen()));
    /// assert_eq!(both, read.merge(&wrote));
    /// assert!(both.advances(&wrote) && !wrote.advances(&both));
    /// # Ok::<(), diesel_replicated::token::InvalidToken>(())
    /// ```
    #[must_use]
    pub fn merge(&self, other: &Self) -> Self {
        if !self.is_of_cluster_of(other) {
            return self.clone();
        }
        Self::new(
            self.cluster.max(other.cluster),
            later(self.written, other.written),
            later(self.seen, other.seen),
        )
    }

    /// Whether it promises more than `older`, so that whoever keeps `older` should be given this
    /// one, merged with it.
    ///
    /// A token of another cluster promises nothing about this one: any token that is not empty advances it. So a
    /// cookie from before a move to a new cluster is replaced.
    #[must_use]
    pub fn advances(&self, older: &Self) -> bool {
        if self.is_of_cluster_of(older) {
            older.merge(self) != *older
        } else {
            !self.is_empty()
        }
    }

    fn is_of_cluster_of(&self, other: &Self) -> bool {
        self.cluster == other.cluster || self.cluster == UNKNOWN || other.cluster == UNKNOWN
    }
}

fn later(one: Option<Position>, other: Option<Position>) -> Option<Position> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.max(other)),
        (one, other) => one.or(other),
    }
}
