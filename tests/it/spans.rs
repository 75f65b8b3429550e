//! What traces show of statements: where each went and how it ended, and nothing that was bound.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_query;
use diesel_async::{AsyncConnection, RunQueryDsl};
use diesel_replicated::config::ConsistencyConfig;
use diesel_replicated::{ErrorExt, Outcome, ReplicatedPool, Routing};
use futures_util::StreamExt;
use futures_util::future::join3;
use tracing::Event;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::Registry;
use tracing_subscriber::filter::{EnvFilter, filter_fn};
use tracing_subscriber::layer::{Context, Filter, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::support::{
    Number, Shared, all_up, builder, builder_for, cluster, count, database, eventually, insert, on,
    own_cluster, run, shut_out, traced_by, users,
};

/// A span with its fields, and its parent's name.
#[derive(Clone, Debug, Default)]
struct Seen {
    name: String,
    parent: Option<u64>,
    closed: bool,
    fields: BTreeMap<String, String>,
}

impl Seen {
    fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }
}

impl Visit for Seen {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let value = format!("{value:?}").trim_matches('"').to_owned();
        self.fields.insert(field.name().to_owned(), value);
    }
}

/// All spans of the target, in the order of their beginning.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<BTreeMap<u64, Seen>>>);

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Spans {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut seen = Seen {
            name: attributes.metadata().name().to_owned(),
            parent: context.lookup_current().map(|span| span.id().into_u64()),
            ..Seen::default()
        };
        attributes.record(&mut seen);
        self.0.lock().unwrap().insert(id.into_u64(), seen);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        if let Some(seen) = self.0.lock().unwrap().get_mut(&id.into_u64()) {
            values.record(seen);
        }
    }

    fn on_close(&self, id: Id, _: Context<'_, S>) {
        if let Some(seen) = self.0.lock().unwrap().get_mut(&id.into_u64()) {
            seen.closed = true;
        }
    }
}

impl Spans {
    fn watch(filter: &str) -> (Self, DefaultGuard) {
        Self::watch_by(EnvFilter::new(filter))
    }

    fn watch_by(filter: impl Filter<Registry> + Send + Sync + 'static) -> (Self, DefaultGuard) {
        let spans = Self::default();
        let layer = spans.clone().with_filter(filter);
        let subscriber = tracing_subscriber::registry().with(layer);
        (spans, traced_by(subscriber))
    }

    /// The statements until now, each with its attempts. Forgets them.
    fn take(&self) -> Vec<(Seen, Vec<Seen>)> {
        let statements = self.look();
        self.0.lock().unwrap().clear();
        statements
    }

    /// The waits for connections until now, each inside of a statement.
    fn connects(&self) -> Vec<Seen> {
        let all = self.0.lock().unwrap();
        let waits = all.values().filter(|seen| seen.name == "connect");
        let of_statement = |seen: &&Seen| {
            let parent = seen.parent.and_then(|id| all.get(&id));
            parent.is_some_and(|parent| parent.name == "statement")
        };
        waits.filter(of_statement).cloned().collect()
    }

    /// The same, and forgets nothing.
    fn look(&self) -> Vec<(Seen, Vec<Seen>)> {
        let all = self.0.lock().unwrap().clone();
        let statements = all.iter().filter(|(_, seen)| seen.name == "statement");
        statements
            .map(|(id, seen)| {
                let inside = all.values().filter(|other| other.parent == Some(*id));
                let attempts = inside.filter(|other| other.name == "attempt");
                (seen.clone(), attempts.cloned().collect())
            })
            .collect()
    }
}

/// How many events of the application a layer has got.
#[derive(Clone, Default)]
struct Lines(Shared);

impl<S: tracing::Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == "app" {
            self.0.add(1);
        }
    }
}

async fn build(builder: diesel_replicated::Builder) -> ReplicatedPool {
    let pool = builder.build().await.unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    pool
}

