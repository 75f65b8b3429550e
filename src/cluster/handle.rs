//! The handle on a cluster that pools and connections share.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::context::TokioContext;
use tokio_util::sync::CancellationToken;

use super::checkout_tracker::CheckoutTracker;
use super::command::Command;
use super::degradation::tell_changes;
use super::manager::{Manager, Parts};
use super::marks::Marks;
use super::member::Member;
use super::node_maker::{NodeMaker, longest_connect_timeout};
use super::oid_cache::OidCache;
#[cfg(feature = "promotion")]
use super::promotion::{Outlook, Promoter, PromotionRequest};
use super::tally::Tally;
use super::topology::Topology;
use crate::classify::{Classifier, Lesson};
use crate::config::{Config, ConsistencyConfig, HealthConfig, NodeSettings, Routing, Settings};
use crate::consistency::{Reports, WriteLog};
use crate::deadline;
use crate::error::Error;
use crate::node::{ConnectHooks, Mark, Node, Trouble, enter, is_ending};
use crate::routing::{Draws, LoadBalancingPolicy};
#[cfg(feature = "promotion")]
use crate::status::Promoted;
use crate::status::{
    Degradation, Degraded, EventBus, EventSender, LearnedStatement, PromotionStatus,
};

/// How many messages to the manager may wait. A failure beyond that is dropped: the next statement that meets it
/// reports it again.
const MESSAGES: usize = 256;

/// A start may take this much longer than the nodes' `connect_timeout`.
const MARGIN: Duration = Duration::from_secs(1);

/// What a cluster is made of.
pub(crate) struct Options {
    pub(crate) settings: Settings,
    pub(crate) hooks: ConnectHooks,
    pub(crate) policy: Arc<dyn LoadBalancingPolicy>,
    pub(crate) runtime: Handle,
}

/// What may change while the pool runs, and is looked at by each statement.
struct AtRunTime {
    /// What reads must see.
    consistency: ConsistencyConfig,
    routing: Routing,
}

impl AtRunTime {
    fn of(config: &Config) -> Self {
        Self {
            consistency: config.consistency.clone(),
            routing: config.routing,
        }
    }
}

/// Everything that the connections of one cluster share.
pub(crate) struct Cluster {
    topology: watch::Receiver<Arc<Topology>>,
    commands: mpsc::Sender<Command>,
    stop: CancellationToken,
    maker: NodeMaker,
    marks: Arc<Marks>,
    at_run_time: RwLock<AtRunTime>,
    /// The routing keeps all reads on the primary. For the manager.
    observes: Arc<AtomicBool>,
    /// Why the list of nodes cannot be followed.
    discovery: Mutex<Option<String>>,
    /// The configuration, without the nodes.
    pub(crate) config: Arc<Config>,
    /// The longest `connect_timeout` of any node.
    settle_limit: Duration,
    pub(crate) classifier: Arc<Classifier>,
    /// The primary's positions.
    pub(crate) write_log: Arc<WriteLog>,
    /// Sends events to whoever listens.
    pub(crate) event_sender: EventSender,
    pub(crate) oids: Arc<OidCache>,
    pub(crate) policy: Arc<dyn LoadBalancingPolicy>,
    pub(crate) draws: Draws,
    pub(crate) tracker: CheckoutTracker,
    pub(crate) tally: Tally,
    pub(crate) runtime: Handle,
    /// What is known of promotions by this process.
    promotion: Arc<Mutex<PromotionStatus>>,
    #[cfg(feature = "promotion")]
    promoter: Promoter,
}

