//! Connections whose own memory is stale heal.

use std::io::Write;
use std::sync::Arc;

use diesel::deserialize::{self, FromSql, FromSqlRow};
use diesel::expression::AsExpression;
use diesel::pg::{Pg, PgValue};
use diesel::prelude::*;
use diesel::serialize::{self, IsNull, Output, ToSql};
use diesel::sql_query;
use diesel::sql_types::SqlType;
use diesel_async::{AsyncConnection, RunQueryDsl};
use diesel_replicated::status::RouteReason;
use diesel_replicated::testing::LocalCluster;
use diesel_replicated::{ErrorExt, Outcome, ReplicatedConnection, ReplicatedPool, RetryPolicy};

use crate::support::{
    Number, blocking, builder, builder_for, cluster, count, database, eventually, insert, run,
    users,
};

/// So many connections of the primary are warm in each test.
const WARM: usize = 8;

async fn pool_of(database: &str) -> ReplicatedPool {
    let size = u32::try_from(WARM).unwrap();
    builder(database).max_size(size).build().await.unwrap()
}

/// As the database's owner does it, on the primary, outside of the pool; the replicas have it after.
async fn elsewhere(database: &str, sql: &'static str) {
    let database = database.to_owned();
    blocking(move || {
        cluster().primary().sql(&database, sql).unwrap();
        cluster().wait_caught_up().unwrap();
    })
    .await;
}

/// All connections of the pool to the primary, each with the statement in its cache.
async fn warmed<F>(pool: &ReplicatedPool, warm: F) -> Vec<ReplicatedConnection>
where
    F: AsyncFn(&mut ReplicatedConnection),
{
    let mut held = Vec::new();
    for _ in 0..WARM {
        let mut conn = pool.get().await.unwrap();
        for _ in 0..2 {
            warm(&mut conn).await;
        }
        held.push(conn);
    }
    held
}

async fn add(conn: &mut ReplicatedConnection, name: &str) -> QueryResult<String> {
    diesel::insert_into(users::table)
        .values(users::name.eq(name))
        .returning(users::name)
        .get_result(conn)
        .await
}

/// pgjdbc #451, multigres #1219, jasync-sql #303, psycopg #511: after `ALTER TABLE … TYPE` each
/// connection's cached statement fails, until the connection is replaced.
#[tokio::test]
async fn a_changed_result_type_fails_no_write_outside_of_a_transaction() {
    let database = database().await;
    let pool = pool_of(&database).await;
    let unique = std::sync::atomic::AtomicUsize::new(0);
    let name = || {
        format!(
            "n{}",
            unique.fetch_add(1, std::sync::atomic::Ordering::AcqRel)
        )
    };
    let held = warmed(&pool, async |conn| drop(add(conn, &name()).await.unwrap())).await;
    elsewhere(&database, "ALTER TABLE users ALTER name TYPE varchar(100)").await;
    for mut conn in held {
        add(&mut conn, &name()).await.unwrap();
    }
    let mut held = warmed(&pool, async |conn| drop(add(conn, &name()).await.unwrap())).await;
    let all = 3 + 2 * WARM + WARM + 2 * WARM;
    assert_eq!(
        usize::try_from(count(&mut held[0]).await).unwrap(),
        all,
        "each once"
    );
}

/// A session that has state of its own keeps its connection, and the connection heals all the same.
#[tokio::test]
async fn a_changed_result_type_costs_a_session_nothing_of_its_state() {
    let database = database().await;
    let pool = pool_of(&database).await;
    let mut conn = pool.get().await.unwrap();
    run(&mut conn, "CREATE TEMP TABLE mine AS SELECT 7 AS number")
        .await
        .unwrap();
    add(&mut conn, "One").await.unwrap();
    add(&mut conn, "Two").await.unwrap();
    elsewhere(&database, "ALTER TABLE users ALTER name TYPE varchar(100)").await;
    for name in ["Three", "Four", "Five"] {
        add(&mut conn, name).await.unwrap();
    }
    let mine = sql_query("SELECT number FROM mine");
    let mine: Number = mine.get_result(&mut conn).await.unwrap();
    assert_eq!(mine.number, 7);
}

