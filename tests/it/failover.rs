//! The primary changes: others promote, the old one comes back, two rule at once, one freezes.

use std::sync::Arc;
use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_query;
use diesel_async::{AsyncConnection, RunQueryDsl};
use diesel_replicated::status::{NodeHealth, RouteReason};
use diesel_replicated::testing::{LocalCluster, LocalNode};
use diesel_replicated::{Consistency, ErrorExt, Event, Outcome, ReplicatedPool};
use futures_util::{FutureExt, StreamExt};

use crate::support::{
    Number, Shared, all_up, blocking, builder_for, count, eventually, insert, on, own_cluster, run,
    users, who,
};

/// Longer than any failover of a test takes on a busy machine.
const PATIENT: Duration = Duration::from_secs(30);

async fn start() -> (Arc<LocalCluster>, ReplicatedPool) {
    let local = own_cluster().await;
    let builder = builder_for(&local, "app")
        .failover_wait(PATIENT)
        // A replica may turn out to be ahead of the promoted one: then nobody is left but that.
        .fallback_share(1.0);
    let pool = builder.build().await.unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    (local, pool)
}

async fn names_on(local: &Arc<LocalCluster>, node: &'static str) -> Vec<String> {
    let local = Arc::clone(local);
    let sql = "SELECT name FROM users ORDER BY id";
    let rows = blocking(move || local.node(node).unwrap().sql("app", sql).unwrap()).await;
    rows.into_iter().filter_map(|mut row| row.pop()?).collect()
}

fn primary_of(pool: &ReplicatedPool) -> Option<String> {
    pool.status().primary
}

