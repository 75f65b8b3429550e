//! Statements that look like reads but that a replica has refused.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::Verdict;
use super::cache::{OwnedKey, QueryKey, Verdicts};

/// How long an entry lasts. The function may have been changed since. If not, the next refusal enters it again.
pub(crate) const LASTS: Duration = Duration::from_secs(60 * 60);

/// How many entries are kept. A new one replaces the oldest.
const KEPT: usize = 256;

/// One statement that needs the primary, and when that was learned.
#[derive(Clone, Debug)]
pub(crate) struct Lesson {
    pub(crate) sql: String,
    pub(crate) at: Instant,
    key: OwnedKey,
}

/// All entries, the oldest first.
#[derive(Debug)]
pub(super) struct Learned {
    verdicts: Verdicts,
    lessons: Mutex<VecDeque<Lesson>>,
}

impl Learned {
    pub(super) fn new() -> Self {
        Self {
            verdicts: Verdicts::new(),
            lessons: Mutex::default(),
        }
    }

    pub(super) fn get(&self, key: QueryKey<'_>) -> Option<Verdict> {
        self.verdicts.get(key)
    }

    pub(super) fn insert(&self, key: QueryKey<'_>, verdict: Verdict, sql: &str, now: Instant) {
        if !key.is_short() {
            return;
        }
        self.verdicts.insert(key, verdict);
        let mut lessons = self.lessons();
        lessons.retain(|lesson| lesson.key.borrow() != key);
        if lessons.len() == KEPT {
            // Its verdict stays until the cache of verdicts needs the room.
            lessons.pop_front();
        }
        lessons.push_back(Lesson {
            sql: sql.to_owned(),
            at: now,
            key: key.into(),
        });
    }

    pub(super) fn all(&self) -> Vec<Lesson> {
        self.lessons().iter().cloned().collect()
    }

    /// Whether an entry has expired.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        let lessons = self.lessons();
        lessons.front().is_some_and(|oldest| is_over(oldest, now))
    }

    /// Removes expired entries. `also` is called for each.
    pub(super) fn forget(&self, now: Instant, also: &Verdicts) {
        let mut lessons = self.lessons();
        let over = lessons.iter().take_while(|lesson| is_over(lesson, now));
        let over = over.count();
        for old in lessons.drain(..over) {
            self.verdicts.remove(old.key.borrow());
            also.remove(old.key.borrow());
        }
    }

    fn lessons(&self) -> MutexGuard<'_, VecDeque<Lesson>> {
        self.lessons.lock()
    }
}

fn is_over(lesson: &Lesson, now: Instant) -> bool {
    now.saturating_duration_since(lesson.at) >= LASTS
}
