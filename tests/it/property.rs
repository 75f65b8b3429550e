//! Random mixes of statements: no write is ever sent to a replica, and none runs twice.

use std::collections::BTreeSet;

use diesel::prelude::*;
use diesel::result::Error;
use diesel_async::{AsyncConnection, RunQueryDsl};
use diesel_replicated::status::NodeKind;
use diesel_replicated::{ReplicatedConnection, ReplicatedPool};
use futures_util::future::BoxFuture;
use proptest::prelude::*;

use crate::support::{blocking, builder, cluster, database};

diesel::table! {
    journal (id) {
        id -> Integer,
        entry -> Integer,
    }
}

#[derive(Clone, Debug)]
enum Step {
    Read,
    Execute,
    Returning,
    /// Writes and reads at once, over shared references.
    Together(usize),
    Transaction {
        steps: Vec<Self>,
        commit: bool,
    },
    /// A new connection from the pool.
    Renew,
}

fn step() -> impl Strategy<Value = Step> {
    let leaf = prop_oneof![
        4 => Just(Step::Read),
        2 => Just(Step::Execute),
        2 => Just(Step::Returning),
        2 => (1usize..5).prop_map(Step::Together),
        2 => Just(Step::Renew),
    ];
    leaf.prop_recursive(2, 12, 5, |inner| {
        (prop::collection::vec(inner, 0..5), any::<bool>())
            .prop_map(|(steps, commit)| Step::Transaction { steps, commit })
    })
}

/// What has been written and must be there, each once.
#[derive(Default)]
struct Ledger {
    next: i32,
    kept: BTreeSet<i32>,
}

impl Ledger {
    fn entry(&mut self) -> i32 {
        self.next += 1;
        self.kept.insert(self.next);
        self.next
    }
}

fn write(
    entry: i32,
) -> impl diesel::query_builder::QueryFragment<diesel::pg::Pg>
+ diesel::query_builder::QueryId
+ RunQueryDsl<ReplicatedConnection>
+ for<'a> RunQueryDsl<&'a ReplicatedConnection>
+ Send
+ 'static {
    diesel::insert_into(journal::table).values(journal::entry.eq(entry))
}

async fn read(conn: &mut ReplicatedConnection) -> BTreeSet<i32> {
    let entries: Vec<i32> = journal::table
        .select(journal::entry)
        .load(conn)
        .await
        .unwrap();
    let unique: BTreeSet<i32> = entries.iter().copied().collect();
    assert_eq!(
        entries.len(),
        unique.len(),
        "something ran twice: {entries:?}"
    );
    unique
}

/// Boxed, because a step may hold steps.
fn run_steps<'a>(
    conn: &'a mut ReplicatedConnection,
    steps: &'a [Step],
    ledger: &'a mut Ledger,
    wrote: &'a mut bool,
    pool: Option<&'a ReplicatedPool>,
) -> BoxFuture<'a, QueryResult<()>> {
    Box::pin(async move { run_each(conn, steps, ledger, wrote, pool).await })
}

async fn run_each(
    conn: &mut ReplicatedConnection,
    steps: &[Step],
    ledger: &mut Ledger,
    wrote: &mut bool,
    pool: Option<&ReplicatedPool>,
) -> QueryResult<()> {
    for step in steps {
        match step {
            Step::Read => {
                let seen = read(conn).await;
                if *wrote {
                    assert!(seen.is_superset(&ledger.kept), "own writes are seen");
                }
            }
            Step::Execute => {
                write(ledger.entry()).execute(conn).await?;
                *wrote = true;
            }
            Step::Returning => {
                let insert = diesel::insert_into(journal::table)
                    .values(journal::entry.eq(ledger.entry()))
                    .returning(journal::entry);
                insert.get_result::<i32>(conn).await?;
                *wrote = true;
            }
            Step::Together(writes) => {
                let conn: &ReplicatedConnection = conn;
                let reads = (0..2).map(|_| async move {
                    let mut conn = conn;
                    journal::table
                        .count()
                        .get_result::<i64>(&mut conn)
                        .await
                        .map(drop)
                });
                let entries: Vec<i32> = (0..*writes).map(|_| ledger.entry()).collect();
                let writes = entries.into_iter().map(|entry| async move {
                    let mut conn = conn;
                    write(entry).execute(&mut conn).await.map(drop)
                });
                let reads = futures_util::future::try_join_all(reads);
                futures_util::try_join!(futures_util::future::try_join_all(writes), reads)?;
                *wrote = true;
            }
            Step::Transaction { steps, commit } => {
                let before = ledger.kept.clone();
                let mut inside = true;
                let result = conn
                    .transaction(async |conn| {
                        run_steps(conn, steps, ledger, &mut inside, None).await?;
                        assert_eq!(
                            conn.last_route().map(|route| route.kind),
                            Some(NodeKind::Primary)
                        );
                        if *commit {
                            Ok(())
                        } else {
                            Err(Error::RollbackTransaction)
                        }
                    })
                    .await;
                if *commit {
                    result?;
                } else {
                    assert_eq!(result, Err(Error::RollbackTransaction));
                    ledger.kept = before;
                }
                // What was rolled back wrote nothing, and other sessions' writes may yet be missed.
                *wrote |= *commit;
            }
            Step::Renew => {
                if let Some(pool) = pool {
                    *conn = pool.get().await.unwrap();
                    *wrote = false;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn no_write_reaches_a_replica_and_nothing_runs_twice() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let pool = runtime.block_on(async {
        let database = database().await;
        let name = database.clone();
        let table = "CREATE TABLE journal (id integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY, entry integer NOT NULL)";
        blocking(move || {
            cluster().primary().sql(&name, table).unwrap();
            cluster().wait_caught_up().unwrap();
        })
        .await;
        builder(&database).max_size(3).build().await.unwrap()
    });
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(24)
    };
    let mut ledger = Ledger::default();
    let ledger = std::cell::RefCell::new(&mut ledger);
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let steps = prop::collection::vec(step(), 1..12);
    let result = runner.run(&steps, |steps| {
        let mut ledger = ledger.borrow_mut();
        runtime.block_on(async {
            let mut conn = pool.get().await.unwrap();
            let mut wrote = false;
            run_steps(&mut conn, &steps, &mut ledger, &mut wrote, Some(&pool))
                .await
                .unwrap();
            assert_eq!(read(&mut conn.primary()).await, ledger.kept);
        });
        Ok(())
    });
    result.unwrap();
    for replica in cluster().replicas() {
        let log = replica.log();
        let refused = log.lines().find(|line| line.contains("journal"));
        assert_eq!(refused, None, "{}", replica.name());
    }
}
