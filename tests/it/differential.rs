//! What is judged a plain select must be accepted by a real standby, and must change nothing.

use diesel::sql_query;
use diesel::sql_types::Bool;
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};
use diesel_replicated::status::{NodeKind, RouteReason};

use crate::support::{blocking, builder, cluster, database};

const SCHEMA: &str = include_str!("../../src/classify/cases/schema.sql");
const TABLES: [&str; 2] = [
    include_str!("../../src/classify/cases/replica.txt"),
    include_str!("../../src/classify/cases/catalog.txt"),
];

/// The statements below the headings that say `replica`, but for those that name what no schema
/// has.
fn plain_selects() -> Vec<String> {
    let mut statements = Vec::new();
    for table in TABLES {
        let mut wanted = false;
        for line in table.lines() {
            if let Some(heading) = line.strip_prefix("# ") {
                wanted = heading.starts_with("replica") && !heading.contains("unexecuted");
            } else if wanted && !line.trim().is_empty() {
                statements.push(line.replace("\\n", "\n"));
            }
        }
    }
    statements
}

#[derive(diesel::QueryableByName)]
struct Check {
    #[diesel(sql_type = Bool)]
    untouched: bool,
}

/// Whether the open transaction has written nothing and holds no lock that others could miss.
const UNTOUCHED: &str = "SELECT pg_current_xact_id_if_assigned() IS NULL AND NOT EXISTS \
    (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()) AS untouched";

#[tokio::test]
async fn plain_selects_run_on_a_standby_and_leave_no_trace_on_the_primary() {
    let database = database().await;
    let name = database.clone();
    blocking(move || {
        cluster().primary().sql(&name, "DROP TABLE users").unwrap();
        cluster().primary().sql(&name, SCHEMA).unwrap();
        cluster().wait_caught_up().unwrap();
    })
    .await;
    let pool = builder(&database).build().await.unwrap();
    let statements = plain_selects();
    assert!(statements.len() > 150, "{}", statements.len());
    let mut wrong = Vec::new();
    for sql in statements {
        let mut conn = pool.get().await.unwrap();
        if let Err(error) = conn.batch_execute(&sql).await {
            // Servers are built with and without XML.
            let everywhere = pool
                .get()
                .await
                .unwrap()
                .primary()
                .batch_execute(&sql)
                .await;
            if everywhere.is_ok() || !sql.to_lowercase().contains("xml") {
                wrong.push(format!("{sql}: {error}"));
            }
            continue;
        }
        let route = conn.last_route().unwrap();
        if (route.kind, route.reason) != (NodeKind::Replica, RouteReason::PlainSelect) {
            wrong.push(format!("{sql}: {route}"));
        }
        let mut primary = conn.primary();
        primary.batch_execute("BEGIN").await.unwrap();
        primary.batch_execute(&sql).await.unwrap();
        let check: Check = sql_query(UNTOUCHED).get_result(&mut primary).await.unwrap();
        primary.batch_execute("ROLLBACK").await.unwrap();
        if !check.untouched {
            wrong.push(format!("{sql}: it wrote"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
