//! Synchronous Diesel: r2d2 pools, hooks, threads, and code that blocks within async code.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::r2d2::{ConnectionManager, CustomizeConnection, Pool};
use diesel::sql_query;
use diesel::sql_types::Text;
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use diesel_replicated::blocking::block_on;
use diesel_replicated::status::RouteReason;
use diesel_replicated::testing::LocalNode;
use diesel_replicated::{Consistency, Error, ErrorExt, Outcome, ReplicatedPool, SyncConnection};
use futures_util::StreamExt;

use crate::support::{cluster, current_setting, database, users};

type R2d2 = Pool<ConnectionManager<SyncConnection>>;

fn database_now() -> String {
    tokio::runtime::Runtime::new().unwrap().block_on(database())
}

/// A URL that no other test has, so that its cluster is its own.
fn url() -> String {
    cluster().url(&database_now())
}

fn r2d2(url: &str, size: u32) -> R2d2 {
    let manager = ConnectionManager::new(url);
    Pool::builder().max_size(size).build(manager).unwrap()
}

fn setting(conn: &mut SyncConnection, name: &str) -> String {
    let shown = diesel::select(current_setting(name)).get_result(conn);
    shown.unwrap()
}

fn server(conn: &mut SyncConnection) -> String {
    setting(conn, "cluster_name")
}

fn insert(conn: &mut SyncConnection, name: &str) -> QueryResult<usize> {
    let row = users::name.eq(name);
    diesel::insert_into(users::table).values(row).execute(conn)
}

fn count(conn: &mut SyncConnection) -> i64 {
    users::table.count().get_result(conn).unwrap()
}

