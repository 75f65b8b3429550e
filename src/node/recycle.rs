//! What happens to a connection between two sessions.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel_async::SimpleAsyncConnection;

use super::connect::FIT;
use super::pool::Pooled;
use super::{Node, enter};

/// How long the rest of a command may take after its session has left; then the connection is
/// closed. Rows that nobody wants any more are still on their way.
const DRAIN: Duration = Duration::from_millis(500);

/// How long a statement that was dropped may take to end by itself.
const GRACE: Duration = Duration::from_millis(5);

/// How often the server is asked to cancel it.
const AGAIN: Duration = Duration::from_secs(1);

/// After this time a server does not stop, whatever it is asked.
const STOP: Duration = Duration::from_secs(60);

/// How long the session's state may take to be undone.
const RESET: Duration = Duration::from_secs(5);

/// `DISCARD ALL` without its last two steps: they would pull the prepared statements away from
/// under the cache that knows them, and it cannot run beside others in one message.
/// See <https://www.postgresql.org/docs/current/sql-discard.html>.
const UNDO: &str = "CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ROLE; RESET ALL; UNLISTEN *; \
                    SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES; \
                    DO $$ DECLARE q text; BEGIN FOR q IN SELECT name FROM \
                    pg_catalog.pg_prepared_statements WHERE from_sql LOOP \
                    EXECUTE pg_catalog.format('DEALLOCATE %I', q); END LOOP; END $$; \
                    SET TIME ZONE 'UTC'; SET CLIENT_ENCODING TO 'UTF8'";

/// In which state a session left its connection.
#[derive(Debug)]
pub(super) struct Condition {
    /// A statement on it was dropped, or the bare connection was lent out.
    pub(super) untrusted: bool,
    /// It may have left anything.
    pub(super) state: bool,
    /// The settings that it made.
    pub(super) settings: Vec<Box<str>>,
}

impl Condition {
    fn is_clean(&self) -> bool {
        !self.state && self.settings.is_empty()
    }

    /// What undoes all that was left.
    fn undo(&self) -> String {
        if self.state {
            return UNDO.to_owned();
        }
        // A role may lack the right to undo what was set before it.
        let mut sql = String::from("RESET ROLE");
        for name in &self.settings {
            let quoted = name.replace('.', "\".\"");
            let _ = match &**name {
                // What diesel-async sets on each new connection.
                "timezone" => write!(sql, "; SET TIME ZONE 'UTC'"),
                _ => write!(sql, "; RESET \"{quoted}\""),
            };
        }
        sql
    }
}

/// Gives a connection back to its pool, or closes it if the next session could not trust it.
pub(super) fn give_back(mut pooled: Pooled, condition: Condition, node: &Arc<Node>) {
    // Dropping it spawns a replacement, and needs the runtime that the pool lives on.
    let Ok(_runtime) = enter(&node.runtime) else {
        let (runtime, node) = (node.runtime.clone(), Arc::clone(node));
        runtime.spawn(async move { give_back(pooled, condition, &node) });
        return;
    };
    if !pooled.is_usable() {
        node.home_of(&pooled).close(pooled);
        return;
    }
    if condition.untrusted {
        let node = Arc::clone(node);
        node.runtime
            .clone()
            .spawn(async move { end(pooled, &node).await });
        return;
    }
    if pooled.wire.pooling().shares_servers() && !condition.is_clean() {
        // What undoes it would run on a server of somebody else.
        node.home_of(&pooled).close(pooled);
        return;
    }
    pooled.set_cache_size(diesel::connection::CacheSize::Unbounded);
    if condition.is_clean() && pooled.wire.is_idle() {
        node.home_of(&pooled).put_back(pooled);
        return;
    }
    if !condition.is_clean() || !pooled.wire.is_answered() {
        let node = Arc::clone(node);
        node.runtime.clone().spawn(async move {
            match restore(&mut pooled, &condition, &node).await {
                true => node.home_of(&pooled).put_back(pooled),
                false => end(pooled, &node).await,
            }
        });
        return;
    }
    // Answered, and a transaction is open.
    node.home_of(&pooled).close(pooled);
}

/// Has the server stop what nobody waits for any more, and closes the connection. It keeps its place in the
/// pool until the server has stopped: to a server a closed connection is no reason to, and a pool must not have
/// more of it at work than its size.
async fn end(pooled: Pooled, node: &Node) {
    stop(&pooled, node).await;
    node.home_of(&pooled).close(pooled);
}

async fn stop(pooled: &Pooled, node: &Node) {
    let behind = async {
        // What is sent now is answered after all that was sent before, or was about to be.
        let mut pg = pooled.pg();
        let _ = pg.batch_execute("").await;
    };
    tokio::pin!(behind);
    let begun = Instant::now();
    let mut pause = GRACE;
    while tokio::time::timeout(pause, &mut behind).await.is_err() && begun.elapsed() < STOP {
        // A request that came before the statement had begun did nothing.
        let asking = node.pool.connector().cancel(&pooled.peer);
        let _ = tokio::time::timeout(AGAIN, asking).await;
        pause = AGAIN;
    }
}

async fn restore(pooled: &mut Pooled, condition: &Condition, node: &Node) -> bool {
    pooled.driver.recall();
    if tokio::time::timeout(DRAIN, pooled.wire.answered())
        .await
        .is_err()
        || !pooled.wire.is_idle()
    {
        return false;
    }
    if condition.is_clean() {
        return true;
    }
    let undo = async {
        pooled.pg_mut().batch_execute(&condition.undo()).await?;
        if pooled.wire.is_fitted() {
            pooled.pg_mut().batch_execute(FIT).await?;
        }
        node.pool.connector().set_up(pooled.pg_mut()).await
    };
    let undone = matches!(tokio::time::timeout(RESET, undo).await, Ok(Ok(())));
    // What came before the answer was for who had listened.
    pooled.notifications.clear();
    undone
}
