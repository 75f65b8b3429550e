//! Whether a statement is known to be safe on a replica, and what else it does to its session.
//!
//! A statement that is not known to be safe goes to the primary: mistaking a read for a write
//! costs some speed, the opposite mistake is a defect.

mod body;
mod cache;
mod catalog;
mod code;
mod definitions;
mod does;
mod functions;
mod learned;
mod leaves;
mod lexer;
mod lists;
mod queries;
mod scan;
mod set_statements;
mod statement;
mod tokens;
mod transaction;

#[cfg(test)]
mod tests;

use std::any::TypeId;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, RwLock};

use crate::config::FunctionConfig;
use crate::route::RouteReason;

use cache::QueryKey;
use cache::Verdicts;
pub(crate) use catalog::Catalog;
pub(crate) use code::{CodeRow, Kind as CodeKind};
use definitions::judge_definitions;
use functions::Functions;
use learned::Learned;
pub(crate) use learned::Lesson;
pub(crate) use leaves::Leaves;
pub(crate) use queries::{CODE_SQL, FUNCTIONS_SQL, OPERATORS_SQL};
use scan::Names;
pub(crate) use set_statements::{Argument, Change, can_travel, changes};
pub(crate) use transaction::TransactionControl;

/// So many functions are told of.
const DECLARED: usize = 100;

/// What a statement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent properties of a statement"
)]
pub(crate) struct Verdict {
    /// [`RouteReason::PlainSelect`] may go to a replica; anything else needs the primary, and
    /// says why.
    pub(crate) reason: RouteReason,
    /// Counts as a write of its session for reading one's own writes.
    pub(crate) writes: bool,
    /// What it leaves on its connection beyond its transaction.
    pub(crate) leaves: Leaves,
    /// Only the end of the connection undoes what it leaves.
    pub(crate) indelible: bool,
    /// It takes an advisory lock until its transaction ends. A standby's locks exclude nobody.
    pub(crate) locks: bool,
    /// What it does to the transaction.
    pub(crate) control: Option<TransactionControl>,
    /// Types or functions may have changed, so that what is known of the catalog is stale.
    pub(crate) ddl: bool,
    /// Running it twice does no more than running it once.
    pub(crate) idempotent: bool,
}

impl Verdict {
    /// Whether it may run code of the database's.
    fn may_run_code(&self) -> bool {
        self.control.is_none()
            && !matches!(
                self.reason,
                RouteReason::PlainSelect | RouteReason::SessionState
            )
    }

    /// The same while the catalog that it rests on is outdated: code may have changed.
    pub(crate) fn on_outdated_catalog(self) -> Self {
        let leaves = if self.may_run_code() {
            self.leaves.max(Leaves::Unknown)
        } else {
            self.leaves
        };
        Self { leaves, ..self }
    }

    /// Whether it may change settings until the transaction ends, `search_path` among them.
    pub(crate) fn sets_for_the_transaction(&self) -> bool {
        self.control == Some(TransactionControl::Setting)
            || self.reason == RouteReason::SessionState
    }
}

/// What the verdicts rest on, together with the verdicts, so that none outlives its ground.
#[derive(Debug)]
struct Ground {
    catalog: Option<Catalog>,
    verdicts: Verdicts,
}

/// Judges statements and remembers the verdicts; one for all connections of a cluster.
#[derive(Debug)]
pub(crate) struct Classifier {
    functions: Functions,
    ground: RwLock<Arc<Ground>>,
    /// The verdicts on what a replica refused.
    learned: Learned,
    wants_catalog: AtomicBool,
    /// Functions whose declaration alone keeps queries from replicas, and whether one is to be told of.
    declared: Mutex<BTreeMap<String, bool>>,
    tells_declared: AtomicBool,
    /// How many changes of the catalog are known, and how many of them the loaded one has seen.
    changes: AtomicU64,
    seen: AtomicU64,
}

impl Classifier {
    pub(crate) fn new(overrides: &FunctionConfig) -> Self {
        Self {
            functions: Functions::new(overrides),
            ground: RwLock::new(Arc::new(Ground {
                catalog: None,
                verdicts: Verdicts::new(),
            })),
            learned: Learned::new(),
            wants_catalog: AtomicBool::new(false),
            declared: Mutex::default(),
            tells_declared: AtomicBool::new(false),
            changes: AtomicU64::new(0),
            seen: AtomicU64::new(0),
        }
    }