/// Runs it on a node, past every pool.
fn ask(node: &LocalNode, sql: &str) -> Vec<Vec<Option<String>>> {
    node.sql("postgres", sql).unwrap()
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[derive(Debug)]
struct Customizer(&'static str);

impl CustomizeConnection<SyncConnection, diesel::r2d2::Error> for Customizer {
    fn on_acquire(&self, conn: &mut SyncConnection) -> Result<(), diesel::r2d2::Error> {
        conn.batch_execute(self.0)
            .map_err(diesel::r2d2::Error::QueryError)
    }
}

/// What people set on each connection, and what the servers show of it then.
const SET: [(&str, &str, &str); 6] = [
    ("SET statement_timeout = 5000", "statement_timeout", "5s"),
    (
        "SET search_path TO public, pg_temp",
        "search_path",
        "public, pg_temp",
    ),
    ("SET TIME ZONE 'Europe/Berlin'", "TimeZone", "Europe/Berlin"),
    ("SET application_name = 'web'", "application_name", "web"),
    (
        "SET lock_timeout TO '2s'; SET idle_in_transaction_session_timeout = '1min'",
        "lock_timeout",
        "2s",
    ),
    (
        "SELECT set_config('app.tenant', 'acme', false)",
        "app.tenant",
        "acme",
    ),
];

// diesel PR 1798 and r2d2-diesel PR 21: queries for each new connection are a customizer's. Each user has what it set, on
// whichever server, and that it was set keeps no read on the primary.
#[test]
fn what_a_customizer_sets_holds_on_each_server_and_pins_nobody() {
    let url = url();
    for check in [true, false] {
        for (sql, name, value) in SET {
            let pool = Pool::builder()
                .max_size(2)
                .test_on_check_out(check)
                .connection_customizer(Box::new(Customizer(sql)))
                .build(ConnectionManager::<SyncConnection>::new(&url))
                .unwrap();
            for round in 0..3 {
                let mut conn = pool.get().unwrap();
                conn.set_consistency(Consistency::Eventual);
                assert_eq!(setting(&mut conn, name), value, "{sql}, round {round}");
                let route = conn.last_route().unwrap();
                let free = route.node != "primary" || route.reason == RouteReason::ReplicaBusy;
                assert!(free, "{sql}, check {check}, round {round}: {route:?}");
                conn.transaction(|conn| {
                    assert_eq!(server(conn), "primary");
                    assert_eq!(setting(conn, name), value, "{sql}");
                    QueryResult::Ok(())
                })
                .unwrap();
            }
        }
    }
}

// What cannot be made again on another server keeps its user on the primary, and nobody else.
#[test]
fn a_customizer_that_leaves_more_than_settings_keeps_its_users_on_the_primary() {
    let url = url();
    let characteristics =
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ";
    for (hook, left) in [
        (
            "CREATE TEMP TABLE basket (id integer)",
            "INSERT INTO basket VALUES (1)",
        ),
        (
            characteristics,
            "SELECT 1 / (current_setting('transaction_isolation') = 'repeatable read')::integer",
        ),
    ] {
        let pool = Pool::builder()
            .max_size(1)
            .connection_customizer(Box::new(Customizer(hook)))
            .build(ConnectionManager::<SyncConnection>::new(&url))
            .unwrap();
        for _ in 0..3 {
            let mut conn = pool.get().unwrap();
            let rows = sql_query(left).execute(&mut conn);
            assert_eq!(rows, Ok(1), "{hook}");
            assert_eq!(server(&mut conn), "primary", "{hook}");
        }
    }
    let mut other = SyncConnection::establish(&url).unwrap();
    // While no replica has the rows yet, the primary may serve.
    wait_until("others read on replicas", || {
        server(&mut other) != "primary"
    });
}

#[derive(Debug)]
struct Keeper;

impl CustomizeConnection<SyncConnection, diesel::r2d2::Error> for Keeper {
    fn on_acquire(&self, conn: &mut SyncConnection) -> Result<(), diesel::r2d2::Error> {
        let set = conn.batch_execute("SET statement_timeout = 5000");
        set.map_err(diesel::r2d2::Error::QueryError)?;
        conn.keep_settings();
        Ok(())
    }
}

// vertx-sql-client PR 1684: a hook takes a connection and keeps it, so the pool starves. r2d2 runs it for each of its
// connections before anybody uses one, and the servers have fewer.
#[test]
fn the_hook_of_a_large_pool_keeps_no_server_connection() {
    for check in [true, false] {
        let hooks: [Box<dyn CustomizeConnection<SyncConnection, diesel::r2d2::Error>>; 3] = [
            Box::new(Customizer("SET statement_timeout = 5000")),
            Box::new(Customizer("SELECT 1")),
            Box::new(Keeper),
        ];
        for hook in hooks {
            let url = format!("{}?max_size=2&connection_timeout=5s", url());
            let told = format!("{hook:?}, check {check}");
            let pool = Pool::builder()
                .max_size(9)
                .test_on_check_out(check)
                .connection_customizer(hook)
                .build(ConnectionManager::<SyncConnection>::new(&url))
                .expect(&told);
            // All of r2d2's connections are there, idle, and others get theirs.
            assert_eq!(pool.state().idle_connections, 9, "{told}");
            let mut other = SyncConnection::establish(&url).unwrap();
            assert_eq!(insert(&mut other, "other"), Ok(1), "{told}");
            assert_eq!(count(&mut other), 4, "{told}");
        }
    }
}

// What a hook has left on its server is lost with that: the check tells r2d2 so, and no user gets the error.
#[test]
fn a_check_finds_that_a_hooks_temporary_table_is_gone() {
    let url = format!("{}?application_name=hook_gone", url());
    let pool = Pool::builder()
        .max_size(2)
        .connection_customizer(Box::new(Customizer(
            "CREATE TEMP TABLE scratch (id integer)",
        )))
        .build(ConnectionManager::<SyncConnection>::new(&url))
        .unwrap();
    terminate("hook_gone");
    for _ in 0..4 {
        let mut conn = pool.get().unwrap();
        let written = sql_query("INSERT INTO scratch VALUES (1)").execute(&mut conn);
        assert_eq!(written, Ok(1));
    }
}

// One request writes, the next request gets another connection of the pool, on another thread.
#[test]
fn the_next_request_reads_what_the_last_one_wrote() {
    let pool = r2d2(&url(), 4);
    for n in 0..20 {
        let (mut first, mut second) = (pool.get().unwrap(), pool.get().unwrap());
        insert(&mut first, &format!("request {n}")).unwrap();
        let seen = std::thread::scope(|scope| scope.spawn(|| count(&mut second)).join());
        assert_eq!(seen.unwrap(), 4 + n);
    }
}

// rust-postgres 639: a synchronous connection in a handler panics, "Cannot start a runtime from within a runtime".
// Rocket 1466, 1610 and PRs 1467, 1618: so does a pool that is dropped there, "Cannot drop a runtime in a context where
// blocking is not allowed". roapi 389 has both.
#[tokio::test]
async fn a_synchronous_pool_is_made_used_and_dropped_within_async_code() {
    let url = cluster().url(&database().await);
    let pool = r2d2(&url, 2);
    let mut conn = pool.get().unwrap();
    insert(&mut conn, "within").unwrap();
    assert_eq!(count(&mut conn), 4);
    drop(conn);
    drop(pool);
    let pool = diesel_replicated::Builder::from_url(&url)
        .unwrap()
        .build_blocking()
        .unwrap();
    let mut conn = SyncConnection::from(pool.get_blocking().unwrap());
    assert_eq!(count(&mut conn), 4);
    drop(conn);
    assert_eq!(block_on(pool.close(Duration::from_secs(10))), 0);
    // No server is there.
    let none = SyncConnection::establish("postgres://127.0.0.1:1/x?connect_timeout=2");
    assert!(none.is_err());
}

// A connection in a thread-local is dropped while the thread ends.
#[test]
fn a_connection_of_a_thread_ends_with_the_thread() {
    thread_local! {
        static CONNECTION: std::cell::RefCell<Option<SyncConnection>> =
            const { std::cell::RefCell::new(None) };
    }
    let url = url();
    for _ in 0..2 {
        let url = url.clone();
        let thread = std::thread::spawn(move || {
            CONNECTION.with_borrow_mut(|slot| {
                let conn = slot.insert(SyncConnection::establish(&url).unwrap());
                conn.batch_execute("BEGIN").unwrap();
                assert_eq!(server(conn), "primary");
            });
        });
        thread.join().unwrap();
    }
}

/// Writes when it is dropped.
struct Farewell {
    conn: SyncConnection,
    told: std::sync::mpsc::Sender<Result<usize, String>>,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        let written = insert(&mut self.conn, "farewell").map_err(|error| {
            assert_eq!(error.outcome(), Outcome::NotRun);
            error.to_string()
        });
        self.told.send(written).unwrap();
    }
}

// A panic in a destructor of a thread-local value ends the process. tokio's own may be gone by then.
#[test]
fn a_statement_in_the_destructor_of_a_thread_local_runs_or_says_why_not() {
    thread_local! {
        static LAST: std::cell::RefCell<Option<Farewell>> = const { std::cell::RefCell::new(None) };
    }
    let url = url();
    let (told, hears) = std::sync::mpsc::channel();
    let (address, before) = (url.clone(), told.clone());
    let thread = std::thread::spawn(move || {
        // Its destructor is noted before tokio's, and so runs after it.
        LAST.with_borrow_mut(|slot| {
            let conn = SyncConnection::establish(&address).unwrap();
            slot.replace(Farewell { conn, told: before });
        });
    });
    thread.join().unwrap();
    let written = hears.recv().unwrap();
    let mut conn = SyncConnection::establish(&url).unwrap();
    let rows = if written.is_ok() { 4 } else { 3 };
    assert_eq!(count(&mut conn), rows, "{written:?}");
    if let Err(error) = written {
        assert!(error.contains("the thread is ending"), "{error}");
    }
    drop(told);
}

// diesel #2414 and #446: more values than a message counts.
#[test]
fn more_bind_values_than_the_protocol_counts_are_refused_before_anything_is_sent() {
    let mut conn = SyncConnection::establish(&url()).unwrap();
    let row = |n: i32| users::name.eq(n.to_string());
    let rows: Vec<_> = (0..65_536).map(row).collect();
    let inserted = diesel::insert_into(users::table).values(rows);
    let refused = inserted.execute(&mut conn).unwrap_err();
    assert_eq!(count(&mut conn), 3);
    assert!(
        refused.to_string().contains("65535 at the most"),
        "{refused}"
    );
    assert_eq!(refused.outcome(), Outcome::NotRun);
}

/// Ends all server connections of a name that are open now, and waits until they are gone.
fn terminate(name: &str) {
    let of_name = format!("SELECT pid FROM pg_stat_activity WHERE application_name = '{name}'");
    for node in cluster().nodes() {
        let pids = ask(node, &of_name);
        let pids: Vec<String> = pids.into_iter().flatten().flatten().collect();
        let pids = format!(
            "pid IN (0{})",
            pids.iter()
                .map(|pid| format!(", {pid}"))
                .collect::<String>()
        );
        let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE";
        ask(node, &format!("{terminate} {pids}"));
        let left = format!("SELECT pid FROM pg_stat_activity WHERE {pids}");
        wait_until("they end", || ask(node, &left).is_empty());
    }
}

// rust-postgres PR 1229: a synchronous connection that nobody polls does not notice its end. GreptimeDB 6267: so the
// first statement after `idle_session_timeout` fails.
#[test]
fn the_end_of_an_idle_connection_is_seen_before_the_next_statement() {
    let url = format!("{}?application_name=idle_end", url());
    let pool = r2d2(&url, 1);
    for n in 0..5 {
        let mut conn = pool.get().unwrap();
        assert_eq!(insert(&mut conn, &format!("idle {n}")), Ok(1));
        assert_eq!(count(&mut conn), 4 + n);
        drop(conn);
        terminate("idle_end");
    }
    // One that is kept, too.
    let mut conn = pool.get().unwrap();
    for n in 0..5 {
        assert_eq!(insert(&mut conn, &format!("kept {n}")), Ok(1));
        terminate("idle_end");
    }
}

// rust-postgres 755: dropping a synchronous client waits for a server that does not answer.
#[test]
fn a_statement_that_is_waited_for_ends_at_its_limit_and_its_connection_is_dropped_at_once() {
    let mut conn = SyncConnection::establish(&url()).unwrap();
    let slow = "SELECT pg_sleep(600)";
    let started = std::time::Instant::now();
    let mut limited = conn.with_deadline(Duration::from_millis(200));
    let ended = block_on(diesel_async::RunQueryDsl::execute(
        sql_query(slow),
        &mut *limited,
    ));
    assert!(ended.is_err(), "{ended:?}");
    drop(limited);
    drop(conn);
    assert!(started.elapsed() < Duration::from_secs(60));
}

// The token's owner is another thread, which asks while this one waits for the socket.
#[test]
fn another_thread_cancels_what_this_one_waits_for() {
    let mut conn = SyncConnection::establish(&url()).unwrap();
    let token = conn.cancel_token();
    let ended = std::thread::scope(|scope| {
        let done = Arc::new(AtomicUsize::new(0));
        let over = Arc::clone(&done);
        scope.spawn(move || {
            wait_until("it is cancelled", || {
                block_on(token.cancel()).unwrap();
                over.load(Ordering::Acquire) == 1
            });
        });
        let ended = sql_query("SELECT pg_sleep(600)").execute(&mut conn);
        done.store(1, Ordering::Release);
        ended
    });
    let message = ended.unwrap_err().to_string();
    assert!(message.contains("cancel"), "{message}");
    assert_eq!(count(&mut conn), 3);
}

// rust-postgres has `Notifications::blocking_iter`: a thread waits for what another session sends.
#[test]
fn a_thread_waits_for_notifications() {
    let url = url();
    let mut listener = SyncConnection::establish(&url).unwrap();
    listener.batch_execute("LISTEN news").unwrap();
    let sender = std::thread::spawn(move || {
        let mut conn = SyncConnection::establish(&url).unwrap();
        for n in 0..3 {
            let notify = sql_query("SELECT pg_notify('news', $1)").bind::<Text, _>(n.to_string());
            notify.execute(&mut conn).unwrap();
        }
    });
    let mut news = std::pin::pin!(listener.notifications_stream());
    for n in 0..3 {
        let notification = block_on(news.next()).unwrap().unwrap();
        assert_eq!(notification.payload, n.to_string());
    }
    sender.join().unwrap();
}

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = Text)]
    line: String,
}

