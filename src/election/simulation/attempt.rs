//! An attempt at a promotion: what drives `election::promotion::attempt` here, as `cluster::promotion` does there.

use std::time::Duration;

use super::event::{Event, Facts, Place, Reply, Request, Who};
use super::process::Process;
use super::task::Attempt;
use super::world::World;
use super::{CLUSTER, Millis, TIMEOUT, VALID};
use crate::election::promotion::attempt::{End, Next, Ordered};
use crate::election::promotion::{Answer, Heard, Known, Role, Terms};
use crate::position::Lsn;
use crate::wire::ServerRole;

/// After a refusal.
const RETRY: (Millis, Millis) = (400, 800);
/// After a success or a failure.
const SETTLING: Millis = 5_000;
/// How often a promoted server is asked whether it has come to that.
const PATIENCE: Millis = 60;
/// How long that may take.
const LIMIT: Millis = 10_000;

/// As `promotion::answer`.
fn answer(process: &Process, server: usize, facts: &Facts) -> Answer {
    let (role, timeline) = process.told(server, facts);
    let diverged = process.members[server].diverged;
    let role = match &facts.place {
        Place::Standby { receiver } if role == ServerRole::Standby => Role::Follows {
            has: Lsn(facts.end),
            hears: receiver.and_then(|(_, from, silent)| {
                let ago = Some(silent);
                from.map(|_| Heard { from, ago })
            }),
            diverged,
        },
        _ => Role::TakesWrites,
    };
    Answer {
        cluster: CLUSTER,
        timeline,
        role,
    }
}

impl World {
    /// Looks whether there is something to do; as `Promoter::wait_and_promote`.
    pub(super) fn rouse(&mut self, process: usize, pause: Millis) {
        let it = &mut self.processes[process];
        let idle = it.attempt.is_none() && it.switch.is_none();
        if it.has_lost_its_primary() && idle && !it.roused {
            it.roused = true;
            let of = it.who;
            self.after(pause, Event::Auto { of });
        }
    }

    pub(super) fn auto(&mut self, of: Who) {
        let it = &mut self.processes[of.process];
        it.roused = false;
        if it.has_lost_its_primary() && it.attempt.is_none() && it.switch.is_none() {
            self.attempt(of, None, None);
        }
    }

    /// Begins to promote `target`, or the best, in the place of a primary that gives way, if one does.
    pub(super) fn attempt(&mut self, of: Who, target: Option<usize>, yielding: Option<usize>) {
        let number = self.ledger.number();
        let rules = self.plan.rules;
        let terms = Terms {
            target,
            witness_age: match rules.witness {
                true => Duration::from_millis(self.plan.witness_age),
                false => Duration::ZERO,
            },
            max_loss_bytes: self.plan.max_loss,
            forced: false,
            yielding,
        };
        let process = &mut self.processes[of.process];
        let known = Known {
            cluster: process.past.cluster,
            newest: process.past.newest,
            primary: process.past.primary,
            ..Known::default()
        };
        let attempt = Attempt::new(number, &self.plan.priorities, known, terms);
        process.attempt = Some(attempt);
        self.ledger.counts.attempts += 1;
        self.step(of, number, 0);
    }

    /// Sends over the attempt's connection, which keeps the order.
    fn ask_in(&mut self, of: Who, server: usize, request: impl FnOnce(u64, u32) -> Request) {
        let Some(attempt) = &self.processes[of.process].attempt else {
            return;
        };
        let (request, earliest) = (
            request(attempt.number, attempt.step),
            attempt.sent[server] + 1,
        );
        let at = self.request(of, server, request, Some(earliest));
        if let Some(attempt) = &mut self.processes[of.process].attempt {
            attempt.sent[server] = at.unwrap_or(earliest);
        }
    }

    fn limit(&mut self, of: Who, after: Millis) {
        if let Some(attempt) = &self.processes[of.process].attempt {
            let (number, step) = (attempt.number, attempt.step);
            let event = Event::Limit { of, number, step };
            self.after(after, event);
        }
    }

