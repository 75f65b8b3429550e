//! Finds out what became of a COMMIT whose connection broke: notes something before it is sent, and asks when it is
//! in doubt.
//!
//! With a marker: if the marker is there, the transaction was committed, on whatever timeline. If it is not there, it
//! depends. While the same server rules, the pool waits until the backend of the COMMIT is gone, and looks only then.
//! If a newer timeline rules, what that lacks is not part of the database any more.
//!
//! With a transaction's number: the number counts on the timeline on which it was given, while the server has not
//! crashed. After a crash, recovery may give the same numbers again. Then "not committed" is still true, and
//! "committed" says nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::sql_types::{BigInt, Bool, Integer, Nullable, Text};
use diesel::{QueryResult, QueryableByName, sql_query};
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};

use super::ReplicatedConnection;
use crate::config::CommitResolution;
use crate::error::{Error, ErrorExt, Outcome, SqlState};
use crate::node::Lease;

/// How long the pool asks.
const LIMIT: Duration = Duration::from_secs(5);

/// How often it asks.
const PAUSE: Duration = Duration::from_millis(20);

const TIMELINE: &str = "('x' || pg_catalog.substr(pg_catalog.pg_walfile_name(\
    pg_catalog.pg_current_wal_flush_lsn()), 1, 8))::bit(32)::int";

/// Differs after each start of the server, and after each crash.
const RUN: &str = "(SELECT pg_catalog.concat(pg_catalog.pg_postmaster_start_time(), ' ', stats_reset) \
    FROM pg_catalog.pg_stat_bgwriter)";

/// What to look for, to find out what became of a COMMIT.
#[derive(Debug)]
pub(super) struct PendingCommit {
    mark: CommitMark,
    /// The backend that runs the COMMIT.
    pid: i32,
    timeline: i32,
    run: String,
    /// The era of the write log.
    era: u64,
}

#[derive(Debug)]
enum CommitMark {
    Number(i64),
    Row(String),
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resolved {
    Committed,
    RolledBack,
    Unknown,
}

impl Resolved {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::RolledBack => "rolled_back",
            Self::Unknown => "unknown",
        }
    }
}

#[derive(QueryableByName)]
struct Begun {
    #[diesel(sql_type = Nullable<BigInt>)]
    number: Option<i64>,
    #[diesel(sql_type = Integer)]
    pid: i32,
    #[diesel(sql_type = Integer)]
    timeline: i32,
    #[diesel(sql_type = Text)]
    run: String,
}

#[derive(QueryableByName)]
struct Found {
    #[diesel(sql_type = Bool)]
    running: bool,
    #[diesel(sql_type = Integer)]
    timeline: i32,
    #[diesel(sql_type = Text)]
    run: String,
}

#[derive(QueryableByName)]
struct Told {
    #[diesel(sql_type = Nullable<Text>)]
    status: Option<String>,
}

impl ReplicatedConnection {
    /// Comes before a COMMIT is sent over `lease`. Returns how to find out what became of it, if that is wanted and
    /// something was written.
    pub(super) async fn mark(&self, lease: &Arc<Lease>) -> QueryResult<Option<PendingCommit>> {
        let way = self.cluster.config.commit_resolution;
        if way == CommitResolution::Off || lease.wire.transaction_status() != b'T' {
            return Ok(None);
        }
        let using = lease.enter();
        let mut connection = lease.pg();
        let look = format!(
            "SELECT pg_catalog.pg_current_xact_id_if_assigned()::text::bigint AS number, \
             pg_catalog.pg_backend_pid() AS pid, {TIMELINE} AS timeline, {RUN} AS run"
        );
        let begun: Begun = sql_query(look).get_result(&mut connection).await?;
        let mark = match begun.number {
            None => None,
            Some(_) if way == CommitResolution::Marker => {
                Some(CommitMark::Row(self.write_marker(lease).await?))
            }
            Some(number) => Some(CommitMark::Number(number)),
        };
        using.finish();
        Ok(mark.map(|mark| PendingCommit {
            mark,
            pid: begun.pid,
            timeline: begun.timeline,
            run: begun.run,
            era: self.cluster.write_log.era(),
        }))
    }

    async fn write_marker(&self, lease: &Arc<Lease>) -> QueryResult<String> {
        let mut connection = lease.pg();
        let key = format!("{:032x}", rand::random::<u128>());
        let insert = sql_query("INSERT INTO diesel_replicated_commits (id) VALUES ($1::uuid)");
        let written = insert.bind::<Text, _>(key.clone()).execute(&mut connection);
        if let Err(error) = written.await {
            // By refusing this the server has ended the transaction.
            let _ = connection.batch_execute("ROLLBACK").await;
            self.session().transaction_ended();
            if lease.is_usable() {
                let cause = error.to_string();
                return Err(Error::CommitMarker { cause }.into());
            }
            return Err(error);
        }
        Ok(key)
    }

