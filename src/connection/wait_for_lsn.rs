//! Has a replica's server wait until it shows what a read must see, where it can: `WAIT FOR LSN` of PostgreSQL 19.
//!
//! The wait goes over the connection that serves the read, together with the read, so it costs no round trip. Nobody
//! asks the replicas meanwhile. Where the position of the session's write is not known yet, the primary is asked for it
//! first.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::QueryResult;
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use futures_util::future::{Either, select};
use smallvec::SmallVec;

use super::ReplicatedConnection;
use super::action::Action;
use super::choice::Members;
use super::execution::{Behind, Execution};
use super::reading::{Reading, Served, may_show};
use super::to_show::{ServerWait, ToShow};
use crate::cluster::{Member, Topology};
use crate::consistency::InVain;
use crate::deadline;
use crate::error::SqlState;
use crate::metrics::Route as Went;
use crate::node::{Lease, Place, WaitForLsn};
use crate::position::Position;
use crate::route::NodeKind;

/// How long the answer may take beyond the wait. A server that hangs is found out by others; no read waits for that.
const ANSWER: Duration = Duration::from_millis(50);

/// How long the rest of the answers may take when the wait was in vain. They come together, unless the read is long.
const REST: Duration = Duration::from_millis(1);

/// How long a server is left alone that cannot wait for what is wanted: it does not tell its timeline, or knows the
/// statement otherwise.
const AGAIN: Duration = Duration::from_secs(60);

/// How such a wait ended.
enum Ended {
    /// The server shows the position, after so long.
    Shown(Duration),
    InVain,
    /// The statement failed, or was cancelled.
    Failed(DieselError),
}

impl ReplicatedConnection {
    /// A connection whose server is to wait, if one can. `None` if replicas have to be asked, or one shows it by now.
    pub(super) async fn waits_on_server(&self, reading: &mut Reading<'_>) -> Option<Served> {
        let config = self.cluster.consistency();
        let deadline = deadline::after(reading.started, self.patience(reading));
        let possible = config.wait_for_lsn && reading.requirement.may_become_a_position();
        if !possible || Instant::now() >= deadline {
            return None;
        }
        let topology = self.cluster.topology();
        if !reading
            .replicas(&topology)
            .any(|member| can_wait(member, &topology, reading))
        {
            return None;
        }
        let position = self.position_to_wait_for(reading, deadline).await?;
        let topology = self.cluster.topology();
        if position.timeline != topology.timeline() {
            return None;
        }
        self.lease_that_waits(&topology, reading, position, deadline)
    }

    /// The position that a replica has to show, if no replica shows it yet. Those are asked who can tell it, and not
    /// the replicas.
    async fn position_to_wait_for(
        &self,
        reading: &mut Reading<'_>,
        deadline: Instant,
    ) -> Option<Position> {
        let write_log = &self.cluster.write_log;
        let gently = self.is_of_others(reading);
        let started = Instant::now();
        let mut asked: SmallVec<[_; 2]> = SmallVec::new();
        let mut look = || {
            self.refresh(reading.requirement);
            let topology = self.cluster.topology();
            let mut replicas = reading.replicas(&topology);
            if replicas.any(|member| self.qualifies(member, reading)) {
                return Some(None);
            }
            let requirement = &reading.requirement;
            if let Some(position) = requirement.to_wait_for(topology.timeline(), write_log) {
                // What the primary does not have itself comes to no replica.
                let exists = |latest: Position| {
                    latest.timeline == position.timeline && latest.lsn >= position.lsn
                };
                if write_log.latest().is_some_and(exists) {
                    return Some(Some(position));
                }
            }
            if requirement.is_beyond_primary(write_log, started) {
                return Some(None);
            }
            if gently {
                self.ask_gently(&topology, reading);
            } else if asked.is_empty() {
                let tells = |member: &&Member| {
                    let seen = |reports: &Arc<_>| Arc::ptr_eq(reports, &member.reports);
                    member.kind() == Some(NodeKind::Primary)
                        || requirement.wants_answers().any(seen)
                };
                let members = topology.members.iter().filter(tells);
                asked.extend(members.map(|member| member.reports.want()));
            }
            None
        };
        self.look_until(deadline, gently, &mut look).await?
    }

    /// A free connection to a replica that can wait, as the policy chooses.
    fn lease_that_waits(
        &self,
        topology: &Topology,
        reading: &Reading<'_>,
        position: Position,
        deadline: Instant,
    ) -> Option<Served> {
        let wait = WaitForLsn::new(position, deadline.checked_duration_since(Instant::now())?)?;
        let health = &self.cluster.config.health;
        let mut members: Members<'_> = reading
            .replicas(topology)
            .filter(|member| can_wait(member, topology, reading) && member.is_preferred(health))
            .collect();
        let first = self.choose(&members, reading.started)?;
        members.swap(0, first);
        let distance = members[0].node.distance;
        members.retain(|member| member.node.distance <= distance);
        members.into_iter().find_map(|member| {
            let pool = member.node.pool_of(reading.lane())?;
            let permit = Arc::clone(&pool.waits).try_acquire_owned().ok()?;
            let pooled = self.checkout_now(pool)?;
            let lease = Lease::new(pooled, Arc::clone(&member.node), None);
            if self.leads_elsewhere(member, &lease) || lease.shows.is_told_by_source() {
                return None;
            }
            let lease = self.keep_replica(self.lend(lease), reading);
            let to_show = ServerWait {
                wait,
                end: deadline::after(deadline, ANSWER),
                since: reading.started,
                reports: Arc::clone(&member.reports),
                _permit: permit,
            };
            Some(Served {
                to_show: Some(Box::new(ToShow::InTime(to_show))),
                ..Served::by_replica(lease, reading.reason)
            })
        })
    }

