//! What a server shows, asked over the very connection that a read will use.
//!
//! The name of a node may lead to several servers, as that of a load balancer does. Then what one of them reports says
//! nothing of the others.

use std::sync::Arc;

use diesel::sql_types::{BigInt, Integer, Nullable, Text};
use diesel::{QueryResult, QueryableByName, sql_query};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use parking_lot::Mutex;

use super::mark::Mark;
use super::position_sql::PositionSql;
use crate::position::{Lsn, Position};

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
pub(crate) struct Shows {
    last: Mutex<Option<Shown>>,
    /// How the server is asked.
    pub(super) sql: Arc<PositionSql>,
}

#[derive(Clone, Copy, Debug)]
struct Shown {
    /// Of another cluster than the pool's.
    foreign: bool,
    position: Position,
    /// Its timeline is known by a mark alone; it does not tell it itself.
    by_mark: bool,
    /// It does not tell its position.
    refused: bool,
}

impl Shown {
    /// It does not tell.
    fn refused(foreign: bool) -> Self {
        Self {
            foreign,
            position: Position::new(0, Lsn::default()),
            by_mark: false,
            refused: true,
        }
    }
}

impl Shows {
    pub(super) fn new(sql: Arc<PositionSql>) -> Self {
        Self {
            last: Mutex::default(),
            sql,
        }
    }

    fn get(&self) -> Option<Shown> {
        *self.last.lock()
    }

    fn set(&self, shown: Option<Shown>) {
        *self.last.lock() = shown;
    }

    /// Whether the server was found on an older timeline than this one.
    pub(crate) fn is_before(&self, timeline: u32) -> bool {
        self.get()
            .is_some_and(|shown| !shown.refused && shown.position.timeline < timeline)
    }

    /// Whether the server does not tell its position.
    pub(crate) fn is_refused(&self) -> bool {
        self.get().is_some_and(|shown| shown.refused)
    }

    /// Whether something else than PostgreSQL tells the server's position.
    pub(crate) fn is_told_by_source(&self) -> bool {
        self.sql.is_given()
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
        let look = format!(
            "SELECT cluster, timeline, lsn::text AS lsn FROM (SELECT {}) AS place",
            shows.sql.place
        );
        let row: Row = match sql_query(look).get_result(&mut &*pg).await {
            Ok(row) => row,
            Err(error) => {
                shows.set(Some(Shown::refused(false)));
                return Err(error);
            }
        };
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
        let mut shown = position.map_or_else(
            || Shown::refused(foreign),
            |position| Shown {
                foreign,
                position,
                by_mark: false,
                refused: false,
            },
        );
        let wanted = self.position.timeline;
        let is_older = !foreign && !shown.refused && shown.position.timeline < wanted;
        if let (true, Some(mark)) = (is_older, mark) {
            if shown.position.lsn >= mark.end && mark.is_shown_by(pg).await? {
                (shown.position.timeline, shown.by_mark) = (wanted, true);
            }
        }
        shows.set(Some(shown));
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
            shows.sql.place
        );
        let told = (&mut &*pg).batch_execute(&insist).await;
        // One that has failed is asked without an error the next time.
        shows.set(told.is_ok().then_some(Shown {
            foreign: false,
            position: self.position,
            by_mark: false,
            refused: false,
        }));
        told
    }
}
