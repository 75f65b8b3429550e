//! The path of a statement: classify, decide, take a connection, send, and what follows.

use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::QueryResult;
use diesel::connection::InstrumentationEvent;
use diesel::result::Error as DieselError;
use futures_util::future::join;
use tracing::{Instrument, Span};

use super::ReplicatedConnection;
use super::action::Action;
use super::at_once::AtOnce;
use super::execution::{Behind, Execution, only_rolls_back};
use super::pending_write::PendingWrite;
use super::reading::{Found, Served};
use super::recovery::AfterFailure;
use super::report::Report;
use super::session_settings::keeps_names;
use super::session_state::{SessionState, Transaction};
use super::spans::{self, Awaited, Spans};
use super::to_show::ToShow;
use crate::classify::{Leaves, TransactionControl, Verdict};
use crate::cluster::{Member, Purpose};
use crate::config::{Consistency, Routing};
use crate::consistency::ReadRequirement;
use crate::error::Error;
use crate::node::{Lease, Wanted, is_ending};
use crate::route::{NodeKind, RouteReason};
use crate::routing::{Decision, HeldBack, Stale};
use crate::wire::{Pooling, ServerRole};

/// What comes after an attempt that is not the end.
enum Next {
    /// Another attempt.
    Again,
    /// A transaction began that can write nothing. Another attempt, when the primary takes writes.
    Undone,
    /// The same, and the server has refused the statement.
    Refused(DieselError),
    /// The error for the caller, unless it can be found out what became of the statement.
    Over(DieselError),
}

impl ReplicatedConnection {
    /// What is known of a statement before it is sent.
    fn execution<A: Action>(&self, action: &A) -> Execution {
        let mut verdict = self.cluster.classifier.classify(action.id(), action.sql());
        let settings = Self::settings_of(action, verdict.leaves);
        if settings.is_none() {
            verdict.leaves = Leaves::State;
        }
        let settings = settings.unwrap_or_default().into_boxed_slice();
        for function in self.cluster.classifier.take_declared() {
            tracing::warn!(
                target: "diesel_replicated",
                function,
                "function_keeps_reads_on_the_primary"
            );
        }
        if self.cluster.classifier.take_wants_catalog() {
            self.cluster.catalog_wanted();
        }
        let mut session = self.session();
        session.settle_doubts(&self.cluster.classifier);
        if session.changed_catalog {
            // The loaded catalog does not know what this transaction has changed.
            verdict = verdict.on_outdated_catalog();
        }
        let requirement = self.requirement(&mut session, verdict);
        let only_rolls_back = only_rolls_back(verdict, action.sql());
        let keeps_names = keeps_names(verdict, &settings);
        let (decision, pending_write) = self.decide(
            &mut session,
            verdict,
            &requirement,
            (only_rolls_back, keeps_names),
            action.sql(),
        );
        drop(session);
        let mut execution = Execution::new(verdict, decision, requirement);
        (execution.pending_write, execution.settings) = (pending_write, settings);
        execution.only_rolls_back = only_rolls_back;
        execution
    }

    /// Runs a statement, in the time that it may take.
    pub(super) async fn run<A: Action>(&self, action: &mut A) -> QueryResult<A::Output> {
        let mut execution = self.execution(action);
        // In a box, because it would be part of the future of each statement.
        if let Some(span) = spans::statement(action.sql()).map(Box::new) {
            return Box::pin(self.run_in_span(action, execution, span)).await;
        }
        let result = match self.time_limit() {
            None => self.run_through(action, &mut execution).await,
            Some(limit) => return Box::pin(self.run_until(action, execution, limit)).await,
        };
        self.ended(action, &execution, result)
    }

    async fn run_in_span<A: Action>(
        &self,
        action: &mut A,
        mut execution: Execution,
        span: Box<Span>,
    ) -> QueryResult<A::Output> {
        let awaited = Awaited::new(&span);
        execution.spans = Some(Box::new(Spans::of(Span::clone(&span))));
        let running = async {
            match self.time_limit() {
                None => {
                    let result = self.run_through(action, &mut execution).await;
                    self.ended(action, &execution, result)
                }
                Some(limit) => self.run_until(action, execution, limit).await,
            }
        };
        let result = running.instrument(Span::clone(&span)).await;
        awaited.ended();
        if let Err(error) = &result {
            spans::failed(&span, error);
        }
        result
    }

