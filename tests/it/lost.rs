//! What a session is told when its connection is lost in the middle of something.

use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_query;
use diesel_async::{AsyncConnection, RunQueryDsl, SimpleAsyncConnection};
use diesel_replicated::status::NodeHealth;
use diesel_replicated::{ErrorExt, Outcome, ReplicatedPool};
use futures_util::FutureExt;

use crate::support::{
    Number, all_up, blocking, builder, cluster, count, database, eventually, insert, run, users,
};

async fn start() -> (String, ReplicatedPool) {
    let database = database().await;
    let pool = builder(&database).build().await.unwrap();
    (database, pool)
}

/// Ends the server's side of the connections to `database` whose backends are as `condition`
/// says, once there is one, and waits until they are gone.
async fn terminate(database: &str, condition: &str) {
    let find = format!(
        "SELECT pid FROM pg_stat_activity
         WHERE datname = '{database}' AND pid <> pg_backend_pid() AND {condition}"
    );
    let mut backends = Vec::new();
    while backends.is_empty() {
        let rows = on_primary(find.clone()).await;
        backends = rows.into_iter().flatten().flatten().collect();
    }
    let these = format!(
        "FROM pg_stat_activity WHERE pid IN ({})",
        backends.join(", ")
    );
    on_primary(format!("SELECT pg_terminate_backend(pid) {these}")).await;
    eventually("the backends are gone", || async {
        on_primary(format!("SELECT pid {these}")).await.is_empty()
    })
    .await;
}

async fn on_primary(sql: String) -> Vec<Vec<Option<String>>> {
    blocking(move || cluster().primary().sql("postgres", &sql).unwrap()).await
}

async fn names(pool: &ReplicatedPool) -> Vec<String> {
    let mut conn = pool.get().await.unwrap();
    let new = users::table.filter(users::id.gt(3)).select(users::name);
    new.order(users::id)
        .load(&mut conn.primary())
        .await
        .unwrap()
}

#[tokio::test]
async fn a_commit_that_is_lost_is_in_doubt_and_ends_the_transaction() {
    let (database, pool) = start().await;
    let slow = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN IF NEW.name = ''slow'' THEN PERFORM pg_sleep(30); END IF; RETURN NEW; END';
         CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON users DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW EXECUTE FUNCTION slow();";
    let name = database.clone();
    blocking(move || cluster().primary().sql(&name, slow).unwrap()).await;
    drop(pool);
    // The next one knows the trigger; a session that has just made it stays where it is.
    let pool = builder(&database).max_size(2).build().await.unwrap();
    let mut conn = pool.get().await.unwrap();
    let writing = tokio::spawn(async move {
        let result = conn
            .transaction(async |conn| insert("slow").execute(conn).await)
            .await;
        (conn, result)
    });
    terminate(&database, "query = 'COMMIT' AND state = 'active'").await;
    let (mut conn, result) = writing.await.unwrap();
    assert_eq!(result.unwrap_err().outcome(), Outcome::Unknown);
    assert_eq!(count(&mut conn).await, 3, "the session goes on");
    conn.transaction(async |conn| insert("next").execute(conn).await)
        .await
        .unwrap();
    assert_eq!(names(&pool).await, ["next"]);
}

/// Runs `sql`, which sleeps, after `before`, and ends its connection meanwhile.
async fn outcome_of(
    database: &str,
    pool: &ReplicatedPool,
    before: &str,
    sql: &'static str,
) -> Outcome {
    let mut conn = pool.get().await.unwrap();
    run(&mut conn, before).await.unwrap();
    let running = tokio::spawn(async move { conn.batch_execute(sql).await });
    terminate(database, "state = 'active' AND query LIKE '%pg_sleep(30)%'").await;
    running.await.unwrap().unwrap_err().outcome()
}

#[tokio::test]
async fn texts_of_several_statements_are_in_doubt_if_any_may_have_been_committed() {
    let (database, pool) = start().await;
    let write = "SET LOCAL lock_timeout = '1s'; UPDATE users SET visits = 1 FROM pg_sleep(30)";
    assert_eq!(
        outcome_of(&database, &pool, "", write).await,
        Outcome::Unknown
    );
    let begin = "BEGIN; INSERT INTO users (name) VALUES ('chained')";
    let chain = "SAVEPOINT a; COMMIT AND CHAIN; SELECT pg_sleep(30)";
    assert_eq!(
        outcome_of(&database, &pool, begin, chain).await,
        Outcome::Unknown
    );
    assert_eq!(names(&pool).await, ["chained"], "it was committed indeed");
    let read = "SELECT pg_sleep(30)";
    assert_eq!(
        outcome_of(&database, &pool, "LISTEN news", read).await,
        Outcome::NotRun
    );
}

