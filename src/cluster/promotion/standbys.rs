//! Has the standbys of a replaced primary follow the new one: drives `election::promotion::follow` with real servers.
//!
//! Each process with the setting does it for as long as the new primary rules, and looks again at whoever does not
//! follow. It holds a lock on the standby meanwhile, asks the new primary itself, and acts at once. If an older decision
//! comes through all the same, the next look finds the standby led astray, and has it follow again.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::time::{sleep, timeout};

use super::promoter::Promoter;
use crate::cluster::member::Member;
use crate::cluster::rewind;
use crate::cluster::topology::Topology;
use crate::config::{Address, DeclaredRole, PrimaryConninfo};
use crate::deadline;
use crate::election::promotion::follow::{
    self, Leads, Left, Replay, Ruler, Slot, SlotState, Standby, Step,
};
use crate::node::{Facts, Grants, Node, Place, ReplicationConnection, Run};
use crate::position::Lsn;
use crate::status::{Event, Following, FollowingState};
use crate::wire::ServerRole;

/// How often it is looked whether somebody has to be looked at.
const ROUND: Duration = Duration::from_secs(1);

/// How soon a standby is looked at again that does not follow: at first, and at the latest.
const SOON: Duration = Duration::from_millis(100);
const LATE: Duration = Duration::from_secs(10);

/// A standby that loses its receiver while nobody was promoted lately is given this time.
const PAUSE: Duration = Duration::from_secs(1);

/// Who rules, and since when on which timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reign {
    primary: String,
    timeline: u32,
}

/// What is known of a standby that does not follow.
#[derive(Clone, Debug)]
struct Known {
    /// Since when it does not follow, or was told.
    since: Instant,
    due: Instant,
    pause: Duration,
}

/// What came of a look.
#[derive(Debug)]
enum Outcome {
    Follows,
    Told,
    Waits(String),
    Left(String),
}

/// Has the standbys of a cluster follow its primary.
pub(in crate::cluster) struct Standbys {
    promoter: Promoter,
    reign: Option<Reign>,
    known: BTreeMap<String, Known>,
    /// The nodes whose rights were looked at, and when they are to be again.
    foreseen: Vec<(Arc<Node>, Option<Instant>)>,
}

impl Standbys {
    pub(in crate::cluster) fn of(promoter: &Promoter) -> Self {
        Self {
            promoter: promoter.clone(),
            reign: None,
            known: BTreeMap::new(),
            foreseen: Vec::new(),
        }
    }

    /// Goes on until the pool is closed.
    pub(in crate::cluster) async fn run(mut self) {
        loop {
            if AssertUnwindSafe(self.round()).catch_unwind().await.is_err() {
                tracing::error!(target: "diesel_replicated", error = "the task for the standbys panicked", "task_died");
            }
            let due = self.known.values().map(|known| known.due).min();
            let wait = due.map_or(ROUND, |due| due.saturating_duration_since(Instant::now()));
            tokio::select! {
                changed = self.promoter.topology.changed() => if changed.is_err() { return },
                () = sleep(wait.clamp(Duration::from_millis(5), ROUND)) => {}
            }
        }
    }

    async fn round(&mut self) {
        let topology = Arc::clone(&self.promoter.topology.borrow_and_update());
        let Some(primary) = ruling(&topology) else {
            return;
        };
        self.begin(&topology, primary);
        let mut looks = Vec::new();
        for member in topology.servers().filter(|it| may_be_told(it)) {
            let name = &member.node.name;
            if follows(member, topology.timeline()) {
                if self.known.remove(name).is_some() {
                    self.came(name, Outcome::Follows);
                }
                continue;
            }
            let now = Instant::now();
            let known = self.known.entry(name.clone()).or_insert_with(|| {
                let lately = topology
                    .timeline_since()
                    .is_some_and(|it| it.elapsed() < LATE);
                Known {
                    since: now,
                    due: if lately { now } else { now + PAUSE },
                    pause: SOON,
                }
            });
            if known.due <= now {
                looks.push((name.clone(), known.since, member));
            }
        }
        let looking = looks.iter().map(|(name, since, member)| {
            let look = self.look(member, primary, &topology, since.elapsed());
            async move { (name.clone(), look.await) }
        });
        for (name, outcome) in join_all(looking).await {
            if let Some(known) = self.known.get_mut(&name) {
                if matches!(outcome, Outcome::Told) {
                    (known.since, known.pause) = (Instant::now(), SOON);
                }
                known.due = Instant::now() + known.pause;
                known.pause = (known.pause * 2).min(LATE);
            }
            self.came(&name, outcome);
        }
        if self.known.is_empty() {
            self.foresee(&topology).await;
        }
    }