/// sqlg #223: resetting one connection helps none of the others.
#[tokio::test]
async fn a_changed_result_type_fails_one_transaction_and_not_one_for_each_connection() {
    let database = database().await;
    let pool = pool_of(&database).await;
    let read = async |conn: &mut ReplicatedConnection| -> QueryResult<Vec<String>> {
        conn.transaction(async |conn| users::table.select(users::name).load(conn).await)
            .await
    };
    let held = warmed(&pool, async |conn| drop(read(conn).await.unwrap())).await;
    elsewhere(&database, "ALTER TABLE users ALTER name TYPE varchar(100)").await;
    let mut failed = 0;
    for mut conn in held {
        if let Err(error) = read(&mut conn).await {
            assert_eq!(error.outcome(), Outcome::Failed, "{error}");
            failed += 1;
            // The very same session is well again.
            read(&mut conn).await.unwrap();
        }
    }
    assert!(failed <= 1, "{failed} of {WARM} transactions failed");
    warmed(&pool, async |conn| drop(read(conn).await.unwrap())).await;
}

#[tokio::test]
async fn a_transaction_that_may_be_repeated_does_not_notice_a_changed_result_type() {
    let database = database().await;
    let pool = pool_of(&database).await;
    let read = async |conn: &mut ReplicatedConnection| -> QueryResult<Vec<String>> {
        conn.retry_transaction(RetryPolicy::default(), async |conn| {
            users::table.select(users::name).load(conn).await
        })
        .await
    };
    let held = warmed(&pool, async |conn| drop(read(conn).await.unwrap())).await;
    elsewhere(&database, "ALTER TABLE users ALTER name TYPE varchar(100)").await;
    for mut conn in held {
        read(&mut conn).await.unwrap();
    }
}

/// A text of several statements has run in part when its own prepared statement turns out stale.
#[tokio::test]
async fn what_has_run_before_a_stale_plan_is_not_run_again() {
    let database = database().await;
    let pool = pool_of(&database).await;
    let mut conn = pool.get().await.unwrap();
    run(&mut conn, "PREPARE own AS SELECT name FROM users")
        .await
        .unwrap();
    run(&mut conn, "EXECUTE own").await.unwrap();
    elsewhere(&database, "ALTER TABLE users ALTER name TYPE varchar(100)").await;
    let several = "INSERT INTO users (name) VALUES ('Once'); COMMIT; EXECUTE own";
    let error = run(&mut conn, several).await.unwrap_err();
    assert!(error.to_string().contains("cached plan"), "{error}");
    let once = users::table.filter(users::name.eq("Once")).count();
    let once: i64 = once.get_result(&mut conn).await.unwrap();
    assert_eq!(once, 1);
}

#[derive(SqlType, diesel::query_builder::QueryId)]
#[diesel(postgres_type(name = "mood"))]
pub struct MoodType;

#[derive(Clone, Copy, Debug, PartialEq, AsExpression, FromSqlRow)]
#[diesel(sql_type = MoodType)]
struct Happy;

impl ToSql<MoodType, Pg> for Happy {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
        out.write_all(b"happy")?;
        Ok(IsNull::No)
    }
}

impl FromSql<MoodType, Pg> for Happy {
    fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
        match value.as_bytes() {
            b"happy" => Ok(Self),
            _ => Err("not a mood".into()),
        }
    }
}

diesel::table! {
    use diesel::sql_types::*;
    use super::MoodType;
    days (id) { id -> Integer, mood -> MoodType, moods -> Array<MoodType>, }
}

const DAYS: &str = "CREATE TYPE mood AS ENUM ('happy');
    CREATE TABLE days (id serial PRIMARY KEY, mood mood NOT NULL, moods mood[] NOT NULL)";