impl Cluster {
    /// Starts the manager, which begins to ask the nodes; waits for nothing.
    #[expect(clippy::too_many_lines, reason = "it only puts parts together")]
    pub(crate) fn start(options: Options) -> Arc<Self> {
        let (Settings { nodes, shared }, runtime) = (options.settings, options.runtime);
        let config = Arc::new(shared);
        let settle_limit = longest_connect_timeout(&nodes);
        let (commands, messages) = mpsc::channel(MESSAGES);
        let known = Arc::clone(&config);
        let maker = NodeMaker::new(options.hooks, known, runtime.clone(), &commands);
        let first = maker.topology(nodes, config.write_quorum);
        let classifier = Arc::new(Classifier::new(&config.functions));
        let (publish, topology) = watch::channel(Arc::new(first));
        let (write_log, oids) = (Arc::<WriteLog>::default(), Arc::<OidCache>::default());
        let (marks, promotion) = (Arc::<Marks>::default(), Arc::default());
        let observes = Arc::new(AtomicBool::new(config.routing == Routing::Observe));
        let (event_bus, stop) = (EventBus::default(), CancellationToken::new());
        let (event_sender, tracker) = (event_bus.event_sender(), CheckoutTracker::new());
        #[cfg(feature = "promotion")]
        let promoter = Promoter {
            topology: topology.clone(),
            commands: commands.downgrade(),
            write_log: Arc::clone(&write_log),
            config: Arc::clone(&config),
            event_sender: event_sender.clone(),
            replacing: Arc::default(),
            outlook: Arc::new(Outlook::in_place(&promotion)),
        };
        let manager = Manager::new(Parts {
            publish,
            messages,
            commands: commands.downgrade(),
            stop: stop.clone(),
            classifier: Arc::clone(&classifier),
            oids: Arc::clone(&oids),
            marks: Arc::clone(&marks),
            write_log: Arc::clone(&write_log),
            config: Arc::clone(&config),
            event_bus,
            observes: Arc::clone(&observes),
            promotion: Arc::clone(&promotion),
            #[cfg(feature = "promotion")]
            promoter: promoter.clone(),
        });
        runtime.spawn(manager.run());
        Arc::new(Self {
            topology,
            commands,
            stop,
            maker,
            settle_limit,
            classifier,
            marks,
            write_log,
            event_sender,
            oids,
            policy: options.policy,
            draws: Draws::from_seed(rand::random()),
            tracker,
            tally: Tally::default(),
            runtime,
            at_run_time: RwLock::new(AtRunTime::of(&config)),
            observes,
            discovery: Mutex::default(),
            config,
            promotion,
            #[cfg(feature = "promotion")]
            promoter,
        })
    }

    /// Whether writes, and reads that must see what others wrote, need a majority of the nodes.
    pub(crate) fn takes_majority(&self) -> bool {
        self.config.write_quorum
    }

    /// The last published topology.
    pub(crate) fn topology(&self) -> Arc<Topology> {
        Arc::clone(&self.topology.borrow())
    }

    /// Whether the manager has ended: the pool was closed, or its runtime is gone.
    pub(crate) fn is_over(&self) -> bool {
        self.commands.is_closed()
    }

    /// Whether it lends no more connections, or none that is of use.
    pub(crate) fn is_closed(&self) -> bool {
        self.tracker.is_closed() || self.is_over()
    }

    /// Runs `future` with this cluster's timers and sockets, on whichever executor polls it. `None` as soon as these are
    /// gone: the pool was closed, or its runtime has ended.
    pub(crate) async fn within<F: Future>(&self, future: F) -> Option<F::Output> {
        let mut future = pin!(TokioContext::new(future, self.runtime.clone()));
        let polled = poll_fn(|cx| {
            // tokio panics when a timer of a runtime is polled that has ended. It drops the manager before it ends the
            // timers, and wakes whoever waits for one.
            if self.is_over() || is_ending() {
                return Poll::Ready(None);
            }
            future.as_mut().poll(cx).map(Some)
        });
        polled.await
    }

    /// Does at once what may need this cluster's timers. `None` if they are gone.
    pub(crate) fn at_once<T>(&self, work: impl FnOnce() -> Option<T>) -> Option<T> {
        if self.is_over() {
            return None;
        }
        let Ok(_timers) = enter(&self.runtime) else {
            return None;
        };
        work()
    }

    /// Returns at `end`. Never, if the timers are gone by then.
    pub(crate) async fn reaches(&self, end: Instant) {
        let sleeping = async { tokio::time::sleep_until(end.into()).await };
        if self.within(sleeping).await.is_none() {
            std::future::pending().await
        }
    }