// More than fits into the socket's buffers goes both ways, and rows that nobody reads any more hold up nobody.
#[test]
fn what_is_larger_than_a_buffer_goes_through() {
    let mut conn = SyncConnection::establish(&url()).unwrap();
    let long = "x".repeat(12_000_000);
    let echo = sql_query("SELECT $1 AS line UNION ALL SELECT 'end'").bind::<Text, _>(&long);
    let lines: Vec<Line> = echo.load(&mut conn).unwrap();
    assert!(lines[0].line == long && lines[1].line == "end");
    let many = "SELECT repeat('y', 100) || n AS line FROM generate_series(1, 50000) n";
    for _ in 0..3 {
        let lines: Vec<Line> = sql_query(many).load(&mut conn).unwrap();
        assert_eq!(lines.len(), 50_000);
        let first: Line = sql_query(many).get_result(&mut conn).unwrap();
        assert!(first.line.ends_with("y1"));
    }
    assert_eq!(count(&mut conn), 3);
}

// actix/examples 266 and 458: more requests than connections, each in a thread of `web::block`. They wait for their turn,
// and what holds none goes on.
#[tokio::test(flavor = "multi_thread")]
async fn more_blocking_tasks_than_connections_are_all_served() {
    let url = cluster().url(&database().await);
    let pool = r2d2(&url, 2);
    let tasks = (0..24).map(|n| {
        let pool = pool.clone();
        tokio::task::spawn_blocking(move || {
            let mut conn = pool.get().unwrap();
            insert(&mut conn, &format!("blocking {n}")).unwrap();
            assert!(count(&mut conn) >= 4);
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let mut conn = pool.get().unwrap();
    assert_eq!(count(&mut conn), 27);
}

// actix/examples 458: a full r2d2 pool is an error after its limit.
#[test]
fn a_full_r2d2_pool_says_so_after_its_limit() {
    let pool = r2d2(&url(), 1);
    let held = pool.get().unwrap();
    let refused = pool.get_timeout(Duration::from_millis(50));
    assert!(refused.is_err());
    drop(held);
    assert!(pool.get().is_ok());
}

// Threads and tasks share the servers' connections: each is driven now by a thread, now by its task.
#[test]
fn threads_and_tasks_take_turns_on_few_connections() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let builder = diesel_replicated::Builder::from_url(&url()).unwrap();
    let pool: ReplicatedPool = builder.max_size(2).build_blocking().unwrap();
    let barrier = Barrier::new(6);
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let (pool, barrier, runtime) = (&pool, &barrier, &runtime);
            scope.spawn(move || {
                barrier.wait();
                for n in 0..60 {
                    let name = format!("{thread}: {n}");
                    let conn = pool.get_blocking().unwrap();
                    if (thread + n) % 3 == 0 {
                        let mut conn = conn;
                        runtime.block_on(async {
                            let insert = crate::support::insert(&name);
                            let inserted = diesel_async::RunQueryDsl::execute(insert, &mut conn);
                            assert_eq!(inserted.await, Ok(1));
                            assert!(crate::support::count(&mut conn).await >= 4);
                        });
                    } else {
                        let mut conn = SyncConnection::from(conn);
                        conn.transaction(|conn| insert(conn, &name)).unwrap();
                        assert!(count(&mut conn) >= 4);
                    }
                }
            });
        }
    });
    let mut conn = SyncConnection::from(pool.get_blocking().unwrap());
    assert_eq!(count(&mut conn), 3 + 6 * 60);
    drop(conn);
    assert_eq!(block_on(pool.close(Duration::from_secs(30))), 0);
    assert!(matches!(pool.get_blocking(), Err(Error::Closed)));
}

