//! A process of the application: what it knows of the servers, and what it makes of that.

use super::event::{Facts, Place, Who, Write};
use super::task::{Attempt, Switch};
use super::{CLUSTER, INTERVAL, Millis, TIMEOUT};
use crate::config::DeclaredRole;
use crate::election::{Past, Sight, Standing, elect, has_quorum};
use crate::position::{self, Forks, Lsn, Position};
use crate::wire::ServerRole;

/// So many questions without an answer, and a server is down.
const STRIKES: u32 = 2;

/// What is known of one server, as `cluster::Member` and the manager's records have it.
#[derive(Clone, Debug, Default)]
pub(super) struct Member {
    pub(super) role: Option<ServerRole>,
    pub(super) timeline: u32,
    pub(super) diverged: bool,
    told: bool,
    asked: bool,
    pub(super) down: bool,
    strikes: u32,
    standing: Standing,
    /// The number of a question that is open, and when it was put.
    pub(super) question: Option<(u64, Millis)>,
    heard: Option<Millis>,
    /// Connections of an earlier generation send nothing any more.
    pub(super) generation: u64,
    /// How far its log was when it was last asked.
    pub(super) end: u64,
}

#[derive(Debug)]
pub(super) struct Process {
    pub(super) who: Who,
    pub(super) up: bool,
    pub(super) since: Millis,
    pub(super) frozen_until: Millis,
    declared: Vec<DeclaredRole>,
    write_quorum: bool,
    pub(super) members: Vec<Member>,
    pub(super) past: Past,
    forks: Forks,
    /// How far the primary was, and how many standbys confirm there.
    pub(super) written: Option<Position>,
    pub(super) confirming: Option<usize>,
    quorum_lost: bool,
    pub(super) attempt: Option<Attempt>,
    pub(super) switch: Option<Switch>,
    /// Its new writes are held back.
    pub(super) held: bool,
    /// It is to look whether to promote.
    pub(super) roused: bool,
    pub(super) wrote: Option<Millis>,
}

impl Process {
    pub(super) fn new(process: usize, declared: &[DeclaredRole], write_quorum: bool) -> Self {
        Self {
            who: Who { process, life: 0 },
            up: true,
            since: 0,
            frozen_until: 0,
            declared: declared.to_vec(),
            write_quorum,
            members: vec![Member::default(); declared.len()],
            past: Past::default(),
            forks: Forks::default(),
            written: None,
            confirming: None,
            // Nobody was asked yet.
            quorum_lost: write_quorum,
            attempt: None,
            switch: None,
            held: false,
            roused: false,
            wrote: None,
        }
    }

    /// The next life, which knows nothing.
    pub(super) fn reborn(&self, now: Millis) -> Self {
        let mut next = Self::new(self.who.process, &self.declared, self.write_quorum);
        next.who.life = self.who.life + 1;
        next.since = now;
        next
    }

    pub(super) fn is_frozen(&self, now: Millis) -> bool {
        self.frozen_until > now
    }

    /// As `Topology::takes_writes`.
    pub(super) fn takes_writes(&self) -> bool {
        let primary = self.past.primary.map(|place| &self.members[place]);
        !self.quorum_lost
            && !self.held
            && primary.is_some_and(|member| member.asked && !member.down)
    }

    /// As `Topology::has_lost_its_primary`.
    pub(super) fn has_lost_its_primary(&self) -> bool {
        self.past.began && !self.takes_writes()
    }

    /// Where a write would go to now, over a connection of which generation.
    pub(super) fn target(&self) -> Option<(usize, u64)> {
        let place = self.past.primary.filter(|_| self.takes_writes())?;
        Some((place, self.members[place].generation))
    }

    /// Whether a write that got its connection earlier may still be sent.
    pub(super) fn may_send(&self, write: &Write) -> bool {
        self.members[write.server].generation == write.generation
    }

    /// Takes note of what a server says; `promoted` if that was asked by who promotes.
    pub(super) fn heard(&mut self, server: usize, facts: &Facts, now: Millis) {
        let member = &mut self.members[server];
        member.heard = Some(now);
        member.strikes = 0;
        (member.asked, member.down) = (true, false);
        self.note(server, facts);
        self.elect();
        if self.past.primary == Some(server) {
            self.publish(server, facts);
        }
        self.count_answers(now);
    }