    /// Forgets what was so under another primary.
    fn begin(&mut self, topology: &Topology, primary: &Member) {
        let reign = Reign {
            primary: primary.node.name.clone(),
            timeline: topology.timeline(),
        };
        let is_member = |name: &str| topology.named(name).is_some();
        self.known.retain(|name, _| is_member(name));
        self.promoter
            .outlook
            .following(|all| all.retain(|it| is_member(&it.node)));
        if self.reign.as_ref() != Some(&reign) {
            self.reign = Some(reign);
            self.known.clear();
            self.promoter.outlook.following(Vec::clear);
        }
    }

    /// Looks at each standby that comes up whether it could be told, before it has to be. A grant that comes later does
    /// not reach a standby that follows nobody.
    async fn foresee(&mut self, topology: &Topology) {
        let there = |node: &Arc<Node>| topology.member(node).is_some_and(Member::is_up);
        self.foreseen.retain(|(node, _)| there(node));
        for member in topology.servers().filter(|it| may_be_told(it)) {
            let (node, now) = (&member.node, Instant::now());
            let mut seen = self.foreseen.iter();
            let seen = seen.find(|(known, _)| Arc::ptr_eq(known, node));
            let done = seen.is_some_and(|(_, again)| again.is_none_or(|again| again > now));
            if done || !follows(member, topology.timeline()) {
                continue;
            }
            let Some(lacks) = self.lacks(node).await else {
                continue;
            };
            self.foreseen.retain(|(known, _)| !Arc::ptr_eq(known, node));
            let again = lacks.is_some().then(|| now + LATE);
            self.foreseen.push((Arc::clone(node), again));
            self.foresaw(&node.name, lacks);
        }
    }

    /// The statements that give this role the rights that it lacks there. The outer `None` is for no answer, which its
    /// health tells of.
    async fn lacks(&self, node: &Node) -> Option<Option<String>> {
        let (database, limit) = self.terms();
        let asking = async {
            let mut there = open(node, database).await?;
            let (_, grants) = rights(&mut there).await?;
            Ok::<_, String>(missing(&grants))
        };
        timeout(limit, asking).await.ok()?.ok()
    }

    fn foresaw(&self, node: &str, lacks: Option<String>) {
        let Some(grant) = lacks else {
            // What was foreseen is mended. What has happened is told by a look.
            let foreseen = |it: &Following| it.node == node && it.state == FollowingState::Left;
            let all = |all: &mut Vec<Following>| all.retain(|it| !foreseen(it));
            return self.promoter.outlook.following(all);
        };
        let cause = "it could not be told to follow another primary";
        if self.set(
            node,
            FollowingState::Left,
            Some(format!("{cause}: {grant}")),
        ) {
            let needed = "the rights of `standbys_follow`";
            tracing::warn!(target: "diesel_replicated", node, needed, cause, grant, "right_missing");
        }
    }

    /// The database, and how long a look may take.
    fn terms(&self) -> (&str, Duration) {
        let config = &self.promoter.config;
        let limit = config.health.timeout.saturating_mul(5);
        (&config.promotion.database, limit.min(deadline::EVER))
    }

