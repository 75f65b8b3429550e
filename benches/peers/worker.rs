//! An application: a process of its own that goes one way, on one runtime. It is told on its input what to do, and
//! says on its output what came of it. It ends with its input, so it does not outlive who started it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::client::{Client, Errand};
use crate::common::processor_time;
use crate::ways::{Flavour, TASKS, Way, Work};

/// What one way did in one turn.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turn {
    /// Of the operations that began within the part of the turn that counts, in microseconds.
    pub(crate) latencies: Vec<f64>,
    /// How many ended within that part.
    pub(crate) ended: u64,
    /// How long that part was.
    pub(crate) counted: Duration,
    /// All operations, also those before that part.
    pub(crate) operations: u64,
    /// Requests that did not see what they had written.
    pub(crate) unseen: u64,
    /// Processor time of the application for all operations.
    pub(crate) processor: Duration,
}

/// How long the beginning of a turn is, which does not count: caches and clocks have to wake up.
fn beginning(turn: Duration) -> Duration {
    turn / 5
}

/// The application, seen from outside.
pub(crate) struct Worker {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Worker {
    pub(crate) fn start(way: Way, flavour: Flavour, primary: &str, replicas: &[String]) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg("--work")
            .args([format!("{way:?}"), format!("{flavour:?}")])
            .arg(primary)
            .args(replicas)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self {
            child,
            input,
            output,
        }
    }

    /// Has so many tasks perform as many operations as they can within a time.
    pub(crate) fn turn(&mut self, work: Work, tasks: usize, time: Duration) -> Turn {
        writeln!(self.input, "{work:?} {tasks} {}", time.as_micros()).unwrap();
        self.input.flush().unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        let mut numbers = line
            .split_whitespace()
            .map(|number| number.parse::<u64>().unwrap());
        let mut next = || {
            numbers
                .next()
                .expect("the application has failed; it says why above")
        };
        let (processor, operations, unseen, ended) = (next(), next(), next(), next());
        Turn {
            ended,
            processor: Duration::from_nanos(processor),
            operations,
            unseen,
            counted: time - beginning(time),
            latencies: numbers.map(|nanos| nanos as f64 / 1e3).collect(),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The application, from inside.
pub(crate) fn run(arguments: &[String]) {
    let [way, flavour, primary, replicas @ ..] = arguments else {
        panic!("an application takes a way, a runtime and addresses");
    };
    let way: Way = way.parse().unwrap();
    let runtime = match flavour.parse().unwrap() {
        Flavour::CurrentThread => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build(),
        Flavour::MultiThread => tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build(),
    };
    // A thread waits for the input, so that the runtime goes on meanwhile, as it does in an application.
    let (sender, mut orders) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        let lines = std::io::stdin().lines().map_while(Result::ok);
        lines.for_each(|line| drop(sender.send(line)));
        std::process::exit(0);
    });
    runtime.unwrap().block_on(async {
        let client = Arc::new(Client::open(way, primary, replicas).await);
        while let Some(order) = orders.recv().await {
            let words: Vec<&str> = order.split(' ').collect();
            let [work, tasks, time] = words[..] else {
                panic!("what is `{order}`?");
            };
            let time = Duration::from_micros(time.parse().unwrap());
            let answer = perform(
                way,
                &client,
                work.parse().unwrap(),
                tasks.parse().unwrap(),
                time,
            );
            let answer = answer.await;
            let mut output = std::io::stdout().lock();
            writeln!(output, "{answer}").unwrap();
        }
    });
}

async fn perform(
    way: Way,
    client: &Arc<Client>,
    work: Work,
    tasks: usize,
    time: Duration,
) -> String {
    let (started, processor) = (Instant::now(), processor_time());
    let counts_from = started + beginning(time);
    let until = started + time;
    let task = |task: usize| {
        let client = Arc::clone(client);
        async move {
            let note = i32::try_from(way.place() * TASKS + task).unwrap();
            let mut latencies = Vec::new();
            let (mut operations, mut unseen, mut within) = (0_u64, 0_u64, 0_u64);
            loop {
                let errand = Errand {
                    task,
                    note,
                    number: number(),
                };
                let begun = Instant::now();
                if begun >= until {
                    break (latencies, [operations, unseen, within]);
                }
                unseen += u64::from(!client.perform(work, errand).await);
                operations += 1;
                let ended = Instant::now();
                within += u64::from(ended >= counts_from && ended <= until);
                if begun >= counts_from {
                    latencies.push((ended - begun).as_nanos());
                }
            }
        }
    };
    let results = (0..tasks).map(task).collect::<JoinSet<_>>().join_all();
    let results = results.await;
    let processor = processor_time() - processor;
    let sum = |place: usize| -> u64 { results.iter().map(|(_, counts)| counts[place]).sum() };
    let [operations, unseen, within] = [0, 1, 2].map(sum);
    let mut answer = format!("{} {operations} {unseen} {within}", processor.as_nanos());
    for latency in results.iter().flat_map(|(latencies, _)| latencies) {
        answer.push(' ');
        answer.push_str(&latency.to_string());
    }
    answer
}

/// A number that no operation had before, of this run or of an earlier one.
fn number() -> i64 {
    static NEXT: AtomicI64 = AtomicI64::new(0);
    if NEXT.load(Ordering::Relaxed) == 0 {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = i64::try_from(now.unwrap().as_nanos()).unwrap();
        let _ = NEXT.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
    }
    NEXT.fetch_add(1, Ordering::Relaxed)
}
