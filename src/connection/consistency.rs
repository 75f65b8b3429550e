//! What the reads of one connection must see, set and asked.

use super::{ReplicatedConnection, Scope};
use crate::config::Consistency;
use crate::position::Position;

impl ReplicatedConnection {
    /// What the reads of this connection must see.
    #[must_use]
    pub fn consistency(&self) -> Consistency {
        let set = self.session().consistency;
        set.unwrap_or(self.cluster.consistency.level)
    }

    /// Sets what the reads of this connection must see, in the place of what the pool says.
    pub fn set_consistency(&mut self, level: Consistency) {
        self.session().consistency = Some(level);
    }

    /// A view of this connection whose reads see what `level` says.
    ///
    /// ```no_run
    /// # async fn example(conn: &mut diesel_replicated::ReplicatedConnection) -> diesel::QueryResult<()> {
    /// use diesel_async::RunQueryDsl;
    /// use diesel_replicated::Consistency;
    ///
    /// let count = diesel::sql_query("SELECT count(*) FROM visits");
    /// count.execute(&mut conn.with_consistency(Consistency::Eventual)).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_consistency(&mut self, level: Consistency) -> Scope<'_> {
        Scope::consistent(self, level)
    }

    /// The position of a write of this session that did not survive a failover, if there is one.
    ///
    /// The primary that acknowledged it died before the one that followed had received it. Reads
    /// of the session go to the primary from then on, with
    /// [`RouteReason::LostWrite`](crate::RouteReason::LostWrite).
    #[must_use]
    pub fn lost_write(&self) -> Option<Position> {
        let session = self.session();
        session.guarantee.lost()
    }
}
