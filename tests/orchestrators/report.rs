//! What this crate must have done, and how long each client waited.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::time::Duration;

use crate::cluster::{Cluster, Orchestrator};
use crate::load::{Load, Seen, System};

/// Fails if this crate lost or doubled a row, showed a session less than it wrote, told something untrue of a row, or failed
/// a read.
pub fn judge(load: &Load, cluster: &Cluster<impl Orchestrator>) {
    let rows = rows(cluster);
    let of = |by: &str| rows.get(by).cloned().unwrap_or_default();
    let (ours, pairs) = (of("ours"), of("pair"));
    let ledger = load.ours.ledger.lock().unwrap();
    let lost = missing(&ledger.acknowledged, &ours);
    assert!(
        lost.is_empty(),
        "{} acknowledged rows are lost: {lost:?}",
        lost.len()
    );
    for (by, rows) in &rows {
        let doubled: Vec<_> = rows.iter().filter(|(_, times)| **times > 1).collect();
        assert!(
            by == "bare" || by == "balanced" || doubled.is_empty(),
            "{by}: {doubled:?}"
        );
    }
    let there: Vec<_> = ledger
        .refused
        .iter()
        .filter(|row| ours.contains_key(*row))
        .collect();
    assert!(
        there.is_empty(),
        "an error said that these are not there: {there:?}"
    );
    let halves: Vec<_> = pairs
        .keys()
        .filter(|row| !ours.contains_key(*row))
        .collect();
    assert!(
        halves.is_empty(),
        "half of a transaction is there: {halves:?}"
    );
    assert_eq!(
        *load.ours.stale.lock().unwrap(),
        0,
        "own writes that were not seen"
    );
    for seen in [&load.ours.reads, &load.ours.eventual] {
        let failures = &seen.lock().unwrap().failures;
        assert!(failures.is_empty(), "reads failed: {failures:?}");
    }
    assert!(
        ledger.acknowledged.len() > 100,
        "the load has done next to nothing"
    );
}

/// How often each row is there, by whose it is.
fn rows(cluster: &Cluster<impl Orchestrator>) -> BTreeMap<String, BTreeMap<i64, usize>> {
    let query = "SELECT by || ' ' || id FROM ledger WHERE id > 0";
    let text = cluster.sql(cluster.leader(), "app", query).unwrap();
    let mut rows: BTreeMap<String, BTreeMap<i64, usize>> = BTreeMap::new();
    for line in text.lines() {
        let (by, id) = line.split_once(' ').unwrap();
        *rows
            .entry(by.to_owned())
            .or_default()
            .entry(id.parse().unwrap())
            .or_default() += 1;
    }
    rows
}

fn missing(acknowledged: &[i64], there: &BTreeMap<i64, usize>) -> BTreeSet<i64> {
    let gone = acknowledged.iter().filter(|row| !there.contains_key(*row));
    gone.copied().collect()
}

const HEAD: &str = "Longest time without a success, in seconds. `+`: how long after the bare connection's first write after its pause \
     ours came, in milliseconds. `late`: how long after all members streamed again the pool knew it. `–`: left out.\n\n\
     | under | situation | writes: ours | + | bare | HAProxy | transactions: ours | reads: ours | `Eventual` | bare | HAProxy | late | \
     rows of ours | failed: ours | bare | HAProxy |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n";

/// Adds a line to the table.
pub fn tell(version: &str, situation: &str, load: &Load, late: Duration) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/target/orchestrators.md");
    let is_new = !fs::exists(path).unwrap();
    let mut file = fs::File::options()
        .create(true)
        .append(true)
        .open(path)
        .unwrap();
    if is_new {
        file.write_all(HEAD.as_bytes()).unwrap();
    }
    let (ours, bare, balanced) = (&load.ours, &load.bare, &load.balanced);
    let pause = |seen: &std::sync::Mutex<Seen>| {
        let longest = seen.lock().unwrap().longest;
        longest.map_or_else(
            || "–".to_owned(),
            |gap| format!("{:.2}", gap.length().as_secs_f64()),
        )
    };
    let cells = [
        version.replace('_', " "),
        situation.replace('_', " "),
        pause(&ours.writes),
        after(ours, bare),
        pause(&bare.writes),
        pause(&balanced.writes),
        pause(&ours.transactions),
        pause(&ours.reads),
        pause(&ours.eventual),
        pause(&bare.reads),
        pause(&balanced.reads),
        format!("{:.2}", late.as_secs_f64()),
        ours.ledger.lock().unwrap().acknowledged.len().to_string(),
        failed(ours),
        failed(bare),
        failed(balanced),
    ];
    writeln!(file, "| {} |", cells.join(" | ")).unwrap();
    for (name, system) in [("ours", ours), ("bare", bare), ("HAProxy", balanced)] {
        for seen in [&system.writes, &system.transactions, &system.reads] {
            for (class, times) in &seen.lock().unwrap().failures {
                println!("{name}: {times} times: {class}");
            }
        }
    }
}

/// How long after the bare connection's pause of writes ours ended, if both had one.
fn after(ours: &System, bare: &System) -> String {
    let (ours, bare) = (ours.writes.lock().unwrap(), bare.writes.lock().unwrap());
    let (Some(ours), Some(bare)) = (ours.longest, bare.longest) else {
        return String::new();
    };
    if ours.length().min(bare.length()) < Duration::from_millis(200) {
        return String::new();
    }
    if ours.to > bare.to {
        format!("{}", (ours.to - bare.to).as_millis())
    } else {
        format!("-{}", (bare.to - ours.to).as_millis())
    }
}

fn failed(system: &System) -> String {
    if system.writes.lock().unwrap().longest.is_none() {
        return "–".to_owned();
    }
    let seen = [&system.writes, &system.transactions, &system.reads];
    let failures = seen.map(|seen| seen.lock().unwrap().failures.values().sum::<u64>());
    format!("{} w, {} t, {} r", failures[0], failures[1], failures[2])
}
