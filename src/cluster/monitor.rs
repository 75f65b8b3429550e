//! The task that watches one node: it asks where the node is in the log, seldom, unless somebody waits.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use diesel::QueryResult;
use futures_util::FutureExt;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use super::command::Command;
use super::lineage::Judge;
use super::liveness::Liveness;
use super::marks::Marks;
use super::member::Member;
use super::topology::Topology;
use crate::config::{COMMIT_MARKER_SQL, CommitResolution, Config, Durability};
use crate::consistency::{NewTimeline, Reports, WriteLog};
use crate::node::{Facts, MonitorConnection, Node, Place, Run, Trouble};
use crate::position::{Lsn, Position, Sample};

/// How often every node is asked while none takes writes. One of them may just be promoted.
const URGENT: Duration = Duration::from_millis(20);

/// How often a standby is looked at over a new connection while no primary is known.
const LOOK_ANEW: Duration = Duration::from_secs(1);

/// How many different causes are told of one node.
const CAUSES: usize = 64;

/// How many times a standby in doubt is asked at that pace.
const DOUBTS: u32 = 250;

/// How often the primary is asked while writes go on and nobody waits.
const SPACING: Duration = Duration::from_millis(4);

/// How long after the last write the replicas are asked once. Who writes and then reads finds the answer there.
const SETTLED: Duration = Duration::from_millis(1);

/// How many times a node is asked without a pause while somebody waits. Replay usually takes a fraction of a
/// millisecond. Then each question comes after a [`PAUSE`].
const EAGER: u32 = 8;
const PAUSE: Duration = Duration::from_millis(1);

/// How long a node is left alone that could not be asked.
const RETRY: Duration = Duration::from_millis(250);

/// How often the primary is asked whether the code in the database has changed.
const CODE: Duration = Duration::from_millis(500);

/// How often the monitor asks for what seldom changes.
const IDENTITY: Duration = Duration::from_secs(5);

/// What all monitors share.
#[derive(Clone)]
pub(super) struct Surroundings {
    pub(super) pulse: Arc<Liveness>,
    pub(super) write_log: Arc<WriteLog>,
    pub(super) marks: Arc<Marks>,
    pub(super) topology: watch::Receiver<Arc<Topology>>,
    pub(super) commands: mpsc::WeakSender<Command>,
    pub(super) config: Arc<Config>,
}

/// How often old markers of commits are removed.
const SWEEP: Duration = Duration::from_secs(60);

pub(super) struct Monitor {
    node: Arc<Node>,
    pulse: Arc<Liveness>,
    reports: Arc<Reports>,
    write_log: Arc<WriteLog>,
    marks: Arc<Marks>,
    topology: watch::Receiver<Arc<Topology>>,
    commands: mpsc::WeakSender<Command>,
    config: Arc<Config>,
    /// An idle primary writes a little, so that its standbys hear of it.
    heartbeat: bool,
    swept: Instant,
    /// The monitor has looked whether the table of markers is there.
    looked: bool,
    /// When it last looked for the primary over a new connection.
    looked_anew: Instant,
    /// Where the node was when it was last a standby, and which run of which server that was.
    replayed: (Option<Run>, Lsn),
    /// The run of the server that this connection reported.
    run: Option<Run>,
    /// The newest timeline that the node reported over this connection.
    timeline: u32,
    /// The primary of this timeline did transactions that the node does not show.
    lacks: u32,
    /// How many times it was asked while only a [`Mark`](crate::node::Mark) could tell of it.
    in_doubt: u32,
    /// The missing rights and the causes that were already told.
    told: BTreeSet<String>,
    /// How many questions were asked since somebody waits.
    eager: u32,
    identified: Instant,
    /// When the primary was last asked how many times its code has changed, and the answer. `None` if it may not be
    /// asked.
    code: Option<(Instant, Option<i64>)>,
    looked_at_commits: Instant,
    /// When the monitor last looked whether a heartbeat is due, and where the primary was.
    beaten: (Instant, Lsn),
    /// The last answer covers writes that the one before did not.
    fresh: AtomicBool,
    upto: u64,
}