    /// Goes on after a short while, in which others do something, too.
    fn advance(&mut self, of: Who, next: Next<Millis>) {
        if let Next::End(end) = next {
            return self.ended(of, end);
        }
        let pause = match next {
            Next::Watch(_) => PATIENCE,
            _ => self.pause(),
        };
        let Some(attempt) = &mut self.processes[of.process].attempt else {
            return;
        };
        attempt.next = next;
        attempt.step += 1;
        let (number, step) = (attempt.number, attempt.step);
        self.after(pause, Event::Step { of, number, step });
    }

    fn pause(&mut self) -> Millis {
        if self.chance.percent(5) {
            self.chance.within(0, 1_500)
        } else {
            self.chance.within(0, 3)
        }
    }

    fn is_current(&self, of: Who, number: u64, step: u32) -> bool {
        let attempt = self.processes[of.process].attempt.as_ref();
        attempt.is_some_and(|attempt| (attempt.number, attempt.step) == (number, step))
    }

    /// Does what is to be done next.
    pub(super) fn step(&mut self, of: Who, number: u64, step: u32) {
        if !self.is_current(of, number, step) {
            return;
        }
        let Some(attempt) = self.processes[of.process].attempt.as_mut() else {
            return;
        };
        match attempt.next.clone() {
            Next::Open => {
                for server in 0..self.servers.len() {
                    self.ask_in(of, server, |attempt, step| Request::Open { attempt, step });
                }
                self.limit(of, TIMEOUT);
            }
            Next::Lock(server) => {
                self.ask_in(of, server, |attempt, step| Request::Lock { attempt, step });
                self.limit(of, TIMEOUT);
            }
            Next::Ask(server) => {
                attempt.asked = attempt.asked.or(Some(self.now));
                self.where_is(of, &[server]);
            }
            Next::Watch(server) => self.where_is(of, &[server]),
            Next::Confirm(servers) => self.where_is(of, &servers),
            Next::Decide => self.decide(of),
            Next::Promote(order) => {
                let (asked, newest) = (attempt.asked.unwrap_or(0), attempt.newest());
                attempt.void = order.clock + VALID;
                self.ask_in(of, order.place, |attempt, step| Request::Promote {
                    attempt,
                    step,
                    asked,
                    newest,
                    order,
                });
                self.limit(of, TIMEOUT);
            }
            Next::Recall(_) => {
                let until = attempt.void.saturating_sub(self.now);
                self.limit(of, until);
            }
            Next::End(_) => {}
        }
    }

    fn where_is(&mut self, of: Who, servers: &[usize]) {
        for server in servers {
            self.ask_in(of, *server, |attempt, step| Request::Ask { attempt, step });
        }
        self.limit(of, TIMEOUT);
    }

    /// Nothing was answered in time.
    pub(super) fn limit_reached(&mut self, of: Who, number: u64, step: u32) {
        if !self.is_current(of, number, step) {
            return;
        }
        let now = self.now;
        let Some(attempt) = self.processes[of.process].attempt.as_mut() else {
            return;
        };
        let (machine, late) = (&mut attempt.machine, || "no answer".to_owned());
        let waiting = machine.waiting().to_vec().into_iter();
        let next = match attempt.next.clone() {
            Next::Open => waiting
                .filter_map(|it| machine.opened(it, Err(late())))
                .last(),
            Next::Confirm(_) => waiting.filter_map(|it| machine.confirmed(it, None)).last(),
            // Its lock may have been taken all the same; it is not counted.
            Next::Lock(server) => Some(machine.locked(server, Err(late()))),
            Next::Ask(server) => Some(machine.told(server, Err(late()))),
            Next::Promote(order) => Some(machine.ordered(order.place, Ordered::Silent)),
            Next::Recall(server) => Some(machine.recalled(server)),
            Next::Watch(server) => {
                Some(machine.watched(server, Ok(None), times(attempt.begun, now)))
            }
            Next::Decide | Next::End(_) => None,
        };
        if let Some(next) = next {
            self.advance(of, next);
        }
    }