    async fn look(
        &self,
        member: &Member,
        primary: &Member,
        topology: &Topology,
        waits: Duration,
    ) -> Outcome {
        let (database, limit) = self.terms();
        let look = Look {
            promoter: &self.promoter,
            topology,
            member,
            primary,
            database,
            waits,
        };
        match timeout(limit, look.run()).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(cause)) => Outcome::Waits(cause),
            Err(_) => Outcome::Waits(format!("no answer within {limit:?}")),
        }
    }

    /// Tells what came of a look.
    fn came(&self, node: &str, outcome: Outcome) {
        let Some(reign) = &self.reign else { return };
        let (at, node) = (SystemTime::now(), node.to_owned());
        let (primary, timeline) = (reign.primary.clone(), reign.timeline);
        match outcome {
            Outcome::Waits(cause) => {
                self.set(&node, FollowingState::Waiting, Some(cause));
            }
            Outcome::Told => {
                tracing::warn!(target: "diesel_replicated", node, primary, timeline, "standby_told");
                self.set(&node, FollowingState::Told, None);
                self.promoter.event_sender.send(Event::StandbyTold {
                    at,
                    node,
                    primary,
                    timeline,
                });
            }
            Outcome::Follows => {
                if self.set(&node, FollowingState::Follows, None) {
                    tracing::info!(target: "diesel_replicated", node, primary, timeline, "standby_follows");
                    self.promoter.event_sender.send(Event::StandbyFollows {
                        at,
                        node,
                        primary,
                        timeline,
                    });
                }
            }
            Outcome::Left(cause) => {
                if self.set(&node, FollowingState::Left, Some(cause.clone())) {
                    tracing::warn!(target: "diesel_replicated", node, primary, timeline, cause, "standby_left");
                    self.promoter.event_sender.send(Event::StandbyLeft {
                        at,
                        node,
                        primary,
                        timeline,
                        cause,
                    });
                }
            }
        }
    }

    /// Shows this of a standby. Returns whether it is news.
    fn set(&self, node: &str, state: FollowingState, cause: Option<String>) -> bool {
        let Some(reign) = &self.reign else {
            return false;
        };
        let mut news = true;
        self.promoter.outlook.following(|all| {
            let place = all.iter().position(|it| it.node == node);
            let before = place.map(|place| (all[place].state, all[place].cause.clone()));
            let passing = matches!(before, None | Some((FollowingState::Waiting, _)));
            match (state, &before) {
                // It has only lost its receiver for a moment.
                (FollowingState::Follows, _) if passing => {
                    news = false;
                    all.retain(|it| it.node != node);
                    return;
                }
                // That it was told, or why it was left, stays until something else is known.
                (FollowingState::Waiting, Some(_)) if !passing => return,
                (_, Some((known, why))) if *known == state => {
                    news = gist(why.as_ref()) != gist(cause.as_ref());
                    if !news {
                        return;
                    }
                }
                _ => {}
            }
            let now = Following {
                node: node.to_owned(),
                primary: reign.primary.clone(),
                timeline: reign.timeline,
                state,
                cause,
                at: SystemTime::now(),
            };
            match place {
                Some(place) => all[place] = now,
                None => all.push(now),
            }
        });
        news
    }
}

/// A cause without its numbers.
fn gist(cause: Option<&String>) -> Option<String> {
    let plain = |cause: &String| cause.chars().filter(|c| !c.is_ascii_hexdigit()).collect();
    cause.map(plain)
}

/// The primary, if it says so and nobody was seen on a newer timeline.
fn ruling(topology: &Topology) -> Option<&Member> {
    let primary = topology.primary()?;
    let rules = primary.is_up()
        && primary.role == Some(ServerRole::Primary)
        && primary.timeline != 0
        && primary.timeline == topology.timeline();
    rules.then_some(primary)
}

/// Whether it is a standby of this cluster, and one server.
fn may_be_told(member: &Member) -> bool {
    member.is_of_use() && member.role == Some(ServerRole::Standby) && !member.leads_to_several()
}

/// Whether the standby receives the log of this timeline, as far as this role may see.
fn follows(member: &Member, timeline: u32) -> bool {
    match member.reports.facts().as_deref().map(|facts| &facts.place) {
        Some(Place::Standby {
            receiver: Some(receiver),
            ..
        }) => receiver.status == "streaming" && receiver.timeline >= timeline,
        Some(Place::Standby {
            receives: Some(true),
            ..
        }) => member.is_trusted(),
        _ => false,
    }
}

async fn open(node: &Node, database: &str) -> Result<ReplicationConnection, String> {
    let opened = ReplicationConnection::open(node, database).await;
    opened.map_err(|error| error.to_string())
}

fn shown(error: diesel::result::Error) -> String {
    error.to_string()
}

/// What the standby reports, and what this role may not do there.
async fn rights(there: &mut ReplicationConnection) -> Result<(Facts, Grants), String> {
    let facts = there.ask().await.map_err(shown)?;
    let facts = facts.ok_or("it is being promoted")?;
    let grants = there.grants(facts.version).await.map_err(shown)?;
    Ok((facts, grants))
}

fn missing(grants: &Grants) -> Option<String> {
    let all: Vec<&str> = [&grants.to_read, &grants.to_change]
        .into_iter()
        .filter_map(|it| it.as_deref())
        .collect();
    (!all.is_empty()).then(|| all.join("; "))
}

/// A look at one standby.
struct Look<'l> {
    promoter: &'l Promoter,
    topology: &'l Topology,
    member: &'l Member,
    primary: &'l Member,
    database: &'l str,
    /// How long it has not followed.
    waits: Duration,
}

