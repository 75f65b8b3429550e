//! Which outage is shown, from the servers' being well to their being well again.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use diesel_replicated::ReplicatedPool;
use diesel_replicated::status::NodeHealth;
use serde::Serialize;
use tokio::time::{sleep, timeout};

use super::super::error::Error;
use super::super::routes::App;
use super::Demo;
use super::faults::lock;
use super::outages::{Director, Outage};
use super::visitors::Pools;

/// How long the pool may take to see that all is well.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(50);

/// The last outage that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Act {
    outage: Outage,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Phase {
    /// All servers are made well first.
    Preparing,
    /// It happens.
    Beginning,
    /// It has happened, and lasts.
    On,
    /// The servers are made well again.
    Healing,
    Over,
    /// The demonstration itself has failed.
    Failed,
}

/// What is played.
pub(super) type Playing = Mutex<Option<Act>>;

impl Demo {
    /// Causes the outage, whatever was before.
    pub(super) async fn cause(&self, app: &App, outage: Outage) -> Result<(), Error> {
        self.play(outage, Phase::Preparing);
        let done = self.perform(app, outage).await;
        self.play(
            outage,
            if done.is_ok() {
                Phase::On
            } else {
                Phase::Failed
            },
        );
        done
    }

    async fn perform(&self, app: &App, outage: Outage) -> Result<(), Error> {
        self.heal(app).await?;
        self.traffic.go_on(app.clone());
        self.traffic.count_anew();
        self.traffic.load(outage.is_under_load());
        // What breaks should break for somebody.
        let counted = async {
            while !self.traffic.is_counted() {
                sleep(LOOK).await;
            }
        };
        let late = |_| Error::Conflict("the visitors do not get through".to_owned());
        timeout(PATIENCE, counted).await.map_err(late)?;
        self.play(outage, Phase::Beginning);
        self.blocking(move |cluster, stage| Director { cluster, stage }.cause(outage))
            .await
    }

    /// All servers are well afterwards, and the plain pools have the URLs that are right then.
    pub(super) async fn back_to_normal(&self, app: &App) -> Result<(), Error> {
        let playing = *lock(&self.playing);
        let say = |phase| {
            if let Some(act) = playing {
                self.play(act.outage, phase);
            }
        };
        say(Phase::Healing);
        let done = self.heal(app).await;
        say(if done.is_ok() {
            Phase::Over
        } else {
            Phase::Failed
        });
        done
    }

    async fn heal(&self, app: &App) -> Result<(), Error> {
        self.traffic.load(false);
        let nodes = app.pool.status().nodes;
        let diverged: BTreeSet<String> = nodes
            .into_iter()
            .filter(|node| node.diverged)
            .map(|node| node.name)
            .collect();
        self.blocking(move |cluster, stage| Director { cluster, stage }.heal(&diverged))
            .await?;
        self.announce(&app.pool).await;
        let seen = async {
            while !self.is_well(&app.pool) {
                sleep(LOOK).await;
            }
        };
        let late = |_| Error::Conflict("the pool does not see all servers yet".to_owned());
        timeout(PATIENCE, seen).await.map_err(late)?;
        self.configure()
    }

    /// A server that was made anew answered before it had the database. The pool would try that again in ten
    /// seconds; being given the server, it does so at once.
    async fn announce(&self, pool: &ReplicatedPool) {
        let nodes = pool.status().nodes;
        for node in nodes.iter().filter(|node| node.health == NodeHealth::Down) {
            let url = lock(&self.stage).url(&node.name, self.traffic.database());
            if let Err(error) = pool.set_url(&node.name, url).await {
                tracing::debug!(%error, "the pool has to find the server by itself");
            }
        }
    }

    /// A primary that all others follow, as the pool sees it.
    fn is_well(&self, pool: &ReplicatedPool) -> bool {
        let status = pool.status();
        let Some(primary) = &status.primary else {
            return false;
        };
        let follows = |node: &&diesel_replicated::status::NodeStatus| {
            node.name == *primary || node.upstream.as_ref() == Some(primary)
        };
        let well = status
            .nodes
            .iter()
            .filter(|node| node.health == NodeHealth::Up && node.kind.is_some())
            .filter(follows);
        status.takes_writes
            && lock(&self.stage).is_primary(primary)
            && well.count() == status.nodes.len()
    }

    /// Gives the plain side the URLs that are right now, as an operator does.
    pub(super) fn configure(&self) -> Result<(), Error> {
        let cluster = self.cluster()?;
        let stage = lock(&self.stage);
        let pools = Pools::new(&cluster, &stage, self.traffic.database());
        self.traffic.configure(pools);
        Ok(())
    }

    fn play(&self, outage: Outage, phase: Phase) {
        *lock(&self.playing) = Some(Act { outage, phase });
    }
}
