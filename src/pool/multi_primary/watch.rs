//! Asks the primary of each group what it has applied of the others: now and then, and often while somebody wants to
//! know.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use diesel::sql_types::{Array, Bool, Integer, Nullable, Text};
use diesel::{QueryResult, QueryableByName, sql_query};
use diesel_async::RunQueryDsl;
use tokio::task::JoinSet;

use super::direction::{self, subscriptions};
use crate::cluster::Cluster;
use crate::config::{Consistency, Durability};
use crate::connection::ReplicatedConnection;
use crate::groups::{Follows, Groups, Sighting};
use crate::metrics;
use crate::position::{Lsn, Position};

/// How often it asks while nobody waits.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long the first question to all groups may take.
const FIRST: Duration = Duration::from_millis(500);

/// How often it tells the recorder of metrics, if there is one.
const MEASURED: Duration = Duration::from_secs(5);

/// How often it asks while somebody waits.
const OFTEN: Duration = Duration::from_millis(5);

/// A worker may commit without waiting for its disk (`synchronous_commit` of the subscription is `off` by default). What is
/// not on the disk would be gone after a crash, and the places in the log would be given again. So the question commits
/// something itself, which waits for all that comes before it.
///
/// While a table is copied, what is applied says nothing of it.
///
/// What the workers have told the other groups that they have applied: `latest_end_lsn`, which comes after what it stands
/// for has become visible. (The progress of the replication origin comes before.) The place in the own log is read after
/// it.
///
/// Of a subscription that is disabled or still copies, it tells no more than that.
const SQL: &str = "SELECT s.subname::text AS subscription, s.subenabled AS enabled, c.copies, w.pid AS worker, s.subslotname::text AS slot, w.latest_end_lsn::text AS applied, \
        w.received_lsn > w.latest_end_lsn AS quiet, \
        pg_catalog.pg_current_wal_insert_lsn()::text AS here, \
        CASE WHEN pg_catalog.pg_current_wal_insert_lsn() > pg_catalog.pg_current_wal_flush_lsn() \
            THEN pg_catalog.pg_current_xact_id()::text END AS flushes, \
        ('x' || pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int \
            AS timeline \
    FROM pg_catalog.pg_subscription s \
    CROSS JOIN LATERAL (SELECT EXISTS (SELECT FROM pg_catalog.pg_subscription_rel r \
        WHERE r.srsubid = s.oid AND r.srsubstate <> 'r') AS copies) c \
    LEFT JOIN pg_catalog.pg_stat_subscription w ON w.subid = s.oid AND w.relid IS NULL AND w.leader_pid IS NULL \
        AND w.pid IS NOT NULL AND w.latest_end_lsn IS NOT NULL AND NOT c.copies \
    WHERE s.subdbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) \
        AND s.subname = ANY ($1)";

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Text)]
    subscription: String,
    #[diesel(sql_type = Bool)]
    enabled: bool,
    #[diesel(sql_type = Bool)]
    copies: bool,
    #[diesel(sql_type = Nullable<Integer>)]
    worker: Option<i32>,
    #[diesel(sql_type = Nullable<Text>)]
    slot: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    applied: Option<String>,
    /// It has received more than it has told of.
    #[diesel(sql_type = Nullable<Bool>)]
    quiet: Option<bool>,
    #[diesel(sql_type = Text)]
    here: String,
    #[diesel(sql_type = Integer)]
    timeline: i32,
}

#[derive(QueryableByName)]
struct Slot {
    #[diesel(sql_type = Text)]
    name: String,
}

/// Asks all groups once, so that the first reads know what is whole. One that is away is not waited for.
pub(super) async fn first_look(groups: &Groups) {
    let looks = (0..groups.members.len()).map(|group| look(groups, group));
    let looks = futures_util::future::join_all(looks);
    let _ = tokio::time::timeout(FIRST, looks).await;
}

/// Starts one task for each group. They end with the pool.
pub(super) fn start(groups: &Arc<Groups>) {
    for group in 0..groups.members.len() {
        let runtime = groups.members[group].cluster.runtime.clone();
        let (watching, names) = (watch(Arc::downgrade(groups), group), groups.names());
        runtime.spawn(async move {
            watching.await;
            let others = names.iter().filter(|name| **name != names[group]);
            others.for_each(|from| metrics::direction(&names[group], from, None));
        });
    }
}