#[tokio::test]
async fn a_statement_has_a_span_with_its_route_and_one_for_each_attempt() {
    let pool = build(builder(&database().await)).await;
    let (spans, _guard) = Spans::watch("diesel_replicated::statement=debug");
    let mut conn = pool.get().await.unwrap();
    count(&mut conn).await;
    insert("hunter2").execute(&mut conn).await.unwrap();
    let refused = insert("hunter2").execute(&mut conn).await.unwrap_err();
    assert_eq!(refused.outcome(), Outcome::Failed);
    let [(read, reads), (write, writes), (failed, failures)] = &spans.take()[..] else {
        panic!("three statements");
    };
    assert_eq!(read.field("db.system.name"), "postgresql");
    assert_eq!(read.field("db.operation.name"), "SELECT");
    assert_eq!(
        (read.field("kind"), read.field("reason")),
        ("replica", "plain_select")
    );
    assert!(read.field("node").starts_with("replica"));
    assert_eq!(reads.len(), 1);
    assert_eq!(reads[0].field("node"), read.field("node"));
    assert_eq!(reads[0].field("server.address"), "127.0.0.1");
    assert!(reads[0].field("server.port").parse::<u16>().is_ok());
    assert_eq!(
        (write.field("kind"), write.field("reason")),
        ("primary", "write")
    );
    assert_eq!((write.field("error.type"), writes.len()), ("", 1));
    assert_eq!(failed.field("db.response.status_code"), "23505");
    assert_eq!(
        (failed.field("error.type"), failed.field("otel.status_code")),
        ("failed", "ERROR")
    );
    assert_eq!(failures[0].field("db.response.status_code"), "23505");
    // Neither the text nor what was bound.
    for (seen, _) in [(read, reads), (write, writes), (failed, failures)] {
        assert_eq!(seen.field("db.query.text"), "");
        assert!(!format!("{seen:?}").contains("hunter2"));
    }
}

#[tokio::test]
async fn the_text_of_a_statement_is_there_only_where_it_is_asked_for() {
    let pool = build(builder(&database().await)).await;
    let (spans, guard) = Spans::watch("diesel_replicated::statement=trace");
    let mut conn = pool.get().await.unwrap();
    let found = users::table.filter(users::name.eq("hunter2")).count();
    found.get_result::<i64>(&mut conn).await.unwrap();
    let (seen, _) = spans.take().remove(0);
    assert!(seen.field("db.query.text").starts_with("SELECT COUNT(*)"));
    assert!(seen.field("db.query.text").contains("$1"));
    assert!(!format!("{seen:?}").contains("hunter2"));
    drop(guard);
    let (spans, _guard) = Spans::watch("diesel_replicated=trace,diesel_replicated::statement=info");
    count(&mut conn).await;
    assert!(spans.take().is_empty());
}

#[tokio::test]
async fn a_read_that_moves_or_waits_or_is_held_back_says_so() {
    let local = own_cluster().await;
    let patient = ConsistencyConfig::default().wait(Duration::from_secs(20));
    let pool = build(builder_for(&local, "app").consistency(patient)).await;
    let (spans, _guard) = Spans::watch("diesel_replicated::statement=debug");
    let mut conn = pool.get().await.unwrap();
    insert("Barbara").execute(&mut conn).await.unwrap();
    // One that holds the primary would read there at once.
    count(&mut pool.get().await.unwrap()).await;
    let (waited, _) = spans.take().remove(1);
    assert!(waited.field("position_wait").parse::<f64>().unwrap() >= 0.0);
    pool.set_routing(Routing::Observe).unwrap();
    count(&mut conn).await;
    let (held_back, _) = spans.take().remove(0);
    assert_eq!(
        (held_back.field("reason"), held_back.field("kind")),
        ("held_back", "primary")
    );
    assert_ne!(held_back.field("would_be"), "");
    pool.set_routing(Routing::default()).unwrap();
    // The replica of the last read dies, and another node serves.
    count(&mut conn).await;
    let node = conn.last_route().unwrap().node;
    spans.take();
    on(&local, move |local| {
        local.node(&node).unwrap().kill().unwrap()
    })
    .await;
    count(&mut conn).await;
    let (moved, attempts) = spans.take().remove(0);
    assert_eq!(moved.field("error.type"), "");
    assert!(!attempts.is_empty());
    assert_eq!(attempts.last().unwrap().field("node"), moved.field("node"));
    // A transaction: each of its statements has its own.
    conn.transaction(async |conn| run(conn, "SELECT 1").await)
        .await
        .unwrap();
    let operations: Vec<String> = spans
        .take()
        .iter()
        .map(|(seen, _)| seen.field("db.operation.name").to_owned())
        .collect();
    assert_eq!(operations, ["BEGIN", "SELECT", "COMMIT"]);
}

