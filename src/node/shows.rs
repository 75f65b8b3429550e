//! What a server shows, asked over the very connection that a read will use.
//!
//! The name of a node may lead to several servers, as that of a load balancer does. Then what one of them reports says
//! nothing of the others.

use diesel::sql_types::{BigInt, Integer, Nullable, Text};
use diesel::{QueryResult, QueryableByName, sql_query};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use parking_lot::Mutex;

use super::mark::Mark;
use crate::position::{Lsn, Position};

/// The cluster, the timeline and the position of a server. A standby's timeline is at least that of its last
/// restartpoint, and that on which it receives, if this role may see that.
macro_rules! place {
    () => {
        "(SELECT system_identifier FROM pg_catalog.pg_control_system()) AS cluster, \
         CASE WHEN pg_catalog.pg_is_in_recovery() THEN GREATEST(\
         (SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()), \
         (SELECT min_recovery_end_timeline FROM pg_catalog.pg_control_recovery()), \
         (SELECT received_tli FROM pg_catalog.pg_stat_wal_receiver)) \
         ELSE ('x' || substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int \
         END AS timeline, \
         CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
         ELSE pg_catalog.pg_current_wal_insert_lsn() END AS lsn"
    };
}

/// A setting that nobody sets: asking for it is an error of its own.
const TOO_OLD: &str = "diesel_replicated.server_is_behind";

/// What a server has to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// The system identifier of the cluster, if the pool knows it.
    pub(crate) cluster: Option<u64>,
    /// It must be on this very timeline, and be so far.
    pub(crate) position: Position,
}

/// What the server of a connection is known to show.
#[derive(Debug, Default)]
pub(crate) struct Shows(Mutex<Option<Shown>>);

#[derive(Clone, Copy, Debug)]
struct Shown {
    /// Of another cluster than the pool's.
    foreign: bool,
    position: Position,
    /// Its timeline is known by a mark alone; it does not tell it itself.
    by_mark: bool,
}

impl Shows {
    fn get(&self) -> Option<Shown> {
        *self.0.lock()
    }

    fn set(&self, shown: Option<Shown>) {
        *self.0.lock() = shown;
    }

    /// Whether the server was found on an older timeline than this one.
    pub(crate) fn is_before(&self, timeline: u32) -> bool {
        self.get()
            .is_some_and(|shown| shown.position.timeline < timeline)
    }

    /// Whether the server was found to be of another cluster. `None` if it was not asked.
    pub(crate) fn is_foreign(&self) -> Option<bool> {
        self.get().map(|shown| shown.foreign)
    }
}

/// Whether the server of a connection shows what is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    Shown,
    /// It was on that timeline when it was last asked, and not that far.
    Perhaps,
    Unknown,
}

impl Wanted {
    /// What is known without asking. A server goes on, and never back, while a connection to it lives.
    pub(crate) fn is_known(&self, shows: &Shows) -> Known {
        match shows.get() {
            Some(shown) if shown.foreign => Known::Unknown,
            Some(shown) if shown.position.timeline != self.position.timeline => Known::Unknown,
            Some(shown) if shown.position.lsn >= self.position.lsn => Known::Shown,
            Some(shown) if !shown.by_mark => Known::Perhaps,
            _ => Known::Unknown,
        }
    }

    /// Asks. `false` if the server is behind, or of another cluster. `mark` is of the wanted timeline; it tells of a
    /// standby that may not say on which timeline it is.
    pub(crate) async fn ask(
        &self,
        pg: &AsyncPgConnection,
        shows: &Shows,
        mark: Option<&Mark>,
    ) -> QueryResult<bool> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = Nullable<BigInt>)]
            cluster: Option<i64>,
            #[diesel(sql_type = Nullable<Integer>)]
            timeline: Option<i32>,
            #[diesel(sql_type = Nullable<Text>)]
            lsn: Option<String>,
        }
        let look = concat!(
            "SELECT cluster, timeline, lsn::text AS lsn FROM (SELECT ",
            place!(),
            ") AS place"
        );
        let row: Row = sql_query(look).get_result(&mut &*pg).await?;
        let cluster = row.cluster.map(|id| u64::from_ne_bytes(id.to_ne_bytes()));
        let timeline = row.timeline.and_then(|id| u32::try_from(id).ok());
        let lsn: Option<Lsn> = row.lsn.and_then(|lsn| lsn.parse().ok());
        let foreign = self
            .cluster
            .zip(cluster)
            .is_some_and(|(ours, its)| ours != its);
        let position = timeline
            .zip(lsn)
            .map(|(timeline, lsn)| Position::new(timeline, lsn));
        let mut shown = position.map(|position| Shown {
            foreign,
            position,
            by_mark: false,
        });
        let wanted = self.position.timeline;
        let older = shown
            .as_mut()
            .filter(|shown| !foreign && shown.position.timeline < wanted);
        if let (Some(shown), Some(mark)) = (older, mark) {
            if shown.position.lsn >= mark.end && mark.is_shown_by(pg).await? {
                (shown.position.timeline, shown.by_mark) = (wanted, true);
            }
        }
        shows.set(shown);
        Ok(self.is_known(shows) == Known::Shown)
    }

    /// Fails if the server is behind. It is one message, so what is sent after it runs after it.
    pub(crate) async fn insist(&self, pg: &AsyncPgConnection, shows: &Shows) -> QueryResult<()> {
        let cluster = self.cluster.map_or_else(
            || "true".to_owned(),
            |cluster| format!("cluster = {}", i64::from_ne_bytes(cluster.to_ne_bytes())),
        );
        let Position { timeline, lsn } = self.position;
        let insist = format!(
            "SELECT CASE WHEN {cluster} AND timeline = {timeline} AND lsn >= '{lsn}' THEN true \
             ELSE pg_catalog.current_setting('{TOO_OLD}')::bool END FROM (SELECT {}) AS place",
            place!()
        );
        let told = (&mut &*pg).batch_execute(&insist).await;
        // One that has failed is asked without an error the next time.
        shows.set(told.is_ok().then_some(Shown {
            foreign: false,
            position: self.position,
            by_mark: false,
        }));
        told
    }
}