    /// The verdict on a text, or on the query whose type `id` determines its text.
    pub(crate) fn classify(&self, id: Option<TypeId>, sql: &str) -> Verdict {
        let verdict = self.judged(id, sql);
        if self.is_outdated() {
            verdict.on_outdated_catalog()
        } else {
            verdict
        }
    }

    fn judged(&self, id: Option<TypeId>, sql: &str) -> Verdict {
        let key = QueryKey::new(id, sql);
        let ground = {
            let ground = self.ground.read();
            if let Some(verdict) = ground.verdicts.get(key) {
                return verdict;
            }
            Arc::clone(&ground)
        };
        let known = Names {
            functions: &self.functions,
            catalog: ground.catalog.as_ref(),
        };
        // A long text takes a while: nobody waits for it.
        let judgement = statement::judge(sql, known);
        if judgement.wants_catalog {
            self.wants_catalog.store(true, Ordering::Relaxed);
        }
        if let Some(name) = judgement.declared {
            let mut declared = self.declared.lock();
            if declared.len() < DECLARED && !declared.contains_key(&name) {
                declared.insert(name, false);
                self.tells_declared.store(true, Ordering::Relaxed);
            }
        }
        let current = self.ground.read();
        let verdict = self.learned.get(key).unwrap_or(judgement.verdict);
        if Arc::ptr_eq(&current, &ground) {
            current.verdicts.insert(key, verdict);
        }
        verdict
    }

    /// Functions that were met since the last call and that keep queries from replicas by being declared
    /// volatile, and by nothing else.
    pub(crate) fn take_declared(&self) -> Vec<String> {
        if !self.tells_declared.load(Ordering::Relaxed) {
            return Vec::new();
        }
        self.tells_declared.store(false, Ordering::Relaxed);
        let mut declared = self.declared.lock();
        let news = declared.iter_mut().filter(|(_, told)| !**told);
        news.map(|(name, told)| {
            *told = true;
            name.clone()
        })
        .collect()
    }

    /// A replica refused the statement for being one, and the primary accepted it, so it goes to the primary
    /// from now on. That is tried anew after a while.
    pub(crate) fn learn(&self, id: Option<TypeId>, sql: &str, now: Instant) {
        let verdict = self.judged(id, sql);
        if verdict.reason != RouteReason::PlainSelect {
            return;
        }
        let key = QueryKey::new(id, sql);
        let verdict = Verdict {
            reason: RouteReason::Learned,
            writes: true,
            idempotent: false,
            ..verdict
        };
        self.learned.insert(key, verdict, sql, now);
        let ground = self.ground.read();
        ground.verdicts.insert(key, verdict);
    }

    /// What was learned and still holds.
    pub(crate) fn learned(&self) -> Vec<Lesson> {
        self.learned.all()
    }

    /// Forgets what was learned too long ago.
    pub(crate) fn forget_learned(&self, now: Instant) {
        if self.learned.is_over(now) {
            // Nobody reads meanwhile, who could take an old verdict over.
            let ground = self.ground.write();
            self.learned.forget(now, &ground.verdicts);
        }
    }

    /// Replaces what is known of the catalog, and forgets the verdicts that rested on it. What was
    /// learned from replicas stays. It was loaded after so many changes were known.
    pub(crate) fn set_catalog(&self, mut catalog: Catalog, changes: u64) {
        judge_definitions(&mut catalog, &self.functions);
        let ground = Arc::new(Ground {
            catalog: Some(catalog),
            verdicts: Verdicts::new(),
        });
        // Before the exchange: a name that is met after it must not be forgotten.
        self.wants_catalog.store(false, Ordering::Relaxed);
        let mut place = self.ground.write();
        let old = std::mem::replace(&mut *place, ground);
        drop(place);
        // Outside the lock, as it may be large.
        drop(old);
        self.seen.fetch_max(changes, Ordering::AcqRel);
    }

    /// The catalog has changed: until it has been loaded again, code may do what is not known of it.
    pub(crate) fn note_change(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// How many changes of the catalog are known.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    fn is_outdated(&self) -> bool {
        self.changes() != self.seen.load(Ordering::Acquire)
    }

    /// Whether a function or operator was met of which nothing is known, since the last call. It
    /// may be unknown to the next catalog too, so whoever loads catalogs should not do so all the
    /// time.
    pub(crate) fn take_wants_catalog(&self) -> bool {
        self.wants_catalog.load(Ordering::Relaxed)
            && self.wants_catalog.swap(false, Ordering::Relaxed)
    }
}