/// <https://github.com/tokio-rs/tracing/issues/2448>, <https://github.com/tokio-rs/tracing/issues/3572>,
/// <https://github.com/launchbadge/sqlx/issues/4270>
#[tokio::test]
async fn lines_of_the_application_stay_after_a_statement_that_no_node_has_got() {
    let pool = build(builder(&database().await)).await;
    let mut conn = pool.get().await.unwrap();
    pool.pause_writes(Duration::from_secs(600)).await.unwrap();
    let (spans, lines) = (Spans::default(), Lines::default());
    let two = tracing_subscriber::registry()
        .with(spans.clone().with_filter(LevelFilter::TRACE))
        .with(lines.clone().with_filter(LevelFilter::INFO));
    let guard = traced_by(two);
    for _ in 0..10 {
        let mut hurried = conn.with_deadline(Duration::from_millis(20));
        insert("Barbara").execute(&mut hurried).await.unwrap_err();
        tracing::error!(target: "app", "not written");
    }
    assert_eq!(lines.0.get(), 10);
    let statements = spans.take();
    assert_eq!(statements.len(), 10);
    assert!(statements.iter().all(|(_, attempts)| attempts.is_empty()));
    assert!(
        statements[0]
            .0
            .field("db.query.text")
            .starts_with("INSERT INTO")
    );
    drop(guard);
    // Filters that look at the spans around.
    let one = lines
        .clone()
        .with_filter(EnvFilter::new("info,[request]=trace"));
    let _guard = traced_by(tracing_subscriber::registry().with(one));
    for _ in 0..10 {
        let mut hurried = conn.with_deadline(Duration::from_millis(20));
        insert("Barbara").execute(&mut hurried).await.unwrap_err();
        tracing::error!(target: "app", "not written");
    }
    assert_eq!(lines.0.get(), 20);
}

/// <https://github.com/launchbadge/sqlx/issues/4270>
#[tokio::test]
async fn filters_of_spans_get_the_spans_that_they_name() {
    let pool = build(builder(&database().await)).await;
    let mut conn = pool.get().await.unwrap();
    for filter in [
        "[statement]=debug",
        "info,diesel_replicated::statement[statement]=debug",
        "off,diesel_replicated::statement=debug,[request]=trace",
    ] {
        let (spans, _guard) = Spans::watch(filter);
        count(&mut conn).await;
        let statements = spans.take();
        assert_eq!(statements.len(), 1, "{filter}");
        assert_eq!(statements[0].0.field("db.query.text"), "", "{filter}");
    }
    let (spans, guard) = Spans::watch_by(filter_fn(|it| it.is_span() && it.target() != "app"));
    count(&mut conn).await;
    assert_eq!(spans.take().len(), 1);
    drop(guard);
    let (spans, _guard) = Spans::watch_by(filter_fn(|it| it.name() == "statement"));
    count(&mut conn).await;
    assert_eq!(spans.take().len(), 1);
}

/// <https://github.com/launchbadge/sqlx/issues/4270>
#[tokio::test]
async fn a_layer_that_asks_for_less_than_another_has_its_spans_too() {
    let pool = build(builder(&database().await)).await;
    let mut conn = pool.get().await.unwrap();
    let (traces, log) = (Spans::default(), Spans::default());
    let two = tracing_subscriber::registry()
        .with(traces.clone().with_filter(LevelFilter::DEBUG))
        .with(log.clone().with_filter(LevelFilter::TRACE));
    let _guard = traced_by(two);
    count(&mut conn).await;
    for statements in [&traces, &log].map(Spans::take) {
        assert_eq!(statements.len(), 1);
        assert_eq!(statements[0].1.len(), 1);
    }
}

