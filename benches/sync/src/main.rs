//! Synchronous Diesel: this pool under r2d2 beside `PgConnection` under r2d2.
//!
//! All contenders take turns within one run, in small batches, so that whatever else the machine does meets all of
//! them alike. The ratio is taken within each round; the median of the rounds is printed, with the quartiles around
//! it. `BENCH_ROUNDS` sets the number of rounds.

#[path = "../../common/mod.rs"]
mod common;

use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

use diesel::connection::LoadConnection;
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::r2d2::{ConnectionManager, Pool, R2D2Connection};
use diesel_async::AsyncPgConnection;
use diesel_async::async_connection_wrapper::AsyncConnectionWrapper;
use diesel_replicated::testing::LocalCluster;
use diesel_replicated::{ReplicatedConnection, SyncConnection};

use common::{fill, items, processor_time, quartiles, vacuum};

/// How many operations a thread performs in one turn.
const BATCH: usize = 100;

#[derive(Clone, Copy)]
enum Operation {
    Read,
    Write,
}

/// One way to get at connections.
trait Contender: Sync {
    fn once(&self, operation: Operation, key: i32);
}

impl<C> Contender for Pool<ConnectionManager<C>>
where
    C: R2D2Connection + LoadConnection<Backend = Pg> + 'static,
{
    fn once(&self, operation: Operation, key: i32) {
        let mut conn = self.get().unwrap();
        match operation {
            Operation::Read => {
                let row: (i32, String) = items::table.find(key).get_result(&mut conn).unwrap();
                black_box(row);
            }
            Operation::Write => {
                let row = items::name.eq("written");
                let insert = diesel::insert_into(items::table).values(row);
                insert.execute(&mut conn).unwrap();
            }
        }
    }
}

fn pool<C>(url: &str, check: bool, threads: usize) -> Box<dyn Contender>
where
    C: R2D2Connection + LoadConnection<Backend = Pg> + 'static,
{
    let builder = Pool::builder().max_size(u32::try_from(threads).unwrap());
    let manager = ConnectionManager::<C>::new(url);
    Box::new(builder.test_on_check_out(check).build(manager).unwrap())
}

/// What one contender did in one turn, per operation: microseconds that passed, and of the processor.
fn turn(contender: &dyn Contender, operation: Operation, threads: usize) -> [f64; 2] {
    let barrier = Barrier::new(threads);
    let (started, processor) = (Instant::now(), processor_time());
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let barrier = &barrier;
            scope.spawn(move || {
                barrier.wait();
                for number in 0..BATCH {
                    let key = 1 + (thread * 131 + number * 37) % 1000;
                    contender.once(operation, i32::try_from(key).unwrap());
                }
            });
        }
    });
    let operations = (threads * BATCH) as f64;
    let processor = processor_time() - processor;
    [started.elapsed(), processor].map(|time| time.as_secs_f64() * 1e6 / operations)
}

fn main() {
    let rounds = std::env::var("BENCH_ROUNDS").map_or(40, |rounds| rounds.parse().unwrap());
    let cluster = LocalCluster::start().unwrap();
    fill(&cluster, common::SCHEMA);
    vacuum(&cluster, "items");
    let (all, primary) = (cluster.url("bench"), cluster.primary().url("bench"));
    type Wrapped<C> = AsyncConnectionWrapper<C>;
    for (threads, operation, check, title) in [
        (1, Operation::Read, false, "1 thread, read one row by key"),
        (
            1,
            Operation::Read,
            true,
            "the same, tested on check-out (r2d2's default)",
        ),
        (1, Operation::Write, false, "1 thread, write one row"),
        (8, Operation::Read, false, "8 threads, read one row by key"),
        (8, Operation::Read, true, "the same, tested on check-out"),
        (8, Operation::Write, false, "8 threads, write one row"),
    ] {
        let contenders: [(&str, Box<dyn Contender>); 5] = [
            (
                "PgConnection",
                pool::<PgConnection>(&primary, check, threads),
            ),
            (
                "AsyncPgConnection, wrapped",
                pool::<Wrapped<AsyncPgConnection>>(&primary, check, threads),
            ),
            ("this pool", pool::<SyncConnection>(&all, check, threads)),
            (
                "this pool, of the primary alone",
                pool::<SyncConnection>(&primary, check, threads),
            ),
            (
                "this pool, wrapped with a runtime",
                pool::<Wrapped<ReplicatedConnection>>(&all, check, threads),
            ),
        ];
        for (_, contender) in &contenders {
            // Opens connections and prepares statements.
            turn(&**contender, operation, threads);
            turn(&**contender, operation, threads);
        }
        let turns: Vec<Vec<[f64; 2]>> = (0..rounds)
            .map(|round: usize| {
                let mut turns = vec![[0.0; 2]; contenders.len()];
                for place in 0..contenders.len() {
                    let place = (place + round) % contenders.len();
                    turns[place] = turn(&*contenders[place].1, operation, threads);
                }
                turns
            })
            .collect();
        println!("{title} ({rounds} rounds)");
        for (place, (name, _)) in contenders.iter().enumerate() {
            let of = |what: usize| turns.iter().map(move |turns| turns[place][what]);
            let ratios = turns.iter().map(|turns| turns[place][0] / turns[0][0]);
            let [low, ratio, high] = quartiles(ratios.collect());
            println!(
                "  {name:<34} {:>7.1} us  {:>6.1} us of this process   {ratio:.2} [{low:.2}-{high:.2}]",
                quartiles(of(0).collect())[1],
                quartiles(of(1).collect())[1],
            );
        }
    }
}
