//! Sessions that read, write and hand over to each other, in this process and in others.

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Integer};
use diesel_async::RunQueryDsl;
use diesel_replicated::config::{ConsistencyConfig, HealthConfig};
use diesel_replicated::status::NodeKind;
use diesel_replicated::{Consistency, ReplicatedConnection, ReplicatedPool, SessionToken};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::time::{ClockId, clock_gettime};

use super::check::{History, KEYS, Kind, Operation, Session};

/// What a process of sessions is told.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The primary's URL, then the replicas'.
    pub urls: Vec<String>,
    pub level: Consistency,
    pub strong_on_replicas: bool,
    pub operations: u64,
    pub seed: u64,
    /// Where tokens are left for whoever takes them.
    pub mailbox: PathBuf,
    /// The first of this process's numbers of sessions.
    pub first: u64,
}

const VARIABLE: &str = "HISTORY_PLAN";

impl Plan {
    /// The plan as one text, for the environment of another process.
    fn text(&self) -> String {
        [
            self.urls.join(" "),
            self.level.to_string(),
            self.strong_on_replicas.to_string(),
            self.operations.to_string(),
            self.seed.to_string(),
            self.mailbox.display().to_string(),
            self.first.to_string(),
        ]
        .join("\n")
    }

    pub fn from_environment() -> Option<Self> {
        let text = std::env::var(VARIABLE).ok()?;
        let mut lines = text.lines();
        let mut next = || lines.next().unwrap().to_owned();
        Some(Self {
            urls: next().split(' ').map(str::to_owned).collect(),
            level: next().parse().unwrap(),
            strong_on_replicas: next().parse().unwrap(),
            operations: next().parse().unwrap(),
            seed: next().parse().unwrap(),
            mailbox: next().into(),
            first: next().parse().unwrap(),
        })
    }

    /// Runs the plan in a process of its own; what it says is read to its end.
    pub fn in_another_process(&self) -> History {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "another_process", "--nocapture", "--quiet"])
            .env(VARIABLE, self.text())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        let mut history = History::new();
        for line in lines {
            read_line(&mut history, &line.unwrap());
        }
        assert!(child.wait().unwrap().success());
        history
    }

    /// Runs the plan here, on a pool of its own.
    pub async fn run(self) -> History {
        let consistency =
            ConsistencyConfig::from(self.level).strong_reads_on_replicas(self.strong_on_replicas);
        let builder = ReplicatedPool::builder();
        let builder = self
            .urls
            .iter()
            .fold(builder, |builder, url| builder.node(url.as_str()));
        // Who comes back has its whole share at once: the more there is to see.
        let health = HealthConfig::default().slow_start(std::time::Duration::ZERO);
        let builder = builder.consistency(consistency).health(health);
        // A process may start in the middle of a failover. It begins when there is a primary.
        let pool = builder.start_read_only(true).build().await.unwrap();
        let numbers = Arc::new(AtomicU64::new(self.first));
        let left = Arc::new(AtomicU64::new(self.operations));
        let tasks = (0..4u64).map(|task| {
            let worker = Worker {
                pool: pool.clone(),
                plan: self.clone(),
                numbers: Arc::clone(&numbers),
                left: Arc::clone(&left),
                random: StdRng::seed_from_u64(self.seed * 31 + task),
                history: History::new(),
            };
            tokio::spawn(worker.run())
        });
        let mut history = History::new();
        for task in tasks.collect::<Vec<_>>() {
            history.extend(task.await.unwrap());
        }
        history
    }
}

struct Worker {
    pool: ReplicatedPool,
    plan: Plan,
    numbers: Arc<AtomicU64>,
    left: Arc<AtomicU64>,
    random: StdRng,
    history: History,
}

impl Worker {
    /// One session after the other, until all operations are done.
    async fn run(mut self) -> History {
        while AtomicU64::load(&self.left, Ordering::Relaxed) > 0 {
            let number = self.numbers.fetch_add(1, Ordering::Relaxed);
            self.session(number).await;
        }
        self.history
    }

    async fn session(&mut self, number: u64) {
        let mut recorded = Session::default();
        let session = match take(&self.plan.mailbox, number) {
            Some((parent, token)) if self.random.random_bool(0.8) => {
                recorded.parent = Some(parent);
                self.pool.resume(&token)
            }
            _ => self.pool.session(),
        };
        for _ in 0..self.random.random_range(1..12) {
            let mut conn = session.get().await.unwrap();
            for _ in 0..self.random.random_range(1..4) {
                self.step(&mut conn, &mut recorded).await;
            }
        }
        let token = session.token().await;
        leave(
            &self.plan.mailbox,
            number,
            recorded.operations.len(),
            &token,
        );
        self.history.insert(number, recorded);
    }

