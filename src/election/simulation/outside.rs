//! What is done to servers, processes and the network, and who repairs it: faults, an outside agent.

use super::event::{Event, Request};
use super::network::End;
use super::server::Server;
use super::world::World;
use super::{Millis, Plan};

/// How often the agent looks.
const ROUNDS: (Millis, Millis) = (1_000, 4_000);

/// A primary that has been fenced for so long was left so (`primary_left_fenced`).
const LEFT: Millis = 30_000;

impl World {
    pub(super) fn outside(&mut self, event: Event) {
        match event {
            Event::Fault => self.fault(),
            Event::Switchover => self.switchover(),
            Event::Restart { server } => self.restart(server),
            Event::Revive { process } => self.revive(process),
            Event::Agent => {
                let pause = self.chance.within(ROUNDS.0, ROUNDS.1);
                self.after(pause, Event::Agent);
                self.repair();
            }
            Event::Rebuilt { server, from } => self.rebuilt(server, from),
            _ => {}
        }
    }

    fn restart(&mut self, server: usize) {
        let it = &mut self.servers[server];
        if !it.up && !it.rebuilding {
            it.start(self.now);
            self.note(|| format!("s{server} starts"));
        }
    }

    fn revive(&mut self, process: usize) {
        if !self.processes[process].up {
            self.processes[process] = self.processes[process].reborn(self.now);
            self.begin(process);
            self.note(|| format!("p{process} starts"));
        }
    }

    fn fault(&mut self) {
        let Plan { faults_until, .. } = self.plan;
        let last = self.chance.skewed(200, 20_000);
        let until = (self.now + last).min(faults_until);
        let (servers, processes) = (self.servers.len(), self.processes.len());
        match self.chance.within(0, 99) {
            0..25 => {
                let server = self.some_server();
                self.crash(server, until);
            }
            25..33 => {
                let process = self.chance.place(processes);
                self.crash_process(process, until);
            }
            33..43 => {
                let server = self.some_server();
                let it = &mut self.servers[server];
                it.frozen_until = it.frozen_until.max(until);
                self.note(|| format!("s{server} is frozen until {until}"));
            }
            43..51 => {
                let process = self.chance.place(processes);
                let it = &mut self.processes[process];
                it.frozen_until = it.frozen_until.max(until);
                self.note(|| format!("p{process} is frozen until {until}"));
            }
            51..66 => {
                let alone = End::Server(self.some_server());
                self.split(until, |end| end == alone);
            }
            66..80 => {
                let side = self.chance.next();
                self.split(until, |end| match end {
                    End::Server(place) => side >> place & 1 == 1,
                    End::Process(place) => side >> (place + servers) & 1 == 1,
                });
            }
            80..93 => {
                let (from, to) = self.some_link();
                self.network.cut(from, to, until);
                self.note(|| format!("{from:?} to {to:?} is cut until {until}"));
            }
            _ => {
                let (from, to) = self.some_link();
                self.network.slow(from, to, until);
                self.note(|| format!("{from:?} to {to:?} is slow until {until}"));
            }
        }
    }

    /// The primary more often than any other.
    fn some_server(&mut self) -> usize {
        let rules = self.servers.iter().rposition(Server::rules);
        let any = self.chance.place(self.servers.len());
        match rules {
            Some(primary) if self.chance.percent(50) => primary,
            _ => any,
        }
    }

    fn some_link(&mut self) -> (End, End) {
        let ends = self.network.ends();
        let from = self.chance.place(ends);
        let to = (from + 1 + self.chance.place(ends - 1)) % ends;
        (self.network.end(from), self.network.end(to))
    }

    /// Cuts all links between those inside and the others, or those of one direction.
    fn split(&mut self, until: Millis, inside: impl Fn(End) -> bool) {
        let one_way = self.chance.percent(20);
        let ends = self.network.ends();
        for pair in 0..ends * ends {
            let (from, to) = (self.network.end(pair / ends), self.network.end(pair % ends));
            {
                if inside(from) && !inside(to) || !one_way && inside(to) && !inside(from) {
                    self.network.cut(from, to, until);
                }
            }
        }
        let all = (0..ends).map(|number| self.network.end(number));
        let apart: Vec<End> = all.filter(|end| inside(*end)).collect();
        self.note(|| format!("{apart:?} are cut off until {until}, one way: {one_way}"));
    }