    async fn send_in_span<A: Action>(
        &self,
        action: &mut A,
        lease: &Arc<Lease>,
        execution: &mut Execution,
    ) -> QueryResult<()> {
        let span = match &mut execution.spans {
            Some(spans) => spans.attempts(lease.node()),
            None => Span::none(),
        };
        let awaited = Awaited::new(&span);
        let sending = self.send(action, lease, execution);
        let result = sending.instrument(span.clone()).await;
        awaited.ended();
        if let Err(error) = &result {
            let remark = lease.diagnose(error).remark;
            spans::attempt_failed(&span, remark.map(|remark| remark.sqlstate));
            execution.attempted();
        }
        result
    }

    /// Sends a statement to the node that it needs, and again elsewhere where that is harmless.
    pub(super) async fn run_through<A: Action>(
        &self,
        action: &mut A,
        execution: &mut Execution,
    ) -> QueryResult<()> {
        if let Some(end) = self.ends_here(execution, action.sql()) {
            return Ok(end?);
        }
        if self.cluster.takes_majority() {
            Box::pin(self.has_majority(execution.verdict)).await?;
        }
        loop {
            let (lease, on_replica) = self.lease(execution).await?;
            self.prepare(execution, action.sql(), &lease, on_replica)
                .await?;
            // The result ends with the block, so that no wait carries it.
            let next = {
                let result = match execution.spans {
                    None => self.send(action, &lease, execution).await,
                    Some(_) => Box::pin(self.send_in_span(action, &lease, execution)).await,
                };
                self.tell_prepared(execution, &lease);
                let undone = || !on_replica && self.began_fenced(execution.verdict, &lease);
                match result {
                    Ok(()) if undone() => Next::Undone,
                    Ok(()) => {
                        self.reported(action, execution, &lease);
                        return Ok(());
                    }
                    Err(_) if self.is_behind(execution, &lease) => Next::Again,
                    Err(error) => match self.failed(execution, &lease, on_replica, error) {
                        Ok(AfterFailure::Retry) => Next::Again,
                        Ok(AfterFailure::Done) => return Ok(()),
                        Ok(AfterFailure::Refused(error)) => Next::Refused(error),
                        Err(error) => Next::Over(error),
                    },
                }
            };
            // What it has brought does not count, and holds its connection.
            drop(action.take_output());
            match next {
                Next::Again => {}
                Next::Undone => {
                    execution.attempted();
                    Box::pin(self.undo_begin(&lease)).await;
                    Box::pin(self.until_it_takes_writes(execution, lease, None)).await?;
                }
                Next::Refused(error) => {
                    let waits = self.until_it_takes_writes(execution, lease, Some(error));
                    Box::pin(waits).await?;
                }
                Next::Over(error) => {
                    drop(lease);
                    let pending_commit = execution.pending_commit.take();
                    return Box::pin(self.resolved(pending_commit, error)).await;
                }
            }
        }
    }

    /// Notes that a statement has succeeded. What it hands out goes on to report.
    fn reported<A: Action>(&self, action: &mut A, execution: &mut Execution, lease: &Arc<Lease>) {
        let made = std::mem::take(&mut execution.settings).into_vec();
        let verdict = execution.verdict;
        let mut session = self.session();
        session.note_settings(verdict, made, action.sql(), lease);
        self.note_seen(&session, lease);
        if let Some(TransactionControl::Begin { .. }) = verdict.control {
            if let Some(transaction) = &mut session.transaction {
                transaction.begun = true;
            }
        }
        let changed = session.note_catalog_change(verdict);
        drop(session);
        if changed {
            self.cluster.catalog_changed();
        }
        self.succeeded(execution, lease, action);
        let report = Report {
            cluster: Arc::downgrade(&self.cluster),
            outcome_if_lost: execution.outcome_if_lost(),
            pending_write: execution.pending_write.take(),
            started: execution.started,
            spans: execution.spans.take(),
        };
        action.report_to(report);
    }

