//! One statement on its way: what is known of it, and of the last attempt to run it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::pending_commit::PendingCommit;
use super::pending_write::PendingWrite;
use super::reading::Reading;
use super::session_settings::Setting;
use super::spans::Spans;
use super::tagged::Tagged;
use super::to_show::ToShow;
use crate::classify::{TransactionControl, Verdict};
use crate::cluster::Purpose;
use crate::consistency::ReadRequirement;
use crate::error::{Outcome, SqlState};
use crate::metrics::Route as Went;
use crate::node::{Lease, Node};
use crate::route::RouteReason;
use crate::routing::{Decision, Stale};

/// One statement on its way.
pub(super) struct Execution {
    pub(super) verdict: Verdict,
    pub(super) decision: Decision,
    /// Replicas that have failed it.
    pub(super) avoid: Vec<Arc<Node>>,
    /// How many times a connection's outdated memory made it fail, and which memory last.
    pub(super) heals: u16,
    pub(super) healing: Option<Stale>,
    /// How many times the connection's transactions were read only.
    pub(super) outdated: u16,
    /// It has values of custom types.
    pub(super) custom_types: bool,
    /// A replica refused it. If the primary accepts it, the pool remembers that.
    pub(super) learn: bool,
    /// The primary serves it because no replica can.
    pub(super) fallback: bool,
    /// Where the last attempt went.
    pub(super) went: Option<Went>,
    pub(super) only_rolls_back: bool,
    /// What the node must have that serves it.
    pub(super) requirement: ReadRequirement,
    pub(super) pending_write: Option<PendingWrite>,
    /// Its answer is waited for. It is dropped so if it is given up.
    pub(super) under_way: bool,
    /// The last attempt sent nothing that runs.
    pub(super) unsent: bool,
    /// At the last attempt the server refused it before anything of it ran.
    pub(super) refused: bool,
    pub(super) started: Instant,
    /// When the last attempt of a read had a node: so many microseconds after it started.
    pub(super) asked_after: u32,
    /// How to find out what became of it, if it is a COMMIT.
    pub(super) pending_commit: Option<Box<PendingCommit>>,
    /// How far it has got, if it has a limit of time.
    pub(super) progress: Option<Arc<Progress>>,
    /// What the server has to show, asked together with the statement.
    pub(super) to_show: Option<Box<ToShow>>,
    /// Whether it shows it.
    pub(super) behind: Behind,
    /// The settings that it makes for the session.
    pub(super) settings: Box<[Setting]>,
    /// The connection did not accept the session's settings.
    pub(super) settings_refused: bool,
    /// The statements that were prepared and reported to the instrumentation.
    pub(super) prepared: Box<[String]>,
    /// What the server said of the last attempt, if it failed there.
    pub(super) sqlstate: Option<SqlState>,
    /// The node of the last attempt.
    pub(super) node: Option<Arc<Node>>,
    /// Its spans, if anybody may look at them.
    pub(super) spans: Option<Box<Spans>>,
}

impl Drop for Execution {
    fn drop(&mut self) {
        if self.under_way {
            self.gave_up();
        }
    }
}

/// Whether the server of the last attempt showed what the statement must see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Behind {
    #[default]
    No,
    /// It did not: another server.
    Now,
    /// It did not in the time that the read may wait.
    InTime,
}

impl Execution {
    /// One that was not sent yet.
    pub(super) fn new(verdict: Verdict, decision: Decision, requirement: ReadRequirement) -> Self {
        Self {
            verdict,
            decision,
            avoid: Vec::new(),
            heals: 0,
            healing: None,
            outdated: 0,
            custom_types: false,
            learn: false,
            fallback: false,
            went: None,
            only_rolls_back: false,
            requirement,
            pending_write: None,
            under_way: false,
            unsent: false,
            refused: false,
            started: Instant::now(),
            asked_after: 0,
            pending_commit: None,
            settings: Box::default(),
            settings_refused: false,
            progress: None,
            to_show: None,
            behind: Behind::No,
            prepared: Box::default(),
            sqlstate: None,
            node: None,
            spans: None,
        }
    }

    /// Notes where the next attempt goes.
    pub(super) fn goes(&mut self, went: Went, node: &Arc<Node>) {
        let is_known = self.went == Some(went)
            && matches!(&self.node, Some(known) if Arc::ptr_eq(known, node));
        if let Some(spans) = self.spans.as_ref().filter(|_| !is_known) {
            spans.goes(went, node);
        }
        self.went = Some(went);
        self.node = Some(Arc::clone(node));
    }

