//! What traces show of statements: where each went and how it ended, and nothing that was bound.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use diesel::prelude::*;
use diesel_async::{AsyncConnection, RunQueryDsl};
use diesel_replicated::config::ConsistencyConfig;
use diesel_replicated::{ErrorExt, Outcome, ReplicatedPool, Routing};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::support::{
    all_up, builder, builder_for, count, database, eventually, insert, on, own_cluster, run, users,
};

/// A span with its fields, and its parent's name.
#[derive(Clone, Debug, Default)]
struct Seen {
    name: String,
    parent: Option<u64>,
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
}

impl Spans {
    fn watch(filter: &str) -> (Self, DefaultGuard) {
        let spans = Self::default();
        let filter = EnvFilter::new(filter);
        let layer = spans.clone().with_filter(filter);
        let subscriber = tracing_subscriber::registry().with(layer);
        (spans, tracing::subscriber::set_default(subscriber))
    }

    /// The statements until now, each with its attempts. Forgets them.
    fn take(&self) -> Vec<(Seen, Vec<Seen>)> {
        let all = std::mem::take(&mut *self.0.lock().unwrap());
        let statements = all.iter().filter(|(_, seen)| seen.name == "statement");
        statements
            .map(|(id, seen)| {
                let attempts = all.values().filter(|other| other.parent == Some(*id));
                (seen.clone(), attempts.cloned().collect())
            })
            .collect()
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
    count(&mut conn).await;
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
