//! One node of a topology, and all that is known of it.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::config::{DeclaredRole, HealthConfig};
use crate::consistency::Reports;
use crate::election::{Sight, Standing};
use crate::health::{Apart, Health, Signal};
use crate::node::{Facts, Node, Place, Receiver, Run};
use crate::route::NodeKind;
use crate::status::{NodeHealth, Transition};
use crate::wire::ServerRole;

/// Describes a node whose name leads to several servers.
pub(super) const SEVERAL_SERVERS: &str = "replica whose name leads to several servers, so each connection is asked itself what it \
     shows: give each server its own host name";

/// How many transitions of a node are kept.
const REMEMBERED: usize = 16;

/// How long a standby may take to follow a new primary. A receiver that finds nobody tries again after
/// `wal_retrieve_retry_interval`, 5 seconds by default.
pub(super) const MOMENT: Duration = Duration::from_secs(6);

/// If new connections go back to an earlier start of a server twice within this time, the name leads to several servers.
const AT_ONCE: Duration = Duration::from_secs(60);

/// How long the pool remembers that a name leads to several servers.
const SEVERAL: Duration = Duration::from_secs(600);

/// Whether a standby gets the primary's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Feeding {
    Current,
    /// That is not known.
    Doubtful,
    /// Its log is the primary's, and it gets no more of it.
    Unfed,
    /// It cannot get it any more.
    Never,
}

/// What the pool remembers of a standby, beside what the standby reports.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Followed {
    /// It was once on the primary's timeline.
    pub(super) current: bool,
    /// Since when it has got no more of the primary's log.
    pub(super) unfed: Option<Instant>,
    /// Since when its log has been in doubt.
    doubtful: Option<Instant>,
    /// The pool has told that.
    pub(super) told: bool,
}

impl Followed {
    pub(super) fn note(&mut self, feeding: Feeding, began: bool, now: Instant) {
        let since = |is: bool, known: Option<Instant>| is.then(|| known.unwrap_or(now));
        self.unfed = since(feeding == Feeding::Unfed, self.unfed);
        self.doubtful = since(feeding == Feeding::Doubtful, self.doubtful);
        self.told &= self.doubtful.is_some();
        self.current |= began && feeding == Feeding::Current;
    }

    /// Whether it has been in doubt for long enough to tell that, and the pool has not.
    pub(super) fn is_untold(&self) -> bool {
        let long = |since: Instant| since.elapsed() >= MOMENT;
        !self.told && self.doubtful.is_some_and(long)
    }
}

/// One node and all that is known of it.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) node: Arc<Node>,
    /// The cell with its last report. It changes more often than the topology.
    pub(crate) reports: Arc<Reports>,
    pub(crate) declared: DeclaredRole,
    /// The role that the server last reported.
    pub(crate) role: Option<ServerRole>,
    pub(crate) health: Health,
    /// The system identifier that it reported.
    pub(crate) cluster: Option<u64>,
    /// Which run of which server it is.
    pub(super) run: Option<Run>,
    /// The runs that new connections led to, in the order in which these were opened.
    led: Vec<(Instant, Run)>,
    /// The servers that its name was seen to lead to, each when it was last seen.
    seen: Vec<(Instant, Run)>,
    /// When its name was last found to lead to several servers.
    several: Option<Instant>,
    /// The database that its connections are to.
    pub(super) database: Option<Arc<str>>,
    /// The database of the other nodes, if this node's is another.
    pub(super) elsewhere: Option<Arc<str>>,
    /// Another name of the same server. The pool uses that one.
    pub(super) twin: Option<Arc<Node>>,
    /// The timeline that it reported; 0 while that is not known.
    pub(crate) timeline: u32,
    /// It has log that the primary lost, and cannot follow the primary.
    pub(crate) diverged: bool,
    /// It takes no writes yet: transactions are read only by default there.
    pub(crate) fenced: bool,
    /// Whether and since when it does not follow the primary.
    pub(super) followed: Followed,
    /// What it is among the others, by the last election.
    pub(crate) standing: Standing,
    /// Whom it receives from, as `host:port`.
    pub(crate) sender: Option<String>,
    /// Its replay is paused.
    pub(crate) paused: bool,
    /// Its last transitions, the oldest first.
    pub(crate) transitions: Arc<[Transition]>,
    /// The weight that was set while the pool runs. It wins over the configured one.
    pub(crate) set_weight: Option<u32>,
}

