//! What the reads of one connection must see, set and asked.

use std::sync::Arc;
use std::time::Instant;

use super::session::Session;
use super::{ReplicatedConnection, Scope};
use crate::cluster::Cluster;
use crate::config::Consistency;
use crate::guarantee::{Guarantee, Progress};
use crate::position::Position;
use crate::token::SessionToken;

impl ReplicatedConnection {
    /// What the reads of this connection must see.
    #[must_use]
    pub fn consistency(&self) -> Consistency {
        self.level_of(&self.session())
    }

    pub(super) fn level_of(&self, session: &Session) -> Consistency {
        session
            .consistency
            .unwrap_or(self.cluster.consistency.level)
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

    /// What this session has written and seen until now, for whoever goes on with it. See
    /// [`Session::token`](crate::Session::token).
    pub async fn session_token(&self) -> SessionToken {
        let guarantee = Arc::clone(&self.session().guarantee);
        token_of(&self.cluster, &guarantee).await
    }

    /// The position of a write of this session that did not survive a failover, if there is one.
    ///
    /// The primary that acknowledged it died before the one that followed had received all up to
    /// there. As the position is one that the primary had a moment after the write, a write of the
    /// last milliseconds may have survived all the same: look for it where that matters. Reads of
    /// the session go to the primary from then on, with
    /// [`RouteReason::LostWrite`](crate::RouteReason::LostWrite).
    #[must_use]
    pub fn lost_write(&self) -> Option<Position> {
        let session = self.session();
        session.guarantee.lost()
    }
}

/// The token of a session. What is not known yet is asked for, and waited for as long as a read
/// would wait.
pub(crate) async fn token_of(cluster: &Arc<Cluster>, guarantee: &Guarantee) -> SessionToken {
    let board = &cluster.board;
    let deadline = Instant::now() + cluster.consistency.wait;
    let mut known = guarantee.positions(board);
    let topology = cluster.topology();
    let primary = topology.primary().map(|member| &member.progress);
    let asked = known.reads.iter().chain(primary.filter(|_| known.unknown));
    let _asked: Vec<_> = asked.map(Progress::want).collect();
    let look = || {
        known = guarantee.positions(board);
        (!known.unknown && known.reads.is_empty()).then_some(())
    };
    let _ = cluster.with_news(deadline, look).await;
    let written = if known.unknown {
        Some(Position::SOMEWHERE)
    } else {
        known.written
    };
    let seen = if known.reads.is_empty() {
        known.seen
    } else {
        Some(Position::SOMEWHERE)
    };
    SessionToken::new(known.cluster.unwrap_or_default(), written, seen)
}