    /// Does what must come before a statement is sent over this connection.
    async fn prepare(
        &self,
        execution: &mut Execution,
        sql: &str,
        lease: &Arc<Lease>,
        on_replica: bool,
    ) -> QueryResult<()> {
        let verdict = execution.verdict;
        if execution.pending_write.is_some() || verdict.control.is_some() && !on_replica {
            self.tell_durability(lease, verdict.control).await?;
        }
        if !on_replica && execution.pending_write.is_none() {
            self.primary_shows(lease).await?;
        }
        self.begins(execution, lease, on_replica);
        if let Some(pending_write) = &mut execution.pending_write {
            pending_write.sent_over(&lease.wire, self.timeline_of(lease));
        }
        if !on_replica && execution.commits(sql) {
            execution.pending_commit = Box::pin(self.mark(lease)).await?.map(Box::new);
        }
        self.note_ending(verdict, execution.only_rolls_back, lease)
            .await;
        Ok(())
    }

    /// The result of a statement that no server has to see, if it is one.
    fn ends_here(&self, execution: &Execution, sql: &str) -> Option<Result<(), Error>> {
        let state = execution.verdict.reason == RouteReason::SessionState;
        if state && discards_all(sql) && self.session().discard_all() {
            return Some(Ok(()));
        }
        if let Some(tagged) = self.tagged_for(execution.decision) {
            if let Err(unknown) = tagged.check(&self.cluster.config) {
                return Some(Err(unknown));
            }
        }
        self.end_of_lost_transaction(execution)
    }

    /// Reports each prepared query once, also if it was tried on several nodes.
    fn tell_prepared(&self, execution: &mut Execution, lease: &Lease) {
        for sql in lease.newly_prepared() {
            if !execution.prepared.contains(&sql) {
                self.record(InstrumentationEvent::cache_query(&sql));
                let mut prepared = std::mem::take(&mut execution.prepared).into_vec();
                prepared.push(sql);
                execution.prepared = prepared.into();
            }
        }
    }

    /// What the node must have that serves the statement: all that the session's reads need.
    fn requirement(&self, session: &mut SessionState, verdict: Verdict) -> ReadRequirement {
        let may_move = verdict.reason == RouteReason::PlainSelect
            || matches!(
                verdict.control,
                Some(TransactionControl::Begin {
                    read_only: true,
                    ..
                })
            );
        // Elsewhere the primary would serve what is no plain read.
        let by_tag = session.tagged.is_some()
            && match verdict.control {
                None => verdict.leaves != Leaves::Settings,
                Some(control) => matches!(control, TransactionControl::Begin { .. }),
            };
        // A transaction that has failed, or that the text of a statement has ended, ends without a call to this code.
        // What comes after it needs all that a read outside of it needs.
        session.notice_transaction_end();
        let level = self.level_of(session);
        let anything = session.forced == Some(NodeKind::Replica) && session.tagged.is_none();
        if !(may_move || by_tag) || anything || session.transaction.is_some() {
            return match level {
                Consistency::Eventual => ReadRequirement::anything(),
                _ => ReadRequirement::default(),
            };
        }
        let shows = session.shows;
        let requirement = self.requirement_of_read(session, level);
        match shows {
            Some(place) if level != Consistency::Eventual => requirement.showing(place),
            _ => requirement,
        }
    }

    fn requirement_of_read(&self, session: &SessionState, level: Consistency) -> ReadRequirement {
        let config = &self.cluster.consistency();
        if level == Consistency::Strong && !config.strong_reads_on_replicas {
            return ReadRequirement::primary(RouteReason::Strong);
        }
        session
            .history
            .requirement(level, config, &self.cluster.write_log)
    }

    fn decide(
        &self,
        session: &mut SessionState,
        verdict: Verdict,
        requirement: &ReadRequirement,
        (only_rolls_back, keeps_names): (bool, bool),
        sql: &str,
    ) -> (Decision, Option<PendingWrite>) {
        let decision = session.decide(
            verdict,
            requirement.only_primary(),
            self.cluster.config.read_only_transactions_on_replicas,
            (keeps_names, self.held_back()),
            sql,
        );
        let on_primary = matches!(decision, Decision::Primary(_) | Decision::HeldBack(_));
        let writes = on_primary && session.commits(verdict, only_rolls_back);
        let pending_write = writes.then(|| self.pending_write(session));
        (decision, pending_write)
    }

    /// What the pool's routing keeps on the primary, of what this connection could read elsewhere.
    fn held_back(&self) -> HeldBack {
        match self.cluster.routing() {
            Routing::Observe => HeldBack::Everything,
            Routing::Automatic { share } if share >= 1.0 || self.lot < share => HeldBack::Nothing,
            Routing::OptIn | Routing::Automatic { .. } => HeldBack::Unmarked,
        }
    }

