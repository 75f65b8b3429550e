//! A pool whose runtime has ended, and callers with another runtime or none: each call works or says why not.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use async_trait::async_trait;
use diesel::sql_query;
use diesel_async::RunQueryDsl;
use diesel_replicated::discovery::{Discovery, DiscoveryError};
use diesel_replicated::{
    Builder, Error, ErrorExt, NodeConfig, Outcome, ReplicatedConnection, ReplicatedPool,
};
use futures_util::StreamExt;
use tokio::runtime::Runtime;
use tokio::task::spawn_blocking;

use crate::support::{Number, builder, cluster, count, database, eventually, insert};

const LONG: Duration = Duration::from_secs(60);

/// A runtime for a pool, and one for those who use it.
fn two_runtimes() -> (Runtime, Runtime) {
    let first = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    let second = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    (first.unwrap(), second.unwrap())
}

async fn build(change: impl FnOnce(Builder) -> Builder) -> ReplicatedPool {
    change(builder(&database().await)).build().await.unwrap()
}

/// A connection with a server's connection of each kind.
async fn warm(pool: &ReplicatedPool) -> ReplicatedConnection {
    let mut conn = pool.get().await.unwrap();
    count(&mut conn).await;
    insert("Warm").execute(&mut conn).await.unwrap();
    conn
}

/// Polls on this thread, which has no runtime.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

fn is_closed<T>(result: Result<T, Error>) -> bool {
    matches!(result, Err(Error::Closed))
}

#[test]
fn a_pool_whose_runtime_has_ended_is_closed() {
    let (first, second) = two_runtimes();
    let (pool, mut conn) = first.block_on(async {
        let pool = build(|builder| builder).await;
        let conn = warm(&pool).await;
        (pool, conn)
    });
    let mut events = pool.subscribe();
    let cancel = conn.cancel_token();
    drop(first);
    second.block_on(async {
        let mut new = pool.get().await.unwrap();
        for conn in [&mut new, &mut conn] {
            let mut limited = conn.with_deadline(LONG);
            let error = insert("Later").execute(&mut limited).await.unwrap_err();
            assert_eq!(error.to_string(), Error::Closed.to_string());
            assert_eq!(error.outcome(), Outcome::NotRun);
        }
        conn.session_token().await;
        cancel.cancel().await.unwrap();
        assert!(pool.is_closed() && pool.status().closed);
        assert!(is_closed(pool.check(LONG).await));
        assert!(is_closed(pool.get_checked().await));
        assert!(is_closed(pool.pause_writes(LONG).await));
        assert!(is_closed(pool.resume_writes().await));
        assert!(is_closed(pool.promote("replica-1").await));
        assert!(is_closed(pool.switchover("replica-1").await));
        assert!(is_closed(pool.drain_replica("replica-1").await));
        assert!(is_closed(pool.remove_replica("replica-1").await));
        assert!(is_closed(pool.set_weight("replica-1", 2).await));
        assert!(is_closed(pool.set_max_size("replica-1", 2).await));
        let another = NodeConfig::new(cluster().primary().url("postgres")).name("another");
        assert!(is_closed(pool.add_replica(another).await));
        while events.next().await.is_some() {}
        assert_eq!(pool.close(LONG).await, 2, "nobody waits for what is over");
        drop((conn, new));
        assert_eq!(pool.close(LONG).await, 0);
    });
    drop(pool);
}

// Whoever waits on another runtime is told as well, whatever it waits for.
#[test]
fn what_waits_while_the_runtime_ends_is_told() {
    let (first, second) = two_runtimes();
    let (pool, closing) = first.block_on(async {
        let pool = build(|builder| builder.max_size(1).failover_wait(LONG)).await;
        (pool, build(|builder| builder).await)
    });
    second.block_on(async {
        let holder = warm(&pool).await;
        let out = warm(&closing).await;
        let mut sleeper = pool.get().await.unwrap();
        let mut waiter = pool.get().await.unwrap();
        let mut writer = closing.get().await.unwrap();
        closing.pause_writes(LONG).await.unwrap();
        let sleeping = async {
            let mut limited = sleeper.with_deadline(LONG);
            let slow = sql_query("SELECT 1 AS number FROM pg_sleep(60)");
            slow.get_result::<Number>(&mut limited).await.unwrap_err()
        };
        // The primary's only connection is held, and there the writes are paused.
        let waiting = async { insert("Waits").execute(&mut waiter).await.unwrap_err() };
        let paused = async { insert("Paused").execute(&mut writer).await.unwrap_err() };
        let ending = async {
            let replicas = ["replica-1", "replica-2"];
            eventually("the statement runs", || async {
                let status = pool.status();
                let busy = |name: &&str| status.node(name).unwrap().in_flight > 0;
                replicas.iter().any(busy)
            })
            .await;
            spawn_blocking(move || drop(first)).await.unwrap();
        };
        let all = async { tokio::join!(sleeping, waiting, paused, closing.close(LONG), ending) };
        let told = tokio::time::timeout(LONG / 2, all).await;
        let (slept, waited, paused, left, ()) = told.expect("they end with the runtime");
        for error in [slept, waited, paused] {
            assert_eq!(error.outcome(), Outcome::NotRun, "{error}");
        }
        assert!(left > 0);
        drop((holder, out));
    });
}

#[derive(Debug)]
struct Listed;

#[async_trait]
impl Discovery for Listed {
    async fn nodes(&self) -> Result<Vec<NodeConfig>, DiscoveryError> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        Ok(Vec::new())
    }
}

#[test]
fn callers_need_no_runtime_once_the_pool_has_one() {
    let (first, second) = two_runtimes();
    let database = first.block_on(database());
    let named = |runtime: &Runtime| builder(&database).runtime(runtime.handle().clone());
    let pool = block_on(named(&first).discovery(Listed).build()).unwrap();
    block_on(async {
        let mut conn = warm(&pool).await;
        assert_eq!(count(&mut conn.with_deadline(LONG)).await, 4);
        pool.check(LONG).await.unwrap();
        pool.get_checked().await.unwrap();
        pool.set_max_size("replica-1", 2).await.unwrap();
        drop(conn);
        assert_eq!(pool.close(LONG).await, 0);
        assert!(is_closed(pool.check(LONG).await));
    });
    // Without one it says so.
    let none = |built| matches!(built, Err(Error::Runtime { .. }));
    assert!(none(block_on(builder(&database).build())));
    assert!(none(block_on(builder(&database).discovery(Listed).build())));
    assert!(none(builder(&database).build_unchecked()));
    let ended = named(&second);
    let listed = named(&second).discovery(Listed);
    drop(second);
    assert!(none(block_on(ended.build())));
    assert!(none(block_on(listed.build())));
}