    /// The read that it is, which waits since `started` if it has to. `tagged`: replicas with a tag are to serve it.
    pub(super) fn reading<'a>(
        &'a mut self,
        reason: RouteReason,
        started: Instant,
        tagged: Option<&'a Tagged>,
    ) -> Reading<'a> {
        Reading {
            reason,
            avoid: &mut self.avoid,
            requirement: &mut self.requirement,
            started,
            tagged,
            behind: false,
        }
    }

    /// A read has a node from now on. What was before is not that node's time.
    pub(super) fn asks(&mut self) {
        let after = self.started.elapsed().as_micros();
        self.asked_after = u32::try_from(after).unwrap_or(u32::MAX);
    }

    /// How long the node of the last attempt has taken until `now`.
    pub(super) fn took(&self, now: Instant) -> Duration {
        let all = now.saturating_duration_since(self.started);
        all.saturating_sub(Duration::from_micros(self.asked_after.into()))
    }

    /// Nobody waits any more for a read that has not come to its end on a replica.
    pub(super) fn gave_up(&self) {
        // A report that is given up says nothing of other reads.
        let (node, Decision::Replica { reason, .. }) = (&self.node, &self.decision) else {
            return;
        };
        if let Some(node) = node.as_ref().filter(|_| *reason != RouteReason::Forced) {
            let now = Instant::now();
            node.pace.at_least(self.took(now), now);
        }
    }

    /// The last attempt is at its end.
    pub(super) fn attempted(&mut self) {
        if let Some(spans) = &mut self.spans {
            spans.attempted();
        }
    }

    /// What it wants to do on the primary.
    pub(super) fn purpose(&self) -> Purpose {
        let Verdict {
            reason,
            control,
            writes,
            ..
        } = self.verdict;
        match control {
            _ if writes || self.learn => Purpose::Write,
            None if reason == RouteReason::PlainSelect => Purpose::Read,
            Some(TransactionControl::Begin { read_only, .. }) => {
                if read_only {
                    Purpose::Read
                } else {
                    Purpose::Write
                }
            }
            _ => Purpose::State,
        }
    }

    /// Whether it is a COMMIT of a transaction that may have written.
    pub(super) fn commits(&self, sql: &str) -> bool {
        self.pending_write.is_some()
            && self.verdict.control == Some(TransactionControl::End)
            && sql.trim().eq_ignore_ascii_case("commit")
    }

    /// What became of it if its connection broke.
    pub(super) fn outcome_if_lost(&self) -> Outcome {
        if self.unsent {
            Outcome::NotRun
        } else {
            self.outcome_if_sent()
        }
    }

    /// What becomes of it if it is sent and nobody hears how it ends. A read, or a BEGIN, leaves nothing behind.
    pub(super) fn outcome_if_sent(&self) -> Outcome {
        let Self { verdict, learn, .. } = self;
        let harmless = match verdict.control {
            None => verdict.idempotent,
            Some(control) => control != TransactionControl::End,
        };
        if harmless && !verdict.writes && !learn {
            Outcome::NotRun
        } else {
            Outcome::Unknown
        }
    }
}

/// How far a statement has got that may be given up.
#[derive(Debug, Default)]
pub(super) struct Progress(Mutex<Option<(Arc<Lease>, Outcome)>>);

impl Progress {
    /// It is about to be sent over this connection. `outcome` is what becomes of it if nobody waits for its end.
    pub(super) fn sends(&self, lease: &Arc<Lease>, outcome: Outcome) {
        *self.0.lock() = Some((Arc::clone(lease), outcome));
    }

    /// Nothing of it was sent after all.
    pub(super) fn never_sent(&self) {
        *self.0.lock() = None;
    }

    /// Gives it up: its connection is of no use any more, and the server is asked to stop.
    pub(super) fn give_up(&self) -> Outcome {
        match self.0.lock().take() {
            Some((lease, outcome)) => {
                lease.condemn();
                let cancel = lease.canceller();
                let runtime = lease.node().runtime.clone();
                // Whoever gave it up does not wait for this, either.
                runtime.spawn(async move { cancel.cancel().await });
                outcome
            }
            None => Outcome::NotRun,
        }
    }
}

/// Whether the text is a ROLLBACK and nothing else.
pub(super) fn only_rolls_back(verdict: Verdict, sql: &str) -> bool {
    let alone = verdict.control == Some(TransactionControl::End) && !verdict.writes;
    alone
        && ["rollback", "abort"].iter().any(|word| {
            let start = sql.trim_start().get(..word.len());
            start.is_some_and(|start| start.eq_ignore_ascii_case(word))
        })
}
