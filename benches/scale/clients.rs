//! Many processes with a pool each: what their questions cost the servers.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use diesel_replicated::testing::{LocalCluster, LocalNode};
use diesel_replicated::{NodeConfig, ReplicatedPool};

use super::load::read;
use super::number;

const CLIENTS: usize = 50;
const TIME: Duration = Duration::from_secs(20);

/// How this crate's watching connections show in `pg_stat_activity`.
const WATCHING: &str =
    "SELECT pid FROM pg_stat_activity WHERE application_name LIKE '% (watching)'";

/// One of many processes: a pool over these servers, with so many statements a second. It ends when its input does.
pub(crate) fn client(arguments: &[String]) {
    let [what, rate, urls @ ..] = arguments else {
        panic!("what, how often and the URLs are missing");
    };
    let rate: f64 = rate.parse().unwrap();
    let sql = match &**what {
        "write" => "INSERT INTO written_by_many DEFAULT VALUES",
        _ => "SELECT 1",
    };
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().unwrap();
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_line(&mut String::new());
        std::process::exit(0);
    });
    runtime.block_on(async {
        let mut urls = urls.iter();
        let builder = ReplicatedPool::builder().primary(NodeConfig::new(urls.next().unwrap()));
        let builder = urls.fold(builder, |builder, url| {
            builder.replica(NodeConfig::new(url))
        });
        // Many that start at once on a small machine take their time.
        let patient = Duration::from_secs(60);
        let builder = builder.connect_timeout(patient).failover_wait(patient);
        let pool = builder.max_size(1).build_unchecked().unwrap();
        loop {
            let pause = if rate > 0.0 { 1.0 / rate } else { 3600.0 };
            tokio::time::sleep(Duration::from_secs_f64(pause)).await;
            read(&mut pool.get().await.unwrap(), sql).await;
        }
    });
}

struct Clients(Vec<Child>);

impl Drop for Clients {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The processor time of the backends that answer watching connections, and how many there are.
fn watching(node: &LocalNode) -> (Duration, usize) {
    let rows = node.sql("postgres", WATCHING).unwrap();
    let time = |pid: &str| {
        let schedule = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?;
        let nanos = schedule.split_whitespace().next()?.parse().ok()?;
        Some(Duration::from_nanos(nanos))
    };
    let pids: Vec<String> = rows.iter().filter_map(|row| row[0].clone()).collect();
    (pids.iter().filter_map(|pid| time(pid)).sum(), pids.len())
}

pub(crate) fn many(cluster: &LocalCluster) {
    let clients = number("SCALE_CLIENTS", CLIENTS);
    println!(
        "\n{clients} processes with a pool each: what watching costs each server, in parts of a core; less than 1 %"
    );
    let urls: Vec<String> = cluster.nodes().map(|node| node.url("bench")).collect();
    let table = "CREATE TABLE written_by_many (at timestamptz DEFAULT now())";
    cluster.primary().sql("bench", table).unwrap();
    cluster.wait_caught_up().unwrap();
    for (what, does, rate) in [
        ("idle", "read", "0"),
        ("2 reads a second each", "read", "2"),
        ("2 writes a second each", "write", "2"),
    ] {
        let start = |_| {
            let program = std::env::current_exe().unwrap();
            let mut command = Command::new(program);
            command.args(["--client", does, rate]).args(&urls);
            command.stdin(Stdio::piped()).stdout(Stdio::null());
            std::thread::sleep(Duration::from_millis(100));
            command.spawn().unwrap()
        };
        let running = Clients((0..clients).map(start).collect());
        let started = Instant::now();
        let all_watch = || cluster.nodes().all(|node| watching(node).1 >= clients);
        while !all_watch() {
            assert!(
                started.elapsed() < Duration::from_secs(120),
                "clients do not start"
            );
            std::thread::sleep(Duration::from_millis(200));
        }
        // What comes once, with the start, is not what watching costs.
        std::thread::sleep(Duration::from_secs(6));
        let before: Vec<_> = cluster.nodes().map(watching).collect();
        let from = Instant::now();
        std::thread::sleep(TIME);
        let time = from.elapsed();
        let mut line = format!("  {what:<24}");
        for (node, (spent, there)) in cluster.nodes().zip(before) {
            let (after, still) = watching(node);
            assert_eq!((there, still), (clients, clients), "{}", node.name());
            let part = (after - spent).as_secs_f64() / time.as_secs_f64() * 100.0;
            line += &format!("  {}: {part:.2} %", node.name());
        }
        println!("{line}");
        drop(running);
    }
}