async fn watch(groups: Weak<Groups>, group: usize) {
    let mut prompts = JoinSet::new();
    let mut measured = None;
    loop {
        let Some(alive) = groups.upgrade() else {
            return;
        };
        let member = &alive.members[group];
        if member.cluster.is_over() {
            return;
        }
        // It counts as away from when it went, whether or not anybody reads.
        alive.is_there(group);
        let wanted = member.applied.take_wanted();
        match look(&alive, group).await {
            // One prompt at a time, and only for those who wait.
            Ok(quiet) if wanted => {
                while prompts.try_join_next().is_some() {}
                if prompts.is_empty() {
                    for origin in quiet {
                        let cluster = Arc::clone(&alive.members[origin].cluster);
                        prompts.spawn(prompt(cluster));
                    }
                }
            }
            Ok(_) => {}
            Err(error) => {
                let (group, error) = (&member.name, error.to_string());
                tracing::debug!(target: "diesel_replicated", group, error, "group_not_asked");
            }
        }
        let due = measured.is_none_or(|at: Instant| at.elapsed() >= MEASURED);
        if due && metrics::is_recording() {
            measure(&alive, group).await;
            measured = Some(Instant::now());
        }
        let applied = Arc::clone(&member.applied);
        // Nobody else may hold the pool by now.
        drop(alive);
        if wanted {
            tokio::time::sleep(OFTEN).await;
        } else {
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = applied.is_asked() => {}
            }
        }
    }
}

/// Tells the recorder how each direction to a group stands.
async fn measure(groups: &Groups, group: usize) {
    let cluster = Arc::clone(&groups.members[group].cluster);
    let asking = async {
        let mut conn = ReplicatedConnection::new(cluster, Arc::default())?;
        subscriptions(&mut conn.primary()).await
    };
    let rows = tokio::time::timeout(MEASURED, asking).await;
    let rows = rows.ok().and_then(QueryResult::ok);
    direction::measure(groups, group, rows.as_deref());
}

/// Has a group write a little. A worker that has told that it has applied everything gets no message that would have it
/// say so where it is asked; with more log there is one.
async fn prompt(cluster: Arc<Cluster>) -> QueryResult<()> {
    let mut conn = ReplicatedConnection::new(cluster, Arc::default())?;
    let write = "SELECT pg_catalog.pg_logical_emit_message(true, 'diesel_replicated', '')";
    sql_query(write).execute(&mut conn).await.map(drop)
}

/// Whether the primary of a group sends to this slot now: then the one worker that uses it is connected there.
async fn serves(cluster: &Arc<Cluster>, slot: String) -> QueryResult<bool> {
    let mut conn = ReplicatedConnection::new(Arc::clone(cluster), Arc::default())?;
    let sql = "SELECT slot_name::text AS name FROM pg_catalog.pg_replication_slots WHERE slot_name = $1 AND active";
    let asking = sql_query(sql).bind::<Text, _>(slot);
    let active: Vec<Slot> = asking.load(&mut conn.primary()).await?;
    Ok(active.iter().any(|slot| !slot.name.is_empty()))
}

/// Asks once. The groups whose workers have received more than they have told of.
async fn look(groups: &Groups, group: usize) -> QueryResult<Vec<usize>> {
    let member = &groups.members[group];
    // Known before the question, the timelines hold for what the answer is about.
    let timelines: Vec<_> = groups
        .members
        .iter()
        .map(|other| other.cluster.write_log.timeline())
        .collect();
    let mut conn = ReplicatedConnection::new(Arc::clone(&member.cluster), Arc::default())?;
    conn.set_consistency(Consistency::Eventual);
    conn.set_durability(Durability::Local);
    let names: Vec<&str> = member.subscriptions.iter().map(String::as_str).collect();
    let asking = sql_query(SQL).bind::<Array<Text>, _>(names);
    let rows: Vec<Row> = asking.load(&mut conn.primary()).await?;
    let follows = |name: &String| match rows.iter().find(|row| row.subscription == *name) {
        Some(row) if !row.enabled => Follows::GaveUp,
        Some(row) if !row.copies => Follows::Yes,
        _ => Follows::NotYet,
    };
    let mut all: Vec<_> = member.subscriptions.iter().map(follows).collect();
    all[group] = Follows::Yes;
    groups.note_follows(group, all);
    let mut quiet = Vec::new();
    for row in rows {
        let mut subscriptions = member.subscriptions.iter();
        let origin = subscriptions.position(|name| *name == row.subscription);
        let applied = row.applied.as_deref().and_then(|it| it.parse::<Lsn>().ok());
        let (Some(origin), Some(worker), Some(applied), Ok(here)) = (
            // Nobody knows to which log the place belongs before the other group has told its timeline.
            origin.filter(|origin| *origin != group && timelines[*origin] != 0),
            row.worker,
            applied,
            row.here.parse::<Lsn>(),
        ) else {
            continue;
        };
        let timeline = u32::try_from(row.timeline).unwrap_or_default();
        let sighting = Sighting {
            worker,
            timeline: timelines[origin],
            applied,
            here: Position::new(timeline, here),
        };
        if !member.applied.saw(origin, sighting) {
            let cluster = &groups.members[origin].cluster;
            if serves(cluster, row.slot.unwrap_or_default()).await? {
                member.applied.vouches(origin, worker);
            }
        }
        if row.quiet == Some(true) {
            quiet.push(origin);
        }
    }
    Ok(quiet)
}