impl Look<'_> {
    /// Looks, decides and acts. The error is what hinders it for now.
    async fn run(&self) -> Result<Outcome, String> {
        let mut there = open(&self.member.node, self.database).await?;
        if !there.take().await.map_err(shown)? {
            return Ok(Outcome::Waits("another process tells it".to_owned()));
        }
        let (facts, grants) = rights(&mut there).await?;
        let (cluster, run) = (self.topology.cluster(), self.member.run);
        let foreign = facts.cluster.is_some() && facts.cluster != cluster;
        if foreign || Run::differ(facts.run, run) {
            return Err("its name leads to another server now".to_owned());
        }
        let (mut standby, conninfo) = self.standby(&mut there, &facts, &grants).await?;
        let mut over = open(&self.primary.node, self.database).await?;
        loop {
            if let Some(slot) = &mut standby.slot {
                let found = over.slot(&slot.name).await.map_err(shown)?;
                slot.state = match found {
                    None => SlotState::Missing,
                    Some(slot) if !slot.physical => SlotState::Logical,
                    Some(slot) if slot.lost => SlotState::Lost,
                    Some(slot) if slot.active => SlotState::InUse,
                    Some(_) => SlotState::Free,
                };
            }
            // The last question before it acts.
            let told = over.ask().await.map_err(shown)?;
            match self.decide(&standby, told.as_ref()) {
                Step::Nothing => return Ok(Outcome::Follows),
                Step::Wait(why) => return Ok(Outcome::Waits(why.to_string())),
                Step::Leave(left) => return Ok(Outcome::Left(self.why(&left))),
                Step::MakeSlot(name) => {
                    if !over.make_slot(&name).await.map_err(shown)? {
                        let left = Left::Slot {
                            name,
                            ruler: self.primary.node.name.clone(),
                            why: SlotState::Missing,
                        };
                        return Ok(Outcome::Left(left.to_string()));
                    }
                }
                Step::Repoint => {
                    let Some(conninfo) = conninfo else {
                        return Ok(Outcome::Left(Left::Unreadable.to_string()));
                    };
                    return self
                        .repoint(&mut there, &conninfo, (&grants, facts.version))
                        .await;
                }
            }
        }
    }

    fn why(&self, left: &Left) -> String {
        match (left, rewind::advice(self.topology)) {
            (Left::Diverged { .. }, Some(advice)) => format!("{left}: {advice}"),
            _ => left.to_string(),
        }
    }

    fn decide(&self, standby: &Standby, told: Option<&Facts>) -> Step {
        let cluster = self.topology.cluster();
        let ours = |facts: &&Facts| facts.cluster.is_none() || facts.cluster == cluster;
        let told = told.filter(ours);
        let rules = told.is_some_and(|facts| matches!(facts.place, Place::Primary { .. }));
        let (newest, since) = {
            let now = self.promoter.topology.borrow();
            let since = now.timeline_since();
            (now.timeline(), since.map_or(LATE, |since| since.elapsed()))
        };
        self.promoter.write_log.with(|view| {
            let ruler = Ruler {
                name: self.primary.node.name.clone(),
                rules,
                timeline: told.map_or(0, |facts| facts.timeline),
                newest,
                since,
                forks: &view.forks,
            };
            follow::next(standby, &ruler)
        })
    }

    /// What the standby says of itself.
    async fn standby(
        &self,
        there: &mut ReplicationConnection,
        facts: &Facts,
        grants: &Grants,
    ) -> Result<(Standby, Option<PrimaryConninfo>), String> {
        let Place::Standby {
            replayed,
            received,
            receiver,
            paused,
            ..
        } = &facts.place
        else {
            return Err("it is no standby any more".to_owned());
        };
        let fed = receiver.as_ref().filter(|it| it.status == "streaming");
        let known = facts.timeline.max(self.member.timeline).max(1);
        let mut standby = Standby {
            timeline: known,
            exact: false,
            replayed: *replayed,
            received: received.map(|(flushed, _): (Lsn, Lsn)| flushed),
            replay: if *paused { Replay::Held } else { Replay::Busy },
            streams: fed.map(|receiver| receiver.timeline),
            leads: Leads::Unreadable,
            target_timeline: "latest".to_owned(),
            slot: None,
            grants: grants.to_change.clone(),
            waits: self.waits,
        };
        if let Some(grant) = &grants.to_read {
            standby.leads = Leads::Hidden(missing(grants).unwrap_or_else(|| grant.clone()));
            return Ok((standby, None));
        }
        let followed = there.followed(grants).await.map_err(shown)?;
        let conninfo = followed.conninfo();
        if let Some(newest) = followed.newest() {
            let oldest = self.topology.timeline();
            (standby.timeline, standby.exact) = (known.min(newest.max(1)), newest < oldest);
        }
        if !*paused {
            standby.replay = match followed.idle {
                Some(true) => Replay::Done,
                _ if followed.delayed => Replay::Held,
                _ => Replay::Busy,
            };
        }
        standby.leads = self.leads(conninfo.as_ref());
        standby.slot = Some(followed.slot)
            .filter(|name| !name.is_empty())
            .map(|name| Slot {
                name,
                state: SlotState::Missing,
            });
        standby.target_timeline = followed.target_timeline;
        Ok((standby, conninfo))
    }

    fn leads(&self, conninfo: Option<&PrimaryConninfo>) -> Leads {
        let Some(conninfo) = conninfo else {
            return Leads::Unreadable;
        };
        if conninfo.is_empty() {
            return Leads::Nowhere;
        }
        let finds = conninfo.finds_the_primary();
        let addresses = conninfo.addresses().unwrap_or_default();
        let address = match addresses.as_slice() {
            [] => return Leads::Unreadable,
            [address] => address,
            _ => return Leads::ToSeveral { finds },
        };
        let Some(other) = at(self.topology, address) else {
            return match finds {
                true => Leads::ToSeveral { finds },
                false => Leads::Elsewhere(address.to_string()),
            };
        };
        let is = |member: &Member| Arc::ptr_eq(&other.node, &member.node);
        let name = other.node.name.clone();
        let ruled = other.role == Some(ServerRole::Primary)
            || other.role.is_none() && other.declared == DeclaredRole::Primary;
        if is(self.member) {
            Leads::Itself
        } else if is(self.primary) {
            Leads::ToTheRuler
        } else if other.role == Some(ServerRole::Standby) && other.is_up() {
            Leads::ToStandby(name)
        } else if ruled && other.timeline < self.topology.timeline() {
            Leads::ToTheReplaced
        } else {
            Leads::ToUnheard(name)
        }
    }

    async fn repoint(
        &self,
        there: &mut ReplicationConnection,
        conninfo: &PrimaryConninfo,
        (grants, version): (&Grants, u32),
    ) -> Result<Outcome, String> {
        let settings = self.primary.node.pool.connector().settings();
        let name = &self.primary.node.name;
        let Some(address) = settings.replication_address() else {
            return Ok(Outcome::Left(format!(
                "this pool reaches `{name}` by a socket: say by `NodeConfig::replication_address` where standbys reach it"
            )));
        };
        let Some(next) = conninfo.leading_to(&address) else {
            return Ok(Outcome::Left(Left::Unreadable.to_string()));
        };
        let node = (&*self.member.node, self.database);
        match there.follow(node, &next, (grants, version)).await {
            Ok(()) => Ok(Outcome::Told),
            Err(cause) => Ok(Outcome::Left(format!("it could not be told: {cause}"))),
        }
    }
}