impl Monitor {
    pub(super) fn new(node: Arc<Node>, reports: Arc<Reports>, around: Surroundings) -> Self {
        Self {
            node,
            pulse: around.pulse,
            reports,
            write_log: around.write_log,
            marks: around.marks,
            topology: around.topology,
            commands: around.commands,
            heartbeat: keeps_witnesses(&around.config),
            config: around.config,
            swept: Instant::now(),
            looked: false,
            looked_anew: Instant::now(),
            replayed: (None, Lsn(0)),
            run: None,
            timeline: 0,
            lacks: 0,
            in_doubt: 0,
            told: BTreeSet::new(),
            eager: 0,
            identified: Instant::now(),
            code: Some((Instant::now(), None)),
            looked_at_commits: Instant::now(),
            beaten: (Instant::now(), Lsn(0)),
            fresh: AtomicBool::new(false),
            upto: 0,
        }
    }

    /// Watches until the node has left the pool.
    pub(super) async fn run(mut self) {
        let lifetime = Arc::clone(&self.node.pool.connector().lifetime);
        loop {
            self.pulse.beat();
            let watching = AssertUnwindSafe(self.watch()).catch_unwind();
            tokio::select! {
                () = lifetime.over() => return,
                watched = watching => if watched.is_err() {
                    let node = &self.node.name;
                    tracing::error!(target: "diesel_replicated", node, "task_died");
                }
            }
            sleep(RETRY).await;
        }
    }

    /// Follows the node until it cannot be asked any more.
    async fn watch(&mut self) {
        let node = Arc::clone(&self.node);
        let up = |topology: &Arc<Topology>| topology.member(&node).is_some_and(Member::is_up);
        self.pulse.rest();
        if self.topology.wait_for(up).await.is_err() {
            // The manager has ended, and this task ends with it.
            return std::future::pending().await;
        }
        self.pulse.beat();
        let failed = match MonitorConnection::open(&self.node, || self.reports.answered()).await {
            Ok(mut monitor) => {
                self.identified = Instant::now();
                // The server may have been restarted or rebuilt.
                (self.timeline, self.lacks, self.in_doubt) = (0, 0, 0);
                self.run = None;
                self.tell_limits(&monitor);
                self.follow(&mut monitor).await
            }
            Err(error) => error.to_string(),
        };
        // That tells whoever asked them.
        drop(self.reports.take_questions());
        self.tell_loss(failed);
    }

    /// Warns once of each missing right.
    fn tell_limits(&mut self, monitor: &MonitorConnection) {
        let limits = monitor.limits();
        self.reports.limit(limits);
        self.node.pool.connector().ask_for_its_run_again();
        let node = &self.node.name;
        for limit in &**limits {
            if self.told.insert(limit.right.clone()) {
                let (needed, cause, grant) = (&limit.right, limit.costs, &limit.grant);
                tracing::warn!(target: "diesel_replicated", node, needed, cause, grant, "right_missing");
            }
        }
    }

    /// Tells why the node cannot be asked: once for each cause at warn while the node is up.
    fn tell_loss(&mut self, cause: String) {
        let node = &self.node.name;
        let up = self
            .topology
            .borrow()
            .member(&self.node)
            .is_some_and(Member::is_up);
        let few = self.told.len() < CAUSES;
        // It failed twice in a row, so it does not pass by itself.
        let again = self.reports.failed(Some(&cause));
        if up && again && few && self.told.insert(cause.clone()) {
            tracing::warn!(target: "diesel_replicated", node, cause, "monitor_failed");
        } else {
            tracing::debug!(target: "diesel_replicated", node, cause, "monitor_lost");
        }
    }

    /// Asks again and again. Returns why it ended.
    async fn follow(&mut self, monitor: &mut MonitorConnection) -> String {
        loop {
            if let Err(cause) = self.round(monitor).await {
                return cause;
            }
        }
    }