    /// Sends the statement behind a wait. `together`: in one round trip; if the wait is in vain, the result is thrown
    /// away.
    pub(super) async fn send_in_time<A: Action>(
        &self,
        action: &mut A,
        lease: &Arc<Lease>,
        execution: &mut Execution,
        (server_wait, together): (ServerWait, bool),
    ) -> QueryResult<()> {
        let went = execution.went;
        let (ended, result) = {
            let waiting = self.end_of(&server_wait, lease);
            if together {
                let sending = self.send_set_up(action, lease, execution);
                self.both(waiting, sending).await
            } else {
                match waiting.await {
                    Ended::Shown(took) => {
                        let sent = self.send_set_up(action, lease, execution).await;
                        (Ended::Shown(took), Some(sent))
                    }
                    ended => (ended, None),
                }
            }
        };
        let error = match (ended, result) {
            (Ended::Shown(took), Some(result)) => {
                self.note_wait(execution, lease, went, took);
                // So that the next reads need not wait.
                server_wait.reports.nudge_gently();
                return result;
            }
            (Ended::Failed(error), _) => error,
            (Ended::Shown(_) | Ended::InVain, _) => {
                execution.requirement.waited_since(server_wait.since);
                execution.behind = Behind::InTime;
                let text = "the server has not ended its wait".to_owned();
                DieselError::DatabaseError(DatabaseErrorKind::ClosedConnection, Box::new(text))
            }
        };
        execution.unsent = true;
        Err(error)
    }

    /// Waits for both. A wait that ends without what it waited for does not wait for a long read.
    async fn both<T>(
        &self,
        waiting: impl Future<Output = Ended>,
        sending: impl Future<Output = T>,
    ) -> (Ended, Option<T>) {
        let (waiting, mut sending) = (pin!(waiting), pin!(sending));
        match select(waiting, &mut sending).await {
            // An answer that comes first is the read's refusal, or its connection's end.
            Either::Right((result, waiting)) => (waiting.await, Some(result)),
            Either::Left((ended @ Ended::Shown(_), sending)) => (ended, Some(sending.await)),
            Either::Left((ended, sending)) => {
                let limited = async { tokio::time::timeout(REST, sending).await };
                let _ = self.cluster.within(limited).await;
                (ended, None)
            }
        }
    }

    /// How the wait ends on the server.
    async fn end_of(&self, server_wait: &ServerWait, lease: &Arc<Lease>) -> Ended {
        let ServerWait { wait, reports, .. } = server_wait;
        let using = lease.enter();
        let told = tokio::select! {
            biased;
            told = wait.insist(lease.pg()) => told,
            // The connection was abandoned in the middle of a statement.
            () = self.cluster.reaches(server_wait.end) => {
                reports.waited_in_vain(InVain::until(wait.position(), AGAIN));
                return Ended::InVain;
            }
        };
        using.finish();
        let Err(error) = told else {
            return Ended::Shown(server_wait.since.elapsed());
        };
        let remark = lease.diagnose(&error).remark;
        match remark.map(|remark| remark.sqlstate) {
            _ if !lease.is_usable() => Ended::Failed(error),
            Some(SqlState::QUERY_CANCELED) if lease.was_to_be_cancelled() => Ended::Failed(error),
            // It was not so far in time, or was promoted.
            Some(SqlState::QUERY_CANCELED | SqlState::NOT_IN_PREREQUISITE_STATE) => {
                reports.waited_in_vain(InVain::until(wait.position(), AGAIN));
                Ended::InVain
            }
            _ => {
                reports.waited_in_vain(InVain::anything(AGAIN));
                Ended::InVain
            }
        }
    }

    /// Notes that a read has waited, and for how long.
    fn note_wait(
        &self,
        execution: &Execution,
        lease: &Lease,
        went: Option<Went>,
        waited: Duration,
    ) {
        if let Some(route) = &mut self.session().last_route {
            route.waited = waited;
        }
        if let Some(went) = went {
            lease.node().meter.waited_for_position(went, waited);
        }
        if let Some(spans) = &execution.spans {
            spans.waited(waited);
        }
    }
}

/// Whether the server of a replica can wait for a position on the primary's timeline, as far as is known.
fn can_wait(member: &Member, topology: &Topology, reading: &Reading<'_>) -> bool {
    let reports = &member.reports;
    let of_version = reports.facts().is_some_and(|facts| {
        let replays = matches!(facts.place, Place::Standby { paused: false, .. });
        WaitForLsn::is_known_to(facts.version) && replays
    });
    let timeline = topology.timeline();
    of_version
        && reading.may_use(member)
        && may_show(member, reading.requirement)
        && !member.leads_to_several()
        && timeline != 0
        && reports
            .position()
            .is_some_and(|reported| reported.timeline == timeline)
        && reports.is_worth_a_wait()
}
