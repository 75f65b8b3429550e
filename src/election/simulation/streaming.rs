//! How the log comes to the standbys: whom they follow, and what is on its way.

use super::Millis;
use super::event::{Event, Segment};
use super::network::End;
use super::server::Stream;
use super::world::World;

/// How often a standby that receives nothing tries again.
const RETRY: Millis = 1_000;
/// After so long without a word a standby gives its connection up.
const RECEIVER: Millis = 15_000;

impl World {
    /// A standby tries to follow, and does so again and again.
    pub(super) fn follow(&mut self, place: usize) {
        self.after(RETRY, Event::Follow { server: place });
        let (now, server) = (self.now, &self.servers[place]);
        if !server.up || server.primary || server.promoting {
            return;
        }
        if let Some(stream) = server.stream {
            if now.saturating_sub(stream.heard) > RECEIVER {
                self.break_stream(place);
            }
            return;
        }
        let from = server.upstream;
        let upstream = &self.servers[from];
        let ends = (End::Server(place), End::Server(from));
        let reached =
            upstream.up && !upstream.is_frozen(now) && !self.network.is_apart(ends.0, ends.1, now);
        if from == place || !reached {
            return;
        }
        let own = server.timeline();
        let later = |segment: &&Segment| segment.timeline > own;
        let parted = upstream.history.iter().find(later);
        let heard_of = server.heard_of.max(upstream.timeline());
        let knows = upstream.history.iter().any(|it| it.timeline == own);
        let beyond = parted.is_some_and(|it| it.begins < server.log.len());
        let same = server.is_part_of(upstream);
        let boot = upstream.boot;
        let server = &mut self.servers[place];
        server.heard_of = heard_of;
        server.waiting = knows && beyond;
        if !knows || beyond || !same {
            return;
        }
        let number = self.ledger.number();
        self.servers[place].stream = Some(Stream {
            number,
            from,
            boot,
            heard: now,
            shipping: false,
        });
        self.note(|| format!("s{place} follows s{from}"));
        self.ship(place);
    }

    pub(super) fn break_stream(&mut self, place: usize) {
        let alive = self.is_alive(place);
        if let Some(stream) = self.servers[place].stream.take().filter(|_| alive) {
            self.servers[stream.from].flushed[place] = (0, 0);
        }
    }

    /// Whether the sender of the standby's stream is still the one that it connected to.
    pub(super) fn is_alive(&self, standby: usize) -> bool {
        self.servers[standby].stream.is_some_and(|stream| {
            let from = &self.servers[stream.from];
            from.up && from.boot == stream.boot
        })
    }

    /// The log goes on its way to all who follow.
    pub(super) fn ship_from(&mut self, place: usize) {
        for standby in 0..self.servers.len() {
            if self.servers[standby]
                .stream
                .is_some_and(|it| it.from == place)
            {
                self.ship(standby);
            }
        }
    }

    fn ship(&mut self, standby: usize) {
        let Some(stream) = self.servers[standby].stream else {
            return;
        };
        let end = self.servers[stream.from].log.len();
        let way = (End::Server(stream.from), End::Server(standby));
        if stream.shipping || !self.is_alive(standby) || end <= self.servers[standby].log.len() {
            return;
        }
        let arrival = self.network.arrival(way, true, self.now, &mut self.chance);
        if let Some(stream) = &mut self.servers[standby].stream {
            stream.shipping = true;
        }
        let event = Event::Deliver {
            server: standby,
            stream: stream.number,
            end,
        };
        self.at(arrival.unwrap_or(self.now), event);
    }

    pub(super) fn deliver(&mut self, place: usize, number: u64, end: usize) {
        let now = self.now;
        let Some(stream) = self.servers[place].stream.filter(|it| it.number == number) else {
            return;
        };
        if !self.is_alive(place) {
            return;
        }
        let upstream = self.servers[stream.from].clone();
        let server = &mut self.servers[place];
        let before = server.timeline();
        server.copy(&upstream, end);
        server.stream = Some(Stream {
            heard: now,
            shipping: false,
            ..stream
        });
        server.heard_of = server.heard_of.max(server.timeline());
        if server.timeline() != before {
            let pause = self.chance.within(500, 30_000);
            self.after(pause, Event::Restartpoint { server: place });
        }
        let way = (End::Server(place), End::Server(stream.from));
        let arrival = self.network.arrival(way, true, now, &mut self.chance);
        let event = Event::Flushed {
            server: stream.from,
            by: place,
            stream: number,
            has: (end, now),
        };
        self.at(arrival.unwrap_or(now), event);
        self.ship(place);
        self.ship_from(place);
    }
}
