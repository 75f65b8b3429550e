//! Events reach the instrumentation of this connection, whichever node served.

use std::sync::{Arc, Mutex};

use diesel::connection::{CacheSize, Instrumentation, InstrumentationEvent};
use diesel::prelude::*;
use diesel_async::{AsyncConnection, RunQueryDsl};
use diesel_replicated::status::RouteReason;

use crate::support::{count, insert, pool, run, users, who};

diesel::define_sql_function! {
    fn hidden(number: diesel::sql_types::Integer) -> diesel::sql_types::Oid;
}

#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<String>>>);

impl Instrumentation for Recorder {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        let text = match event {
            InstrumentationEvent::StartQuery { query, .. } => format!("start {query}"),
            InstrumentationEvent::FinishQuery { query, error, .. } => {
                format!(
                    "finish {query}{}",
                    if error.is_some() { " failed" } else { "" }
                )
            }
            InstrumentationEvent::CacheQuery { sql, .. } => format!("cache {sql}"),
            InstrumentationEvent::BeginTransaction { depth, .. } => format!("begin {depth}"),
            InstrumentationEvent::CommitTransaction { depth, .. } => format!("commit {depth}"),
            InstrumentationEvent::RollbackTransaction { depth, .. } => format!("rollback {depth}"),
            _ => "other".to_owned(),
        };
        self.0.lock().unwrap().push(text);
    }
}

impl Recorder {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

#[tokio::test]
async fn queries_are_reported_once_with_what_was_cached() {
    let pool = pool().await;
    let recorder = Recorder::default();
    let mut conn = pool.get().await.unwrap();
    conn.set_instrumentation(recorder.clone());
    let find = || users::table.select(users::name).filter(users::id.eq(1));
    let _: String = find().get_result(&mut conn).await.unwrap();
    let sql = "SELECT \"users\".\"name\" FROM \"users\" WHERE (\"users\".\"id\" = $1)";
    let with_binds = format!("start {sql} -- binds: [1]");
    assert_eq!(
        recorder.take(),
        [
            with_binds.clone(),
            format!("cache {sql}"),
            format!("finish {sql}")
        ]
    );
    let _: String = find().get_result(&mut conn).await.unwrap();
    assert_eq!(
        recorder.take(),
        [with_binds.clone(), format!("finish {sql}")]
    );
    // Another node caches for itself.
    let _: String = find().get_result(&mut conn.primary()).await.unwrap();
    assert_eq!(
        recorder.take(),
        [with_binds, format!("cache {sql}"), format!("finish {sql}")]
    );
}

#[tokio::test]
async fn transactions_are_reported_with_their_depth() {
    let pool = pool().await;
    let recorder = Recorder::default();
    let mut conn = pool.get().await.unwrap();
    conn.set_instrumentation(recorder.clone());
    let _: QueryResult<()> = conn
        .transaction(async |conn| {
            conn.transaction(async |_| QueryResult::Ok(())).await?;
            Err(diesel::result::Error::RollbackTransaction)
        })
        .await;
    let events = recorder.take();
    let only_control: Vec<&str> = events
        .iter()
        .map(String::as_str)
        .filter(|event| !event.starts_with("start") && !event.starts_with("finish"))
        .collect();
    assert_eq!(
        only_control,
        ["begin 1", "begin 2", "commit 2", "rollback 1"]
    );
}

#[tokio::test]
async fn failures_are_reported_and_other_sessions_are_not_heard() {
    let pool = pool().await;
    let recorder = Recorder::default();
    let mut conn = pool.get().await.unwrap();
    conn.set_instrumentation(recorder.clone());
    insert("Ada").execute(&mut conn).await.unwrap_err();
    assert!(recorder.take().last().unwrap().ends_with("failed"));
    drop(conn);
    let mut other = pool.get().await.unwrap();
    assert_eq!(count(&mut other.primary()).await, 3);
    run(&mut other, "SELECT 1").await.unwrap();
    assert_eq!(recorder.take(), Vec::<String>::new());
}

#[tokio::test]
async fn the_statement_cache_can_be_switched_off_for_one_session() {
    let pool = pool().await;
    let recorder = Recorder::default();
    for (size, cached) in [(CacheSize::Disabled, false), (CacheSize::Unbounded, true)] {
        let mut conn = pool.get().await.unwrap();
        conn.set_prepared_statement_cache_size(size);
        conn.set_instrumentation(recorder.clone());
        let visits: Vec<i32> = users::table
            .select(users::visits)
            .load(&mut conn)
            .await
            .unwrap();
        assert_eq!(visits.len(), 3);
        who(&mut conn).await;
        let events = recorder.take();
        assert_eq!(
            events.iter().any(|event| event.starts_with("cache")),
            cached,
            "{events:?}"
        );
    }
}

// A read that a replica fails goes on to the primary: it is one query, and told to be prepared once.
#[tokio::test]
async fn a_read_that_moves_is_told_to_be_prepared_once() {
    let database = crate::support::database().await;
    let name = database.clone();
    crate::support::blocking(move || {
        // The operator is wrong about it: it makes a large object.
        let wrong =
            "CREATE FUNCTION hidden(integer) RETURNS oid LANGUAGE internal STABLE AS 'be_lo_creat'";
        let cluster = crate::support::cluster();
        cluster.primary().sql(&name, wrong).unwrap();
        cluster.wait_caught_up().unwrap();
    })
    .await;
    let builder = crate::support::builder(&database).allow_function("hidden");
    let pool = builder.build().await.unwrap();
    let recorder = Recorder::default();
    let mut conn = pool.get().await.unwrap();
    conn.set_instrumentation(recorder.clone());
    let made = diesel::select(hidden(-1));
    assert!(made.get_result::<u32>(&mut conn).await.unwrap() > 0);
    assert_eq!(conn.last_route().unwrap().reason, RouteReason::Learned);
    let events = recorder.take();
    let cached = events.iter().filter(|event| event.starts_with("cache"));
    assert_eq!(cached.count(), 1, "{events:?}");
}
