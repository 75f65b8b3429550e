//! What a pool is told to do about its primary.

use super::ReplicatedPool;
use crate::cluster::PromotionRequest;
use crate::error::Error;
use crate::status::Promoted;

#[cfg_attr(docsrs, doc(cfg(feature = "promotion")))]
impl ReplicatedPool {
    /// Promotes a replica: the primary is gone, and this one is to take the writes.
    ///
    /// It is done if the terms of [`PromotionConfig`](crate::config::PromotionConfig) are met, whether promotion is
    /// automatic or not, but for the time that the primary has been gone. Returns when the new primary takes
    /// writes. Statements that waited for one then run there.
    ///
    /// # Errors
    ///
    /// [`Error::PromotionRefused`] with everything that speaks against it; nothing was done then.
    /// [`Error::PromotionFailed`] if the server could not be promoted, or did not open in time. There is
    /// no node of this name, or the pool is closed.
    pub async fn promote(&self, name: &str) -> Result<Promoted, Error> {
        self.cluster
            .promote(PromotionRequest::to(name, false))
            .await
    }

    /// As [`promote`](Self::promote), on the caller's word that the primary is dead and stays so, that
    /// nobody else promotes another, and that what the replica lacks may be lost.
    ///
    /// A node that takes writes, another process that is promoting, or a newer timeline prevent it all
    /// the same.
    ///
    /// # Errors
    ///
    /// As [`promote`](Self::promote).
    pub async fn force_promote(&self, name: &str) -> Result<Promoted, Error> {
        self.cluster.promote(PromotionRequest::to(name, true)).await
    }

    /// Puts a replica in the place of a primary that lives, without an error for anyone who uses this
    /// pool: new statements for the primary wait, those that run end, the replica catches up, is
    /// promoted, and what waited runs there.
    ///
    /// Other clients of the old primary lose their connections, and find that transactions are read only
    /// there (`default_transaction_read_only`), which is all that a client can do; it takes a superuser.
    /// The old primary goes on running on its old timeline and is not used any more. Afterwards it is
    /// the operator's to stop it, to rewind it (`pg_rewind`) or build it anew, and to start it as a standby
    /// of the new primary. The other replicas follow that with `PromotionConfig::standbys_follow`; else they
    /// have to be told, too. Where something else promotes
    /// (Patroni and the like), have that do the switchover; the pool follows.
    ///
    /// It has to be done within half of [`Config::failover_wait`](crate::Config::failover_wait); if not,
    /// all is as it was before. Should the old primary crash in the middle of it and not come back for
    /// `PromotionConfig::timeout`, it is left with that setting (event `primary_left_fenced`):
    /// `ALTER SYSTEM RESET default_transaction_read_only` undoes it.
    ///
    /// # Errors
    ///
    /// As [`promote`](Self::promote); no primary is up; transactions that were open did not end in time; or
    /// the role is no superuser.
    pub async fn switchover(&self, to: &str) -> Result<Promoted, Error> {
        self.cluster.switchover(to).await
    }
}