    /// Notes a write that is about to be sent.
    pub(super) fn pending_write(&self, session: &SessionState) -> PendingWrite {
        let config = &self.cluster.consistency();
        let write_log = &self.cluster.write_log;
        PendingWrite::starts(&session.history, write_log, session.consistency, config)
    }

    /// Sends the statement, if the server shows enough.
    async fn send<A: Action>(
        &self,
        action: &mut A,
        lease: &Arc<Lease>,
        execution: &mut Execution,
    ) -> QueryResult<()> {
        match execution.to_show.take() {
            None => self.send_set_up(action, lease, execution).await,
            Some(to_show) => match *to_show {
                ToShow::AtOnce(wanted) => {
                    Box::pin(self.send_shown(action, lease, execution, wanted)).await
                }
                ToShow::InTime(wait) => {
                    let how = (wait, may_be_thrown_away(execution, lease));
                    Box::pin(self.send_in_time(action, lease, execution, how)).await
                }
            },
        }
    }

    /// The same if the server shows what is wanted.
    async fn send_shown<A: Action>(
        &self,
        action: &mut A,
        lease: &Arc<Lease>,
        execution: &mut Execution,
        wanted: Wanted,
    ) -> QueryResult<()> {
        let insist = async {
            let using = lease.enter();
            let shown = wanted.insist(lease.pg(), &lease.shows).await;
            using.finish();
            shown
        };
        let together = may_be_thrown_away(execution, lease);
        let sending = self.send_set_up(action, lease, execution);
        match after(insist, sending, together).await {
            Ok(result) => result,
            Err(error) => {
                (execution.unsent, execution.behind) = (true, Behind::Now);
                Err(error)
            }
        }
    }

    /// Sends the statement to a connection that has the settings of the session.
    pub(super) async fn send_set_up<A: Action>(
        &self,
        action: &mut A,
        lease: &Arc<Lease>,
        execution: &mut Execution,
    ) -> QueryResult<()> {
        (
            execution.unsent,
            execution.refused,
            execution.settings_refused,
        ) = (true, false, false);
        match self.untold_settings(lease) {
            None => self.send_alone(action, lease, execution).await,
            Some(untold) => Box::pin(self.send_told(action, lease, execution, untold)).await,
        }
    }

    /// Tells the connection the settings of the session, and sends the statement.
    async fn send_told<A: Action>(
        &self,
        action: &mut A,
        lease: &Arc<Lease>,
        execution: &mut Execution,
        untold: (String, u64),
    ) -> QueryResult<()> {
        let together = may_be_thrown_away(execution, lease);
        let telling = self.tell_settings(lease, untold);
        let sending = self.send_alone(action, lease, execution);
        match after(telling, sending, together).await {
            Ok(result) => result,
            Err(error) => {
                (execution.unsent, execution.settings_refused) = (true, true);
                Err(error)
            }
        }
    }

    async fn send_alone<A: Action>(
        &self,
        action: &mut A,
        lease: &Arc<Lease>,
        execution: &mut Execution,
    ) -> QueryResult<()> {
        if let Some(statement) = action.statement() {
            let stale = lease.is_stale(self.cluster.oids.generation());
            // Statements that others have prepared are for the types that they mean.
            execution.custom_types = !statement.custom_types().is_empty();
            let own = execution.custom_types && self.session().own_types.is_some();
            statement.prepare_anew(stale || own || execution.healing.is_some());
            self.resolve_types(statement, lease).await?;
        }
        if let Some(progress) = &execution.progress {
            progress.sends(lease, execution.outcome_if_sent());
        }
        let (commands, ran) = (lease.wire.commands(), lease.wire.ran());
        execution.under_way = true;
        let result = action.send(lease).await;
        execution.under_way = false;
        let never_ran = lease.wire.commands() == commands || lease.wire.is_turned_away();
        execution.unsent = result.is_err() && never_ran;
        if let Some(progress) = execution.progress.as_ref().filter(|_| execution.unsent) {
            progress.never_sent();
        }
        execution.refused = result.is_err() && lease.wire.ran() == ran;
        result
    }

