//! The whole world in one thread: a clock, a queue of what is to happen, and what it does.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::chance::Chance;
use super::event::{Due, Event, Reply, Request, Who, Write};
use super::ledger::Ledger;
use super::network::{End, Network};
use super::process::Process;
use super::server::Server;
use super::{INTERVAL, Millis, Plan, TIMEOUT};

/// How often servers are asked while none takes writes.
const URGENT: Millis = 300;

pub(super) struct World {
    pub(super) now: Millis,
    pub(super) plan: Plan,
    pub(super) chance: Chance,
    pub(super) servers: Vec<Server>,
    pub(super) processes: Vec<Process>,
    pub(super) network: Network,
    pub(super) ledger: Ledger,
    /// An operator chose between two primaries of one timeline.
    pub(super) operated: bool,
    pub(super) trace: Option<Vec<String>>,
    queue: BinaryHeap<Reverse<Due>>,
    order: u64,
}

impl World {
    pub(super) fn new(plan: Plan, mut chance: Chance, traced: bool) -> Self {
        let servers: Vec<Server> = (0..plan.servers)
            .map(|place| {
                let relay = place > 1 && plan.cascading && chance.percent(50);
                Server::new(place, plan.servers, usize::from(relay))
            })
            .collect();
        let process = |place| Process::new(place, &plan.declared, plan.write_quorum);
        let processes = (0..plan.processes).map(process).collect();
        let mut world = Self {
            now: 0,
            network: Network::new(plan.servers, plan.processes),
            plan,
            chance,
            servers,
            processes,
            ledger: Ledger::new(),
            operated: false,
            trace: traced.then(Vec::new),
            queue: BinaryHeap::new(),
            order: 0,
        };
        for server in 0..world.servers.len() {
            world.after(0, Event::Follow { server });
        }
        for process in 0..world.processes.len() {
            world.begin(process);
        }
        world
    }

    /// What each life of a process begins with.
    pub(super) fn begin(&mut self, process: usize) {
        let of = self.processes[process].who;
        for server in 0..self.servers.len() {
            let soon = self.chance.within(0, 50);
            self.after(soon, Event::Poll { of, server });
        }
        self.after(INTERVAL, Event::Round { of });
        let pause = self.chance.within(100, 1_500);
        self.after(pause, Event::Write { of });
    }

    pub(super) fn at(&mut self, at: Millis, event: Event) {
        self.order += 1;
        let order = self.order;
        self.queue.push(Reverse(Due { at, order, event }));
    }

    pub(super) fn after(&mut self, pause: Millis, event: Event) {
        self.at(self.now + pause, event);
    }