    pub(super) fn answered(&mut self, of: Who, server: usize, reply: Reply) {
        let now = self.now;
        let process = &mut self.processes[of.process];
        let Some(mut attempt) = process.attempt.take() else {
            return;
        };
        let current = reply.of_attempt() == (attempt.number, attempt.step);
        let next = if current {
            take(process, &mut attempt, server, &reply, now)
        } else {
            None
        };
        if let (Some(Next::End(End::Promoted { .. })), Reply::Told { facts, .. }) = (&next, &reply)
        {
            process.heard(server, facts, now);
        }
        process.attempt = Some(attempt);
        if let Some(next) = next {
            self.advance(of, next);
        }
    }

    fn decide(&mut self, of: Who) {
        let rules = self.plan.rules;
        let process = &mut self.processes[of.process];
        let Some(attempt) = &mut process.attempt else {
            return;
        };
        let confirming = match rules.confirmers {
            true => process.confirming,
            false => Some(0),
        };
        if !rules.majority {
            let voters = attempt.machine.voters().iter_mut();
            for voter in voters.filter(|voter| voter.answer.is_some()) {
                voter.vote = Ok(());
            }
        }
        let next = attempt.machine.decide(process.written, confirming);
        if let Next::Promote(order) = &next {
            let place = order.place;
            self.check_decision(of, place);
        }
        self.advance(of, next);
    }

    /// The connections end, and the locks with them.
    fn ended(&mut self, of: Who, end: End) {
        let pause = match &end {
            End::Refused(reasons) => {
                self.ledger.refused(reasons);
                self.chance.within(RETRY.0, RETRY.1)
            }
            End::Promoted { .. } | End::Failed { .. } => SETTLING,
        };
        for server in 0..self.servers.len() {
            self.ask_in(of, server, |attempt, _| Request::Close { attempt });
        }
        self.processes[of.process].attempt = None;
        if !self.switch_attempted(of, &end) {
            self.rouse(of.process, pause);
        }
    }
}

fn times(begun: Millis, now: Millis) -> (Duration, Duration) {
    let elapsed = Duration::from_millis(now.saturating_sub(begun));
    (elapsed, Duration::from_millis(LIMIT))
}

/// What follows from an answer to what is being done.
fn take(
    process: &Process,
    attempt: &mut Attempt,
    server: usize,
    reply: &Reply,
    now: Millis,
) -> Option<Next<Millis>> {
    let broken = || "connection reset".to_owned();
    let machine = &mut attempt.machine;
    match (&attempt.next, reply) {
        (Next::Open, Reply::Opened { .. }) => machine.opened(server, Ok(())),
        (Next::Open, Reply::Broken { .. }) => machine.opened(server, Err(broken())),
        (Next::Lock(place), Reply::Locked { taken, .. }) if *place == server => {
            Some(machine.locked(server, Ok(*taken)))
        }
        (Next::Lock(place), Reply::Broken { .. }) if *place == server => {
            Some(machine.locked(server, Err(broken())))
        }
        (Next::Ask(place), Reply::Told { facts, .. }) if *place == server => {
            let answer = answer(process, server, facts);
            Some(machine.told(server, Ok(Some(answer))))
        }
        (Next::Ask(place), Reply::Broken { .. }) if *place == server => {
            Some(machine.told(server, Err(broken())))
        }
        (Next::Confirm(_), Reply::Told { facts, at, .. }) => {
            let answer = answer(process, server, facts);
            machine.confirmed(server, Some((*at, Some(answer))))
        }
        (Next::Confirm(_), Reply::Broken { .. }) => machine.confirmed(server, None),
        (Next::Promote(order), Reply::Promoting { .. }) => {
            attempt.begun = now;
            Some(machine.ordered(order.place, Ordered::Begun))
        }
        (Next::Promote(order), Reply::Outdated { .. }) => {
            Some(machine.ordered(order.place, Ordered::Outdated))
        }
        (Next::Promote(order), Reply::Broken { .. }) => {
            Some(machine.ordered(order.place, Ordered::Failed(broken())))
        }
        (Next::Watch(place), Reply::Told { facts, .. }) if *place == server => {
            let answer = answer(process, server, facts);
            Some(machine.watched(server, Ok(Some(answer)), times(attempt.begun, now)))
        }
        (Next::Watch(place), Reply::Broken { .. }) if *place == server => {
            Some(machine.watched(server, Err(broken()), times(attempt.begun, now)))
        }
        _ => None,
    }
}
