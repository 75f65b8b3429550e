//! Whether a statement is known to be safe on a replica, and what else it does to its session.
//!
//! A statement that is not known to be safe goes to the primary. To take a read for a write costs some speed; to take
//! a write for a read is a defect.

mod body;
mod cache;
mod catalog;
mod causes;
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
mod shape;
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
pub(crate) use causes::Cause;
use causes::Causes;
pub(crate) use code::{CodeRow, Kind as CodeKind};
use definitions::judge_definitions;
use functions::Functions;
use learned::Learned;
pub(crate) use learned::Lesson;
pub(crate) use leaves::Leaves;
pub(crate) use queries::{CODE_SQL, FUNCTIONS_SQL, OPERATORS_SQL};
use scan::Names;
pub(crate) use set_statements::{Argument, Change, can_travel, changes};
pub(crate) use shape::Shape;
pub(crate) use transaction::TransactionControl;

/// How many functions are named in the log.
const DECLARED: usize = 100;

/// What a statement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent properties of a statement"
)]
pub(crate) struct Verdict {
    /// [`RouteReason::PlainSelect`] may go to a replica. Any other reason needs the primary.
    pub(crate) reason: RouteReason,
    /// It counts as a write of its session.
    pub(crate) writes: bool,
    /// What it leaves on its connection beyond its transaction.
    pub(crate) leaves: Leaves,
    /// Only the end of the connection undoes what it leaves.
    pub(crate) indelible: bool,
    /// It takes an advisory lock until its transaction ends. A standby's locks exclude nobody.
    pub(crate) locks: bool,
    /// What it does to the transaction.
    pub(crate) control: Option<TransactionControl>,
    /// Types or functions may have changed.
    pub(crate) ddl: bool,
    /// Running it twice does no more than running it once.
    pub(crate) idempotent: bool,
    /// What keeps it from replicas, by name.
    pub(crate) cause: Option<Cause>,
}

impl Verdict {
    /// Whether it may run code of the database.
    fn may_run_code(&self) -> bool {
        self.control.is_none()
            && !matches!(
                self.reason,
                RouteReason::PlainSelect | RouteReason::SessionState
            )
    }

    /// The same verdict while the catalog is outdated: code may have changed.
    pub(crate) fn on_outdated_catalog(self) -> Self {
        let leaves = if self.may_run_code() {
            self.leaves.max(Leaves::Unsure)
        } else {
            self.leaves
        };
        Self { leaves, ..self }
    }

    /// Whether it may change settings until the transaction ends, such as `search_path`.
    pub(crate) fn sets_for_the_transaction(&self) -> bool {
        self.control == Some(TransactionControl::Setting)
            || self.reason == RouteReason::SessionState
    }
}

/// What the verdicts rest on, and the verdicts: neither outlives the other.
#[derive(Debug)]
struct Ground {
    catalog: Option<Catalog>,
    verdicts: Verdicts,
}

/// Judges statements and remembers the verdicts. All connections of a cluster share one.
#[derive(Debug)]
pub(crate) struct Classifier {
    functions: Functions,
    ground: RwLock<Arc<Ground>>,
    /// The verdicts on what a replica refused.
    learned: Learned,
    causes: Causes,
    wants_catalog: AtomicBool,
    /// Functions that keep queries from replicas only by their declaration, and whether one is to be named.
    declared: Mutex<BTreeMap<String, bool>>,
    tells_declared: AtomicBool,
    /// How many changes of the catalog are known, and how many of them the loaded catalog has seen.
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
            causes: Causes::default(),
            wants_catalog: AtomicBool::new(false),
            declared: Mutex::default(),
            tells_declared: AtomicBool::new(false),
            changes: AtomicU64::new(0),
            seen: AtomicU64::new(0),
        }
    }

    /// The verdict on a text, or on the query whose type `id` stands for one text.
    pub(crate) fn classify(&self, id: Option<TypeId>, sql: &str) -> Verdict {
        let verdict = self.judged(id, sql);
        if self.is_outdated() {
            verdict.on_outdated_catalog()
        } else {
            verdict
        }
    }

    /// The verdict on a text that ran while the catalog was outdated; `None` while it still is.
    pub(crate) fn judge_for_good(&self, sql: &str) -> Option<Verdict> {
        (!self.is_outdated()).then(|| self.judged(None, sql))
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
        // A long text takes a while. Nobody waits for it.
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
        let judged = Verdict {
            cause: judgement.cause.and_then(|name| self.causes.of(&name)),
            ..judgement.verdict
        };
        let current = self.ground.read();
        let verdict = self.learned.get(key).unwrap_or(judged);
        if Arc::ptr_eq(&current, &ground) {
            current.verdicts.insert(key, verdict);
        }
        verdict
    }

    /// The name of what keeps statements from replicas.
    pub(crate) fn name_of(&self, cause: Cause) -> Option<String> {
        self.causes.name(cause)
    }

    /// The functions that statements used since the last call and that keep queries from replicas only by being
    /// declared volatile.
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

    /// A replica refused the statement, and the primary accepted it. It goes to the primary from now on. After a
    /// while a replica is tried again.
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
            // A reader now could take an old verdict over.
            let ground = self.ground.write();
            self.learned.forget(now, &ground.verdicts);
        }
    }

    /// Replaces the catalog, and forgets the verdicts that rested on the old one. What replicas have taught stays.
    /// `changes` is how many changes were known before the load.
    pub(crate) fn set_catalog(&self, mut catalog: Catalog, changes: u64) {
        judge_definitions(&mut catalog, &self.functions);
        let ground = Arc::new(Ground {
            catalog: Some(catalog),
            verdicts: Verdicts::new(),
        });
        // Comes before the exchange: a name that is met after it must not be forgotten.
        self.wants_catalog.store(false, Ordering::Relaxed);
        let mut place = self.ground.write();
        let old = std::mem::replace(&mut *place, ground);
        drop(place);
        // Outside the lock, as it may be large.
        drop(old);
        self.seen.fetch_max(changes, Ordering::AcqRel);
    }

    /// The catalog has changed. Until it is loaded again, code may do anything. Returns how many changes are known now.
    pub(crate) fn note_change(&self) -> u64 {
        self.changes.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// How many changes of the catalog are known.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    fn is_outdated(&self) -> bool {
        self.changes() != self.seen.load(Ordering::Acquire)
    }

    /// Whether a statement has used an unknown function or operator since the last call. The next catalog may not
    /// know it either, so do not load catalogs all the time.
    pub(crate) fn take_wants_catalog(&self) -> bool {
        self.wants_catalog.load(Ordering::Relaxed)
            && self.wants_catalog.swap(false, Ordering::Relaxed)
    }
}
