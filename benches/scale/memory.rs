//! Many sessions, many texts: what the process keeps of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use diesel::connection::CacheSize;
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::Integer;
use diesel::{QueryResult, sql_query};
use diesel_async::{AsyncConnection, RunQueryDsl};
use diesel_replicated::testing::LocalCluster;
use tokio::task::JoinSet;

use super::{builder, built, number};

const SESSIONS: usize = 1000;
const TEXTS: usize = 1_000_000;
const READERS: usize = 8;

/// As long as texts may take, whatever their number.
const PATIENCE: Duration = Duration::from_secs(180);

/// The memory of this process in bytes.
pub(crate) fn resident() -> u64 {
    memory_of("self")
}

fn memory_of(process: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1));
    kilobytes.unwrap().parse::<u64>().unwrap() * 1024
}

/// A thousand sessions that have written and have a token.
pub(crate) async fn sessions(cluster: &LocalCluster) {
    let table = "CREATE TABLE IF NOT EXISTS written (id bigint GENERATED ALWAYS AS IDENTITY)";
    cluster.primary().sql("bench", table).unwrap();
    cluster.wait_caught_up().unwrap();
    let pool = built(builder(cluster, 4)).await;
    println!("\nSessions that have written, have a token, and read");
    let mut kept = Vec::new();
    // The first ones fill caches.
    for round in 0..3 {
        let before = resident();
        let started = Instant::now();
        let session = |_| {
            let pool = pool.clone();
            async move {
                let session = pool.session();
                let mut conn = session.get().await.unwrap();
                let write = sql_query("INSERT INTO written DEFAULT VALUES");
                let written: usize = write.execute(&mut conn).await.unwrap();
                assert_eq!(written, 1);
                let token = session.token().await.to_string();
                let read = sql_query("SELECT id FROM written LIMIT 1");
                let read: usize = read.execute(&mut conn).await.unwrap();
                assert_eq!(read, 1);
                (session, token)
            }
        };
        let sessions: JoinSet<_> = (0..SESSIONS).map(session).collect();
        let sessions = sessions.join_all().await;
        let token = sessions[0].1.len();
        kept.push(sessions);
        let each = resident().saturating_sub(before) as f64 / SESSIONS as f64;
        println!(
            "  {SESSIONS} of them, round {round}: {each:.0} bytes for each, with its token of {token} bytes; {:.0} ms",
            started.elapsed().as_secs_f64() * 1e3
        );
    }
}

/// A million different texts.
pub(crate) async fn texts(cluster: &LocalCluster) {
    let texts = number("SCALE_TEXTS", TEXTS);
    println!(
        "\n{texts} different texts, over {READERS} tasks: memory of the process, time of each"
    );
    let pool = built(builder(cluster, 4)).await;
    let next = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    for tenth in 1..=10 {
        let first = AtomicUsize::load(&next, Ordering::Relaxed);
        let from = Instant::now();
        let reader = |_| {
            let (pool, next) = (pool.clone(), Arc::clone(&next));
            async move {
                loop {
                    let number = AtomicUsize::fetch_add(&next, 1, Ordering::Relaxed);
                    if number >= texts * tenth / 10 || started.elapsed() > PATIENCE {
                        return;
                    }
                    let mut conn = pool.get().await.unwrap();
                    let text = format!("SELECT {number} AS number FROM service WHERE false");
                    let read: QueryResult<usize> = sql_query(text).execute(&mut conn).await;
                    read.unwrap();
                }
            }
        };
        let readers: JoinSet<()> = (0..READERS).map(reader).collect();
        readers.join_all().await;
        let done = AtomicUsize::load(&next, Ordering::Relaxed) - READERS;
        if tenth == 1 || tenth == 5 || tenth == 10 || started.elapsed() > PATIENCE {
            let each = from.elapsed().as_secs_f64() * 1e6 / (done - first) as f64;
            println!(
                "  after {done:>8}: {:>6.1} MB, {each:>6.1} us",
                resident() as f64 / 1e6
            );
        }
        if started.elapsed() > PATIENCE {
            return;
        }
    }
}

/// A query that says that it may be prepared and kept, with a text of its own: what a program makes that puts values
/// into the texts of such queries.
struct Kept(String);

impl QueryId for Kept {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl QueryFragment<Pg> for Kept {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(&self.0);
        Ok(())
    }
}

impl Query for Kept {
    type SqlType = Integer;
}

impl<Conn> diesel::RunQueryDsl<Conn> for Kept {}

/// What diesel-async keeps for each connection, by design: queries that may be prepared once.
pub(crate) async fn kept_texts(cluster: &LocalCluster) {
    const TEXTS: usize = 20_000;
    println!("\n{TEXTS} different texts of queries that are prepared and kept, on one connection");
    for cache in [CacheSize::Unbounded, CacheSize::Disabled] {
        let pool = built(builder(cluster, 1)).await;
        let mut conn = pool.get().await.unwrap();
        conn.set_prepared_statement_cache_size(cache);
        let pid: i32 = diesel::select(diesel::dsl::sql::<Integer>("pg_backend_pid()"))
            .get_result(&mut conn.primary())
            .await
            .unwrap();
        let server = pid.to_string();
        let before = (resident(), memory_of(&server));
        for number in 0..TEXTS {
            let kept = Kept(format!("SELECT {number} FROM service WHERE false"));
            let rows: Vec<i32> = kept.load(&mut conn.primary()).await.unwrap();
            assert!(rows.is_empty());
        }
        let grown = |after: u64, before: u64| after.saturating_sub(before) as f64 / TEXTS as f64;
        println!(
            "  {cache:?}: {:.0} bytes for each in this process, {:.0} in the server",
            grown(resident(), before.0),
            grown(memory_of(&server), before.1)
        );
    }
}
