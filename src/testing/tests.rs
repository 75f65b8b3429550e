//! The cluster of the tests is tested itself.

use std::process::{Command, Stdio};
use std::time::Duration;

use super::*;

fn count(node: &LocalNode) -> Result<Option<String>, ClusterError> {
    node.value("postgres", "SELECT count(*) FROM t")
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, || Ok(condition().then_some(()))).unwrap();
}

#[test]
fn writes_reach_replicas_also_through_another() {
    let cluster = LocalCluster::builder()
        .replicas(1)
        .cascading_from(0)
        .start()
        .unwrap();
    let primary = cluster.primary();
    primary
        .sql("postgres", "CREATE TABLE t AS SELECT 1")
        .unwrap();
    cluster.wait_caught_up().unwrap();
    for replica in cluster.replicas() {
        assert_eq!(count(replica).unwrap().as_deref(), Some("1"));
    }
    let followers = "SELECT string_agg(application_name, ',') FROM pg_stat_replication";
    assert_eq!(
        primary.value("postgres", followers).unwrap().as_deref(),
        Some("replica-1")
    );
    let chained = cluster.replicas()[0].value("postgres", followers).unwrap();
    assert_eq!(chained.as_deref(), Some("replica-2"));
}

#[test]
fn replicas_can_be_added_paused_promoted_and_killed() {
    let mut cluster = LocalCluster::builder().replicas(1).start().unwrap();
    cluster
        .primary()
        .sql("postgres", "CREATE TABLE t (a int)")
        .unwrap();
    assert_eq!(cluster.add_replica().unwrap().name(), "replica-2");
    let [one, two] = cluster.replicas() else {
        panic!("two replicas");
    };
    one.pause_replay().unwrap();
    cluster
        .primary()
        .sql("postgres", "INSERT INTO t VALUES (1)")
        .unwrap();
    eventually("the other replica has the row", || {
        count(two).unwrap().as_deref() == Some("1")
    });
    assert_eq!(count(one).unwrap().as_deref(), Some("0"));
    one.resume_replay().unwrap();
    cluster.wait_caught_up().unwrap();

    cluster.primary().kill().unwrap();
    assert!(!cluster.primary().is_running());
    one.promote().unwrap();
    one.sql("postgres", "INSERT INTO t VALUES (2)").unwrap();
    cluster.primary().start().unwrap();
    assert_eq!(count(cluster.primary()).unwrap().as_deref(), Some("1"));
    two.restart().unwrap();
    assert_eq!(count(two).unwrap().as_deref(), Some("1"));
}

/// Servers that tests have killed were left without a segment for the next one, on a machine that had run them for days.
#[test]
fn a_server_that_was_killed_leaves_no_shared_memory() {
    let cluster = LocalCluster::builder().replicas(1).start().unwrap();
    let segments: Vec<String> = cluster
        .nodes()
        .filter_map(LocalNode::shared_memory)
        .collect();
    assert_eq!(segments.len(), 2);
    let there = || {
        let all = std::fs::read_to_string("/proc/sysvipc/shm").unwrap();
        let numbers = all
            .lines()
            .filter_map(|line| line.split_whitespace().nth(1));
        let numbers: Vec<&str> = numbers.collect();
        segments
            .iter()
            .filter(|it| numbers.contains(&it.as_str()))
            .count()
    };
    cluster.primary().kill().unwrap();
    assert_eq!(there(), 2);
    drop(cluster);
    assert_eq!(there(), 0);
}

#[test]
fn clusters_that_are_there_at_the_same_time_are_not_one() {
    let start = || LocalCluster::builder().replicas(1).start().unwrap();
    let clusters = [start(), start()];
    let [one, other] = clusters.each_ref().map(|cluster| {
        let identifier = "SELECT system_identifier FROM pg_control_system()";
        let all = cluster
            .nodes()
            .map(|node| node.value("postgres", identifier).unwrap());
        let all: Vec<_> = all.collect();
        assert_eq!(all[0], all[1]);
        all[0].clone()
    });
    assert_ne!(one, other);
}

