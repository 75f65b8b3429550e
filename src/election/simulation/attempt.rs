//! An attempt at a promotion, step by step as `cluster::promotion` does it.

use std::time::Duration;

use super::event::{Event, Order, Reply, Request};
use super::process::{Process, Who};
use super::server::{Facts, Place};
use super::world::World;
use super::{CLUSTER, Millis, TIMEOUT};
use crate::election::promotion::{
    Answer, Heard, Known, Premise, Role, Terms, Voter, candidate, premise,
};
use crate::error::PromotionRefusal as Refusal;
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

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Open,
    Lock(usize),
    Ask(usize),
    Decided(usize),
    Promote(usize),
    /// Until when.
    Wait(usize, Millis),
}

#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) number: u64,
    pub(super) stage: Stage,
    /// Counts the stages, so that a late answer or a limit of an earlier one is told.
    pub(super) step: u32,
    /// Which servers have answered at all.
    opened: Vec<Option<bool>>,
    pub(super) voters: Vec<Voter>,
    /// Nothing that was flushed before this was missed.
    pub(super) asked: Option<Millis>,
    pub(super) newest: u32,
    order: Order,
    /// When the last message arrives at each server: a connection keeps the order.
    pub(super) sent: Vec<Millis>,
}

impl Attempt {
    fn new(number: u64, priorities: &[u32]) -> Self {
        let voter = |(place, priority): (usize, &u32)| Voter {
            name: place.to_string(),
            priority: *priority,
            vote: Err("does not answer".to_owned()),
            answer: None,
        };
        Self {
            number,
            stage: Stage::Open,
            step: 0,
            opened: vec![None; priorities.len()],
            voters: priorities.iter().enumerate().map(voter).collect(),
            asked: None,
            newest: 0,
            order: Order {
                decided: 0,
                rests_on: Premise::Lately,
            },
            sent: vec![0; priorities.len()],
        }
    }
}

impl Attempt {
    /// Whether it was decided that it may promote.
    pub(super) fn acts(&self) -> bool {
        matches!(
            self.stage,
            Stage::Decided(_) | Stage::Promote(_) | Stage::Wait(..)
        )
    }
}

