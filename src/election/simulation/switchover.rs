//! A switchover: what drives `election::promotion::switchover` here, as `cluster::switchover` does there.

use super::event::{Event, Place, Reply, Request, Who};
use super::task::Switch;
use super::world::World;
use super::{Millis, TIMEOUT};
use crate::election::promotion::attempt::End;
use crate::election::promotion::switchover::{Next, Switchover};

/// Half of `failover_wait`.
const LIMIT: Millis = 7_500;
/// As `PromotionConfig::timeout`: so long it is tried to take the fence away.
const LIFTING: Millis = 10_000;
/// How often what has to come true is looked at.
const PAUSE: Millis = 60;

impl World {
    /// An operator asks some process for one.
    pub(super) fn switchover(&mut self) {
        let place = self.chance.place(self.processes.len());
        let process = &self.processes[place];
        let idle = process.attempt.is_none() && process.switch.is_none();
        let from = process.past.primary.filter(|_| process.takes_writes());
        let Some(from) = from.filter(|_| process.up && idle) else {
            return;
        };
        let to = (from + 1 + self.chance.place(self.servers.len() - 1)) % self.servers.len();
        let (number, of) = (self.ledger.number(), process.who);
        self.note(|| format!("p{place} is to put s{to} in the place of s{from}"));
        self.ledger.counts.switchovers += 1;
        self.processes[place].switch = Some(Switch {
            number,
            step: 0,
            machine: Switchover::new(),
            next: Next::Open,
            from,
            to,
            deadline: self.now + LIMIT,
            lifting: None,
            opened: [false; 2],
            sent: vec![0; self.servers.len()],
        });
        self.switch_step(of, number, 0);
    }

    fn ask_for(&mut self, of: Who, server: usize, request: impl FnOnce(u64, u32) -> Request) {
        let Some(switch) = &self.processes[of.process].switch else {
            return;
        };
        let earliest = switch.sent[server] + 1;
        let request = request(switch.number, switch.step);
        let at = self.request(of, server, request, Some(earliest));
        if let Some(switch) = &mut self.processes[of.process].switch {
            switch.sent[server] = at.unwrap_or(earliest);
        }
    }

    fn goes_on(&mut self, of: Who, next: Next<(), String>, pause: Millis) {
        let Some(switch) = &mut self.processes[of.process].switch else {
            return;
        };
        switch.next = next;
        switch.step += 1;
        let (number, step) = (switch.number, switch.step);
        self.after(pause, Event::Switch { of, number, step });
    }

    /// Does what is to be done next.
    pub(super) fn switch_step(&mut self, of: Who, number: u64, step: u32) {
        let now = self.now;
        let process = &mut self.processes[of.process];
        let Some(switch) = process.switch.as_mut().filter(|it| it.is(number, step)) else {
            return;
        };
        let (from, to) = (switch.from, switch.to);
        let limit = switch.deadline.saturating_sub(now);
        match switch.next.clone() {
            Next::Open => {
                self.ask_for(of, from, |number, step| Request::Claim { number, step });
                self.ask_for(of, to, |number, step| Request::Look { number, step });
                self.after(limit.min(TIMEOUT), Event::Late { of, number, step });
            }
            Next::Hold => {
                process.held = true;
                let next = switch.machine.held(Ok(()));
                self.goes_on(of, next, 1);
            }
            Next::Drain => {
                let next = switch.machine.drained(Ok(()));
                self.goes_on(of, next, 1);
            }
            Next::Fence => {
                process.members[from].generation += 1;
                self.ask_for(of, from, |number, step| Request::Fence { number, step });
                self.after(limit, Event::Late { of, number, step });
            }
            Next::CatchUp(_) => {
                self.ask_for(of, to, |number, step| Request::Look { number, step });
                self.after(limit, Event::Late { of, number, step });
            }
            Next::Promote => self.attempt(of, Some(to), Some(from)),
            Next::Lift => {
                switch.lifting = switch.lifting.or(Some(now + LIFTING));
                self.ask_for(of, from, |number, step| Request::Lift { number, step });
                self.after(TIMEOUT, Event::Late { of, number, step });
            }
            Next::Release => {
                process.held = false;
                let next = switch.machine.released();
                self.goes_on(of, next, 1);
            }
            Next::End(result) => {
                self.ledger.counts.switched += u64::from(result.is_ok());
                self.ask_for(of, from, |number, _| Request::Close { attempt: number });
                self.processes[of.process].switch = None;
                self.rouse(of.process, PAUSE);
            }
        }
    }

    /// Nothing was answered in time.
    pub(super) fn switch_late(&mut self, of: Who, number: u64, step: u32) {
        self.switch_broken(of, number, step, "late");
    }

    fn switch_broken(&mut self, of: Who, number: u64, step: u32, cause: &str) {
        let now = self.now;
        let process = &mut self.processes[of.process];
        let Some(switch) = process.switch.as_mut().filter(|it| it.is(number, step)) else {
            return;
        };
        let cause = cause.to_owned();
        let next = match switch.next {
            Next::Open => switch.machine.opened(Err(cause)),
            Next::Fence => switch.machine.fenced(Err(cause)),
            Next::CatchUp(_) => switch.machine.caught_up(Err(cause)),
            // Over another connection.
            Next::Lift if switch.lifting.is_some_and(|until| now < until) => Next::Lift,
            Next::Lift => switch.machine.lifted(),
            _ => return,
        };
        self.goes_on(of, next, PAUSE);
    }

    pub(super) fn switch_answered(&mut self, of: Who, server: usize, reply: &Reply) {
        let (number, step) = reply.of_attempt();
        let process = &mut self.processes[of.process];
        let Some(switch) = process.switch.as_mut().filter(|it| it.is(number, step)) else {
            return;
        };
        let next = match (&switch.next, reply) {
            (_, Reply::Lost { .. }) => return self.switch_broken(of, number, step, "reset"),
            (Next::Open, Reply::Claimed { taken: false, .. }) => {
                let cause = "another process does the same".to_owned();
                switch.machine.opened(Err(cause))
            }
            (Next::Open, Reply::Claimed { .. } | Reply::Seen { .. }) => {
                switch.opened[usize::from(server == switch.to)] = true;
                if switch.opened != [true; 2] {
                    return;
                }
                switch.machine.opened(Ok(()))
            }
            (Next::Fence, Reply::Fenced { end, .. }) => {
                switch.machine.fenced(Ok(Some(crate::position::Lsn(*end))))
            }
            (Next::CatchUp(written), Reply::Seen { facts, .. }) => {
                let follows = matches!(facts.place, Place::Standby { .. });
                if !follows || facts.end < written.0 {
                    let again = Next::CatchUp(*written);
                    return self.goes_on(of, again, PAUSE);
                }
                switch.machine.caught_up(Ok(()))
            }
            (Next::Lift, Reply::Lifted { .. }) => switch.machine.lifted(),
            _ => return,
        };
        self.goes_on(of, next, 1);
    }

    /// The attempt that belongs to a switchover has ended; `false` if there is none.
    pub(super) fn switch_attempted(&mut self, of: Who, end: &End) -> bool {
        let Some(switch) = &mut self.processes[of.process].switch else {
            return false;
        };
        let next = match end {
            End::Promoted { .. } => switch.machine.attempted(Ok(()), None),
            End::Refused(reasons) => switch
                .machine
                .attempted(Err("refused".to_owned()), Some(reasons)),
            End::Failed { cause, .. } => switch.machine.attempted(Err(cause.clone()), None),
        };
        self.goes_on(of, next, 1);
        true
    }
}