#[tokio::test]
async fn what_a_replica_refused_for_writing_is_in_doubt_on_the_primary() {
    let (database, pool) = start().await;
    let mut conn = pool.get().await.unwrap();
    run(
        &mut conn,
        "CREATE FUNCTION writes() RETURNS int LANGUAGE plpgsql VOLATILE AS
             'BEGIN UPDATE users SET visits = 1; PERFORM pg_sleep(30); RETURN 1; END';
         CREATE FUNCTION lies() RETURNS int LANGUAGE plpgsql STABLE AS 'BEGIN RETURN writes(); END'",
    )
    .await
    .unwrap();
    blocking(|| cluster().wait_caught_up().unwrap()).await;
    let mut conn = pool.get().await.unwrap();
    let running = tokio::spawn(async move {
        let lies = sql_query("SELECT lies() AS number");
        lies.get_result::<Number>(&mut conn)
            .await
            .map(|row| row.number)
    });
    terminate(
        &database,
        "state = 'active' AND query LIKE 'SELECT lies()%'",
    )
    .await;
    let error = running.await.unwrap().unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown);
}

#[tokio::test]
async fn the_bare_connection_is_refused_in_a_lost_transaction() {
    let (database, pool) = start().await;
    let mut conn = pool.get().await.unwrap();
    let result = conn
        .transaction(async |conn| {
            insert("lost").execute(conn).await?;
            terminate(&database, "state LIKE 'idle in transaction%'").await;
            // Refused, or lent because the loss is not known yet: then it is lost.
            let outside = diesel::insert_into(users::table).values(users::name.eq("outside"));
            let pg = conn.primary_connection().await?;
            outside.execute(pg).await
        })
        .await;
    assert!(result.is_err());
    assert!(names(&pool).await.is_empty());
}

#[tokio::test]
async fn nothing_behind_a_rollback_runs_when_its_transaction_is_lost() {
    let (database, pool) = start().await;
    let mut conn = pool.get().await.unwrap();
    run(&mut conn, "BEGIN").await.unwrap();
    insert("lost").execute(&mut conn).await.unwrap();
    terminate(&database, "state LIKE 'idle in transaction%'").await;
    let text = "ROLLBACK; INSERT INTO users (name) VALUES ('after')";
    // Either the loss is known and nothing is sent, or it was sent into a dead connection.
    run(&mut conn, text).await.unwrap_err();
    assert!(names(&pool).await.is_empty());
    run(&mut conn, "ROLLBACK").await.unwrap();
    insert("kept").execute(&mut conn).await.unwrap();
    assert_eq!(names(&pool).await, ["kept"]);
}

#[tokio::test]
async fn nothing_runs_outside_of_a_transaction_whose_begin_was_dropped() {
    let (_, pool) = start().await;
    let mut conn = pool.get().await.unwrap();
    insert("first").execute(&mut conn).await.unwrap();
    // Handed to the client, and dropped before the driver has written it.
    assert!(run(&mut conn, "BEGIN").now_or_never().is_none());
    let error = insert("vanishes").execute(&mut conn).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotRun);
    drop(conn);
    assert_eq!(names(&pool).await, ["first"]);
}

#[tokio::test]
async fn a_mistake_of_the_client_takes_no_node_out() {
    let (_, pool) = start().await;
    let mut conn = pool.get().await.unwrap();
    let too_few = sql_query("SELECT $1::int + $2::int AS number");
    let too_few = too_few.bind::<diesel::sql_types::Integer, _>(1);
    assert!(too_few.get_result::<Number>(&mut conn).await.is_err());
    let values: Vec<_> = (0..66_000)
        .map(|n| users::name.eq(format!("n{n}")))
        .collect();
    let too_many = diesel::insert_into(users::table).values(values);
    assert!(too_many.execute(&mut conn).await.is_err());
    assert_eq!(count(&mut conn).await, 3);
    assert!(all_up(&pool));
    insert("kept").execute(&mut conn).await.unwrap();
}

#[tokio::test]
async fn the_end_of_an_idle_connection_takes_no_node_out() {
    let (database, pool) = start().await;
    let mut conn = pool.get().await.unwrap();
    insert("first").execute(&mut conn).await.unwrap();
    drop(conn);
    let mut topologies = vec![];
    terminate(&database, "state = 'idle'").await;
    eventually("a probe has opened another connection", || {
        let state = pool.status();
        let primary = state.node("primary").unwrap();
        topologies.push(primary.health);
        let open = primary.connections;
        async move { open > 0 }
    })
    .await;
    let mut conn = pool.get().await.unwrap();
    insert("second").execute(&mut conn).await.unwrap();
    topologies.push(pool.status().node("primary").unwrap().health);
    let stayed = |health: &NodeHealth| matches!(health, NodeHealth::Up | NodeHealth::Suspect);
    assert!(topologies.iter().all(stayed));
    tokio::time::timeout(Duration::from_secs(5), pool.get())
        .await
        .unwrap()
        .unwrap();
}
