//! This pool beside what people would use instead, in one run: pools over one server, two pools routed by hand,
//! balancers and poolers between.
//!
//! Each way has an application of its own, a process that is told when it is its turn. All take turns, in short turns
//! and in changing order, so that whatever else the machine does meets all of them alike; ratios are taken within each
//! round. `scripts/poolers` gets the proxies; one that cannot be had is named as missing.
//!
//! ```sh
//! cargo bench --bench peers                 # eight minutes
//! cargo bench --bench peers -- --short      # one
//! cargo bench --bench peers -- --write src/guide/peers.md --svg src/guide/peers.svg  # what the guide shows
//! ```
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_precision_loss,
    reason = "a program of measurements, which fails by panicking"
)]

mod client;
#[path = "../common/mod.rs"]
mod common;
mod machine;
mod plot;
mod processor;
mod proxies;
mod report;
mod rounds;
mod ways;
mod worker;

use std::path::PathBuf;
use std::time::Duration;

use diesel_replicated::testing::LocalCluster;

use common::{fill, vacuum};
use proxies::Proxy;
use rounds::{Case, Contender, Table, Times};
use ways::{Flavour, TASKS, Way, Work};
use worker::Worker;

const FULL: Times = Times {
    turns: [Duration::from_millis(25), Duration::from_millis(125)],
    case: Duration::from_secs(55),
};

const SHORT: Times = Times {
    turns: [Duration::from_millis(20), Duration::from_millis(60)],
    case: Duration::from_secs(5),
};

/// How many tasks do something at once, beside one.
const SEVERAL: [usize; 2] = [8, TASKS];

/// What the command line asks for.
struct Options {
    times: Times,
    plot: Option<PathBuf>,
    page: Option<PathBuf>,
}

impl Options {
    fn parse(arguments: &[String]) -> Self {
        let mut options = Self {
            times: FULL,
            plot: None,
            page: None,
        };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut file = || {
                let file = arguments.next();
                Some(PathBuf::from(file.expect("a file has to follow")))
            };
            match argument.as_str() {
                "--bench" => {}
                "--short" => options.times = SHORT,
                "--svg" => options.plot = file(),
                "--write" => options.page = file(),
                other => panic!("there is no option `{other}`"),
            }
        }
        options
    }
}

/// The cases, by the runtimes that they take.
fn cases(flavour: Flavour) -> Vec<Case> {
    let tasks: &[usize] = match flavour {
        Flavour::CurrentThread => &[1],
        Flavour::MultiThread => &[1, SEVERAL[0], SEVERAL[1]],
    };
    let case = |tasks: &usize| {
        [Work::Read, Work::Request].map(|work| Case {
            work,
            tasks: *tasks,
            flavour,
        })
    };
    tasks.iter().flat_map(case).collect()
}

fn contenders<'a>(
    flavour: Flavour,
    cluster: &LocalCluster,
    proxies: &'a [Proxy],
) -> Vec<Contender<'a>> {
    let direct: Vec<String> = cluster
        .replicas()
        .iter()
        .map(|node| node.url("bench"))
        .collect();
    let ways = Way::ALL.into_iter();
    let contender = |way: Way| {
        let proxy = match way.proxy() {
            Some(name) => Some(proxies.iter().find(|proxy| proxy.name == name)?),
            None => None,
        };
        let (primary, replicas) = match proxy {
            Some(proxy) => (proxy.primary(), proxy.replicas()),
            None => (cluster.primary().url("bench"), direct.clone()),
        };
        Some(Contender {
            way,
            worker: Worker::start(way, flavour, &primary, &replicas),
            proxy,
        })
    };
    ways.filter_map(contender).collect()
}

fn start() -> LocalCluster {
    // Enough for the connections of all ways at once.
    let cluster = LocalCluster::builder().setting("max_connections", "400");
    let cluster = cluster.start().unwrap();
    fill(&cluster, client::SCHEMA);
    for table in ["items", "notes"] {
        vacuum(&cluster, table);
    }
    cluster
}

fn compare(options: &Options) {
    let mut machine = machine::describe();
    let cluster = start();
    machine.versions.push(machine::server(&cluster));
    let (mut proxies, mut missing) = (Vec::new(), Vec::new());
    for (name, program) in proxies::find() {
        match program {
            Ok(program) => proxies.push(Proxy::start(name, &program, &cluster)),
            Err(reason) => missing.push((name, reason)),
        }
    }
    let versions = proxies.iter().map(|proxy| proxy.version.clone());
    machine.versions.extend(versions);
    let mut tables: Vec<Table> = Vec::new();
    for flavour in [Flavour::CurrentThread, Flavour::MultiThread] {
        let mut contenders = contenders(flavour, &cluster, &proxies);
        for case in cases(flavour) {
            eprintln!("{:?}, tasks: {}, {flavour}", case.work, case.tasks);
            tables.push(rounds::measure(
                case,
                &mut contenders,
                &cluster,
                options.times,
            ));
        }
    }
    let report = report::markdown(&machine, &tables, &missing);
    println!("{report}");
    if let Some(file) = &options.page {
        report::write(file, &report);
    }
    if let Some(file) = &options.plot {
        std::fs::write(file, plot::draw(&tables)).unwrap();
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments
        .first()
        .is_some_and(|argument| argument == "--work")
    {
        worker::run(&arguments[1..]);
        return;
    }
    // Anything but `cargo bench` only wants to know whether it is built.
    if arguments.iter().any(|argument| argument == "--bench") {
        compare(&Options::parse(&arguments));
    }
}
