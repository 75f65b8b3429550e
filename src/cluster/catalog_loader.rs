//! Loads what classification must know of the database's catalog: at the start and after changes, but not too often.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use diesel::QueryableByName;
use diesel::result::QueryResult;
use diesel::sql_types::Text;
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use futures_util::FutureExt;
use tokio::time::Instant;

use super::topology::Topology;
use crate::classify::{
    CODE_SQL, Catalog, Classifier, CodeKind, CodeRow, FUNCTIONS_SQL, OPERATORS_SQL,
};
use crate::node::{Node, code_changes};

/// How long loading the catalog may take.
const LIMIT: Duration = Duration::from_secs(20);

/// How often the catalog is loaded after changes.
pub(super) const AFTER_CHANGE: Duration = Duration::from_secs(1);

/// How often it is loaded because a name is not known. The next catalog may not have the name either.
pub(super) const FOR_A_NAME: Duration = Duration::from_secs(30);

/// Pure: whether the catalog is wanted, and whether it is being loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refresh {
    /// It was never loaded.
    First,
    /// It is to be loaded this long after the last time.
    Wanted {
        since: Instant,
        interval: Duration,
    },
    /// If set, it is to be loaded again so long after this load.
    Loading {
        again: Option<Duration>,
    },
    Loaded {
        at: Instant,
    },
}

impl Refresh {
    fn new() -> Self {
        Self::First
    }

    /// Somebody thinks that the catalog is outdated.
    fn want(&mut self, interval: Duration) {
        *self = match *self {
            // The more urgent reason counts.
            Self::Loading { again } => Self::Loading {
                again: Some(again.map_or(interval, |other| other.min(interval))),
            },
            Self::Loaded { at } => Self::Wanted {
                since: at,
                interval,
            },
            Self::Wanted {
                since,
                interval: other,
            } => Self::Wanted {
                since,
                interval: other.min(interval),
            },
            Self::First => Self::First,
        };
    }

    /// When it may be loaded, if it is wanted.
    fn due(&self, now: Instant) -> Option<Instant> {
        match *self {
            Self::First => Some(now),
            Self::Wanted { since, interval } => Some(since + interval),
            Self::Loading { .. } | Self::Loaded { .. } => None,
        }
    }

    /// A load begins.
    fn started(&mut self) {
        *self = Self::Loading { again: None };
    }

    /// A load has ended. After a failure it is tried again.
    fn ended(&mut self, loaded: bool, now: Instant) {
        let Self::Loading { again } = *self else {
            return;
        };
        let failed = (!loaded).then_some(AFTER_CHANGE);
        *self = match again.or(failed) {
            Some(interval) => Self::Wanted {
                since: now,
                interval,
            },
            None => Self::Loaded { at: now },
        };
    }
}

/// Loads the catalog for one classifier.
pub(super) struct CatalogLoader {
    classifier: Arc<Classifier>,
    refresh: Refresh,
    /// When to look again whether to load.
    due: Option<Instant>,
    /// How many changes of the code the primary had counted before the last load, if that asked the primary.
    code: Option<i64>,
    /// The count that came during this load. The load may have seen these changes.
    meanwhile: Option<Meanwhile>,
}

/// A count of changes of the code that came during a load.
#[derive(Clone, Copy, Debug)]
struct Meanwhile {
    code: i64,
    /// How many changes of the catalog were known then, with this one.
    changes: u64,
}

/// The result of a load.
pub(super) struct Loaded {
    catalog: Option<(Catalog, Option<i64>)>,
    /// How many changes of the catalog were known before the load.
    changes: u64,
}

impl CatalogLoader {
    pub(super) fn new(classifier: Arc<Classifier>) -> Self {
        Self {
            classifier,
            refresh: Refresh::new(),
            due: None,
            code: None,
            meanwhile: None,
        }
    }

    /// When to call [`start`](Self::start) again, if that is known.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Somebody thinks that the catalog is outdated. It is loaded, but not sooner than `interval` after the last
    /// time.
    pub(super) fn want(&mut self, interval: Duration) {
        self.refresh.want(interval);
    }