/// As `promotion::answer`.
fn answer(process: &Process, server: usize, facts: &Facts) -> Answer {
    let (role, timeline) = process.told(server, facts);
    let stray = process.members[server].stray;
    let role = match &facts.place {
        Place::Standby { receiver } if role == ServerRole::Standby => Role::Follows {
            has: Lsn(facts.end),
            hears: receiver.and_then(|(_, from, silent)| {
                let ago = Some(silent);
                from.map(|_| Heard { from, ago })
            }),
            stray,
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
        if it.has_lost_its_primary() && it.attempt.is_none() && !it.roused {
            it.roused = true;
            let of = it.who;
            self.after(pause, Event::Auto { of });
        }
    }

    pub(super) fn auto(&mut self, of: Who) {
        let number = self.ledger.number();
        let it = &mut self.processes[of.process];
        it.roused = false;
        if !it.has_lost_its_primary() || it.attempt.is_some() {
            return;
        }
        it.attempt = Some(Attempt::new(number, &self.plan.priorities));
        self.ledger.counts.attempts += 1;
        for server in 0..self.servers.len() {
            self.ask_in(of, server, |attempt, step| Request::Open { attempt, step });
        }
        self.limit(of, TIMEOUT);
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

    /// Goes on to `stage` after a short while, in which others do something, too.
    fn advance(&mut self, of: Who, stage: Stage) {
        let pause = self.pause();
        let Some(attempt) = &mut self.processes[of.process].attempt else {
            return;
        };
        attempt.stage = stage;
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

    /// Does what the stage begins with.
    pub(super) fn step(&mut self, of: Who, number: u64, step: u32) {
        if !self.is_current(of, number, step) {
            return;
        }
        let Some(attempt) = self.processes[of.process].attempt.as_mut() else {
            return;
        };
        match attempt.stage {
            Stage::Open => {}
            Stage::Lock(server) if server == attempt.voters.len() => self.decide(of),
            Stage::Lock(server) => {
                if attempt.opened[server] != Some(true) {
                    return self.advance(of, Stage::Lock(server + 1));
                }
                self.ask_in(of, server, |attempt, step| Request::Lock { attempt, step });
                self.limit(of, TIMEOUT);
            }
            Stage::Ask(server) => {
                attempt.asked = attempt.asked.or(Some(self.now));
                self.ask_in(of, server, |attempt, step| Request::Ask { attempt, step });
                self.limit(of, TIMEOUT);
            }
            Stage::Decided(server) => {
                let asked = attempt.asked.unwrap_or(0);
                let (newest, order) = (attempt.newest, attempt.order);
                self.ask_in(of, server, |attempt, step| Request::Promote {
                    attempt,
                    step,
                    asked,
                    newest,
                    order,
                });
                let attempt = self.processes[of.process].attempt.as_mut().unwrap();
                attempt.stage = Stage::Promote(server);
                self.limit(of, TIMEOUT);
            }
            Stage::Promote(_) => {}
            Stage::Wait(server, until) => {
                if self.now > until {
                    return self.end(of, SETTLING);
                }
                self.ask_in(of, server, |attempt, step| Request::Ask { attempt, step });
                self.limit(of, TIMEOUT);
            }
        }
    }

    /// Nothing was answered in time.
    pub(super) fn limit_reached(&mut self, of: Who, number: u64, step: u32) {
        if !self.is_current(of, number, step) {
            return;
        }
        let attempt = self.processes[of.process].attempt.as_ref().unwrap();
        match attempt.stage {
            Stage::Open => self.advance(of, Stage::Lock(0)),
            // Its lock may have been taken all the same; it is not counted.
            Stage::Lock(server) | Stage::Ask(server) => {
                let attempt = self.processes[of.process].attempt.as_mut().unwrap();
                attempt.voters[server].vote = Err("no answer".to_owned());
                self.advance(of, Stage::Lock(server + 1));
            }
            Stage::Decided(_) => {}
            Stage::Promote(_) => self.end(of, SETTLING),
            Stage::Wait(..) => self.advance(of, attempt.stage),
        }
    }

    pub(super) fn answered(&mut self, of: Who, server: usize, reply: Reply) {
        let process = &mut self.processes[of.process];
        let Some(mut attempt) = process.attempt.take() else {
            return;
        };
        let (number, step) = reply.of_attempt();
        let stage = attempt.stage;
        let current = attempt.number == number && attempt.step == step;
        let mut next = None;
        match (stage, reply) {
            (Stage::Open, Reply::Opened { .. }) if current => attempt.opened[server] = Some(true),
            (Stage::Open, Reply::Broken { .. }) if current => attempt.opened[server] = Some(false),
            (Stage::Lock(place), Reply::Locked { taken, .. }) if current && place == server => {
                attempt.voters[server].vote = if taken {
                    Ok(())
                } else {
                    Err("another process is promoting".to_owned())
                };
                next = Some(Stage::Ask(server));
            }
            (Stage::Ask(place), Reply::Told { facts, .. }) if current && place == server => {
                attempt.voters[server].answer = Some(answer(process, server, &facts));
                next = Some(Stage::Lock(server + 1));
            }
            (Stage::Lock(place) | Stage::Ask(place), Reply::Broken { .. })
                if current && place == server =>
            {
                attempt.voters[server].vote = Err("connection reset".to_owned());
                next = Some(Stage::Lock(server + 1));
            }
            (Stage::Promote(place), Reply::Promoting { .. }) if current && place == server => {
                next = Some(Stage::Wait(server, self.now + LIMIT));
            }
            (Stage::Wait(..), Reply::Told { facts, .. }) if current => {
                let rules = matches!(facts.place, Place::Primary { .. });
                if rules && facts.timeline > attempt.newest {
                    process.heard(server, &facts, self.now);
                    process.attempt = Some(attempt);
                    return self.end(of, SETTLING);
                }
                process.attempt = Some(attempt);
                let Stage::Wait(..) = stage else { return };
                return self.later(of, PATIENCE);
            }
            (
                Stage::Promote(_) | Stage::Wait(..),
                reply @ (Reply::Broken { .. } | Reply::Outdated { .. }),
            ) if current => {
                process.attempt = Some(attempt);
                return self.gives_up(of, server, &reply);
            }
            _ => {}
        }
        let all = stage == Stage::Open && attempt.opened.iter().all(Option::is_some);
        process.attempt = Some(attempt);
        match next {
            Some(next) => self.advance(of, next),
            None if all => self.advance(of, Stage::Lock(0)),
            None => {}
        }
    }

    fn gives_up(&mut self, of: Who, server: usize, reply: &Reply) {
        let mut pause = SETTLING;
        if let Reply::Outdated { .. } = reply {
            let node = server.to_string();
            self.ledger.refused(&[Refusal::Outdated { node }]);
            pause = self.chance.within(RETRY.0, RETRY.1);
        }
        self.end(of, pause);
    }

    /// The same stage once more after `pause`.
    fn later(&mut self, of: Who, pause: Millis) {
        if let Some(attempt) = &mut self.processes[of.process].attempt {
            attempt.step += 1;
            let (number, step) = (attempt.number, attempt.step);
            self.after(pause, Event::Step { of, number, step });
        }
    }

    fn decide(&mut self, of: Who) {
        let rules = self.plan.rules;
        let process = &mut self.processes[of.process];
        let Some(attempt) = &mut process.attempt else {
            return;
        };
        let known = Known {
            cluster: process.past.cluster,
            newest: process.past.newest,
            primary: process.past.primary,
            written: process.written,
            confirming: if rules.confirmers {
                process.confirming
            } else {
                0
            },
        };
        let terms = Terms {
            target: None,
            witness_age: match rules.witness {
                true => Duration::from_millis(self.plan.witness_age),
                false => Duration::ZERO,
            },
            max_loss_bytes: self.plan.max_loss,
            forced: false,
            yielding: None,
        };
        if !rules.majority {
            for voter in attempt
                .voters
                .iter_mut()
                .filter(|voter| voter.answer.is_some())
            {
                voter.vote = Ok(());
            }
        }
        match candidate(&attempt.voters, &known, &terms) {
            Ok(place) => {
                attempt.newest = known.newest;
                attempt.order = Order {
                    decided: self.now,
                    rests_on: premise(&attempt.voters, place, &known, &terms),
                };
                self.check_decision(of, place);
                self.advance(of, Stage::Decided(place));
            }
            Err(reasons) => {
                self.ledger.refused(&reasons);
                let pause = self.chance.within(RETRY.0, RETRY.1);
                self.end(of, pause);
            }
        }
    }

    /// The connections end, and the locks with them.
    fn end(&mut self, of: Who, pause: Millis) {
        for server in 0..self.servers.len() {
            self.ask_in(of, server, |attempt, _| Request::Close { attempt });
        }
        self.processes[of.process].attempt = None;
        self.rouse(of.process, pause);
    }
}