// diesel 4152 and r2d2 40. The tests of an application: each in a transaction that is rolled back, on the one connection of an r2d2 pool.
#[test]
fn a_test_transaction_leaves_nothing() {
    let url = url();
    let mut conn = SyncConnection::establish(&url).unwrap();
    let inserted = conn.test_transaction(|conn| {
        insert(conn, "In a test")?;
        QueryResult::Ok(count(conn))
    });
    assert_eq!(inserted, 4);
    assert_eq!(count(&mut conn), 3);
    let pool = Pool::builder()
        .max_size(1)
        .connection_customizer(Box::new(diesel::r2d2::TestCustomizer))
        .build(ConnectionManager::<SyncConnection>::new(&url))
        .unwrap();
    for n in 0..2 {
        let mut conn = pool.get().unwrap();
        insert(&mut conn, &format!("Kept open {n}")).unwrap();
        assert_eq!(count(&mut conn), 4 + n);
    }
    drop(pool);
    assert_eq!(count(&mut conn), 3);
}

// A pool of many connections opens no more at the servers than its statements need.
#[test]
fn a_large_r2d2_pool_opens_few_connections_at_the_servers() {
    let url = format!("{}?application_name=large_r2d2", url());
    let pool = r2d2(&url, 40);
    for _ in 0..40 {
        let mut conn = pool.get().unwrap();
        count(&mut conn);
        server(&mut conn);
    }
    let of_name = "SELECT pid FROM pg_stat_activity WHERE application_name = 'large_r2d2'";
    let open: usize = cluster().nodes().map(|node| ask(node, of_name).len()).sum();
    assert!(open <= 12, "{open} server connections");
}

