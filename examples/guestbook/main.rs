//! A synchronous web application, in threads: `cargo run --example guestbook`.
//!
//! Without `DATABASE_URL` it starts a cluster of its own, and takes it away at the end. `GUESTBOOK_LISTEN` is the address
//! to listen on (127.0.0.1:3001).
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "it tells where it listens")]

mod app;

use std::time::Duration;

use diesel_replicated::testing::LocalCluster;
use tokio::signal::unix::{SignalKind, signal};

use app::{Failure, Guestbook, Serving};

/// How many requests are answered at once.
const THREADS: usize = 8;

fn main() -> Result<(), Failure> {
    let (cluster, url) = match std::env::var("DATABASE_URL") {
        Ok(url) => (None, url),
        Err(_) => {
            let cluster = LocalCluster::start()?;
            let url = cluster.url("postgres");
            (Some(cluster), url)
        }
    };
    let size = u32::try_from(THREADS)?;
    let guestbook = Guestbook::open(&url, size, Duration::from_secs(5))?;
    let address = std::env::var("GUESTBOOK_LISTEN");
    let address = address.as_deref().unwrap_or("127.0.0.1:3001");
    let serving = Serving::start(address, &guestbook, THREADS)?;
    if let Some(address) = serving.address() {
        println!("http://{address}");
    }
    wait_for_the_end()?;
    serving.stop();
    drop((guestbook, cluster));
    Ok(())
}

/// Returns at Ctrl-C, or when the system asks the program to end.
fn wait_for_the_end() -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut terminated = signal(SignalKind::terminate())?;
        tokio::select! {
            pressed = tokio::signal::ctrl_c() => pressed,
            _ = terminated.recv() => Ok(()),
        }
    })
}
