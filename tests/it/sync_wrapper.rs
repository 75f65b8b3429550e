//! The synchronous wrapper, migrations, and r2d2, also without any runtime around.

use diesel::prelude::*;
use diesel::r2d2::{ConnectionManager, Pool};
use diesel_async::AsyncMigrationHarness;
use diesel_async::async_connection_wrapper::AsyncConnectionWrapper;
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use diesel_replicated::ReplicatedConnection;

use crate::support::{cluster, current_setting, database, pool, users};

type Sync = AsyncConnectionWrapper<ReplicatedConnection>;

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations");

fn database_now() -> String {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(database())
}

fn who(conn: &mut Sync) -> String {
    diesel::select(current_setting("cluster_name"))
        .get_result(conn)
        .unwrap()
}

#[test]
fn it_works_without_an_ambient_runtime() {
    let url = cluster().url(&database_now());
    let mut conn = Sync::establish(&url).unwrap();
    assert_ne!(who(&mut conn), "primary");
    conn.transaction(|conn| {
        diesel::insert_into(users::table)
            .values(users::name.eq("Synchronous"))
            .execute(conn)
    })
    .unwrap();
    assert_eq!(users::table.count().get_result::<i64>(&mut conn), Ok(4));
    let rolled_back =
        conn.transaction::<(), _, _>(|_| Err(diesel::result::Error::RollbackTransaction));
    assert!(rolled_back.is_err());
}

// Synchronous code in worker threads beside an async pool.
#[test]
fn synchronous_code_takes_connections_of_an_async_pool_on_its_own_threads() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let url = runtime.block_on(async { cluster().url(&database().await) });
    let pool = runtime
        .block_on(diesel_replicated::ReplicatedPool::connect(&url))
        .unwrap();
    std::thread::scope(|scope| {
        for n in 0..3 {
            let pool = &pool;
            scope.spawn(move || {
                let mut conn = Sync::from(pool.get_blocking().unwrap());
                let inserted = diesel::insert_into(users::table)
                    .values(users::name.eq(format!("thread {n}")))
                    .execute(&mut conn);
                assert_eq!(inserted, Ok(1));
                let count = users::table.count().get_result::<i64>(&mut conn).unwrap();
                assert!(count >= 4, "{count}");
            });
        }
    });
    runtime.block_on(pool.close(std::time::Duration::from_secs(5)));
    assert!(matches!(
        pool.get_blocking(),
        Err(diesel_replicated::Error::Closed)
    ));
}

#[test]
fn r2d2_works_as_it_is() {
    let url = cluster().url(&database_now());
    let pool = Pool::builder()
        .max_size(2)
        .build(ConnectionManager::<Sync>::new(url))
        .unwrap();
    for n in 0..5 {
        let mut conn = pool.get().unwrap();
        // What another connection of the pool has written is there.
        assert_eq!(users::table.count().get_result(&mut conn), Ok(3 + n));
        diesel::insert_into(users::table)
            .values(users::name.eq(format!("r2d2 {n}")))
            .execute(&mut conn)
            .unwrap();
        let count = users::table.count().get_result(&mut conn);
        assert_eq!(count, Ok(4 + n));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn migrations_run_on_the_primary() {
    use diesel_async::AsyncConnection;

    let pool = pool().await;
    let mut conn = pool.get().await.unwrap();
    // The example's tables, beside those of the other tests.
    conn.primary_connection().await.unwrap();
    crate::support::run(&mut conn, "DROP TABLE users")
        .await
        .unwrap();
    drop(conn);
    let conn = pool.get().await.unwrap();
    let mut harness = AsyncMigrationHarness::new(conn);
    let applied = harness.run_pending_migrations(MIGRATIONS).unwrap().len();
    assert!(applied > 0);
    assert_eq!(harness.run_pending_migrations(MIGRATIONS).unwrap().len(), 0);
    harness.revert_all_migrations(MIGRATIONS).unwrap();
    let mut conn = harness.into_inner();
    conn.begin_test_transaction().await.unwrap();
}
