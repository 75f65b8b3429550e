//! Tasks and futures: none is left behind, none moves to another runtime, and a statement's stays small.

use std::mem::size_of_val;

use diesel::prelude::*;
use diesel::sql_query;
use diesel_async::{AsyncConnectionCore, RunQueryDsl};
use diesel_replicated::ReplicatedPool;
use tokio::runtime::{Handle, Runtime};

use crate::support::{Number, blocking, builder, cluster, count, database, eventually, run};

/// The allocator of glibc keeps nothing at hand that is larger.
const AT_HAND: usize = 1032;

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

/// How many connections to this database the servers had, all of which this has ended.
async fn end_all(database: &str) -> usize {
    let ends = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"
    );
    let ended = move || {
        let nodes = cluster().nodes();
        let ended = nodes.map(|node| node.sql("postgres", &ends).unwrap().len());
        ended.sum()
    };
    blocking(ended).await
}

async fn use_all(pool: &ReplicatedPool) {
    let mut conn = pool.get().await.unwrap();
    count(&mut conn).await;
    run(&mut conn, "UPDATE users SET name = name")
        .await
        .unwrap();
}

// <https://github.com/hyperium/hyper/issues/1389>, <https://github.com/tokio-rs/mini-redis/issues/38>: tasks of
// connections that the server has closed stayed for ever.
#[tokio::test]
async fn connections_that_the_server_ends_leave_no_tasks_behind() {
    let database = database().await;
    let pool = builder(&database).max_size(1).build().await.unwrap();
    use_all(&pool).await;
    // With one connection to each node, and that of its monitor, there is no more to come.
    let most = tasks() + 12;
    let mut ended = 0;
    while ended < 24 {
        ended += end_all(&database).await;
        eventually("it serves again, and no task is left", || async {
            let mut conn = pool.get().await.unwrap();
            let reads = sql_query("SELECT 1 AS number")
                .get_result::<Number>(&mut conn)
                .await;
            reads.is_ok() && tasks() <= most
        })
        .await;
    }
}

// <https://github.com/oxidecomputer/qorb/pull/77>, <https://github.com/praxiomlabs/rust-mssql-driver/issues/190>,
// <https://github.com/transact-rs/sqlx/issues/844>: a pool that was dropped and not closed kept its connections.
#[tokio::test]
async fn a_pool_that_is_dropped_leaves_neither_tasks_nor_connections() {
    let database = database().await;
    let before = tasks();
    for _ in 0..3 {
        let pool = builder(&database).build().await.unwrap();
        use_all(&pool).await;
        drop(pool);
    }
    eventually("no task is left", || async { tasks() <= before }).await;
    eventually("no server has a connection", || async {
        end_all(&database).await == 0
    })
    .await;
}

// <https://github.com/blackbeam/mysql_async/pull/389>, <https://github.com/transact-rs/sqlx/issues/531>: a connection
// stays with the runtime that opened it, and ended with one that only used the pool.
#[test]
fn what_replaces_a_connection_belongs_to_the_runtime_of_the_pool() {
    let runtime = || Runtime::new().unwrap();
    let (of_pool, of_user) = (runtime(), runtime());
    let pool = of_pool.block_on(async {
        let built = builder(&database().await).max_size(1).build();
        built.await.unwrap()
    });
    of_user.block_on(async {
        let mut conn = pool.get().await.unwrap();
        count(&mut conn).await;
        run(&mut conn, "UPDATE users SET name = name")
            .await
            .unwrap();
        let ends_itself = "SELECT pg_terminate_backend(pg_backend_pid())";
        run(&mut conn, ends_itself).await.unwrap_err();
        // The bb8 pool replaces what comes back broken.
        drop(conn);
        use_all(&pool).await;
    });
    drop(of_user);
    of_pool.block_on(use_all(&pool));
    runtime().block_on(use_all(&pool));
}

// <https://github.com/mongodb/mongo-rust-driver/pull/417>, <https://github.com/microsoft/mssql-rs/issues/225>,
// <https://github.com/fluree/db/pull/1409>: futures that grew cost copies, and stack.
#[tokio::test]
async fn the_future_of_a_statement_stays_small() {
    diesel::table! { users (id) { id -> Integer, name -> Text, } }

    let pool = builder(&database().await).build().await.unwrap();
    let mut conn = pool.get().await.unwrap();
    let loads = AsyncConnectionCore::load(&mut conn, users::table.find(1));
    assert!(size_of_val(&*loads) <= AT_HAND, "{}", size_of_val(&*loads));
    drop(loads);
    let deletes = diesel::delete(users::table);
    let executes = AsyncConnectionCore::execute_returning_count(&mut conn, deletes);
    assert!(
        size_of_val(&*executes) <= AT_HAND,
        "{}",
        size_of_val(&*executes)
    );
}