/// The labels are others, so the type is another: its OID changes.
const RECREATE: &str = "ALTER TYPE mood RENAME TO old_mood;
    CREATE TYPE mood AS ENUM ('sad', 'happy');
    ALTER TABLE days ALTER mood TYPE mood USING mood::text::mood,
        ALTER moods TYPE mood[] USING moods::text[]::mood[];
    DROP TYPE old_mood";

async fn happy_days(conn: &mut ReplicatedConnection) -> QueryResult<i64> {
    days::table
        .filter(days::mood.eq(Happy))
        .filter(days::moods.eq(vec![Happy, Happy]))
        .count()
        .get_result(conn)
        .await
}

async fn add_day(conn: &mut ReplicatedConnection) -> QueryResult<Happy> {
    diesel::insert_into(days::table)
        .values((days::mood.eq(Happy), days::moods.eq(vec![Happy, Happy])))
        .returning(days::mood)
        .get_result(conn)
        .await
}

/// diesel #3995, omicron #5561: "cache lookup failed for type" until the process is restarted.
#[tokio::test]
async fn a_recreated_enum_fails_nothing_outside_of_a_transaction() {
    let database = database().await;
    elsewhere(&database, DAYS).await;
    let pool = pool_of(&database).await;
    let held = warmed(&pool, async |conn| {
        add_day(conn).await.unwrap();
    })
    .await;
    elsewhere(&database, RECREATE).await;
    for mut conn in held {
        add_day(&mut conn).await.unwrap();
    }
    let mut held = warmed(&pool, async |conn| {
        add_day(conn).await.unwrap();
    })
    .await;
    let all = i64::try_from(2 * WARM + WARM + 2 * WARM).unwrap();
    assert_eq!(happy_days(&mut held[0]).await.unwrap(), all, "each once");
}

#[tokio::test]
async fn reads_stay_on_the_replicas_after_an_enum_was_recreated() {
    let database = database().await;
    elsewhere(&database, DAYS).await;
    let pool = pool_of(&database).await;
    let warm = async || {
        let mut held = Vec::new();
        for _ in 0..WARM {
            let mut conn = pool.get().await.unwrap();
            assert_eq!(happy_days(&mut conn).await.unwrap(), 0);
            assert_eq!(happy_days(&mut conn).await.unwrap(), 0);
            assert_eq!(conn.last_route().unwrap().reason, RouteReason::PlainSelect);
            held.push(conn);
        }
        held
    };
    let held = warm().await;
    elsewhere(&database, RECREATE).await;
    for mut conn in held {
        for _ in 0..2 {
            assert_eq!(happy_days(&mut conn).await.unwrap(), 0);
            assert_eq!(conn.last_route().unwrap().reason, RouteReason::PlainSelect);
        }
    }
    warm().await;
}

/// pgdog #508, psycopg #1409, pgcat #549: the client's cache does not hear of it.
#[tokio::test]
async fn a_session_that_discards_all_goes_on() {
    let database = database().await;
    let pool = pool_of(&database).await;
    for (n, sql) in [
        "DISCARD ALL",
        "DEALLOCATE ALL",
        "DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$",
    ]
    .into_iter()
    .enumerate()
    {
        let mut conn = pool.get().await.unwrap();
        add(&mut conn, &format!("{n} one")).await.unwrap();
        add(&mut conn, &format!("{n} two")).await.unwrap();
        run(&mut conn, sql).await.unwrap();
        add(&mut conn, &format!("{n} three"))
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
        add(&mut conn, &format!("{n} four")).await.unwrap();
        drop(conn);
        for next in 0..2 * WARM {
            let mut conn = pool.get().await.unwrap();
            add(&mut conn, &format!("{n} next {next}")).await.unwrap();
        }
    }
    let mut conn = pool.get().await.unwrap();
    let all = 3 + 3 * (4 + 2 * WARM);
    assert_eq!(
        usize::try_from(count(&mut conn).await).unwrap(),
        all,
        "each once"
    );
}