    /// The connection for the next attempt, and whether it is a replica's.
    async fn lease(&self, execution: &mut Execution) -> Result<(Arc<Lease>, bool), Error> {
        if self.cluster.is_over() {
            return Err(Error::Closed);
        }
        // Matched in one step, the answer would be kept while it waits.
        let (at_once, found) = match self.served_at_once(execution)? {
            AtOnce::Served(served) => (Some(served), None),
            AtOnce::Found(found) => (None, Some(found)),
            AtOnce::Nothing => (None, None),
        };
        let mut served = match at_once {
            Some(served) => served,
            None => {
                if is_ending() {
                    return Err(Error::ThreadEnding);
                }
                let served = Box::pin(self.served(execution, found)).await?;
                // The wait is not the node's time.
                execution.asks();
                served
            }
        };
        if served.kind == NodeKind::Primary {
            let loss = self.learns_of_loss(&served.lease).await;
            let reads = matches!(
                execution.decision,
                Decision::Replica { .. }
                    | Decision::HeldBack(_)
                    | Decision::Primary(RouteReason::OwnWrite)
            );
            if let Some(reason) = loss.filter(|_| reads && served.reason != RouteReason::Forced) {
                served.reason = reason;
            }
        }
        self.goes_to(execution, served)
    }

    /// A connection for the next attempt, waited for. `found` is what was there for a read.
    async fn served(
        &self,
        execution: &mut Execution,
        found: Option<Found>,
    ) -> Result<Served, Error> {
        let purpose = execution.purpose();
        let (reason, fallback, purpose) = match execution.decision {
            Decision::Replica { reason, .. } => {
                let tagged = self.tagged_for(execution.decision);
                let reading = execution.reading(reason, Instant::now(), tagged.as_deref());
                return self.reading_lease(reading, found).await;
            }
            Decision::HeldBack(reason) => {
                let tagged = self.tagged_for(execution.decision);
                let reading = execution.reading(reason, Instant::now(), tagged.as_deref());
                return self.held_back_lease(reading, purpose).await;
            }
            // It ended while this statement was on its way.
            Decision::TransactionReplica => {
                (RouteReason::ReadOnlyTransaction, false, Purpose::Write)
            }
            Decision::Primary(reason) => (reason, execution.fallback, purpose),
        };
        let lease = self.primary_lease(fallback, purpose).await?;
        Ok(Served::by_primary(lease, reason))
    }

    /// Notes where the next attempt goes, and what it will leave there.
    fn goes_to(
        &self,
        execution: &mut Execution,
        served: Served,
    ) -> Result<(Arc<Lease>, bool), Error> {
        self.note_route(&served);
        let went = served.went();
        execution.goes(went, served.lease.node());
        if served.waited > Duration::ZERO {
            let meter = &served.lease.node().meter;
            meter.waited_for_position(went, served.waited);
            if let Some(spans) = &execution.spans {
                spans.waited(served.waited);
            }
        }
        execution.to_show = served.to_show;
        let Served { lease, kind, .. } = served;
        let on_replica = kind == NodeKind::Replica;
        may_leave(execution, &lease)?;
        leave(execution, &lease, on_replica)?;
        Ok((lease, on_replica))
    }

    /// Notes an open transaction before its BEGIN is sent: if the future is dropped while BEGIN
    /// is under way, what follows must not run outside of it.
    fn begins(&self, execution: &Execution, lease: &Arc<Lease>, on_replica: bool) {
        if let Some(TransactionControl::Begin { read_only, .. }) = execution.verdict.control {
            let mut session = self.session();
            // BEGIN within a transaction only warns, and what that has done stays.
            let within = session.transaction.as_ref();
            let read_only = read_only && within.is_none_or(|open| open.read_only);
            session.transaction = Some(Transaction {
                replica: on_replica.then(|| Arc::clone(lease)),
                begun: false,
                read_only,
                held_back: matches!(execution.decision, Decision::HeldBack(_)),
                _busy: Some(Arc::new(lease.node().busy())),
            });
        }
    }