    /// As `Member::note` and `Monitor::is_stray`.
    fn note(&mut self, server: usize, facts: &Facts) {
        let diverged = match &facts.place {
            Place::Standby {
                receiver: Some((timeline, ..)),
            } => {
                let place = Position::new(*timeline, Lsn(facts.end));
                self.forks.standing(place) == position::Survival::Lost
            }
            _ => false,
        };
        let (role, timeline) = self.told(server, facts);
        let member = &mut self.members[server];
        member.told = true;
        (member.role, member.timeline, member.diverged) = (Some(role), timeline, diverged);
        member.end = facts.end;
    }

    /// Its role, and its timeline: of a standby the newest that it ever told.
    pub(super) fn told(&self, server: usize, facts: &Facts) -> (ServerRole, u32) {
        let member = &self.members[server];
        match facts.place {
            Place::Primary { .. } => (ServerRole::Primary, facts.timeline),
            Place::Standby { .. } if member.role == Some(ServerRole::Standby) => {
                (ServerRole::Standby, facts.timeline.max(member.timeline))
            }
            Place::Standby { .. } => (ServerRole::Standby, facts.timeline),
        }
    }

    /// As `Monitor::publish` does for the primary.
    fn publish(&mut self, server: usize, facts: &Facts) {
        let Place::Primary {
            confirming,
            history,
        } = &facts.place
        else {
            return;
        };
        self.confirming = Some(*confirming);
        self.written = Some(Position::new(facts.timeline, Lsn(facts.end)));
        if facts.timeline > self.forks.current() {
            let ends = history.iter().zip(history.iter().skip(1));
            let ended: Vec<(u32, Lsn)> = ends
                .map(|(segment, next)| (segment.timeline, Lsn(next.begins as u64)))
                .collect();
            self.forks.learn_history(facts.timeline, &ended);
        }
        debug_assert!(self.members[server].told);
    }

    pub(super) fn refused(&mut self, server: usize, now: Millis) {
        (self.members[server].asked, self.members[server].down) = (true, true);
        self.elect();
        self.count_answers(now);
    }

    /// A question was not answered in time.
    pub(super) fn silent(&mut self, server: usize, now: Millis) {
        let member = &mut self.members[server];
        member.strikes += 1;
        if member.strikes >= STRIKES && !(member.asked && member.down) {
            self.members[server].generation += 1;
            self.refused(server, now);
        }
    }

    fn elect(&mut self) {
        let sight = |(member, declared): (&Member, &DeclaredRole)| Sight {
            declared: *declared,
            role: member.role,
            asked: member.asked,
            reachable: !member.down,
            cluster: member.told.then_some(CLUSTER),
            timeline: member.timeline,
            twin: false,
            elsewhere: false,
        };
        let sights: Vec<Sight> = self.members.iter().zip(&self.declared).map(sight).collect();
        let elected = elect(&sights, self.past);
        self.past = elected.past;
        // As `succession::compare`.
        for (member, standing) in self.members.iter_mut().zip(elected.standings) {
            let earlier = std::mem::replace(&mut member.standing, standing);
            let useless = matches!(standing, Standing::Superseded { .. } | Standing::Rival);
            if earlier != standing && (earlier == Standing::Primary || useless) {
                member.generation += 1;
            }
        }
    }

    /// As `Manager::count_answers`.
    pub(super) fn count_answers(&mut self, now: Millis) {
        if !self.write_quorum {
            return;
        }
        let recent = |heard: Millis| now.saturating_sub(heard) <= INTERVAL + TIMEOUT;
        let answers = |member: &&Member| !member.down && member.heard.is_some_and(recent);
        let answer = self.members.iter().filter(answers).count();
        let unasked = self.members.iter().filter(|member| !member.asked).count();
        let lost = !has_quorum(self.members.len(), answer, unasked, !self.quorum_lost);
        if lost && !self.quorum_lost {
            if let Some(place) = self.past.primary {
                self.members[place].generation += 1;
            }
        }
        self.quorum_lost = lost;
    }

    /// Whether a node that it was told to be superseded, or none, is its primary.
    pub(super) fn is_confused(&self) -> bool {
        let primaries = self.members.iter().enumerate().filter(|(place, member)| {
            member.standing == Standing::Primary && self.past.primary != Some(*place)
        });
        let old = self.past.primary.is_some_and(|place| {
            let member = &self.members[place];
            member.timeline != 0 && member.timeline < self.past.newest
        });
        primaries.count() > 0 || old
    }
}