    async fn step(&mut self, conn: &mut ReplicatedConnection, recorded: &mut Session) {
        let key = self.random.random_range(0..KEYS);
        let start = now();
        if self.random.random_bool(0.25) {
            let kind = Kind::Write(write(conn, key).await.ok());
            recorded.operations.push(Operation {
                key,
                kind,
                start,
                end: now(),
            });
            self.done(1);
            return;
        }
        // Failed reads have seen nothing.
        let Ok(versions) = read(conn).await else {
            return;
        };
        let end = now();
        let by_replica = conn
            .last_route()
            .is_some_and(|route| route.kind == NodeKind::Replica);
        for (key, version) in versions {
            let kind = Kind::Read(version, by_replica);
            recorded.operations.push(Operation {
                key,
                kind,
                start,
                end,
            });
        }
        self.done(KEYS as u64);
    }

    fn done(&self, operations: u64) {
        let less = |left: u64| Some(left.saturating_sub(operations));
        let _ = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Integer)]
    key: i32,
    #[diesel(sql_type = BigInt)]
    version: i64,
}

async fn write(conn: &mut ReplicatedConnection, key: usize) -> QueryResult<u64> {
    let key = i32::try_from(key).unwrap();
    let update = "UPDATE kv SET version = version + 1 WHERE key = $1 RETURNING key, version";
    let update = sql_query(update).bind::<Integer, _>(key);
    let row: Row = update.get_result(conn).await?;
    Ok(u64::try_from(row.version).unwrap())
}

async fn read(conn: &mut ReplicatedConnection) -> QueryResult<Vec<(usize, u64)>> {
    let rows: Vec<Row> = sql_query("SELECT key, version FROM kv").load(conn).await?;
    let pair = |row: Row| {
        (
            usize::try_from(row.key).unwrap(),
            u64::try_from(row.version).unwrap(),
        )
    };
    Ok(rows.into_iter().map(pair).collect())
}

/// Leaves a token for whoever takes it, in whatever process.
fn leave(mailbox: &Path, session: u64, operations: usize, token: &SessionToken) {
    let written = mailbox.join(format!("new-{session}"));
    std::fs::write(&written, format!("{session} {operations} {token}")).unwrap();
    std::fs::rename(written, mailbox.join(format!("token-{}", session % 8))).unwrap();
}

fn take(mailbox: &Path, session: u64) -> Option<((u64, usize), SessionToken)> {
    let taken = mailbox.join(format!("taken-{session}"));
    // Of another session that has ended meanwhile, if there is one.
    std::fs::rename(mailbox.join(format!("token-{}", (session + 3) % 8)), &taken).ok()?;
    let text = std::fs::read_to_string(&taken).ok()?;
    let _ = std::fs::remove_file(taken);
    let mut words = text.split(' ');
    let parent = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    Some((parent, words.next()?.parse().ok()?))
}

/// One clock for all processes.
fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap()
}

/// Says a history line by line, for [`read_line`].
pub fn say(history: &History) {
    let mut out = std::io::stdout().lock();
    for (id, session) in history {
        let (parent, count) = session.parent.map_or((0, 0), |parent| parent);
        let known = u8::from(session.parent.is_some());
        writeln!(out, "\n#s {id} {known} {parent} {count}").unwrap();
        for Operation {
            key,
            kind,
            start,
            end,
        } in &session.operations
        {
            let (what, version, flag) = match kind {
                Kind::Write(version) => ("w", version.unwrap_or(0), version.is_some()),
                Kind::Read(version, by_replica) => ("r", *version, *by_replica),
            };
            writeln!(
                out,
                "#{what} {id} {key} {version} {} {start} {end}",
                u8::from(flag)
            )
            .unwrap();
        }
    }
}

fn read_line(history: &mut History, line: &str) {
    // The test program has lines of its own.
    let Some((what, rest)) = line.strip_prefix('#').and_then(|line| line.split_once(' ')) else {
        return;
    };
    let numbers: Vec<u64> = rest.split(' ').map(|word| word.parse().unwrap()).collect();
    let session = history.entry(numbers[0]).or_default();
    let place = |number: u64| usize::try_from(number).unwrap();
    if what == "s" {
        session.parent = (numbers[1] == 1).then(|| (numbers[2], place(numbers[3])));
        return;
    }
    let (version, flag) = (numbers[2], numbers[3] == 1);
    session.operations.push(Operation {
        key: place(numbers[1]),
        kind: match what {
            "w" => Kind::Write(flag.then_some(version)),
            _ => Kind::Read(version, flag),
        },
        start: numbers[4],
        end: numbers[5],
    });
}