    /// Its connections end with it, as far as its peers hear of that.
    fn crash(&mut self, place: usize, until: Millis) {
        if !self.servers[place].up {
            return;
        }
        self.note(|| format!("s{place} crashes until {until}"));
        self.servers[place].crash();
        for standby in 0..self.servers.len() {
            let stream = self.servers[standby].stream;
            let Some(stream) = stream.filter(|stream| stream.from == place) else {
                continue;
            };
            let way = (End::Server(place), End::Server(standby));
            let heard = self.network.arrival(way, true, self.now, &mut self.chance);
            let event = Event::Broken {
                server: standby,
                stream: stream.number,
            };
            self.at(heard.unwrap_or(self.now), event);
        }
        self.at(until, Event::Restart { server: place });
    }

    fn crash_process(&mut self, place: usize, until: Millis) {
        let process = &mut self.processes[place];
        if !process.up {
            return;
        }
        process.up = false;
        let (who, attempt) = (process.who, process.attempt.take());
        if let Some(attempt) = attempt {
            for server in 0..self.servers.len() {
                let request = Request::Close {
                    attempt: attempt.number,
                };
                self.request(who, server, request, Some(attempt.sent[server] + 1));
            }
        }
        self.note(|| format!("p{place} crashes until {until}"));
        self.at(until, Event::Revive { process: place });
    }

    /// The agent re-points standbys to the newest primary and rebuilds what cannot follow, for as long
    /// as it knows that there is no newer timeline.
    fn repair(&mut self) {
        let now = self.now;
        let well = |server: &Server| server.up && !server.is_frozen(now);
        let timelines = self.servers.iter().map(Server::timeline);
        let newest = timelines.max().unwrap_or(0);
        let rules = |server: &Server| server.primary && server.timeline() == newest;
        let (servers, quiet) = (&self.servers, now >= self.plan.faults_until);
        let primaries: Vec<usize> = (0..servers.len())
            .filter(|it| rules(&servers[*it]))
            .collect();
        let primary = match primaries[..] {
            [primary] if well(&servers[primary]) => primary,
            [_] => return,
            // Two of one timeline: an operator has to choose, which takes time.
            [first, ..] if quiet => {
                self.operated = true;
                let declared = primaries.iter().find(|it| self.plan.is_declared(**it));
                let longest = primaries.iter().max_by_key(|it| servers[**it].log.len());
                *declared.or(longest).unwrap_or(&first)
            }
            _ => return,
        };
        if self.servers[primary]
            .fenced
            .is_some_and(|since| now > since + LEFT)
        {
            self.servers[primary].fenced = None;
            self.note(|| format!("the fence of s{primary} is taken away"));
        }
        for place in 0..self.servers.len() {
            let server = &self.servers[place];
            if place == primary
                || !well(server)
                || server.promoting
                || !quiet && self.chance.percent(40)
            {
                continue;
            }
            let ends = (End::Server(place), End::Server(primary));
            if self.network.is_apart(ends.0, ends.1, now) {
                continue;
            }
            let follows = server.is_part_of(&self.servers[primary]);
            if server.primary || !follows && server.stream.is_none() {
                self.rebuild(place, primary);
            } else if quiet || server.stream.is_none() || self.chance.percent(20) {
                if server.stream.is_some_and(|it| it.from != primary) {
                    self.break_stream(place);
                }
                self.servers[place].upstream = primary;
            }
        }
    }

    fn rebuild(&mut self, place: usize, primary: usize) {
        self.note(|| format!("s{place} is rebuilt from s{primary}"));
        self.crash(place, Millis::MAX);
        self.servers[place].rebuilding = true;
        self.ledger.counts.rebuilt += 1;
        let pause = self.chance.within(300, 3_000);
        let event = Event::Rebuilt {
            server: place,
            from: primary,
        };
        self.after(pause, event);
    }

    fn rebuilt(&mut self, place: usize, from: usize) {
        let source = self.servers[from].clone();
        if !source.rules() || source.is_frozen(self.now) {
            // It begins anew with whoever rules then.
            let rules = |it: &usize| self.servers[*it].rules();
            let ruling = (0..self.servers.len()).filter(rules);
            let newest = ruling.max_by_key(|it| self.servers[*it].timeline());
            let event = Event::Rebuilt {
                server: place,
                from: newest.unwrap_or(from),
            };
            return self.after(1_000, event);
        }
        let server = &mut self.servers[place];
        (server.log, server.history) = (source.log, source.history);
        (server.heard_of, server.control) = (source.heard_of, source.control);
        (server.primary, server.upstream) = (false, from);
        server.fenced = source.fenced;
        server.start(self.now);
    }
}