async fn is_primary(pool: &ReplicatedPool, name: &str) {
    eventually("the pool follows", || async {
        let state = pool.status();
        state.primary.as_deref() == Some(name) && state.node(name).unwrap().health == NodeHealth::Up
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_sent_waits_for_the_next_primary() {
    let (local, pool) = start().await;
    on(&local, |local| local.primary().kill().unwrap()).await;
    let mut conn = pool.get().await.unwrap();
    // Reads go on.
    assert_eq!(count(&mut conn).await, 3);
    let transacting = async {
        let mut conn = pool.get().await.unwrap();
        let work = conn.transaction(async |conn| insert("in a transaction").execute(conn).await);
        work.await.unwrap()
    };
    let promoting = on(&local, |local| {
        local.replicas()[0].promote().unwrap();
        local.replicas()[1].follow(&local.replicas()[0]).unwrap();
    });
    let waiting = insert("waited").execute(&mut conn);
    let (written, transacted, ()) = tokio::join!(waiting, transacting, promoting);
    assert_eq!((written.unwrap(), transacted), (1, 1));
    assert_eq!(primary_of(&pool).as_deref(), Some("replica-1"));
    assert_eq!(count(&mut conn).await, 5);
    assert_eq!(names_on(&local, "replica-1").await.len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_sent_to_a_primary_that_was_overtaken() {
    let (local, pool) = start().await;
    let mut open = pool.get().await.unwrap();
    run(&mut open, "BEGIN").await.unwrap();
    insert("open").execute(&mut open).await.unwrap();
    let mut held = pool.get().await.unwrap();
    insert("before").execute(&mut held).await.unwrap();
    let mut pinned = pool.get().await.unwrap();
    run(&mut pinned, "LISTEN news").await.unwrap();
    let running = pool.get().await.unwrap();
    let running = tokio::spawn(async move {
        let mut running = running;
        let sleep = sql_query("SELECT 1 AS number FROM pg_sleep(60)");
        sleep.execute(&mut running.primary()).await
    });
    on(&local, |local| local.wait_caught_up().unwrap()).await;

    // The old primary lives on, and would take every write.
    on(&local, |local| local.replicas()[0].promote().unwrap()).await;
    is_primary(&pool, "replica-1").await;
    let lost = insert("never").execute(&mut open).await.unwrap_err();
    assert!(lost.to_string().contains("the open transaction"), "{lost}");
    assert!(lost.to_string().contains("no longer the primary"), "{lost}");
    let lost = run(&mut pinned, "SELECT nextval('users_id_seq')")
        .await
        .unwrap_err();
    assert!(lost.to_string().contains("this session's state"), "{lost}");
    let ended = running.await.unwrap().unwrap_err();
    assert!(
        ended.to_string().contains("no longer the primary"),
        "{ended}"
    );
    insert("after").execute(&mut held).await.unwrap();
    assert_eq!(held.last_route().unwrap().node, "replica-1");
    for round in 0..5 {
        let mut conn = pool.get().await.unwrap();
        insert(&format!("n{round}"))
            .execute(&mut conn)
            .await
            .unwrap();
    }
    let old = names_on(&local, "primary").await;
    assert_eq!(old, ["Ada", "Grace", "Edsger", "before"]);

    // Nor when nobody else takes writes.
    on(&local, |local| local.replicas()[0].kill().unwrap()).await;
    let mut conn = pool.get().await.unwrap();
    eventually("the new one is known to be down", || async {
        pool.status().node("replica-1").unwrap().health == NodeHealth::Down
    })
    .await;
    assert!(insert("never").execute(&mut conn).now_or_never().is_none());
    // Nobody has the other replica follow the new primary. It serves, unless the old one has given it more of
    // the old timeline than the new one has.
    eventually("the other replica serves or has diverged", || async {
        if pool.status().node("replica-2").unwrap().health == NodeHealth::Diverged {
            return true;
        }
        let mut reader = pool.get().await.unwrap();
        reader.set_consistency(Consistency::Eventual);
        // Without a replica it would wait for a primary.
        let mut reader = reader.with_deadline(Duration::from_secs(1));
        let read: QueryResult<i64> = users::table.count().get_result(&mut reader).await;
        read.is_ok()
    })
    .await;
    let state = pool.status();
    assert_eq!(state.node("primary").unwrap().kind, None, "{state:?}");
    // As a replica of the new one it is welcome.
    on(&local, |local| {
        let new = &local.replicas()[0];
        new.start().unwrap();
        local.rebuild(local.primary(), new).unwrap();
    })
    .await;
    eventually("the old primary serves reads", || async {
        let mut conn = pool.get().await.unwrap();
        who(&mut conn).await == "primary"
    })
    .await;
    assert_eq!(names_on(&local, "replica-1").await.len(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_that_were_promoted_neither_takes_writes() {
    let (local, pool) = start().await;
    on(&local, |local| {
        local.primary().kill().unwrap();
        local
            .replicas()
            .iter()
            .for_each(|node| node.promote().unwrap());
    })
    .await;
    let mut conn = pool.get().await.unwrap();
    eventually("both are seen", || async {
        let mut conn = pool.get().await.unwrap();
        let written = insert("never").execute(&mut conn).now_or_never();
        let error = written.and_then(Result::err);
        error.is_some_and(|error| {
            error
                .to_string()
                .contains("more than one node takes writes")
        })
    })
    .await;
    let error = insert("never").execute(&mut conn).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotRun);
    let before = names_on(&local, "replica-2").await.len();
    on(&local, |local| local.replicas()[0].kill().unwrap()).await;
    is_primary(&pool, "replica-2").await;
    insert("again").execute(&mut conn).await.unwrap();
    assert_eq!(names_on(&local, "replica-2").await.len(), before + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_node_costs_no_more_than_the_bound() {
    let (local, pool) = start().await;
    let mut writer = pool.get().await.unwrap();
    insert("before").execute(&mut writer).await.unwrap();
    let mut reader = pool.get().await.unwrap();
    let server = who(&mut reader).await;
    let frozen = server.clone();
    on(&local, move |local| local.node(&frozen).unwrap().freeze()).await;
    // On its way to the frozen one, it goes elsewhere.
    assert_ne!(who(&mut reader).await, server);
    on(&local, |local| local.primary().freeze()).await;
    let error = insert("in doubt").execute(&mut writer).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
    on(&local, |local| local.nodes().for_each(LocalNode::thaw)).await;
    eventually("all are back", || async { all_up(&pool) }).await;
    insert("after").execute(&mut writer).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_ahead_of_the_promoted_one_serves_no_reads() {
    let (local, pool) = start().await;
    on(&local, |local| {
        let [one, two] = local.replicas() else {
            panic!("two replicas");
        };
        one.detach().unwrap();
        local
            .primary()
            .sql("app", "INSERT INTO users (name) VALUES ('gone')")
            .unwrap();
        let has = "SELECT count(*) = 4 FROM users";
        while two.sql("app", has).unwrap()[0][0].as_deref() != Some("t") {}
        local.primary().kill().unwrap();
        one.promote().unwrap();
        two.follow(one).unwrap();
    })
    .await;
    is_primary(&pool, "replica-1").await;
    // Something newer than the fork has to be there to be compared with.
    let mut conn = pool.get().await.unwrap();
    for name in ["a", "b", "c"] {
        insert(name).execute(&mut conn).await.unwrap();
    }
    eventually("it is taken out of reads", || async {
        let mut conn = pool.get().await.unwrap();
        let seen = users::table.filter(users::name.eq("gone")).count();
        let seen: i64 = seen.get_result(&mut conn).await.unwrap();
        seen == 0 && conn.last_route().unwrap().reason == RouteReason::NoUsableReplica
    })
    .await;
    on(&local, |local| {
        let [one, two] = local.replicas() else {
            panic!("two replicas");
        };
        local.rebuild(two, one).unwrap();
    })
    .await;
    eventually("it is welcome when it was rebuilt", || async {
        let mut conn = pool.get().await.unwrap();
        who(&mut conn).await == "replica-2"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_under_load_loses_no_confirmed_write_and_runs_none_twice() {
    let (local, pool) = start().await;
    on(&local, |local| {
        let names = "ALTER SYSTEM SET synchronous_standby_names = 'ANY 2 (*)'";
        local.primary().sql("postgres", names).unwrap();
        local
            .primary()
            .sql("postgres", "SELECT pg_reload_conf()")
            .unwrap();
    })
    .await;
    let stop = Shared::default();
    let workers = (0..6).map(|worker| {
        let (pool, stop) = (pool.clone(), stop.clone());
        tokio::spawn(work(pool, worker, stop))
    });
    let workers: Vec<_> = workers.collect();
    eventually("there is load", || async {
        names_on(&local, "replica-1").await.len() > 200
    })
    .await;
    on(&local, |local| {
        local.primary().kill().unwrap();
        local.replicas()[0].promote().unwrap();
        local.replicas()[1].follow(&local.replicas()[0]).unwrap();
    })
    .await;
    is_primary(&pool, "replica-1").await;
    let at_least = names_on(&local, "replica-1").await.len() + 200;
    eventually("the load goes on", || async {
        names_on(&local, "replica-1").await.len() > at_least
    })
    .await;
    stop.add(1);
    let outcomes = futures_util::future::join_all(workers).await;
    // A name can be there but once; who tried a second time would have been refused.
    let found = names_on(&local, "replica-1").await;
    for (name, outcome) in outcomes.into_iter().flat_map(Result::unwrap) {
        match outcome {
            None => assert!(found.contains(&name), "{name} was confirmed"),
            Some(Outcome::Unknown) => {}
            Some(outcome) => panic!("{name}: {outcome:?}"),
        }
    }
}

/// Writes one name after the other, each once, and reads in between; what became of each name.
async fn work(pool: ReplicatedPool, worker: u32, stop: Shared) -> Vec<(String, Option<Outcome>)> {
    let mut outcomes = Vec::new();
    while stop.get() == 0 {
        let mut conn = pool.get().await.unwrap();
        let one: Number = sql_query("SELECT 1 AS number")
            .get_result(&mut conn)
            .await
            .unwrap();
        assert_eq!(one.number, 1);
        let name = format!("w{worker}-{}", outcomes.len());
        let written = if worker % 2 == 0 {
            insert(&name).execute(&mut conn).await
        } else {
            let work = async |conn: &mut _| insert(&name).execute(conn).await;
            match conn.transaction(work).await {
                // It was lost before its commit was sent; so it is done again.
                Err(error) if error.outcome() == Outcome::NotRun => continue,
                other => other,
            }
        };
        outcomes.push((name, written.err().map(|error| error.outcome())));
    }
    outcomes
}

#[tokio::test]
async fn connections_that_were_opened_before_a_promotion_serve_after_it() {
    let (local, pool) = start().await;
    let mut readers = Vec::new();
    for _ in 0..10 {
        let mut conn = pool.get().await.unwrap();
        who(&mut conn).await;
        readers.push(conn);
    }
    drop(readers);
    let idle = pool.status().node("replica-1").unwrap().idle_connections;
    assert!(idle > 1);
    let mut events = pool.subscribe();
    on(&local, |local| {
        local.primary().kill().unwrap();
        local.replicas()[0].promote().unwrap();
    })
    .await;
    is_primary(&pool, "replica-1").await;
    let mut writers = Vec::new();
    for number in 0..10 {
        let mut conn = pool.get().await.unwrap();
        insert(&format!("n{number}"))
            .execute(&mut conn)
            .await
            .unwrap();
        writers.push(conn);
    }
    while let Some(Some(event)) = events.next().now_or_never() {
        let suspected = matches!(
            &event,
            Event::NodeChanged { node, to: NodeHealth::Suspect | NodeHealth::Down, .. }
                if node == "replica-1"
        );
        assert!(!suspected, "{event:?}");
    }
}
