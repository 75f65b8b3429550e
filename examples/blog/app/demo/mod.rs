//! What can be done to the servers while the blog runs on its own: faults, and traffic to see them by.

mod faults;
mod outages;
mod play;
mod traffic;
mod visitors;

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::future::Future;
use std::sync::{Arc, Mutex, Weak};

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use diesel_replicated::testing::LocalCluster;
use diesel_replicated::{Builder, Config, ReplicatedPool};
use serde::Serialize;
use tokio::task::spawn_blocking;

use super::error::{ApiError, Error};
use super::routes::App;
use faults::{Stage, Verb};
use outages::Outage;
use play::Playing;
use traffic::{Flow, Traffic};

/// What scripts of other sites cannot send along unless they are allowed to.
const HEADER: &str = "x-requested-with";

/// The servers, and what was done to them.
#[derive(Clone, Debug)]
pub(crate) struct Demo {
    /// Whoever started the cluster ends it; this does not keep it.
    cluster: Weak<LocalCluster>,
    stage: Arc<Mutex<Stage>>,
    /// One thing is done at a time.
    turn: Arc<tokio::sync::Mutex<()>>,
    playing: Arc<Playing>,
    traffic: Traffic,
}

/// The servers and the traffic at one moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Scene {
    servers: BTreeMap<String, Server>,
    outage: Option<play::Act>,
    traffic: Flow,
}

/// A server's process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Server {
    running: bool,
    frozen: bool,
    primary: bool,
    /// It has missed a promotion. If it runs, it may take writes that nobody will have.
    outdated: bool,
}

impl Demo {
    /// `database`: where the application's tables are.
    pub(crate) fn new(cluster: &Arc<LocalCluster>, database: &str) -> Self {
        let stage = Arc::new(Mutex::new(Stage::new(cluster)));
        Self {
            cluster: Arc::downgrade(cluster),
            stage: Arc::clone(&stage),
            turn: Arc::default(),
            playing: Arc::default(),
            traffic: Traffic::new(stage, database),
        }
    }

    pub(crate) fn scene(&self) -> Scene {
        let stage = faults::lock(&self.stage);
        let cluster = self.cluster.upgrade();
        let nodes = cluster.iter().flat_map(|cluster| cluster.nodes());
        let servers = nodes.map(|node| (node.name().to_owned(), stage.server(node)));
        Scene {
            servers: servers.collect(),
            outage: *faults::lock(&self.playing),
            traffic: self.traffic.flow(),
        }
    }

    fn cluster(&self) -> Result<Arc<LocalCluster>, Error> {
        let cluster = self.cluster.upgrade();
        cluster.ok_or_else(|| Error::Conflict("the cluster has ended".to_owned()))
    }

    /// Does it when its turn has come, and to its end, even if nobody waits for it any more.
    async fn in_turn<F>(&self, work: F) -> Result<(), Error>
    where
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let done = tokio::spawn(async move {
            let _turn = turn;
            work.await
        });
        done.await.unwrap_or_else(|error| Err(failure(&error)))
    }

    /// Acts on the servers, off the runtime.
    async fn blocking<F>(&self, work: F) -> Result<(), Error>
    where
        F: FnOnce(&LocalCluster, &Mutex<Stage>) -> Result<(), Error> + Send + 'static,
    {
        let cluster = self.cluster()?;
        let stage = Arc::clone(&self.stage);
        let done = spawn_blocking(move || work(&cluster, &stage));
        done.await.unwrap_or_else(|error| Err(failure(&error)))
    }
}

/// A pool on the nodes of the cluster under their own names.
pub(crate) async fn pool_on(
    cluster: &LocalCluster,
    database: &str,
) -> Result<ReplicatedPool, Box<dyn StdError + Send + Sync>> {
    let mut config = Config::from_url(&cluster.url(database))?;
    if let Ok(mode) = std::env::var("DATABASE_ROUTING") {
        config.routing = mode.parse()?;
    }
    // Names to read instead of ports, and weights whose effect can be seen.
    let local = cluster.nodes();
    for (weight, (node, local)) in (0..).zip(config.nodes.iter_mut().zip(local)) {
        node.name = Some(local.name().to_owned());
        // The first is the primary: it has weight 1 when it has become a replica.
        node.weight = Some(weight).filter(|weight| *weight > 0);
    }
    Ok(Builder::from(config).build().await?)
}

/// They exist only where the servers are the application's own.
pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/status/nodes/{name}/{verb}", post(on_node))
        .route("/status/outages/{name}", post(on_outage))
        .route("/status/traffic/{verb}", post(on_traffic))
        .layer(from_fn(is_from_the_page))
}

async fn on_node(
    State(app): State<App>,
    Path((name, verb)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let demo = app.demo.ok_or_else(nothing_here)?;
    let verb = Verb::named(&verb)
        .ok_or_else(|| Error::NotFound(format!("nodes cannot be told to `{verb}`")))?;
    let diverged = app
        .pool
        .status()
        .node(&name)
        .is_some_and(|node| node.diverged);
    let server = demo.clone();
    let work = async move {
        let act = move |cluster: &_, stage: &_| faults::act(cluster, stage, &name, verb, diverged);
        server.blocking(act).await
    };
    demo.in_turn(work).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// One of the outages, or `none`: back to normal.
async fn on_outage(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    let demo = app.demo.clone().ok_or_else(nothing_here)?;
    let outage = Outage::named(&name);
    if outage.is_none() && name != "none" {
        return Err(Error::NotFound(format!("there is no outage `{name}`")).into());
    }
    let turn = demo.clone();
    let work = async move {
        match outage {
            Some(outage) => demo.cause(&app, outage).await,
            None => demo.back_to_normal(&app).await,
        }
    };
    turn.in_turn(work).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn on_traffic(
    State(app): State<App>,
    Path(verb): Path<String>,
) -> Result<StatusCode, ApiError> {
    let demo = app.demo.clone().ok_or_else(nothing_here)?;
    match verb.as_str() {
        "start" => {
            if !demo.traffic.is_configured() {
                demo.configure()?;
            }
            demo.traffic.start(app)?;
        }
        "stop" => demo.traffic.stop()?,
        _ => return Err(Error::NotFound(format!("traffic cannot be told to `{verb}`")).into()),
    }
    Ok(StatusCode::NO_CONTENT)
}

/// A page of another site can send a form here, but not a header of its own choice.
pub(crate) async fn is_from_the_page(request: Request, next: Next) -> Response {
    if request.headers().contains_key(HEADER) {
        return next.run(request).await;
    }
    let message = format!("only with the header `{HEADER}`, which the page sends along");
    ApiError::from(Error::Request(StatusCode::FORBIDDEN, message)).into_response()
}

fn nothing_here() -> Error {
    Error::NotFound("these servers are not the application's own".to_owned())
}

fn failure(error: &dyn StdError) -> Error {
    Error::Request(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}