    async fn round(&mut self, monitor: &mut MonitorConnection) -> Result<(), String> {
        self.pulse.beat();
        let asked = Instant::now();
        let upto = self.write_log.drawn();
        let question = self.reports.asks();
        match self.answer(monitor.ask()).await? {
            Some(mut facts) => {
                let took = asked.elapsed();
                self.still_leads_there(&facts)?;
                self.place(monitor, &mut facts).await?;
                self.end_of_log(monitor, &mut facts).await?;
                self.reports.said(facts.clone(), took);
                let fork = self.fork(monitor, &facts).await;
                self.note(&facts, fork.clone());
                self.look_for_the_primary(&facts);
                self.publish(monitor, &facts, (upto, asked, question), fork);
            }
            None => self.reports.answered(),
        }
        for question in self.reports.take_questions() {
            let over = self.answer(monitor.over(question.transactions)).await?;
            let _ = question.answer.send((over, Arc::clone(monitor.wire())));
        }
        self.pause(asked).await;
        self.beat(monitor).await?;
        self.tend_markers(monitor).await?;
        self.look_at_code(monitor).await?;
        self.look_at_commits(monitor).await?;
        if !self.reports.is_wanted() && self.identified.elapsed() > IDENTITY {
            self.identified = Instant::now();
            self.answer(monitor.identify()).await?;
            self.tell_limits(monitor);
        }
        Ok(())
    }

    /// While no primary is known, the name of a standby may have been given to the primary. This connection would not
    /// notice, as it stays with the standby.
    fn look_for_the_primary(&mut self, facts: &Facts) {
        let missing = self.topology.borrow().primary().is_none();
        if missing
            && matches!(facts.place, Place::Standby { .. })
            && self.looked_anew.elapsed() > LOOK_ANEW
        {
            self.looked_anew = Instant::now();
            self.tell(Command::LookAnew {
                node: Arc::clone(&self.node),
            });
        }
    }

    /// Whether nobody has found another server at this node's name since this connection has told which one it leads
    /// to. Else a new connection has to tell.
    fn still_leads_there(&mut self, facts: &Facts) -> Result<(), String> {
        let topology = self.topology.borrow();
        let known = topology.member(&self.node).and_then(|member| member.run);
        let told = self.run.is_some() && self.run == facts.run;
        if told && Run::differ(known, facts.run) {
            return Err("its name leads to another server now".to_owned());
        }
        self.run = facts.run.filter(|_| known == facts.run);
        Ok(())
    }