    /// The result for the caller of a COMMIT that failed with `error`.
    pub(super) async fn resolved(
        &self,
        pending_commit: Option<Box<PendingCommit>>,
        error: diesel::result::Error,
    ) -> QueryResult<()> {
        let Some(pending_commit) = pending_commit else {
            return Err(error);
        };
        if error.outcome() != Outcome::Unknown {
            return Err(error);
        }
        let asking = async { tokio::time::timeout(LIMIT, self.ask_for(&pending_commit)).await };
        let answer = self.cluster.within(asking).await;
        let answer = answer.and_then(Result::ok).unwrap_or(Resolved::Unknown);
        tracing::warn!(target: "diesel_replicated", answer = answer.as_str(), "commit_resolved");
        match answer {
            Resolved::Committed => Ok(()),
            Resolved::RolledBack => Err(Error::RolledBack {
                cause: error.to_string(),
            }
            .into()),
            Resolved::Unknown => Err(error),
        }
    }

    /// Asks the primary again and again until there is an answer.
    async fn ask_for(&self, pending_commit: &PendingCommit) -> Resolved {
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            // If that primary goes away, another follows.
            if let Ok(lease) = self.primary_apart().await {
                let same_cluster = pending_commit.era == self.cluster.write_log.era();
                match ask(pending_commit, &lease, same_cluster).await {
                    Ok(Some(answer)) => return answer,
                    Ok(None) => {}
                    Err(error) if lease.is_usable() => {
                        let error = error.to_string();
                        tracing::debug!(target: "diesel_replicated", error, "commit_not_resolved");
                        return Resolved::Unknown;
                    }
                    Err(_) => lease.condemn(),
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        Resolved::Unknown
    }
}

/// Asks once. `None` if it is not decided yet. Another cluster does not know the number, and may not have the marker.
async fn ask(
    pending_commit: &PendingCommit,
    lease: &Arc<Lease>,
    same_cluster: bool,
) -> QueryResult<Option<Resolved>> {
    let using = lease.enter();
    let mut connection = lease.pg();
    let look = format!(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_activity WHERE pid = $1) AS running, \
         {TIMELINE} AS timeline, {RUN} AS run"
    );
    let look = sql_query(look).bind::<Integer, _>(pending_commit.pid);
    let found: Found = look.get_result(&mut connection).await?;
    let same = found.timeline == pending_commit.timeline && same_cluster;
    // The marker is looked for after the backend was seen to be gone, in a statement of its own. A snapshot is older
    // than what the same statement reads of the backends.
    let gone = !same || !found.running;
    let answer = match &pending_commit.mark {
        CommitMark::Number(_) if !same => Some(Resolved::Unknown),
        CommitMark::Number(number) => {
            let status = "SELECT pg_catalog.pg_xact_status($1::text::xid8) AS status";
            let status = sql_query(status).bind::<BigInt, _>(*number);
            let told: QueryResult<Told> = status.get_result(&mut connection).await;
            if told
                .as_ref()
                .is_err_and(|error| is_unknown_number(lease, error))
            {
                // After a crash the number was not given again yet.
                using.finish();
                return Ok(Some(Resolved::RolledBack));
            }
            match (told?.status.as_deref(), found.run == pending_commit.run) {
                (Some("committed"), true) => Some(Resolved::Committed),
                (Some("aborted"), _) | (Some("in progress"), false) => Some(Resolved::RolledBack),
                (Some("in progress"), true) => None,
                _ => Some(Resolved::Unknown),
            }
        }
        CommitMark::Row(key) => {
            let row = "SELECT max(id::text) AS status FROM diesel_replicated_commits \
                WHERE id = $1::uuid";
            let told: Told = sql_query(row)
                .bind::<Text, _>(key.clone())
                .get_result(&mut connection)
                .await?;
            match told.status {
                Some(_) => Some(Resolved::Committed),
                None if !same_cluster => Some(Resolved::Unknown),
                None => gone.then_some(Resolved::RolledBack),
            }
        }
    };
    using.finish();
    Ok(answer)
}

/// Whether the server has not given this number to a transaction yet.
fn is_unknown_number(lease: &Lease, error: &diesel::result::Error) -> bool {
    let remark = lease.diagnose(error).remark;
    remark.is_some_and(|remark| remark.sqlstate == SqlState::INVALID_PARAMETER_VALUE)
}
