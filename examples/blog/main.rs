//! A small blog on one PostgreSQL primary and its replicas: `cargo run --example blog`. With `--groups` it is in two places
//! at once, each with a primary of its own.
//!
//! Without `DATABASE_URL` it starts a cluster of its own, and takes it away at the end.
//! `BLOG_LISTEN` is the address to listen on (127.0.0.1:3000), `RUST_LOG` what to log. With `BLOG_ROUTING_KEY` whoever
//! has this key may set on the live page which reads move to replicas. Else only the blog's own cluster has this switch.
#![forbid(unsafe_code)]

mod app;
mod database;
mod groups;

use std::env::VarError;
use std::error::Error;
use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use diesel_replicated::ReplicatedPool;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

use app::{App, Key};
use database::Database;

type Failure = Box<dyn Error + Send + Sync>;

/// How long requests may take to end once the application has been told to stop.
const PATIENCE: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Whatever happens after the database is there, it is taken away again.
async fn run() -> Result<(), Failure> {
    // From here on a signal ends the program in order, even while the cluster is starting.
    let mut stop = stop_signal()?;
    let address: SocketAddr = std::env::var("BLOG_LISTEN")
        .as_deref()
        .unwrap_or("127.0.0.1:3000")
        .parse()
        .map_err(|error| format!("BLOG_LISTEN: {error}"))?;
    let key = routing_key()?;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| format!("cannot listen on {address} (see BLOG_LISTEN): {error}"))?;
    if std::env::args().any(|argument| argument == "--groups") {
        return run_groups(listener, stop).await;
    }
    app::record();
    let database = Database::open().await?;
    let pool = tokio::select! {
        pool = database.pool() => pool.map(Some),
        _ = stop.wait_for(|stop| *stop) => Ok(None),
    };
    let result = match pool {
        Ok(Some(pool)) => {
            let app = App::new(pool, database.own(), stop).key(key);
            serve(listener, app).await
        }
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    database.close().await;
    result
}

/// The blog in two places.
async fn run_groups(listener: TcpListener, mut stop: watch::Receiver<bool>) -> Result<(), Failure> {
    tracing::info!("starting two primaries, each with a replica");
    let world = tokio::select! {
        world = groups::World::start() => world?,
        _ = stop.wait_for(|stop| *stop) => return Ok(()),
    };
    let text = format!(
        "\nThe blog is in two places:\n  http://{0}/?from=eu\n  http://{0}/?from=us\n\nCtrl-C ends it.\n\n",
        listener.local_addr()?
    );
    let _ = io::stdout().write_all(text.as_bytes());
    let router = groups::router(std::sync::Arc::clone(&world));
    let mut stopped = stop.clone();
    let server = axum::serve(listener, router).with_graceful_shutdown(async move {
        let _ = stopped.wait_for(|stop| *stop).await;
    });
    let mut server = pin!(server.into_future());
    tokio::select! {
        _ = &mut server => {}
        () = async {
            let _ = stop.wait_for(|stop| *stop).await;
            tokio::time::sleep(PATIENCE).await;
        } => {}
    }
    world.close().await;
    Ok(())
}

/// What opens the switch of the routing. Without it nobody can move that on servers of others.
fn routing_key() -> Result<Option<Key>, String> {
    let told = |error| format!("BLOG_ROUTING_KEY: {error}");
    match std::env::var("BLOG_ROUTING_KEY") {
        Ok(key) => Key::new(&key).map(Some).map_err(told),
        Err(VarError::NotPresent) => Ok(None),
        Err(error) => Err(told(error.to_string())),
    }
}

async fn serve(listener: TcpListener, app: App) -> Result<(), Failure> {
    let pool = app.pool.clone();
    let result = answer(listener, app).await;
    let left = pool.close(PATIENCE).await;
    if left > 0 {
        tracing::warn!(left, "connections were still in use");
    }
    result
}

/// Answers until told to stop; then requests that are under way may still end.
async fn answer(listener: TcpListener, app: App) -> Result<(), Failure> {
    app::prepare(&app.pool).await?;
    introduce(listener.local_addr()?, &app.pool);
    let mut stop = app.stop.clone();
    let mut stopped = stop.clone();
    let server = axum::serve(listener, app::router(app)).with_graceful_shutdown(async move {
        // An error means that nobody is left to say it.
        let _ = stopped.wait_for(|stop| *stop).await;
    });
    let mut server = pin!(server.into_future());
    tokio::select! {
        result = &mut server => return Ok(result?),
        _ = stop.wait_for(|stop| *stop) => {}
    }
    if let Ok(result) = tokio::time::timeout(PATIENCE, server).await {
        return Ok(result?);
    }
    tracing::warn!("some requests did not end");
    Ok(())
}

/// Becomes true with Ctrl-C, or when the process is asked to end or loses its terminal.
fn stop_signal() -> io::Result<watch::Receiver<bool>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        any(&mut interrupt, &mut terminate, &mut hangup).await;
        tracing::info!("stopping");
        let _ = sender.send(true);
        // Later signals must not cut the end short: they are received, and change nothing.
        loop {
            any(&mut interrupt, &mut terminate, &mut hangup).await;
        }
    });
    Ok(receiver)
}

async fn any(first: &mut Signal, second: &mut Signal, third: &mut Signal) {
    tokio::select! {
        _ = first.recv() => {}
        _ = second.recv() => {}
        _ = third.recv() => {}
    }
}

fn introduce(address: SocketAddr, pool: &ReplicatedPool) {
    let mut text = format!("\nThe blog is at http://{address}/ and runs on\n");
    for node in pool.status().nodes {
        let kind = node.kind.map(|kind| kind.to_string());
        let kind = kind.as_deref().unwrap_or("not reached yet");
        text += &format!("  {}: {kind}, weight {}\n", node.name, node.weight);
    }
    text += &format!(
        "\nIts live status page: http://{address}/status/live
\nTry it, and look at x-served-by; whoever brings the cookie of a write sees it:
  curl -i http://{address}/api/posts
  curl -i http://{address}/api/posts/1
  curl -i http://{address}/api/posts --json '{{\"author_id\": 1, \"title\": \"Hello\"}}' -c cookies
  curl -i http://{address}/api/posts -b cookies
  curl -i http://{address}/api/posts/1/comments --json '{{\"author_id\": 2, \"body\": \"Hi\"}}'
  curl -i http://{address}/metrics
  curl -i http://{address}/api/posts/2 -X PATCH --json '{{\"status\": \"published\"}}'
  curl -s http://{address}/api/served
  curl -s http://{address}/status
  curl -i http://{address}/healthz

Ctrl-C ends it.\n\n"
    );
    // Whoever closes the standard output does not want to read it.
    let _ = io::stdout().write_all(text.as_bytes());
}