#[test]
fn a_frozen_server_goes_on_when_thawed() {
    let cluster = LocalCluster::builder().replicas(0).start().unwrap();
    cluster.primary().freeze();
    std::thread::scope(|scope| {
        let query = scope.spawn(|| cluster.primary().value("postgres", "SELECT 7"));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!query.is_finished());
        cluster.primary().thaw();
        assert_eq!(query.join().unwrap().unwrap().as_deref(), Some("7"));
    });
}

#[test]
fn the_proxy_cuts_swallows_and_heals() {
    let cluster = LocalCluster::builder().replicas(0).start().unwrap();
    let url = cluster.primary().proxied_url("postgres").unwrap();
    let ask = || sql::run("proxy", &url, "SELECT 1");
    let proxy = cluster.primary().proxy().unwrap();
    ask().unwrap();
    proxy.cut();
    eventually("refused", || ask().is_err());
    proxy.heal();
    eventually("healed", || ask().is_ok());
    proxy.black_hole();
    std::thread::scope(|scope| {
        let query = scope.spawn(ask);
        std::thread::sleep(Duration::from_millis(50));
        assert!(!query.is_finished());
        proxy.heal();
        query.join().unwrap().unwrap();
    });
    proxy.slow(2000);
    proxy.delay(Duration::from_millis(1));
    ask().unwrap();
}

const CHILD: &str = "DIESEL_REPLICATED_TEST_CHILD";

/// Run in a process of its own by the test below, which kills it.
#[test]
fn child_that_is_killed() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let cluster = LocalCluster::builder().replicas(1).start().unwrap();
    println!(
        "FOLDER {}",
        cluster.primary().data_dir().parent().unwrap().display()
    );
    std::thread::sleep(PATIENCE);
}

#[test]
fn nothing_is_left_of_a_process_that_is_killed() {
    use std::io::{BufRead, BufReader};

    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "testing::tests::child_that_is_killed",
            "--exact",
            "--nocapture",
        ])
        .env(CHILD, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let folder = lines
        .find_map(|line| {
            line.unwrap()
                .split_once("FOLDER ")
                .map(|(_, folder)| folder.to_owned())
        })
        .unwrap();
    assert!(std::path::Path::new(&folder).exists());
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the folder is gone", || {
        !std::path::Path::new(&folder).exists()
    });
    // The shell that removed the folder names it until it ends, as servers would for good.
    eventually("no process names the folder", || {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let mut lines =
            entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
        !lines.any(|line| String::from_utf8_lossy(&line).contains(&folder))
    });
}

#[test]
fn many_clusters_start_side_by_side() {
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| LocalCluster::builder().replicas(1).start().unwrap());
        }
    });
}

#[test]
fn what_cannot_be_is_refused_in_words() {
    let missing = LocalCluster::builder()
        .binaries("/nowhere")
        .start()
        .unwrap_err();
    assert!(
        missing.to_string().contains("DIESEL_REPLICATED_PG_BIN"),
        "{missing}"
    );
    let later = LocalCluster::builder()
        .cascading_from(5)
        .start()
        .unwrap_err();
    assert!(later.to_string().contains("before it"), "{later}");
    let broken = LocalCluster::builder()
        .replicas(0)
        .setting("no_such_setting", "1")
        .start();
    let broken = broken.unwrap_err().to_string();
    assert!(broken.contains("no_such_setting"), "{broken}");
}

#[test]
fn after_a_failover_the_others_follow_the_promoted_one() {
    let cluster = LocalCluster::start().unwrap();
    let (old, replicas) = (cluster.primary(), cluster.replicas());
    old.sql("postgres", "CREATE TABLE t AS SELECT 1").unwrap();
    cluster.wait_caught_up().unwrap();
    old.kill().unwrap();
    replicas[0].promote().unwrap();
    replicas[1].follow(&replicas[0]).unwrap();
    cluster.rebuild(old, &replicas[0]).unwrap();
    replicas[0]
        .sql("postgres", "INSERT INTO t VALUES (2)")
        .unwrap();
    for node in [old, &replicas[1]] {
        eventually("they follow", || {
            count(node).unwrap_or_default().as_deref() == Some("2")
        });
        let standby = node
            .value("postgres", "SELECT pg_is_in_recovery()")
            .unwrap();
        assert_eq!(standby.as_deref(), Some("t"));
    }
}
