//! Statements that ran while the catalog was outdated: what they have left is known once it is loaded again.

use std::fmt;

use crate::classify::{Cause, Classifier};

/// So many texts are kept for one session.
const TEXTS: usize = 32;

/// So long may a text be that is kept.
const LONGEST: usize = 4096;

/// The texts. Until they are judged again, the session stays on its connection.
#[derive(Default)]
pub(super) struct Doubts(Vec<Box<str>>);

/// Texts may hold what is nobody's business.
impl fmt::Debug for Doubts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Doubts").field(&self.0.len()).finish()
    }
}

impl Doubts {
    /// Keeps a text. `false` if there are too many, or it is too long.
    pub(super) fn keep(&mut self, sql: &str) -> bool {
        let known = self.0.iter().any(|known| **known == *sql);
        if !known && self.0.len() < TEXTS && sql.len() <= LONGEST {
            self.0.push(sql.into());
            return true;
        }
        known
    }

    /// Whether the statements have left something that only their connection has, and what may have, by name. `None` while
    /// the catalog is outdated.
    pub(super) fn settle(&self, classifier: &Classifier) -> Option<(bool, Option<Cause>)> {
        let mut pins = (false, None);
        for sql in &self.0 {
            let verdict = classifier.judge_for_good(sql)?;
            if verdict.leaves.pins() {
                pins = (true, verdict.cause.or(pins.1));
            }
        }
        Some(pins)
    }
}
