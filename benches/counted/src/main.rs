//! How many instructions this process spends on one operation, beside other ways to connect.
//!
//! Counts do not depend on what else the machine does, so they can be held to bounds: with `--check` a bound that is
//! missed is an error. Each contender runs in a process of its own under
//! [callgrind](https://valgrind.org/docs/manual/cl-manual.html), on a runtime of one thread, twice: with few and with many
//! operations. The difference is the operations alone. What the servers do is not counted.
//!
//! `cargo run --profile counted -p counted-bench -- --check`; `COUNTED=read` counts only the table of that name.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_precision_loss,
    reason = "a program of measurements, which fails by panicking"
)]

#[path = "../../common/mod.rs"]
mod common;
mod contenders;
mod sync;
mod tables;

use std::process::{Command, ExitCode, Stdio};

use diesel_replicated::testing::LocalCluster;

use common::{fill, vacuum};
use contenders::{Case, Contender, Where};
use tables::TABLES;

/// How many operations the two runs have. Before both come some that fill caches.
const FEW: u64 = 100;
const MANY: u64 = 1100;

/// The same where processes differ by millions of instructions before their first operation: the recorder measures the
/// processor's clock until it is content.
const VERY_MANY: u64 = 20_100;

/// The instructions of one operation.
fn count(place: &Where, case: Case) -> f64 {
    let many = match case.contender {
        Contender::OursRecorded => VERY_MANY,
        _ => MANY,
    };
    let before = run(place, case, FEW);
    let all = run(place, case, many);
    all.saturating_sub(before) as f64 / (many - FEW) as f64
}

/// All instructions of a process that performs so many operations.
fn run(place: &Where, case: Case, operations: u64) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().unwrap())
        .arg("--perform")
        .args([case.to_string(), operations.to_string()])
        .args([&place.primary, &place.replicas])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{case}: {said}");
    let total = said
        .lines()
        .find_map(|line| line.split_once("Collected : "));
    let (_, total) = total.unwrap_or_else(|| panic!("callgrind tells no count: {said}"));
    total.trim().parse().unwrap()
}

fn has_callgrind() -> bool {
    let version = Command::new("valgrind").arg("--version").output();
    version.is_ok_and(|output| output.status.success())
}

fn compare(check: bool) -> bool {
    let cluster = LocalCluster::start().unwrap();
    fill(&cluster, common::SCHEMA);
    vacuum(&cluster, "items");
    let replicas: Vec<String> = cluster
        .replicas()
        .iter()
        .map(|it| it.url("bench"))
        .collect();
    let place = Where {
        primary: cluster.primary().url("bench"),
        replicas: replicas.join(" "),
    };
    let wanted = std::env::var("COUNTED").ok();
    let mut all_met = true;
    for table in TABLES {
        if wanted.as_ref().is_none_or(|wanted| wanted == table.name) {
            let met = table.print(|case| count(&place, case));
            all_met = all_met && met;
        }
    }
    all_met || !check
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [perform, case, operations, primary, replicas] = &arguments[..] {
        assert_eq!(perform, "--perform");
        let place = Where {
            primary: primary.clone(),
            replicas: replicas.clone(),
        };
        contenders::perform(case.parse().unwrap(), operations.parse().unwrap(), &place);
        return ExitCode::SUCCESS;
    }
    if !has_callgrind() {
        eprintln!("there is no `valgrind` to count with");
        return ExitCode::FAILURE;
    }
    match compare(arguments.iter().any(|argument| argument == "--check")) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