#[derive(Debug)]
struct Counted(Arc<AtomicUsize>, &'static str);

impl CustomizeConnection<SyncConnection, diesel::r2d2::Error> for Counted {
    fn on_acquire(&self, conn: &mut SyncConnection) -> Result<(), diesel::r2d2::Error> {
        self.0.fetch_add(1, Ordering::AcqRel);
        conn.batch_execute(self.1)
            .map_err(diesel::r2d2::Error::QueryError)?;
        conn.keep_settings();
        Ok(())
    }
}

// diesel 3156: a connection that was well was taken for broken when it came back, so r2d2 made a new one for each use.
#[test]
fn r2d2_keeps_its_connections() {
    let url = url();
    for (check, sql) in [
        (true, ""),
        (false, ""),
        (true, "SET jit = off"),
        (false, "SET jit = off"),
    ] {
        let made = Arc::<AtomicUsize>::default();
        let pool = Pool::builder()
            .max_size(1)
            .test_on_check_out(check)
            .connection_customizer(Box::new(Counted(Arc::clone(&made), sql)))
            .build(ConnectionManager::<SyncConnection>::new(&url))
            .unwrap();
        for n in 0..6 {
            let mut conn = pool.get().unwrap();
            conn.transaction(|conn| insert(conn, &format!("{check} {sql} {n}")))
                .unwrap();
            count(&mut conn);
        }
        assert_eq!(made.load(Ordering::Acquire), 1, "check {check}, {sql}");
    }
}

// diesel 2104 and 2124: a panic in a transaction gave the connection back with the transaction open, and the next user
// went on with it.
#[test]
fn a_panic_in_a_transaction_leaves_nothing_to_the_next_user() {
    let pool = r2d2(&url(), 1);
    for _ in 0..3 {
        let panicking = pool.clone();
        let thread = std::thread::Builder::new().spawn(move || {
            let mut conn = panicking.get().unwrap();
            let _ = conn.transaction(|conn| -> QueryResult<()> {
                insert(conn, "never")?;
                std::panic::resume_unwind(Box::new("in the transaction"));
            });
        });
        assert!(thread.unwrap().join().is_err());
        let mut conn = pool.get().unwrap();
        assert_eq!(count(&mut conn), 3);
        conn.transaction(|conn| insert(conn, "kept")).unwrap();
        let deleted = diesel::delete(users::table.filter(users::name.eq("kept")));
        assert_eq!(deleted.execute(&mut conn), Ok(1));
    }
}

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations");

// The harness of synchronous applications, as it is. Each migration is a transaction on the primary.
#[test]
fn migrations_run_and_are_taken_back() {
    let mut conn = SyncConnection::establish(&url()).unwrap();
    conn.batch_execute("DROP TABLE users").unwrap();
    assert!(conn.has_pending_migration(MIGRATIONS).unwrap());
    let applied = conn.run_pending_migrations(MIGRATIONS).unwrap().len();
    assert!(applied > 0);
    assert!(!conn.has_pending_migration(MIGRATIONS).unwrap());
    assert_eq!(
        conn.revert_all_migrations(MIGRATIONS).unwrap().len(),
        applied
    );
}