    /// The answer, or why the node cannot be followed any more.
    async fn answer<T>(&self, asking: impl Future<Output = QueryResult<T>>) -> Result<T, String> {
        match timeout(self.config.health.timeout, asking).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(self.silent()),
        }
    }

    /// The same for a question that this role may not ask. A refusal by the server is an answer, too.
    async fn answer_or_refusal<T>(
        &self,
        monitor: &mut MonitorConnection,
        asking: impl AsyncFnOnce(&mut MonitorConnection) -> QueryResult<T>,
    ) -> Result<QueryResult<T>, String> {
        match timeout(self.config.health.timeout, asking(monitor)).await {
            Ok(Err(error)) if !monitor.wire().is_usable() => Err(error.to_string()),
            Ok(answer) => Ok(answer),
            Err(_) => Err(self.silent()),
        }
    }

    /// Completes what a node reports: on which timeline a standby is, and whether it shows the mark. Makes a mark on
    /// a primary, if one is wanted.
    async fn place(
        &mut self,
        monitor: &mut MonitorConnection,
        facts: &mut Facts,
    ) -> Result<(), String> {
        self.reports.failed(None);
        if matches!(facts.place, Place::Primary { .. }) {
            return self.mark(monitor, facts.timeline).await;
        }
        // It never goes back while the server runs.
        self.timeline = self.timeline.max(facts.timeline);
        facts.timeline = self.timeline;
        let newest = self.topology.borrow().timeline();
        if !self.judge().needs_proof(facts, newest) {
            self.in_doubt = 0;
        } else if let Some(mark) = self.marks.of(newest) {
            self.in_doubt += 1;
            let shows = async |monitor: &mut MonitorConnection| monitor.shows(&mark).await;
            match self.answer_or_refusal(monitor, shows).await? {
                Ok(true) => self.timeline = newest,
                Ok(false) => {
                    let replayed = match facts.place {
                        Place::Standby { replayed, .. } => replayed,
                        Place::Primary { .. } => None,
                    };
                    // A standby with this log would show the mark.
                    if replayed.is_some_and(|replayed| replayed >= mark.end) {
                        self.lacks = newest;
                    }
                }
                // The standby stays in doubt.
                Err(_) => {}
            }
        } else {
            self.in_doubt += 1;
            if let Some(primary) = self.topology.borrow().primary() {
                primary.reports.nudge();
            }
        }
        facts.timeline = self.timeline;
        if let Place::Standby { lacks, .. } = &mut facts.place {
            *lacks = self.lacks;
        }
        Ok(())
    }

    /// Without a primary, asks a standby for the end of its log that what it has received does not tell.
    async fn end_of_log(
        &self,
        monitor: &mut MonitorConnection,
        facts: &mut Facts,
    ) -> Result<(), String> {
        let there = self.topology.borrow().primary_is_up();
        if there || !facts.place.hides_its_end() {
            return Ok(());
        }
        let asked = async |monitor: &mut MonitorConnection| monitor.replayed_all().await;
        if let Ok(Some(end)) = self.answer_or_refusal(monitor, asked).await? {
            facts.place.ends_at(end);
        }
        Ok(())
    }

    /// Makes a mark: transactions that only the standbys of this primary show.
    async fn mark(&mut self, monitor: &mut MonitorConnection, timeline: u32) -> Result<(), String> {
        if timeline == 0 || !self.is_primary() || !self.marks.is_wanted(timeline) {
            return Ok(());
        }
        let made = async |monitor: &mut MonitorConnection| monitor.mark().await;
        let mark = match self.answer_or_refusal(monitor, made).await? {
            Ok(mark) => mark.filter(|mark| mark.timeline == timeline),
            Err(error) => {
                let node = &self.node.name;
                tracing::warn!(target: "diesel_replicated", node, %error, "mark_failed");
                None
            }
        };
        self.marks.made(timeline, mark);
        let topology = self.topology.borrow();
        for replica in topology.replicas() {
            replica.reports.nudge();
        }
        Ok(())
    }

    /// Removes old markers of commits. Tells once if there is no table for them.
    async fn tend_markers(&mut self, monitor: &mut MonitorConnection) -> Result<(), String> {
        let marks = self.config.commit_resolution == CommitResolution::Marker;
        if !marks || !self.is_primary() {
            return Ok(());
        }
        let limit = self.config.health.timeout;
        if !self.looked {
            self.looked = true;
            if let Ok(Ok(false)) = timeout(limit, monitor.has_markers()).await {
                let (node, needed) = (&self.node.name, COMMIT_MARKER_SQL);
                tracing::warn!(target: "diesel_replicated", node, needed, "commit_marker_missing");
            }
        }
        if self.swept.elapsed() > SWEEP {
            self.swept = Instant::now();
            // If it fails, it is tried again later.
            if timeout(limit, monitor.sweep()).await.is_err() {
                return Err(self.silent());
            }
        }
        Ok(())
    }

    fn judge(&self) -> Judge<'_> {
        Judge {
            write_log: &self.write_log,
        }
    }

    /// Tells when the code in the database has changed, also by another process's migration.
    async fn look_at_code(&mut self, monitor: &mut MonitorConnection) -> Result<(), String> {
        let Some((last, known)) = self.code else {
            return Ok(());
        };
        if last.elapsed() < CODE || !self.is_primary() {
            return Ok(());
        }
        let ask = async |monitor: &mut MonitorConnection| monitor.code_changes().await;
        match self.answer_or_refusal(monitor, ask).await? {
            Ok(changes) => {
                self.code = Some((Instant::now(), Some(changes)));
                if known != Some(changes) {
                    self.tell(Command::CodeChanged { changes });
                }
            }
            Err(_) => self.code = None,
        }
        Ok(())
    }

    /// Looks whether commits wait for a synchronous standby.
    async fn look_at_commits(&mut self, monitor: &mut MonitorConnection) -> Result<(), String> {
        if self.looked_at_commits.elapsed() < self.config.health.interval {
            return Ok(());
        }
        self.looked_at_commits = Instant::now();
        let standbys = self.write_log.with(|view| view.synchronous_standbys);
        let wait = if standbys.unwrap_or_default() > 0 && self.is_primary() {
            let ask = async |monitor: &mut MonitorConnection| monitor.commits_wait().await;
            self.answer_or_refusal(monitor, ask).await?.unwrap_or(None)
        } else {
            None
        };
        self.reports.commits_wait(wait);
        Ok(())
    }

    /// Has an idle primary write a little, if that is wanted.
    async fn beat(&mut self, monitor: &mut MonitorConnection) -> Result<(), String> {
        let (last, place) = self.beaten;
        if !self.heartbeat || last.elapsed() < self.config.health.interval || !self.is_primary() {
            return Ok(());
        }
        let latest = self.write_log.with(|view| view.history.latest().copied());
        let now = latest.map_or(place, |sample| sample.flushed);
        self.beaten = (Instant::now(), now);
        if now != place {
            return Ok(());
        }
        let beat = async |monitor: &mut MonitorConnection| monitor.heartbeat().await;
        if let Err(error) = self.answer_or_refusal(monitor, beat).await? {
            // Then only the receivers' own keepalives tell standbys that the primary lives.
            let node = &self.node.name;
            tracing::warn!(target: "diesel_replicated", node, %error, "heartbeat_failed");
            self.heartbeat = false;
        }
        Ok(())
    }

    /// Tells the manager that the node does not answer. Returns the cause.
    fn silent(&self) -> String {
        let cause = format!("no answer within {:?}", self.config.health.timeout);
        self.tell(Command::Trouble {
            node: Arc::clone(&self.node),
            trouble: Trouble::Silent(cause.clone()),
        });
        cause
    }

    fn publish(
        &mut self,
        monitor: &MonitorConnection,
        facts: &Facts,
        (upto, asked, question): (u64, Instant, u64),
        timeline: Option<NewTimeline>,
    ) {
        let wire = monitor.wire();
        match facts.place {
            Place::Primary {
                flushed: Some(flushed),
                inserted: Some(inserted),
                synchronous_standbys,
            } => {
                if !self.is_primary() {
                    return;
                }
                // What the primary shows may not be on its disk yet.
                let shown = Position::new(facts.timeline, inserted);
                self.reports
                    .showed(shown, &facts.place, (question, asked), wire);
                let sample = Sample {
                    upto,
                    asked,
                    reached: Instant::now(),
                    timeline: facts.timeline,
                    flushed,
                    inserted,
                };
                self.fresh.fetch_or(upto > self.upto, Ordering::Relaxed);
                self.upto = upto;
                self.note_synchronous(synchronous_standbys);
                let cluster = (facts.cluster, synchronous_standbys);
                let learns = timeline.is_some();
                self.write_log.publish(cluster, sample, timeline);
                if learns {
                    self.tell(Command::Judge);
                }
            }
            Place::Standby {
                replayed: Some(replayed),
                ..
            } => {
                self.replayed = (facts.run, replayed);
                let cluster = self.write_log.with(|view| view.cluster);
                let ours = |cluster| facts.cluster.is_none_or(|its| its == cluster);
                if cluster.is_none_or(ours) && facts.timeline != 0 {
                    let shown = Position::new(facts.timeline, replayed);
                    self.reports
                        .showed(shown, &facts.place, (question, asked), wire);
                    self.write_log.tell();
                }
            }
            // It may not tell where it is.
            Place::Primary { .. } | Place::Standby { .. } => self.write_log.tell(),
        }
    }

    /// Warns if fewer standbys confirm than there are replicas: then `remote_apply` does not tell which replicas show
    /// the commit.
    fn note_synchronous(&self, standbys: usize) {
        if self.write_log.with(|view| view.synchronous_standbys) == Some(standbys) {
            return;
        }
        let replicas = self.topology.borrow().replicas().count();
        let partial = standbys < replicas;
        if self.config.durability == Some(Durability::RemoteApply) && partial {
            tracing::warn!(target: "diesel_replicated", standbys, replicas, "remote_apply_is_partial");
        }
    }

    /// Waits until the next question.
    async fn pause(&mut self, asked: Instant) {
        if self.reports.is_wanted() {
            self.eager += 1;
            if self.eager < EAGER {
                tokio::task::yield_now().await;
            } else {
                sleep(PAUSE).await;
            }
            return;
        }
        self.eager = 0;
        let primary = self.is_primary();
        tokio::select! {
            () = self.reports.wanted() => {}
            () = self.idle() => {}
            () = self.write_log.written_after(self.upto), if primary => {
                let spaced = tokio::time::sleep_until((asked + SPACING).into());
                tokio::select! {
                    () = self.reports.wanted() => {}
                    () = spaced => {}
                }
            }
        }
    }

    /// Waits until it is time to ask though nothing happened.
    async fn idle(&self) {
        if self.fresh.load(Ordering::Relaxed) {
            sleep(SETTLED).await;
            self.fresh.store(false, Ordering::Relaxed);
            let latest = self.write_log.latest();
            for replica in self.topology.borrow().usable_replicas() {
                let has_it = |latest: &Position| {
                    let replayed = replica.reports.position();
                    replayed.is_some_and(|replayed| replayed.lsn >= latest.lsn)
                };
                if !latest.as_ref().is_some_and(has_it) {
                    replica.reports.nudge();
                }
            }
        }
        if (1..DOUBTS).contains(&self.in_doubt) {
            return sleep(URGENT).await;
        }
        let mut topology = self.topology.clone();
        let newest = topology.borrow().timeline();
        let urgent =
            topology.wait_for(|topology| !topology.takes_writes() || topology.timeline() != newest);
        let _ = timeout(self.config.health.interval, urgent).await;
        if !self.topology.borrow().takes_writes() {
            sleep(URGENT).await;
        }
    }

    fn is_primary(&self) -> bool {
        let topology = self.topology.borrow();
        let primary = topology.primary();
        primary.is_some_and(|member| Arc::ptr_eq(&member.node, &self.node))
    }

    /// Sends the manager what is new in a report.
    fn note(&self, facts: &Facts, fork: Option<NewTimeline>) {
        let news = {
            let topology = self.topology.borrow();
            topology.member(&self.node).is_some_and(|member| {
                member.clone().note(facts)
                    || self
                        .judge()
                        .would_change(member, facts, topology.timeline())
            })
        };
        if news {
            self.tell(Command::Heard {
                node: Arc::clone(&self.node),
                facts: facts.clone(),
                fork,
            });
        }
    }

    fn tell(&self, command: Command) {
        if let Some(commands) = self.commands.upgrade() {
            let _ = commands.try_send(command);
        }
    }

    /// As far as a primary had come before it was promoted. What another server behind the same name had is nothing here.
    fn replayed_by(&self, run: Option<Run>) -> Lsn {
        let (its, replayed) = self.replayed;
        if run.is_some() && its == run {
            replayed
        } else {
            Lsn(0)
        }
    }

    /// How the log of a primary came to be on its timeline, if that timeline is new.
    async fn fork(&self, monitor: &mut MonitorConnection, facts: &Facts) -> Option<NewTimeline> {
        let known = self.write_log.with(|view| view.forks.current());
        if !matches!(facts.place, Place::Primary { .. }) || facts.timeline <= known {
            return None;
        }
        if facts.timeline == 1 {
            return Some(NewTimeline::History(Vec::new()));
        }
        match timeout(
            self.config.health.timeout,
            monitor.timelines(facts.timeline),
        )
        .await
        {
            Ok(Ok(Some(ended))) => Some(NewTimeline::History(ended)),
            // It may not be read.
            _ => Some(NewTimeline::Bounds {
                replayed: self.replayed_by(facts.run),
            }),
        }
    }
}

/// Whether replicas bear witness that the primary lives. For that the primary must write now and then.
fn keeps_witnesses(config: &Config) -> bool {
    #[cfg(feature = "promotion")]
    return config.promotion.automatic;
    #[cfg(not(feature = "promotion"))]
    {
        let _ = config;
        false
    }
}
