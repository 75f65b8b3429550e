//! The two ways to wait for a replica in one run: the pool asks the replicas again and again, or the replica's server
//! waits (`WAIT FOR LSN`, PostgreSQL 19).

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use diesel_replicated::config::{ConsistencyConfig, WriteScope};
use diesel_replicated::status::NodeKind;
use diesel_replicated::testing::LocalCluster;
use diesel_replicated::{Consistency, ReplicatedPool};

use super::common::quartiles;
use super::{builder, read, write};

/// How many writes with their reads one way performs before it is the turn of the other.
const TURN: usize = 20;

#[derive(Default)]
struct Way {
    latencies: Vec<f64>,
    on_replicas: usize,
    /// On the processors, of the backends of both replicas.
    busy: Duration,
    questions: usize,
    waits: usize,
}

/// Writes, lets `pause` pass, and reads on another connection of the session, again and again: who holds the connection to
/// the primary reads there, and does not wait.
async fn turn(pool: &ReplicatedPool, pause: Duration, times: usize, way: &mut Way) {
    for round in 0..times {
        let key = i32::try_from(1 + round % 1000).unwrap();
        let session = pool.session();
        write(&mut session.get().await.unwrap()).await;
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let started = Instant::now();
        let mut conn = session.get().await.unwrap();
        read(&mut conn, key).await;
        way.latencies.push(started.elapsed().as_secs_f64() * 1e6);
        let route = conn.last_route().unwrap();
        way.on_replicas += usize::from(route.kind == NodeKind::Replica);
    }
}

/// How long the processes that serve connections to a node were on a processor.
fn busy(data: &Path) -> Duration {
    let pid = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let parent = pid.lines().next().unwrap_or_default().to_owned();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let of_backend = |folder: &Path| {
        let stat = fs::read_to_string(folder.join("stat")).ok()?;
        let (_, after) = stat.rsplit_once(") ")?;
        let title = fs::read_to_string(folder.join("cmdline")).ok()?;
        let serves = after.split(' ').nth(1) == Some(&parent) && title.contains("127.0.0.1(");
        let times = fs::read_to_string(folder.join("schedstat")).ok()?;
        let nanoseconds = times.split(' ').next()?.parse().ok()?;
        serves.then(|| Duration::from_nanos(nanoseconds))
    };
    let times = processes.filter_map(|process| of_backend(&process.path()));
    times.sum()
}

fn busy_replicas(cluster: &LocalCluster) -> Duration {
    let replicas = cluster.replicas().iter();
    replicas.map(|replica| busy(replica.data_dir())).sum()
}

/// How often the replicas were asked where they are, and told to wait.
fn sent(cluster: &LocalCluster) -> (usize, usize) {
    let mut sent = (0, 0);
    for replica in cluster.replicas() {
        let log = replica.log();
        let asked = log.lines().filter(|line| line.contains("LOG:"));
        for line in asked {
            sent.0 += usize::from(line.contains("replay_lsn"));
            sent.1 += usize::from(line.contains("statement: WAIT FOR LSN"));
        }
    }
    sent
}

fn log_statements(cluster: &LocalCluster, which: &str) {
    for replica in cluster.replicas() {
        let set = format!("ALTER SYSTEM SET log_statement = '{which}'");
        replica.sql("postgres", &set).unwrap();
        replica.reload().unwrap();
    }
}

/// Measures both ways in turns: times first, and then, while the servers log it, what is sent.
pub(crate) async fn compare(cluster: &LocalCluster, count: usize) {
    let version = cluster.major_version();
    if version < 19 {
        println!(
            "a wait on the server is not measured: PostgreSQL {version} has no WAIT FOR LSN\n"
        );
        return;
    }
    let mut pools = Vec::new();
    for on_server in [false, true] {
        let consistency = ConsistencyConfig::from(Consistency::ReadYourWrites)
            .write_scope(WriteScope::Session)
            .wait_for_lsn(on_server);
        let pool = builder(cluster).consistency(consistency).build();
        pools.push(pool.await.unwrap());
    }
    println!(
        "a read after a write of its session on another connection, two replicas: who waits (both in turns)"
    );
    println!(
        "  pause   who waits    median read (quartiles)            replicas   questions   waits   replicas' time"
    );
    for pause in [0, 1, 5].map(Duration::from_millis) {
        let mut ways = [Way::default(), Way::default()];
        for logged in [false, true] {
            log_statements(cluster, if logged { "all" } else { "none" });
            // What the log costs is no part of the times.
            let mut unused = [Way::default(), Way::default()];
            let turns = count.div_ceil(TURN);
            for step in 0..2 * turns {
                let place = (step + step / 2) % 2;
                let (before, busy_before) = (sent(cluster), busy_replicas(cluster));
                let times = TURN.min(count);
                let way = if logged { &mut unused } else { &mut ways };
                turn(&pools[place], pause, times, &mut way[place]).await;
                let after = sent(cluster);
                let way = &mut ways[place];
                if logged {
                    way.questions += after.0 - before.0;
                    way.waits += after.1 - before.1;
                } else {
                    way.busy += busy_replicas(cluster).saturating_sub(busy_before);
                }
            }
        }
        log_statements(cluster, "none");
        for (way, who) in ways.into_iter().zip(["the pool", "the server"]) {
            let reads = way.latencies.len() as f64;
            let [low, median, high] = quartiles(way.latencies);
            println!(
                "  {pause:>5.0?}   {who:<10}   {median:>7.1} us ({low:>6.1} to {high:>6.1})   {:>10.1} %   {:>9.2}   {:>5.2}   {:>7.1} us",
                100.0 * way.on_replicas as f64 / reads,
                way.questions as f64 / reads,
                way.waits as f64 / reads,
                way.busy.as_secs_f64() * 1e6 / reads,
            );
        }
    }
    println!();
}