    /// Calls `look` with each news of positions until it finds something. `None` if it finds nothing by the deadline.
    pub(crate) async fn with_news<T>(
        &self,
        deadline: Instant,
        mut look: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        let looking = async {
            loop {
                // It must exist before the look, so that no news is missed.
                let news = self.write_log.news();
                if let Some(found) = look() {
                    return found;
                }
                news.await;
            }
        };
        let limited = async { tokio::time::timeout_at(deadline.into(), looking).await };
        self.within(limited).await?.ok()
    }

    /// Waits until every node has answered once, or failed to within its `connect_timeout`.
    pub(crate) async fn settled(&self) -> Arc<Topology> {
        let mut topology = self.topology.clone();
        if !topology.borrow().is_settled() {
            // Each attempt has a limit from when it begins. On a machine under load it begins late.
            let limit = self.settle_limit.saturating_mul(3).saturating_add(MARGIN);
            let settled = topology.wait_for(|topology| topology.is_settled());
            let waited = async { tokio::time::timeout(limit, settled).await.is_ok() };
            if self.within(waited).await == Some(false) {
                tracing::warn!(target: "diesel_replicated", "nodes_not_settled");
            }
        }
        self.topology()
    }

    /// Calls `look` with each new topology until it finds something. `None` if it finds nothing by the deadline, or
    /// the manager has ended.
    pub(crate) async fn with_changes<T>(
        &self,
        deadline: Instant,
        mut look: impl FnMut(&Topology) -> Option<T>,
    ) -> Option<T> {
        let mut topology = self.topology.clone();
        let looking = async {
            loop {
                let found = look(&topology.borrow_and_update());
                if found.is_some() || topology.changed().await.is_err() {
                    return found;
                }
            }
        };
        let limited = async { tokio::time::timeout_at(deadline.into(), looking).await };
        self.within(limited).await?.ok().flatten()
    }

    /// Reports that a connection ended, or that its node is not what it seemed. Never waits.
    pub(crate) fn suspect(&self, node: &Arc<Node>, cause: impl Into<String>) {
        self.trouble(node, Trouble::ConnectionDied(cause.into()));
    }

    /// Reports what a connection found out. Never waits.
    pub(crate) fn trouble(&self, node: &Arc<Node>, trouble: Trouble) {
        let node = Arc::clone(node);
        let _ = self.commands.try_send(Command::Trouble { node, trouble });
    }

    /// Reports that a primary takes no writes yet.
    pub(crate) async fn fenced(&self, node: &Arc<Node>) -> Result<(), Error> {
        let node = Arc::clone(node);
        self.ask(|done| Command::Fenced { node, done }).await
    }

    /// Has every node that is up asked once. Waits for the answers, up to `limit`.
    pub(crate) async fn refreshed(&self, limit: Duration) {
        let started = Instant::now();
        let settled = async { tokio::time::timeout(limit, self.settled()).await };
        let Some(Ok(topology)) = self.within(settled).await else {
            return;
        };
        // A node that serves nothing changes nothing.
        let of_use = |member: &&Member| member.is_of_use();
        let up = topology.members.iter().filter(of_use);
        let up: Vec<_> = up.collect();
        let _asked: Vec<_> = up.iter().map(|member| member.reports.want()).collect();
        let look = || {
            // A node that may not tell where it is still answers.
            let heard =
                |reports: &Reports| reports.asked_since(started) || reports.answered_since(started);
            let asked = up.iter().all(|member| heard(&member.reports));
            asked.then_some(())
        };
        self.with_news(deadline::after(started, limit), look).await;
    }

    /// How long a statement waits for a primary over an outage: the shorter of the two limits.
    pub(crate) fn outage_wait(&self) -> Duration {
        self.config
            .failover_wait
            .min(self.config.pool.connection_timeout)
    }

    /// Waits until something can be served, up to `connection_timeout`.
    pub(crate) async fn ready(&self) -> Result<(), Error> {
        let serves = |topology: &Topology| topology.takes_reads() || topology.takes_writes();
        let limit = self.config.pool.connection_timeout;
        let deadline = deadline::after(Instant::now(), limit);
        let look = |topology: &Topology| serves(topology).then_some(());
        match self.with_changes(deadline, look).await {
            Some(()) => Ok(()),
            None if self.is_over() => Err(Error::Closed),
            None => Err(Error::NotReady {
                reads: false,
                nodes: self.topology().describe(),
            }),
        }
    }