/// <https://github.com/cloudflare/workerd/issues/5688>
#[tokio::test]
async fn a_statement_that_fails_after_its_first_rows_has_failed() {
    let database = database().await;
    let pool = build(builder(&database)).await;
    let (spans, _guard) = Spans::watch("diesel_replicated::statement=debug");
    let mut conn = pool.get().await.unwrap();
    let divided = "SELECT 1 / (190000 - it) AS number FROM generate_series(1, 200000) AS it";
    let result = sql_query(divided).load::<Number>(&mut conn).await;
    assert_eq!(result.unwrap_err().outcome(), Outcome::Failed);
    let (seen, attempts) = spans.take().remove(0);
    for span in [&seen, &attempts[0]] {
        assert_eq!(span.field("otel.status_code"), "ERROR");
        assert_eq!(span.field("db.response.status_code"), "22012");
        assert!(span.closed);
    }
    assert_eq!(seen.field("error.type"), "failed");
    assert_eq!(attempts[0].field("error.type"), "22012");
    // The server ends while it waits for the reader.
    let many = "SELECT length(repeat('x', it)) AS number FROM generate_series(1, 2000000) AS it";
    let mut rows = sql_query(many)
        .load_stream::<Number>(&mut conn)
        .await
        .unwrap();
    rows.next().await.unwrap().unwrap();
    let node = spans.look()[0].0.field("node").to_owned();
    crate::support::blocking(move || {
        let end = "SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity
            WHERE datname = current_database() AND query LIKE 'SELECT length%'";
        let node = cluster().node(&node).unwrap();
        node.sql(&database, end).unwrap();
    })
    .await;
    while rows.next().await.unwrap().is_ok() {}
    let (seen, attempts) = spans.take().remove(0);
    for span in [&seen, &attempts[0]] {
        assert_eq!(span.field("otel.status_code"), "ERROR");
        assert!(span.closed);
    }
    assert_eq!(seen.field("error.type"), "not_run");
}

/// <https://github.com/open-telemetry/semantic-conventions/issues/3479>
#[tokio::test]
async fn the_spans_of_a_stream_end_with_its_last_row_or_when_it_is_dropped() {
    let pool = build(builder(&database().await)).await;
    let (spans, _guard) = Spans::watch("diesel_replicated::statement=debug");
    let mut conn = pool.get().await.unwrap();
    let many = "SELECT it AS number FROM generate_series(1, 20000) AS it";
    for to_the_end in [true, false] {
        let mut rows = sql_query(many)
            .load_stream::<Number>(&mut conn)
            .await
            .unwrap();
        rows.next().await.unwrap().unwrap();
        let (seen, attempts) = spans.look().remove(0);
        assert!(!seen.closed && !attempts[0].closed);
        if to_the_end {
            while rows.next().await.is_some() {}
        } else {
            drop(rows);
        }
        let (seen, attempts) = spans.take().remove(0);
        assert!(seen.closed && attempts[0].closed);
        for span in [&seen, &attempts[0]] {
            assert_eq!(span.field("otel.status_code"), "");
            assert_eq!(span.field("error.type"), "");
        }
    }
}

/// <https://github.com/open-telemetry/semantic-conventions/blob/main/docs/database/database-spans.md>: a span is one call.
#[tokio::test]
async fn each_of_several_statements_at_once_names_its_own_node() {
    let pool = build(builder(&database().await)).await;
    let (spans, _guard) = Spans::watch("diesel_replicated::statement=debug");
    let conn = pool.get().await.unwrap();
    let (mut one, mut two, mut three) = (&conn, &conn, &conn);
    let slow = "SELECT count(*)::integer AS number FROM generate_series(1, 1000000)";
    let (read, written, failed) = join3(
        sql_query(slow).load::<Number>(&mut one),
        sql_query("UPDATE users SET visits = 2").execute(&mut two),
        sql_query("SELECT 1 / 0 AS number").load::<Number>(&mut three),
    )
    .await;
    assert!(read.is_ok() && written.is_ok() && failed.is_err());
    let statements = spans.take();
    assert_eq!(statements.len(), 3);
    for (seen, attempts) in &statements {
        assert_eq!(attempts.len(), 1);
        assert_eq!(seen.field("node"), attempts[0].field("node"), "{seen:?}");
        let is_primary = seen.field("node") == "primary";
        assert_eq!(seen.field("kind") == "primary", is_primary, "{seen:?}");
    }
    let writes = |(seen, _): &&(Seen, _)| Seen::field(seen, "reason") == "write";
    assert_eq!(statements.iter().filter(writes).count(), 1);
}

