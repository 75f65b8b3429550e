//! What may not be done, checked just before it is.

use super::event::{Order, Who, Write};
use super::network::End;
use super::server::Server;
use super::world::World;
use super::{Millis, VALID};
use crate::election::needed;
use crate::election::promotion::{Premise, Role};

/// For so long at the most does a process write to a primary that was replaced by one which it reaches.
const FRESH: Millis = 4_000;

impl World {
    /// Before a write leaves its process.
    pub(super) fn check_write(&mut self, write: &Write) {
        let process = &self.processes[write.of.process];
        if process.is_confused() {
            self.ledger.violated(format!(
                "p{} has an overtaken primary, or two",
                write.of.process
            ));
        }
        let target = &self.servers[write.server];
        let well_since = |place: usize, server: &Server| {
            let ends = (End::Process(write.of.process), End::Server(place));
            let link = self.network.well_since(ends.0, ends.1);
            let awake = server.frozen_until.max(process.frozen_until);
            link.max(awake).max(server.since).max(process.since)
        };
        let replaced = |(place, server): (usize, &Server)| {
            server.rules()
                && server.timeline() > target.timeline()
                && self.now.saturating_sub(well_since(place, server)) > FRESH
        };
        if target.rules() && self.servers.iter().enumerate().any(replaced) {
            self.ledger.violated(format!(
                "p{} writes to s{}, which was replaced long ago",
                write.of.process, write.server
            ));
        }
    }

    /// Before a server does what it was told.
    pub(super) fn check_order(&mut self, place: usize, order: &Order) {
        let late = self.now.saturating_sub(order.clock);
        let stream = self.servers[place].stream;
        let ago = stream.map(|stream| self.now.saturating_sub(stream.heard));
        let by_primary = |from: usize| {
            let sender = &self.servers[from];
            sender.rules() && sender.timeline() == self.servers[place].timeline()
        };
        let yielded = order.rests_on == Premise::Lately;
        let heard = !yielded
            && stream.is_some_and(|stream| by_primary(stream.from))
            && ago.is_some_and(|ago| ago < self.plan.witness_age);
        if late > VALID || heard {
            self.ledger.violated(format!(
                "s{place} is promoted by an order of {late} ms ago, and has heard {ago:?} ago"
            ));
        }
    }

    /// When a process has decided to promote `place`.
    pub(super) fn check_decision(&mut self, of: Who, place: usize) {
        let process = &self.processes[of.process];
        let Some(attempt) = &process.attempt else {
            return;
        };
        let needed = needed(self.servers.len());
        let votes = |number: u64| {
            let mine = |server: &&Server| server.lock == Some(number);
            self.servers.iter().filter(mine).count()
        };
        let mut wrong = None;
        let (voters, newest) = (attempt.voters(), attempt.newest());
        let believed = voters.iter().filter(|voter| voter.vote.is_ok());
        if believed.count() < needed {
            wrong = Some("without a majority");
        }
        let yielding = attempt.yielding;
        let others = voters.iter().enumerate();
        let others = others.filter(|(place, _)| yielding != Some(*place));
        let answers = others.filter_map(|(_, voter)| voter.answer);
        let rules = |role| role == Role::TakesWrites;
        if answers
            .clone()
            .any(|it| it.timeline > newest || rules(it.role) && it.timeline == newest)
        {
            wrong = Some("beside a primary that told so");
        }
        for (voter, server) in voters.iter().zip(&self.servers) {
            if voter.vote.is_ok() && server.lock != Some(attempt.number) {
                self.ledger.counts.lapsed += 1;
                if server.has_session(attempt.number) {
                    wrong = Some("by a lock that another has");
                }
            }
            let heard = server.stream.is_some_and(|stream| {
                let primary = &self.servers[stream.from];
                let before = attempt.asked.is_some_and(|asked| stream.heard < asked);
                let lately = self.now - stream.heard < self.plan.witness_age;
                primary.rules() && primary.timeline() == newest && before && lately
            });
            if voter.answer.is_some() && heard && yielding.is_none() {
                wrong = Some("beside a primary that a replica hears of");
            }
        }
        let others = self.processes.iter().filter(|other| other.who != of);
        for other in others.filter_map(|other| other.attempt.as_ref()) {
            if other.acts() {
                self.ledger.counts.overlapping += 1;
                if votes(other.number) >= needed && votes(attempt.number) >= needed {
                    wrong = Some("while another has a majority");
                }
            }
        }
        if let Some(wrong) = wrong {
            let who = of.process;
            self.ledger
                .violated(format!("p{who} decides to promote s{place} {wrong}"));
        }
    }
}