/// The node at this address.
fn at<'t>(topology: &'t Topology, address: &Address) -> Option<&'t Member> {
    let Address {
        host,
        hostaddr,
        port,
    } = address;
    let texts: Vec<String> = [Some(host), hostaddr.as_ref()]
        .into_iter()
        .flatten()
        .map(|host| format!("{host}:{port}"))
        .collect();
    let is_said = |member: &&Member| {
        let settings = member.node.pool.connector().settings();
        settings.replication.is_some_and(|its| {
            its.port == *port && (its.host == *host || Some(&its.host) == hostaddr.as_ref())
        })
    };
    let is_reached = |member: &&Member| {
        let settings = member.node.pool.connector().settings();
        let around = settings.monitor.as_ref().map(|monitor| &monitor.host);
        let hosts = [Some(&settings.host), around];
        let mut hosts = hosts.into_iter().flatten();
        hosts.any(|host| texts.iter().any(|text| host.is_at(text)))
    };
    // As the server itself sees its address.
    let is_seen = |member: &&Member| {
        let run = member.run.filter(|run| run.port == i32::from(*port));
        let seen = run.and_then(|run| run.address);
        let given = [Some(host), hostaddr.as_ref()].into_iter().flatten();
        let mut given = given.filter_map(|text| text.parse().ok());
        seen.is_some_and(|seen| given.any(|ip: std::net::IpAddr| ip == seen))
    };
    let members = || topology.members.iter();
    let found = members()
        .find(is_said)
        .or_else(|| members().find(is_reached));
    let found = found.or_else(|| {
        let mut seen = topology.servers().filter(is_seen);
        let one = seen.next();
        one.filter(|_| seen.next().is_none())
    })?;
    match &found.twin {
        Some(twin) => topology.member(twin),
        None => Some(found),
    }
}