/// <https://opentelemetry.io/docs/specs/semconv/general/recording-errors/>
#[tokio::test]
async fn a_statement_that_is_given_up_says_where_it_was() {
    const SLOW: &str = "UPDATE users SET visits = 1 WHERE pg_sleep(60) IS NOT NULL";
    let pool = build(builder(&database().await)).await;
    let (spans, _guard) = Spans::watch("diesel_replicated::statement=debug");
    let mut conn = pool.get().await.unwrap();
    count(&mut conn).await;
    insert("Barbara").execute(&mut conn).await.unwrap();
    spans.take();
    // Nobody waits any more.
    let begun = || async {
        spans
            .look()
            .iter()
            .any(|(_, attempts)| !attempts.is_empty())
    };
    tokio::select! {
        it = run(&mut conn, SLOW) => panic!("{it:?}"),
        () = eventually("it is on its way", begun) => {}
    }
    let (seen, attempts) = spans.take().remove(0);
    let where_to = |seen: &Seen| ["node", "kind", "reason"].map(|it| seen.field(it).to_owned());
    assert_eq!(where_to(&seen), ["primary", "primary", "write"]);
    for span in [&seen, &attempts[0]] {
        assert!(span.closed);
        assert_eq!(span.field("otel.status_code"), "ERROR");
        assert_eq!(span.field("error.type"), "cancelled");
    }
    // A deadline ends it.
    let mut hurried = conn.with_deadline(Duration::from_secs(2));
    sql_query(SLOW).execute(&mut hurried).await.unwrap_err();
    let (seen, attempts) = spans.take().remove(0);
    assert_eq!(where_to(&seen), ["primary", "primary", "write"]);
    assert_ne!(seen.field("error.type"), "");
    assert_eq!(seen.field("otel.status_code"), "ERROR");
    let last = attempts.last().unwrap();
    assert!(seen.closed && last.closed);
    assert_eq!(last.field("otel.status_code"), "ERROR");
    assert_eq!(last.field("error.type"), "cancelled");
}

// Nothing was sent, so there was no attempt to see.
#[tokio::test]
async fn a_connection_that_cannot_be_opened_has_a_span() {
    let local = own_cluster().await;
    let role = |sql: &'static str| {
        on(&local, move |local| {
            drop(local.primary().sql("app", sql).unwrap())
        })
    };
    role("CREATE ROLE app LOGIN; GRANT ALL ON users TO app").await;
    let url = local.primary().url("app").replace("postgres@", "app@");
    let builder = ReplicatedPool::builder().primary(url);
    let pool = build(builder).await;
    shut_out(&local, "app").await;
    let (spans, _guard) = Spans::watch("diesel_replicated::statement=debug");
    let mut conn = pool.get().await.unwrap();
    let found = users::table.count().get_result::<i64>(&mut conn).await;
    assert!(found.unwrap_err().to_string().contains("for role"));
    let connects = spans.connects();
    let last = connects.last().unwrap();
    assert_eq!(last.field("db.response.status_code"), "53300");
    assert_eq!(last.field("error.type"), "53300");
    assert_eq!(last.field("otel.status_code"), "ERROR");
    assert_eq!(
        last.field("server.port"),
        local.primary().port().to_string()
    );
    // One that can be opened has one as well.
    role("ALTER ROLE app CONNECTION LIMIT -1").await;
    spans.take();
    count(&mut conn).await;
    let connects = spans.connects();
    assert_eq!(connects.len(), 1);
    assert!(connects[0].closed);
    assert_eq!(connects[0].field("error.type"), "");
}