    pub(super) fn note(&mut self, what: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{now:>6} {}", what()));
        }
    }

    /// Lets all happen up to `until`, or to the first violation.
    pub(super) fn run(&mut self, until: Millis) {
        while let Some(Reverse(due)) = self.queue.peek() {
            if due.at > until || self.ledger.violation.is_some() {
                break;
            }
            let Some(Reverse(due)) = self.queue.pop() else {
                break;
            };
            self.now = due.at;
            self.ledger.counts.events += 1;
            self.happen(due.event);
        }
        self.now = self.now.max(until);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Poll { of, .. }
            | Event::Round { of }
            | Event::Write { of }
            | Event::Send {
                write: Write { of, .. },
            }
            | Event::Auto { of }
            | Event::Limit { of, .. }
            | Event::Step { of, .. }
            | Event::Switch { of, .. }
            | Event::Late { of, .. }
            | Event::Reply { of, .. } => {
                let process = &self.processes[of.process];
                if process.who != of || !process.up {
                    return;
                }
                if process.is_frozen(self.now) {
                    return self.at(process.frozen_until, event);
                }
                self.in_process(of, event);
                self.rouse(of.process, self.plan.after);
            }
            Event::Fault | Event::Switchover | Event::Restart { .. } | Event::Revive { .. } => {
                self.outside(event)
            }
            Event::Agent | Event::Rebuilt { .. } => self.outside(event),
            _ => self.in_server(event),
        }
    }

    fn in_process(&mut self, of: Who, event: Event) {
        match event {
            Event::Poll { server, .. } => self.poll(of, server),
            Event::Round { .. } => {
                self.processes[of.process].count_answers(self.now);
                self.after(INTERVAL, Event::Round { of });
            }
            Event::Write { .. } => self.write(of),
            Event::Send { write } => {
                let may = self.processes[of.process].may_send(&write);
                if may || !self.plan.rules.generations {
                    self.check_generation(&write);
                    self.check_write(&write);
                    let request = Request::Write { write };
                    self.request(of, write.server, request, Some(0));
                }
            }
            Event::Auto { .. } => self.auto(of),
            Event::Limit { number, step, .. } => self.limit_reached(of, number, step),
            Event::Step { number, step, .. } => self.step(of, number, step),
            Event::Switch { number, step, .. } => self.switch_step(of, number, step),
            Event::Late { number, step, .. } => self.switch_late(of, number, step),
            Event::Reply { server, reply, .. } => self.reply(of, server, reply),
            _ => {}
        }
    }

    fn check_generation(&mut self, write: &Write) {
        let process = &self.processes[write.of.process];
        let member = &process.members[write.server];
        if member.timeline != 0 && member.timeline < process.past.newest {
            let (process, server) = (write.of.process, write.server);
            self.ledger.violated(format!(
                "p{process} writes to s{server}, which was overtaken"
            ));
        }
    }

    fn poll(&mut self, of: Who, server: usize) {
        let (now, number) = (self.now, self.ledger.number());
        let process = &mut self.processes[of.process];
        let pause = if process.takes_writes() {
            INTERVAL
        } else {
            URGENT
        };
        if let Some((_, asked)) = process.members[server].question {
            if now < asked + TIMEOUT {
                let left = asked + TIMEOUT - now;
                return self.after(pause.min(left), Event::Poll { of, server });
            }
            process.silent(server, now);
        }
        process.members[server].question = Some((number, now));
        self.request(of, server, Request::Facts { number }, None);
        self.after(pause, Event::Poll { of, server });
    }

    fn write(&mut self, of: Who) {
        let pause = self.chance.within(300, 1_500);
        self.after(pause, Event::Write { of });
        if let Some((server, generation)) = self.processes[of.process].target() {
            let write = Write {
                of,
                server,
                generation,
            };
            let held = if self.chance.percent(10) {
                self.chance.within(0, 3_000)
            } else {
                0
            };
            self.after(held, Event::Send { write });
        }
    }

    fn reply(&mut self, of: Who, server: usize, reply: Reply) {
        let now = self.now;
        let process = &mut self.processes[of.process];
        let asked = process.members[server].question.map(|(number, _)| number);
        match reply {
            Reply::Facts { number, facts } if asked == Some(number) => {
                process.members[server].question = None;
                let still = process.members[server].end == facts.end;
                process.heard(server, &facts, now);
                if still && process.past.primary == Some(server) {
                    self.request(of, server, Request::Heartbeat, Some(0));
                }
            }
            Reply::Refused { number } if asked == Some(number) => {
                process.members[server].question = None;
                process.members[server].generation += 1;
                process.refused(server, now);
            }
            Reply::Facts { .. } | Reply::Refused { .. } => {}
            Reply::Written { write, kept } => {
                if process.may_send(&write) {
                    process.wrote = Some(now);
                    self.ledger.acknowledged(kept);
                }
            }
            reply @ (Reply::Claimed { .. }
            | Reply::Seen { .. }
            | Reply::Fenced { .. }
            | Reply::Lifted { .. }
            | Reply::Lost { .. }) => self.switch_answered(of, server, &reply),
            reply => self.answered(of, server, reply),
        }
    }

    /// Sends to a server, not before `earliest`; over a connection if there is that. When it arrives.
    pub(super) fn request(
        &mut self,
        of: Who,
        server: usize,
        request: Request,
        earliest: Option<Millis>,
    ) -> Option<Millis> {
        let way = (End::Process(of.process), End::Server(server));
        let again = earliest.is_some();
        let at = self
            .network
            .arrival(way, again, self.now, &mut self.chance)?;
        let at = at.max(earliest.unwrap_or(0));
        let event = Event::Request {
            of,
            server,
            boot: self.servers[server].boot,
            request,
        };
        self.at(at, event);
        Some(at)
    }

    pub(super) fn respond(&mut self, of: Who, server: usize, reply: Reply) {
        let way = (End::Server(server), End::Process(of.process));
        let again = !matches!(reply, Reply::Facts { .. } | Reply::Refused { .. });
        if let Some(at) = self.network.arrival(way, again, self.now, &mut self.chance) {
            self.at(at, Event::Reply { of, server, reply });
        }
    }
}