    /// What is known of promotions by this process.
    pub(crate) fn promotion(&self) -> PromotionStatus {
        self.promotion.lock().clone()
    }

    /// The statements that replicas have refused.
    pub(crate) fn learned(&self) -> Vec<LearnedStatement> {
        let lessons = self.classifier.learned().into_iter();
        let told = |lesson: Lesson| LearnedStatement {
            sql: lesson.sql,
            at: SystemTime::now() - lesson.at.elapsed(),
        };
        lessons.map(told).collect()
    }

    /// Reports that the database's types, functions or views may have changed. Never waits.
    pub(crate) fn catalog_changed(&self) {
        self.oids.forget();
        self.classifier.note_change();
        let _ = self.commands.try_send(Command::CatalogChanged);
    }

    /// Reports that a statement used a function or operator that is not known. Never waits.
    pub(crate) fn catalog_wanted(&self) {
        let _ = self.commands.try_send(Command::CatalogWanted);
    }

    pub(crate) async fn add(&self, settings: NodeSettings) -> Result<(), Error> {
        let node = Box::new(self.maker.member(settings));
        self.ask(|done| Command::Add { node, done }).await
    }

    /// The mark of the primary on this timeline. If there is none, and it is wanted, its monitor is to make one.
    pub(crate) fn mark(&self, timeline: u32, wanted: bool) -> Option<Arc<Mark>> {
        if wanted {
            self.marks.of(timeline)
        } else {
            self.marks.known(timeline)
        }
    }

    pub(crate) fn consistency(&self) -> ConsistencyConfig {
        self.at_run_time.read().consistency.clone()
    }

    /// Which statements may move to replicas.
    pub(crate) fn routing(&self) -> Routing {
        self.at_run_time.read().routing
    }

    pub(crate) fn set_routing(&self, routing: Routing) {
        let before = std::mem::replace(&mut self.at_run_time.write().routing, routing);
        let observes = routing == Routing::Observe;
        self.observes.store(observes, Ordering::Relaxed);
        if before != routing {
            tracing::info!(target: "diesel_replicated", %before, now = %routing, "routing_changed");
        }
    }

    /// Sets what reads must see from now on. Whose writes are counted stays as it was built.
    pub(crate) fn set_consistency(&self, config: ConsistencyConfig) {
        let write_scope = self.config.consistency.write_scope;
        self.at_run_time.write().consistency = config.write_scope(write_scope);
    }

    /// Pauses new writes for so long, or lets them go on.
    pub(crate) async fn pause(&self, limit: Option<Duration>) -> Result<(), Error> {
        let until = limit.map(|limit| deadline::after(Instant::now(), limit));
        self.ask(|done| Command::Pause { until, done }).await
    }

    /// Sets how far replicas may be behind, from the next look at them on.
    pub(crate) async fn set_max_lag(&self, health: HealthConfig) -> Result<(), Error> {
        self.ask(|done| Command::SetMaxLag { health, done }).await
    }

    /// The settings of the node of this name.
    pub(crate) fn settings_of(&self, name: &str) -> Result<NodeSettings, Error> {
        let topology = self.topology();
        match topology.named(name) {
            Some(member) => Ok(member.node.pool.connector().settings()),
            None => Err(Error::UnknownNode {
                name: name.to_owned(),
                nodes: topology.describe(),
            }),
        }
    }

    /// Gives a node other settings, once a connection with them was opened. Returns when nothing runs on its old
    /// connections any more.
    pub(crate) async fn replace(&self, settings: NodeSettings) -> Result<(), Error> {
        self.replace_soon(settings).await?.retire().await;
        Ok(())
    }

    /// The same without waiting for the old connections. Returns the node before.
    pub(crate) async fn replace_soon(&self, settings: NodeSettings) -> Result<Arc<Node>, Error> {
        let node = Box::new(self.maker.member(settings));
        let probe = match self.within(node.node.pool.probe()).await {
            Some(Ok(probe)) => Box::new(probe),
            failed => {
                node.node.end();
                let error = failed.and_then(Result::err);
                return Err(error.map_or(Error::Closed, Error::from));
            }
        };
        self.ask(|done| Command::Replace { node, probe, done })
            .await
    }