impl Member {
    pub(crate) fn new(node: Arc<Node>, declared: DeclaredRole) -> Self {
        Self {
            node,
            reports: Reports::new(),
            declared,
            role: None,
            health: Health::default(),
            cluster: None,
            run: None,
            led: Vec::new(),
            seen: Vec::new(),
            several: None,
            database: None,
            elsewhere: None,
            twin: None,
            timeline: 0,
            diverged: false,
            fenced: false,
            followed: Followed::default(),
            standing: Standing::Unknown,
            sender: None,
            paused: false,
            transitions: Arc::default(),
            set_weight: None,
        }
    }

    /// Whether it is the primary or a replica. `None` if it serves nothing.
    pub(crate) fn kind(&self) -> Option<NodeKind> {
        match self.standing {
            Standing::Primary => Some(NodeKind::Primary),
            Standing::Replica => Some(NodeKind::Replica),
            _ => None,
        }
    }

    /// Its weight in the choice of a node for a read. The primary takes part only if it was given a weight.
    pub(crate) fn weight(&self) -> u32 {
        let role = match self.kind() {
            Some(NodeKind::Primary) => DeclaredRole::Primary,
            Some(NodeKind::Replica) | None => DeclaredRole::Replica,
        };
        let settings = &self.node.pool.connector().settings;
        self.set_weight.unwrap_or_else(|| settings.weight_as(role))
    }

    /// Whether it is chosen for a read while other nodes are there.
    pub(crate) fn is_preferred(&self, config: &HealthConfig) -> bool {
        self.share(config) > 0.0
    }

    /// How much of its weight counts.
    pub(crate) fn share(&self, config: &HealthConfig) -> f64 {
        if self.health.is_sound() {
            return 1.0;
        }
        self.health.share(config, Instant::now())
    }

    pub(crate) fn is_up(&self) -> bool {
        self.health.is_up()
    }

    /// Whether a connection with this run leads to another server than the one that reports. Then a report says nothing
    /// of what the connection shows.
    pub(crate) fn is_another_server(&self, run: Option<Run>) -> bool {
        let facts = self.reports.facts();
        let reported = facts.and_then(|facts| facts.run).or(self.run);
        Run::differ(run, reported)
    }

    /// Whether it is up and can serve something.
    pub(crate) fn is_of_use(&self) -> bool {
        self.is_up() && self.kind().is_some()
    }

    /// Whether nothing is read there while it is a replica.
    pub(crate) fn no_reads(&self) -> bool {
        self.node.pool.connector().settings.no_reads
    }

    /// Whether it may serve [`Eventual`](crate::Consistency::Eventual) reads.
    pub(crate) fn is_usable_replica(&self) -> bool {
        self.is_serving_replica() && !self.no_reads()
    }

    /// Whether it may serve reads that ask for its tag.
    pub(crate) fn is_serving_replica(&self) -> bool {
        self.kind() == Some(NodeKind::Replica) && self.health.serves()
    }

    /// Whether its WAL is the primary's. Every read except `Eventual` needs this.
    pub(crate) fn is_trusted(&self) -> bool {
        self.health.is_trusted()
    }

    /// The same server, reached in another way.
    pub(super) fn at(&self, other: &Self) -> Self {
        Self {
            node: Arc::clone(&other.node),
            declared: other.declared,
            ..self.clone()
        }
    }

    /// Whether this is the run that it reported, if both are known.
    pub(super) fn is_run(&self, run: Option<Run>) -> bool {
        run.is_some() && self.run == run
    }

    /// Whether its name leads to several servers, as that of a load balancer does. What one of them reports says nothing
    /// of the others: each connection is asked itself.
    pub(crate) fn leads_to_several(&self) -> bool {
        self.several.is_some_and(|since| since.elapsed() < SEVERAL)
    }