    /// The primary counts this number of changes of the code.
    pub(super) fn code_changed(&mut self, changes: i64) {
        if self.code == Some(changes) {
            return;
        }
        let known = self.classifier.note_change();
        if let Refresh::Loading { .. } = self.refresh {
            self.meanwhile = Some(Meanwhile {
                code: changes,
                changes: known,
            });
        } else {
            self.want(AFTER_CHANGE);
        }
    }

    /// The load to run now, if the catalog is wanted and a node can be asked. The primary is asked first: its catalog
    /// is never behind. At the start another node is asked only once it is known that there is no primary.
    pub(super) fn start(
        &mut self,
        topology: &Topology,
    ) -> Option<impl Future<Output = Loaded> + use<>> {
        let now = Instant::now();
        let due = self.refresh.due(now);
        self.due = due.filter(|due| *due > now);
        if due.is_none() || self.due.is_some() {
            return None;
        }
        let primary = topology.primary().filter(|member| member.is_of_use());
        let of_primary = primary.is_some();
        if !of_primary && matches!(self.refresh, Refresh::First) && !topology.is_asked() {
            return None;
        }
        let any = || topology.members.iter().find(|member| member.is_of_use());
        let node = Arc::clone(&primary.or_else(any)?.node);
        self.refresh.started();
        let changes = self.classifier.changes();
        Some(async move {
            Loaded {
                catalog: load_in_time(&node, of_primary).await,
                changes,
            }
        })
    }

    /// A load has ended.
    pub(super) fn ended(&mut self, loaded: Loaded) {
        let succeeded = loaded.catalog.is_some();
        let meanwhile = self.meanwhile.take();
        let mut seen = loaded.changes;
        if let Some((catalog, code)) = loaded.catalog {
            self.code = code;
            // The server had counted that much before the load, so it is no change since. Without this, a load that is
            // slower than the first question would keep each session that writes on the primary until the next one.
            let known = |it: &Meanwhile| Some(it.code) == code && it.changes == loaded.changes + 1;
            if meanwhile.as_ref().is_some_and(known) {
                seen += 1;
            }
            self.classifier.set_catalog(catalog, seen);
        }
        if meanwhile.is_some() && seen == loaded.changes {
            self.want(AFTER_CHANGE);
        }
        self.refresh.ended(succeeded, Instant::now());
    }
}

async fn load_in_time(node: &Arc<Node>, of_primary: bool) -> Option<(Catalog, Option<i64>)> {
    let load = AssertUnwindSafe(load(node, of_primary)).catch_unwind();
    let cause = match tokio::time::timeout(LIMIT, load).await {
        Ok(Ok(Ok(loaded))) => return Some(loaded),
        Ok(Ok(Err(error))) => error.to_string(),
        Ok(Err(_)) => "loading it panicked".to_owned(),
        Err(_) => format!("not within {LIMIT:?}"),
    };
    tracing::warn!(target: "diesel_replicated", node = node.name, cause, "catalog_not_loaded");
    None
}

/// One row of any of the three queries. Those with two columns get an empty third.
#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Text)]
    sort: String,
    #[diesel(sql_type = Text)]
    definition: String,
}

/// Asks one node, over a connection of its pool. Also returns how many changes of the code the primary had counted
/// before. A standby counts for itself, and counts nothing of what it replays.
async fn load(
    node: &Arc<Node>,
    of_primary: bool,
) -> Result<(Catalog, Option<i64>), diesel::result::Error> {
    let mut pooled = node.pool.checkout().await?;
    let changes = match of_primary {
        true => code_changes(pooled.pg_mut()).await.ok(),
        false => None,
    };
    let mut snapshot = pooled
        .pg_mut()
        .build_transaction()
        .read_only()
        .repeatable_read();
    let (functions, operators, code) = snapshot
        .run(async |pg| {
            // Compiling these queries takes longer than running them.
            pg.batch_execute("SET LOCAL jit = off; SET LOCAL statement_timeout = 0")
                .await?;
            let functions = rows(pg, &with_empty(FUNCTIONS_SQL)).await?;
            let operators = rows(pg, &with_empty(OPERATORS_SQL)).await?;
            QueryResult::Ok((functions, operators, rows(pg, CODE_SQL).await?))
        })
        .await?;
    node.pool.put_back(pooled);
    let pairs = |rows: Vec<Row>| rows.into_iter().map(|row| (row.name, row.sort));
    let code = code.into_iter().filter_map(|row| {
        Some(CodeRow {
            name: row.name,
            kind: CodeKind::parse(&row.sort)?,
            definition: row.definition,
        })
    });
    let catalog = Catalog::new(pairs(functions), pairs(operators), code);
    Ok((catalog, changes))
}

