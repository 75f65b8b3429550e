//! What a statement costs before anything is sent: handing out a connection, taking a query apart,
//! and deciding where it goes.
#![expect(
    clippy::unwrap_used,
    missing_docs,
    reason = "a program of measurements, which fails by panicking"
)]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use diesel::prelude::*;
use diesel_async::{AsyncConnection, AsyncConnectionCore, AsyncPgConnection, RunQueryDsl};
use diesel_replicated::ReplicatedPool;
use diesel_replicated::testing::LocalCluster;
use tokio::runtime::Runtime;

diesel::table! {
    items (id) {
        id -> Integer,
        name -> Text,
    }
}

fn route(criterion: &mut Criterion) {
    let cluster = LocalCluster::builder().replicas(0).start().unwrap();
    cluster.create_database("bench").unwrap();
    let url = cluster.primary().url("bench");
    let runtime = Runtime::new().unwrap();
    let pool = runtime.block_on(ReplicatedPool::builder().primary(url.as_str()).build());
    let pool = pool.unwrap();
    let mut plain = runtime
        .block_on(AsyncPgConnection::establish(&url))
        .unwrap();

    let mut group = criterion.benchmark_group("route");
    group.bench_function("get", |bencher| {
        bencher.to_async(&runtime).iter(async || {
            black_box(pool.get().await.unwrap());
        });
    });
    // The future of a statement, made and dropped: the query is taken apart, nothing is sent.
    group.bench_function("start", |bencher| {
        let mut conn = runtime.block_on(pool.get()).unwrap();
        bencher.iter(|| {
            let query = items::table.find(black_box(1));
            drop(black_box(AsyncConnectionCore::load(&mut conn, query)));
        });
    });
    group.bench_function("start_on_plain_connection", |bencher| {
        bencher.iter(|| {
            let query = items::table.find(black_box(1));
            drop(black_box(AsyncConnectionCore::load(&mut plain, query)));
        });
    });
    // A read that no node can serve goes all the way but for the sending.
    group.bench_function("get_start_decide_refuse", |bencher| {
        bencher.to_async(&runtime).iter(async || {
            let mut conn = pool.get().await.unwrap();
            let query = items::table.find(black_box(1));
            let refused = query.load::<(i32, String)>(&mut *conn.replica()).await;
            black_box(refused.unwrap_err());
        });
    });
    group.finish();
}

criterion_group!(benches, route);
criterion_main!(benches);