    /// Whether its name leads to several servers, or was lately seen to lead to another one than now.
    pub(super) fn has_led_elsewhere(&self) -> bool {
        // One that was restarted is where it was.
        let place = |run: Run| (run.port, run.address);
        let is_here = |run: Run| {
            self.run
                .is_some_and(|here| here == run || place(here) == place(run))
        };
        let mut seen = self.seen.iter();
        let elsewhere = seen.any(|(at, run)| at.elapsed() < SEVERAL && !is_here(*run));
        self.leads_to_several() || elsewhere
    }

    /// The servers that its name leads to, as far as that is known.
    pub(crate) fn servers(&self) -> Vec<String> {
        let several = self.leads_to_several();
        let others = self.seen.iter().map(|(_, run)| *run);
        let others = others.filter(|run| several && self.run != Some(*run));
        let all = self.run.into_iter().chain(others);
        all.map(|run| run.to_string()).collect()
    }

    /// Whether that was found so long ago that it should be found again.
    pub(crate) fn led_to_several(&self) -> bool {
        self.several
            .is_some_and(|since| since.elapsed() > SEVERAL / 2)
    }

    /// A connection was opened then, and led to this run. A server that is restarted has a later start than before.
    /// One with an earlier start is another server.
    pub(super) fn led_to(&mut self, run: Run, opened: Instant) {
        self.seen
            .retain(|(at, seen)| at.elapsed() < SEVERAL && *seen != run);
        self.seen.push((Instant::now(), run));
        if self.leads_to_several() && self.run != Some(run) {
            self.several = Some(Instant::now());
            return;
        }
        self.led.retain(|(at, _)| at.elapsed() < AT_ONCE);
        let place = self.led.partition_point(|(at, _)| *at <= opened);
        let around = self.led[..place]
            .last()
            .into_iter()
            .chain(self.led.get(place));
        if around.clone().any(|(_, beside)| *beside == run) {
            return;
        }
        self.led.insert(place, (opened, run));
        let goes_back = |pair: &&[(Instant, Run)]| pair[1].1.started < pair[0].1.started;
        if self.led.windows(2).filter(goes_back).count() > 1 {
            self.several = Some(Instant::now());
            self.led.clear();
        }
    }

    /// Notes what its server reported. Returns whether that is news.
    pub(crate) fn note(&mut self, facts: &Facts) -> bool {
        let role = match facts.place {
            Place::Primary { .. } => ServerRole::Primary,
            Place::Standby { .. } => ServerRole::Standby,
        };
        let (sender, paused) = match &facts.place {
            Place::Standby {
                receiver, paused, ..
            } => (receiver.as_ref().and_then(Receiver::followed), *paused),
            Place::Primary { .. } => (None, false),
        };
        // A standby that receives nothing reports the timeline of its last restartpoint. It was on a newer one if it
        // said so.
        let cluster = facts.cluster.or(self.cluster);
        let same = (self.role, self.cluster) == (Some(role), cluster);
        let timeline = match role {
            ServerRole::Standby if same => facts.timeline.max(self.timeline),
            _ => facts.timeline,
        };
        let told = (Some(role), cluster, timeline);
        let known = (self.role, self.cluster, self.timeline);
        let news = told != known
            || facts.run.is_some_and(|run| self.run != Some(run))
            || facts.database.is_some() && self.database != facts.database
            || sender != self.sender
            || paused != self.paused
            || facts.fenced != self.fenced;
        self.fenced = facts.fenced;
        if let Some(run) = facts.run.filter(|run| self.run != Some(*run)) {
            // It was found over a new connection.
            self.led_to(run, Instant::now());
            self.run = Some(run);
        }
        self.database = facts.database.clone().or(self.database.take());
        (self.role, self.cluster, self.timeline) = told;
        (self.sender, self.paused) = (sender, paused);
        news
    }

    /// Notes what was heard of it, and keeps the transition.
    pub(crate) fn hear(&mut self, signal: Signal, config: &HealthConfig) {
        let from = self.health.kind();
        self.health.hear(signal, config, Instant::now());
        self.became(from);
    }