async fn rows(pg: &mut AsyncPgConnection, query: &str) -> QueryResult<Vec<Row>> {
    let query = format!("SELECT * FROM ({query}) AS rows (name, sort, definition)");
    diesel::sql_query(query).load(pg).await
}

fn with_empty(query: &str) -> String {
    format!("SELECT pairs.*, ''::text FROM ({query}) AS pairs")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::FunctionConfig;

    /// A loader whose first load has just begun.
    fn loading() -> CatalogLoader {
        let classifier = Arc::new(Classifier::new(&FunctionConfig::default()));
        let mut loader = CatalogLoader::new(classifier);
        loader.refresh.started();
        loader
    }

    /// The load has ended. The server had counted so many changes of the code before.
    fn loaded(loader: &mut CatalogLoader, code: i64, changes: u64) {
        let catalog = Catalog::new([], [], []);
        loader.ended(Loaded {
            catalog: Some((catalog, Some(code))),
            changes,
        });
    }

    /// Whether a write keeps its session on the primary, and whether the catalog is loaded again.
    fn outcome(loader: &CatalogLoader) -> (bool, bool) {
        let verdict = loader.classifier.classify(None, "DELETE FROM users");
        let again = loader.refresh.due(Instant::now()).is_some();
        (verdict.leaves.pins(), again)
    }

    #[test]
    fn a_count_that_comes_during_a_load_is_no_change_if_the_load_began_with_it() {
        let mut loader = loading();
        loader.code_changed(4);
        loaded(&mut loader, 4, 0);
        assert_eq!(outcome(&loader), (false, false));
        loader.code_changed(4);
        assert_eq!(outcome(&loader), (false, false));
        loader.code_changed(5);
        assert_eq!(outcome(&loader), (true, true));
    }

    #[test]
    fn a_change_that_a_load_may_have_missed_has_it_loaded_once_more() {
        // The code changed after the load had begun.
        let mut loader = loading();
        loader.code_changed(5);
        loaded(&mut loader, 4, 0);
        assert_eq!(outcome(&loader), (true, true));
        // So did something else.
        for own_first in [true, false] {
            let mut loader = loading();
            let own = |loader: &mut CatalogLoader| {
                loader.classifier.note_change();
                loader.want(AFTER_CHANGE);
            };
            if own_first {
                own(&mut loader);
            }
            loader.code_changed(4);
            if !own_first {
                own(&mut loader);
            }
            loaded(&mut loader, 4, 0);
            assert_eq!(outcome(&loader), (true, true));
        }
        // The load failed.
        let mut loader = loading();
        loader.code_changed(4);
        loader.ended(Loaded {
            catalog: None,
            changes: 0,
        });
        assert_eq!(outcome(&loader), (true, true));
    }

    #[test]
    fn changes_while_loading_have_it_loaded_once_more() {
        let now = Instant::now();
        let mut refresh = Refresh::new();
        assert_eq!(refresh.due(now), Some(now));
        refresh.started();
        assert_eq!(refresh.due(now), None);
        refresh.want(FOR_A_NAME);
        refresh.want(AFTER_CHANGE);
        refresh.want(FOR_A_NAME);
        refresh.ended(true, now);
        assert_eq!(refresh.due(now), Some(now + AFTER_CHANGE));
        refresh.started();
        refresh.ended(true, now);
        assert_eq!(refresh.due(now), None);
    }

    #[test]
    fn a_failure_is_tried_again() {
        let now = Instant::now();
        let mut refresh = Refresh::new();
        refresh.started();
        refresh.ended(false, now);
        assert_eq!(refresh.due(now), Some(now + AFTER_CHANGE));
    }

    #[test]
    fn a_change_is_not_kept_waiting_by_the_patience_with_a_name() {
        let now = Instant::now();
        let mut refresh = Refresh::Loaded { at: now };
        refresh.want(FOR_A_NAME);
        assert_eq!(refresh.due(now), Some(now + FOR_A_NAME));
        refresh.want(AFTER_CHANGE);
        assert_eq!(refresh.due(now), Some(now + AFTER_CHANGE));
    }
}
