//! Transactions that are done again, and those that are not.

use std::sync::Arc;
use std::time::Duration;

use diesel::prelude::*;
use diesel::result::Error as DieselError;
use diesel_async::{AsyncConnection, RunQueryDsl};
use diesel_replicated::config::PromotionConfig;
use diesel_replicated::{ErrorExt, Outcome, ReplicatedConnection, ReplicatedPool, RetryPolicy};

use crate::support::{
    Shared, all_up, blocking, builder_for, eventually, insert, own_cluster, pool, run, users,
};

fn patient() -> RetryPolicy {
    RetryPolicy::default()
        .attempts(1000)
        .limit(Duration::from_secs(60))
}

async fn visits(pool: &ReplicatedPool, id: i32) -> i32 {
    let mut conn = pool.get().await.unwrap();
    let query = users::table.find(id).select(users::visits);
    query.first(&mut conn.primary()).await.unwrap()
}

/// Reads a number and writes the next one, as an application does that should not.
async fn increment(conn: &mut ReplicatedConnection, id: i32) -> QueryResult<usize> {
    let visits: i32 = users::table
        .find(id)
        .select(users::visits)
        .first(conn)
        .await?;
    let user = diesel::update(users::table.find(id));
    user.set(users::visits.eq(visits + 1)).execute(conn).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serialization_failures_are_repeated_until_all_is_done() {
    let pool = pool().await;
    let workers = (0..4).map(|_| {
        let pool = pool.clone();
        tokio::spawn(async move {
            for _ in 0..10 {
                let mut conn = pool.get().await.unwrap();
                let mut transaction = conn.build_transaction().serializable();
                let work = async |conn: &mut ReplicatedConnection| increment(conn, 1).await;
                transaction.retry(patient(), work).await.unwrap();
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.unwrap();
    }
    assert_eq!(visits(&pool, 1).await, 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadlocks_are_repeated_and_each_is_done_once() {
    let pool = pool().await;
    let both = Arc::new(tokio::sync::Barrier::new(2));
    let attempts = Shared::default();
    let add =
        |id: i32| diesel::update(users::table.find(id)).set(users::visits.eq(users::visits + 1));
    let workers = [(1, 2), (2, 1)].map(|(first, second)| {
        let (pool, both, attempts) = (pool.clone(), Arc::clone(&both), attempts.clone());
        tokio::spawn(async move {
            let mut conn = pool.get().await.unwrap();
            let work = async |conn: &mut ReplicatedConnection| {
                add(first).execute(conn).await?;
                // The first two attempts meet each other half way.
                attempts.add(1);
                if attempts.get() <= 2 {
                    both.wait().await;
                }
                add(second).execute(conn).await
            };
            conn.retry_transaction(patient(), work).await.unwrap();
        })
    });
    for worker in workers {
        worker.await.unwrap();
    }
    assert!(attempts.get() > 2);
    assert_eq!((visits(&pool, 1).await, visits(&pool, 2).await), (2, 2));
}

#[tokio::test]
async fn what_cannot_help_is_not_repeated() {
    let pool = pool().await;
    let mut conn = pool.get().await.unwrap();
    let attempts = Shared::default();
    let work = async |conn: &mut ReplicatedConnection| {
        attempts.add(1);
        insert("Ada").execute(conn).await
    };
    let twice: QueryResult<usize> = conn.retry_transaction(patient(), work).await;
    assert_eq!(twice.unwrap_err().outcome(), Outcome::Failed);
    assert_eq!(attempts.get(), 1);
    let nested: QueryResult<()> = conn
        .transaction(async |conn| {
            conn.retry_transaction(patient(), async |_| QueryResult::Ok(()))
                .await
        })
        .await;
    assert!(
        matches!(nested, Err(DieselError::AlreadyInTransaction)),
        "{nested:?}"
    );
}

#[tokio::test]
async fn a_lost_transaction_is_done_again_with_any_error_type() {
    #[derive(Debug)]
    struct Mine;
    impl From<DieselError> for Mine {
        fn from(_: DieselError) -> Self {
            Self
        }
    }
    let pool = pool().await;
    let mut conn = pool.get().await.unwrap();
    let attempts = Shared::default();
    let done: Result<usize, Mine> = conn
        .retry_transaction(patient(), async |conn| {
            attempts.add(1);
            let written = insert("once").execute(conn).await?;
            if attempts.get() == 1 {
                let end = "SELECT pg_terminate_backend(pg_backend_pid())";
                run(conn, end).await?;
            }
            Ok(written)
        })
        .await;
    assert_eq!((done.unwrap(), attempts.get()), (1, 2));
    let mut other = pool.get().await.unwrap();
    let once = users::table.filter(users::name.eq("once")).count();
    assert_eq!(once.get_result(&mut other.primary()).await, Ok(1i64));
}

/// Of what is reported as done all is there, once; of what is reported as not done, nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_survive_a_failover() {
    let local = own_cluster().await;
    let builder = builder_for(&local, "app").failover_wait(Duration::from_secs(30));
    let promotion = PromotionConfig::default();
    let pool = builder.promotion(promotion).build().await.unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    let stop = tokio_util::sync::CancellationToken::new();
    let workers = (0..4).map(|worker| {
        let (pool, stop) = (pool.clone(), stop.clone());
        tokio::spawn(async move {
            let (mut done, mut unknown) = (Vec::new(), 0);
            while !stop.is_cancelled() {
                let name = format!("w{worker}-{}", done.len() + unknown);
                let mut conn = pool.get().await.unwrap();
                let work = async |conn: &mut ReplicatedConnection| {
                    insert(&name).execute(conn).await?;
                    insert(&format!("{name}-too")).execute(conn).await
                };
                match conn.retry_transaction(patient(), work).await {
                    Ok(_) => done.push(name.clone()),
                    Err(error) => {
                        assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
                        unknown += 1;
                    }
                }
            }
            (done, unknown)
        })
    });
    let workers: Vec<_> = workers.collect();
    let on = |verb: fn(&diesel_replicated::testing::LocalCluster)| {
        let local = Arc::clone(&local);
        blocking(move || verb(&local))
    };
    eventually("there is load", || async {
        visits_of_all(&pool).await > 100
    })
    .await;
    // Nothing is lost but what is in doubt: the fast stop sends all of the log to the replicas.
    on(|local| {
        local
            .primary()
            .stop(diesel_replicated::testing::StopMode::Fast)
            .unwrap()
    })
    .await;
    eventually("nobody hears of it", || async {
        pool.promote("replica-1").await.is_ok()
    })
    .await;
    let before = visits_of_all(&pool).await;
    eventually("the load goes on", || async {
        visits_of_all(&pool).await > before + 100
    })
    .await;
    stop.cancel();
    let outcomes = futures_util::future::join_all(workers).await;
    let mut conn = pool.get().await.unwrap();
    let names = users::table.select(users::name);
    let names: Vec<String> = names.load(&mut conn.primary()).await.unwrap();
    for (done, unknown) in outcomes.into_iter().map(Result::unwrap) {
        assert!(unknown <= 1, "{unknown}");
        for name in done {
            let both = [name.clone(), format!("{name}-too")];
            assert!(both.iter().all(|name| names.contains(name)), "{name}");
        }
    }
}

async fn visits_of_all(pool: &ReplicatedPool) -> i64 {
    let mut conn = pool.get().await.unwrap();
    users::table
        .count()
        .get_result(&mut conn.primary())
        .await
        .unwrap_or(0)
}