    /// Notes how its log compares with the primary's.
    pub(super) fn judged(&mut self, apart: Option<(Apart, Arc<str>)>) {
        let kind = |apart: Option<&(Apart, Arc<str>)>| apart.map(|(kind, _)| *kind);
        self.diverged = kind(apart.as_ref()) == Some(Apart::Diverged);
        // The words change with each position; the kind does not.
        if kind(apart.as_ref()) != kind(self.health.apart()) {
            let from = self.health.kind();
            self.health.set_apart(apart);
            self.became(from);
        }
    }

    /// Keeps the transition, if it was something else before.
    fn became(&mut self, from: NodeHealth) {
        let to = self.health.kind();
        if from != to {
            let kept = self.transitions.len().saturating_sub(REMEMBERED - 1);
            let transition = Transition {
                at: SystemTime::now(),
                from,
                to,
                cause: self.health.cause(),
            };
            let earlier = self.transitions.iter().skip(kept).cloned();
            self.transitions = earlier.chain([transition]).collect();
        }
    }

    /// Whether its server has reported anything.
    pub(super) fn has_reported(&self) -> bool {
        self.run.is_some() || self.reports.facts().is_some()
    }

    /// What the election sees of it.
    pub(super) fn sight(&self) -> Sight {
        Sight {
            declared: self.declared,
            role: self.role,
            asked: self.health.is_asked(),
            reachable: !self.health.is_down(),
            cluster: self.cluster,
            timeline: self.timeline,
            twin: self.twin.is_some(),
            elsewhere: self.elsewhere.is_some(),
        }
    }

    /// For error messages and reports.
    pub(crate) fn describe(&self) -> String {
        let name = &self.node.name;
        let what = self.what();
        match (self.health.kind(), self.health.cause()) {
            (NodeHealth::Unknown, _) => format!("`{name}`: {what}, not reached yet"),
            (health, None) => format!("`{name}`: {what}, {health}"),
            (health, Some(cause)) => format!("`{name}`: {what}, {health}: {cause}"),
        }
    }

    /// What it is among the others, in words.
    pub(crate) fn what(&self) -> String {
        let timeline = self.timeline;
        match (self.standing, self.declared) {
            (Standing::Replica, DeclaredRole::Primary) => {
                "declared the primary, but is a standby".to_owned()
            }
            (Standing::Replica, _) if self.leads_to_several() => SEVERAL_SERVERS.to_owned(),
            (Standing::Replica, _) if self.diverged => {
                "replica that is ahead of the primary and cannot follow it".to_owned()
            }
            (Standing::Replica, _) => NodeKind::Replica.to_string(),
            (Standing::Primary, _) if self.fenced => {
                "primary that takes no writes yet: `default_transaction_read_only` is on there"
                    .to_owned()
            }
            (Standing::Primary, DeclaredRole::Replica) => {
                "primary, though declared a replica".to_owned()
            }
            (Standing::Primary, _) => NodeKind::Primary.to_string(),
            (Standing::Candidate, _) => {
                "takes writes; whether it is the primary is not known yet".to_owned()
            }
            (Standing::Rival, _) => {
                format!("takes writes, and so does another node on timeline {timeline}")
            }
            (Standing::Superseded { newest }, _) => {
                format!("primary of timeline {timeline}, and the cluster has gone on to {newest}")
            }
            (Standing::Foreign, _) => {
                "of another cluster: the pool goes over to that when every node leads there"
                    .to_owned()
            }
            (Standing::Twin, _) => {
                let other = self.twin.as_ref().map_or("another", |other| &other.name);
                format!("the same server as `{other}`, under another name: remove one of them")
            }
            (Standing::Elsewhere, _) => {
                let (its, ours) = (self.database.as_deref(), self.elsewhere.as_deref());
                let (its, ours) = (its.unwrap_or_default(), ours.unwrap_or_default());
                format!(
                    "connected to database `{its}`, where the others are to `{ours}`: correct its URL"
                )
            }
            (Standing::Unknown, _) => "role not known".to_owned(),
        }
    }
}