    /// Takes a replica out of the pool. Waits until its statements and transactions have ended.
    pub(crate) async fn remove(&self, name: &str) -> Result<(), Error> {
        self.remove_soon(name).await?.retire().await;
        Ok(())
    }

    /// The same without waiting.
    pub(crate) async fn remove_soon(&self, name: &str) -> Result<Arc<Node>, Error> {
        let name = name.to_owned();
        self.ask(|done| Command::Remove { name, done }).await
    }

    /// Notes why the list of nodes cannot be followed, or that it can.
    pub(crate) fn note_discovery(&self, cause: Option<String>) {
        let before = std::mem::replace(&mut *self.discovery.lock(), cause.clone());
        if before == cause {
            return;
        }
        if let Some(cause) = &cause {
            tracing::warn!(target: "diesel_replicated", cause, "discovery_failed");
        }
        let degraded = |cause| Degraded::of_pool(Degradation::Discovery, cause);
        let (before, now) = (before.map(degraded), cause.map(degraded));
        if let Some(bus) = self.event_sender.bus() {
            tell_changes(before.as_slice(), now.as_slice(), &bus);
        }
    }

    /// Why the list of nodes cannot be followed.
    pub(crate) fn discovery(&self) -> Option<String> {
        self.discovery.lock().clone()
    }

    /// Promotes a replica. It goes on to its end even if the caller does not wait.
    #[cfg(feature = "promotion")]
    pub(crate) async fn promote(&self, order: PromotionRequest) -> Result<Promoted, Error> {
        let promoter = self.promoter.clone();
        let task = async move { promoter.promote(&order).await };
        let promoted = self
            .runtime
            .spawn(task)
            .await
            .map_err(|_| Error::Closed)??;
        // The caller who is told that it was done must find it done.
        let known = |topology: &Topology| {
            let primary = topology.primary()?;
            (primary.node.name == promoted.node && topology.takes_writes()).then_some(())
        };
        self.with_changes(
            deadline::after(Instant::now(), self.config.failover_wait),
            known,
        )
        .await;
        Ok(promoted)
    }

    /// Puts a replica in the primary's place, within half of `failover_wait`.
    #[cfg(feature = "promotion")]
    pub(crate) async fn switchover(&self, to: &str) -> Result<Promoted, Error> {
        let (promoter, to) = (self.promoter.clone(), to.to_owned());
        let limit = self.config.failover_wait / 2;
        let task = async move { promoter.switchover(&to, limit).await };
        self.runtime.spawn(task).await.map_err(|_| Error::Closed)?
    }

    /// Stops sending statements to a replica and waits until those that run there have ended; or takes it back.
    pub(crate) async fn drain(&self, name: &str, on: bool) -> Result<(), Error> {
        let name = name.to_owned();
        let drain = |done| Command::Drain { name, on, done };
        let node = self.ask(drain).await?;
        if on {
            node.drained().await;
        }
        Ok(())
    }

    pub(crate) async fn set_weight(&self, name: &str, weight: u32) -> Result<(), Error> {
        let name = name.to_owned();
        self.ask(|done| Command::SetWeight { name, weight, done })
            .await
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Command,
    ) -> Result<T, Error> {
        let (done, answer) = oneshot::channel();
        let sent = self.commands.send(command(done)).await;
        sent.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }

    /// Lends no more connections, waits for those in use, then ends everything. Returns how many were still in use at
    /// the deadline.
    pub(crate) async fn close(&self, deadline: Duration) -> usize {
        self.tracker.close();
        let all_back = async { tokio::time::timeout(deadline, self.tracker.all_back()).await };
        let _ = self.within(all_back).await;
        self.stop.cancel();
        // When the manager has ended everything, it drops its sender.
        let mut topology = self.topology.clone();
        while topology.changed().await.is_ok() {}
        // From here on all calls find that it is over.
        self.commands.closed().await;
        self.tracker.out()
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("nodes", &self.topology().describe())
            .field("out", &self.tracker.out())
            .finish_non_exhaustive()
    }
}