    fn succeeded<A: Action>(&self, execution: &Execution, lease: &Arc<Lease>, action: &A) {
        if matches!(execution.decision, Decision::Replica { .. }) {
            if lease.wire.role() == Some(ServerRole::Primary) {
                self.note_promotion(lease);
            }
            if lease.is_general() && lease.is_to_be_timed() {
                let now = Instant::now();
                lease.node().pace.measured(execution.took(now), now);
            }
        }
        self.count(execution, lease.node());
        if execution.healing == Some(Stale::Types) {
            // The types were outdated. What other connections have prepared is as old.
            self.cluster.oids.outdated(lease.remembers());
        }
        if execution.learn {
            // A replica refused it and the primary accepted it: it is the primary's from now on.
            // Its text holds no bind values.
            tracing::warn!(
                target: "diesel_replicated",
                sql = shortened(action.sql()),
                "statement_learned"
            );
            let classifier = &self.cluster.classifier;
            classifier.learn(action.id(), action.sql(), Instant::now());
        }
    }

    /// A server tells its role with its answers. A new primary may serve reads, too.
    fn note_promotion(&self, lease: &Arc<Lease>) {
        let topology = self.cluster.topology();
        let known = topology
            .primary()
            .is_some_and(|it| Arc::ptr_eq(&it.node, lease.node()));
        // A name over several servers may lead to the primary, too.
        let several = topology
            .member(lease.node())
            .is_some_and(Member::leads_to_several);
        if !known && !several {
            self.cluster.suspect(lease.node(), "it has been promoted");
        }
    }

    /// Notes what the statement saw, for a session that must never see less.
    fn note_seen(&self, session: &SessionState, lease: &Arc<Lease>) {
        session.history.answered_over(&lease.wire);
        self.cluster.write_log.answered_over(&lease.wire);
        // What one read saw that was to see everything, no later one of the session may miss.
        let level = self.level_of(session);
        if matches!(level, Consistency::Causal | Consistency::Strong) {
            if let Some(member) = self.cluster.topology().member(lease.node()) {
                // A closed connection may have been to an earlier run of the server.
                let is_same = !lease.wire.is_closed() && !member.is_another_server(lease.run);
                session.history.saw_on(&member.reports, is_same);
            }
        }
    }
}

/// Whether nobody notices if the statement runs and its result does not count.
fn may_be_thrown_away(execution: &Execution, lease: &Lease) -> bool {
    execution.verdict.idempotent && !lease.wire.in_transaction()
}

/// The result of `sending`, if `first` succeeds. `together`: in one round trip; if `first` fails, the result is thrown
/// away.
async fn after(
    first: impl Future<Output = QueryResult<()>>,
    sending: impl Future<Output = QueryResult<()>>,
    together: bool,
) -> QueryResult<QueryResult<()>> {
    if together {
        let (first, result) = join(first, sending).await;
        return first.map(|()| result);
    }
    first.await?;
    Ok(sending.await)
}

/// Refuses a statement that would leave something where others find it.
fn may_leave(execution: &Execution, lease: &Lease) -> Result<(), Error> {
    let pooling = lease.wire.pooling();
    let leaves = matches!(execution.verdict.leaves, Leaves::State | Leaves::Settings);
    if pooling.shares_servers() && leaves {
        return Err(Error::PooledTransactions {
            node: lease.node().name.clone(),
            mode_is_known: pooling == Pooling::Transaction,
        });
    }
    Ok(())
}

/// Notes what the statement will leave on the connection, or refuses it where that would be lost.
fn leave(execution: &Execution, lease: &Lease, on_replica: bool) -> Result<(), Error> {
    let node = || lease.node().name.clone();
    match execution.verdict.leaves {
        Leaves::State if on_replica => return Err(Error::SessionStateOnReplica { node: node() }),
        Leaves::State | Leaves::Unknown | Leaves::Unsure => lease.note_state(),
        Leaves::Settings => lease.note_settings(execution.settings.iter().map(|made| &*made.name)),
        Leaves::Nothing => {}
    }
    if execution.verdict.indelible {
        lease.note_lent();
    }
    if execution.verdict.locks && on_replica {
        return Err(Error::LockOnReplica { node: node() });
    }
    Ok(())
}

fn shortened(sql: &str) -> &str {
    const LONGEST: usize = 200;
    let end = (0..=LONGEST.min(sql.len()))
        .rev()
        .find(|end| sql.is_char_boundary(*end));
    &sql[..end.unwrap_or(0)]
}

/// What pools over this one are told to send between two users; see [`SessionState::discard_all`].
fn discards_all(sql: &str) -> bool {
    let words = sql.trim_end_matches(';').split_ascii_whitespace();
    words.map(str::to_ascii_lowercase).eq(["discard", "all"])
}