/// The statement is known to be gone before it is asked for, so a transaction does not fail by it.
#[tokio::test]
async fn a_transaction_after_discard_all_does_not_fail() {
    let pool = pool_of(&database().await).await;
    let mut conn = pool.get().await.unwrap();
    insert("One").execute(&mut conn).await.unwrap();
    insert("Two").execute(&mut conn).await.unwrap();
    run(&mut conn, "DEALLOCATE ALL").await.unwrap();
    conn.transaction(async |conn| insert("Three").execute(conn).await)
        .await
        .unwrap();
}

/// What is asked of a replica expressly goes to no other node, and heals all the same.
#[tokio::test]
async fn a_changed_result_type_fails_no_read_of_a_forced_replica() {
    let database = database().await;
    let pool = pool_of(&database).await;
    let names = async |conn: &mut ReplicatedConnection| -> QueryResult<Vec<String>> {
        users::table
            .select(users::name)
            .load(&mut *conn.replica())
            .await
    };
    let mut held = Vec::new();
    for _ in 0..WARM {
        let mut conn = pool.get().await.unwrap();
        names(&mut conn).await.unwrap();
        names(&mut conn).await.unwrap();
        held.push(conn);
    }
    elsewhere(&database, "ALTER TABLE users ALTER name TYPE varchar(100)").await;
    for mut conn in held {
        assert_eq!(names(&mut conn).await.unwrap().len(), 3);
        assert_eq!(
            conn.last_route().unwrap().kind,
            diesel_replicated::status::NodeKind::Replica
        );
    }
}

/// Statements that share a connection and a round trip find out at the same time.
#[tokio::test]
async fn pipelined_writes_heal_and_each_is_written_once() {
    let database = database().await;
    let pool = pool_of(&database).await;
    let conn = pool.get().await.unwrap();
    let write = async |name: String| -> QueryResult<String> {
        let insert = diesel::insert_into(users::table).values(users::name.eq(name));
        insert.returning(users::name).get_result(&mut &conn).await
    };
    for round in 0..3 {
        if round == 2 {
            elsewhere(&database, "ALTER TABLE users ALTER name TYPE varchar(100)").await;
        }
        let writes = (0..8).map(|n| write(format!("{round} {n}")));
        let written = futures_util::future::join_all(writes).await;
        for (n, name) in written.into_iter().enumerate() {
            assert_eq!(name.unwrap(), format!("{round} {n}"));
        }
    }
    let mut conn = pool.get().await.unwrap();
    let all: i64 = users::table
        .count()
        .get_result(&mut conn.primary())
        .await
        .unwrap();
    assert_eq!(all, 3 + 3 * 8);
}

/// `HikariCP` #1802, go-libs #601, mysql2 #4075: a pool keeps connections that were opened while the
/// database was read only.
#[tokio::test]
async fn a_connection_that_was_opened_while_the_database_was_read_only_is_replaced() {
    let local = blocking(|| {
        let local = LocalCluster::builder().replicas(1).start().unwrap();
        crate::support::fill(&local, "app");
        let fence = "ALTER DATABASE app SET default_transaction_read_only = on";
        local.primary().sql("postgres", fence).unwrap();
        Arc::new(local)
    })
    .await;
    let pool = builder_for(&local, "app")
        .max_size(4)
        .min_idle(4)
        .build()
        .await
        .unwrap();
    eventually("connections were opened", || async {
        pool.status().node("primary").unwrap().connections == 4
    })
    .await;
    crate::support::on(&local, |local| {
        let free = "ALTER DATABASE app RESET default_transaction_read_only";
        drop(local.primary().sql("postgres", free).unwrap());
    })
    .await;
    let mut held = Vec::new();
    for n in 0..4 {
        let mut conn = pool.get().await.unwrap();
        insert(&format!("free {n}"))
            .execute(&mut conn)
            .await
            .unwrap();
        conn.transaction(async |conn| insert(&format!("tx {n}")).execute(conn).await)
            .await
            .unwrap();
        held.push(conn);
    }
}
