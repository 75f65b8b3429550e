//! Readers, and what they found.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use diesel::sql_query;
use diesel_async::RunQueryDsl;
use diesel_replicated::{ReplicatedConnection, ReplicatedPool};
use tokio::task::JoinSet;

pub(crate) const SERVED: &str = "SELECT served()";

/// One read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Read {
    pub(crate) ended: Instant,
    pub(crate) took: Duration,
    /// The node that served it, by its place in [`Reads::names`].
    node: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Reads {
    pub(crate) names: Vec<String>,
    pub(crate) reads: Vec<Read>,
    pub(crate) failed: u64,
}

impl Reads {
    fn add(&mut self, other: Self) {
        for read in other.reads {
            let node = self.place(&other.names[read.node]);
            self.reads.push(Read { node, ..read });
        }
        self.failed += other.failed;
    }

    fn place(&mut self, name: &str) -> usize {
        if let Some(place) = self.names.iter().position(|known| known == name) {
            return place;
        }
        self.names.push(name.to_owned());
        self.names.len() - 1
    }

    /// Those that ended within this time.
    pub(crate) fn within(&self, from: Instant, to: Instant) -> Self {
        let within = |read: &&Read| (from..to).contains(&read.ended);
        Self {
            names: self.names.clone(),
            reads: self.reads.iter().filter(within).copied().collect(),
            failed: 0,
        }
    }

    /// Those that other nodes than this one served.
    pub(crate) fn without(&self, name: &str) -> Self {
        let elsewhere = |read: &&Read| self.names[read.node] != name;
        Self {
            names: self.names.clone(),
            reads: self.reads.iter().filter(elsewhere).copied().collect(),
            failed: 0,
        }
    }

    /// The part of the reads that each node served.
    pub(crate) fn shares(&self) -> BTreeMap<&str, f64> {
        let mut shares = BTreeMap::new();
        for read in &self.reads {
            *shares.entry(&*self.names[read.node]).or_default() += 1.0 / self.reads.len() as f64;
        }
        shares
    }

    /// The latency that so many of a hundred do not exceed, in milliseconds.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let mut took: Vec<_> = self.reads.iter().map(|read| read.took).collect();
        took.sort_unstable();
        let place = (took.len() * percent / 100).min(took.len().saturating_sub(1));
        took.get(place)
            .map_or(f64::NAN, |it| it.as_secs_f64() * 1e3)
    }
}

pub(crate) async fn read(conn: &mut ReplicatedConnection, sql: &str) -> bool {
    let read: diesel::QueryResult<usize> = sql_query(sql).execute(conn).await;
    read.is_ok()
}

/// Tasks that read until they are stopped.
#[derive(Debug)]
pub(crate) struct Readers {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<Reads>,
}

impl Readers {
    pub(crate) fn start(pool: &ReplicatedPool, tasks: usize, sql: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let task = |_| {
            let (pool, stop) = (pool.clone(), Arc::clone(&stop));
            async move {
                let mut reads = Reads::default();
                while !AtomicBool::load(&stop, Ordering::Relaxed) {
                    let started = Instant::now();
                    let mut conn = pool.get().await.unwrap();
                    if !read(&mut conn, sql).await {
                        reads.failed += 1;
                        continue;
                    }
                    let ended = Instant::now();
                    let route = conn.last_route();
                    let node = reads.place(route.as_ref().map_or("", |route| route.node.as_str()));
                    reads.reads.push(Read {
                        ended,
                        took: ended - started,
                        node,
                    });
                }
                reads
            }
        };
        Self {
            tasks: (0..tasks).map(task).collect(),
            stop,
        }
    }

    pub(crate) async fn stop(self) -> Reads {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Reads::default();
        for reads in self.tasks.join_all().await {
            all.add(reads);
        }
        all
    }
}

/// What `tasks` read in this time, once they have read for `warm`.
pub(crate) async fn measure(
    pool: &ReplicatedPool,
    (tasks, sql): (usize, &'static str),
    warm: Duration,
    time: Duration,
) -> Reads {
    let readers = Readers::start(pool, tasks, sql);
    tokio::time::sleep(warm).await;
    let from = Instant::now();
    tokio::time::sleep(time).await;
    let to = Instant::now();
    let all = readers.stop().await;
    let failed = all.failed;
    Reads {
        failed,
        ..all.within(from, to)
    }
}
