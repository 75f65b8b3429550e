//! The network: which of its one-way links are cut or slow, and until when.

use super::Millis;
use super::chance::Chance;

/// Servers come first, then processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Server(usize),
    Process(usize),
}

#[derive(Clone, Copy, Debug, Default)]
struct Link {
    cut_until: Millis,
    slow_until: Millis,
}

pub(super) struct Network {
    servers: usize,
    ends: usize,
    links: Vec<Link>,
}

impl Network {
    pub(super) fn new(servers: usize, processes: usize) -> Self {
        let ends = servers + processes;
        Self {
            servers,
            ends,
            links: vec![Link::default(); ends * ends],
        }
    }

    pub(super) fn ends(&self) -> usize {
        self.ends
    }

    pub(super) fn end(&self, number: usize) -> End {
        if number < self.servers {
            End::Server(number)
        } else {
            End::Process(number - self.servers)
        }
    }

    fn link(&self, from: End, to: End) -> usize {
        let number = |end| match end {
            End::Server(place) => place,
            End::Process(place) => self.servers + place,
        };
        number(from) * self.ends + number(to)
    }

    /// Cuts the way from one to the other; the way back is another link.
    pub(super) fn cut(&mut self, from: End, to: End, until: Millis) {
        let link = self.link(from, to);
        self.links[link].cut_until = self.links[link].cut_until.max(until);
    }

    pub(super) fn slow(&mut self, from: End, to: End, until: Millis) {
        let link = self.link(from, to);
        self.links[link].slow_until = self.links[link].slow_until.max(until);
    }

    pub(super) fn is_cut(&self, from: End, to: End, now: Millis) -> bool {
        self.links[self.link(from, to)].cut_until > now
    }

    /// Whether either way is cut: keepalives and answers do not come back.
    pub(super) fn is_apart(&self, one: End, other: End, now: Millis) -> bool {
        self.is_cut(one, other, now) || self.is_cut(other, one, now)
    }

    /// Since when both ways are well, if they are now.
    pub(super) fn well_since(&self, one: End, other: End) -> Millis {
        let of = |from, to| {
            let link = self.links[self.link(from, to)];
            link.cut_until.max(link.slow_until)
        };
        of(one, other).max(of(other, one))
    }

    /// When what is sent now arrives: TCP sends it again until it can. `None` for what nobody sends
    /// again, and is lost.
    pub(super) fn arrival(
        &self,
        (from, to): (End, End),
        again: bool,
        now: Millis,
        chance: &mut Chance,
    ) -> Option<Millis> {
        let link = self.links[self.link(from, to)];
        let delay = if link.slow_until > now {
            chance.within(100, 1_500)
        } else if chance.percent(3) {
            chance.within(20, 400)
        } else {
            chance.within(1, 12)
        };
        let cut = link.cut_until > now;
        (!cut || again).then_some(now.max(link.cut_until) + delay)
    }
}
