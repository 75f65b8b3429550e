//! Two groups, and what the tests do with them.

use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Text};
use diesel_async::RunQueryDsl;
use diesel_replicated::multi_primary::setup_sql;
use diesel_replicated::testing::{LocalGroups, LocalGroupsBuilder, LocalNode};
use diesel_replicated::{Builder, MultiPrimaryPool, ReplicatedConnection};

pub const SCHEMA: &str = "
    CREATE TABLE notes (id bigint PRIMARY KEY, owner text NOT NULL, n bigint NOT NULL);
    CREATE TABLE counters (key text PRIMARY KEY, count bigint NOT NULL);
";

/// Groups with these names, each with a replica. The first is where keys get their first home.
pub fn groups(names: &[&str]) -> LocalGroups {
    groups_by(LocalGroups::builder(), names)
}

/// The same, where the builder says more.
pub fn groups_by(builder: LocalGroupsBuilder, names: &[&str]) -> LocalGroups {
    let mut builder = builder.schema(SCHEMA);
    for name in names {
        builder = builder.group(*name, 1);
        builder = builder.schema_of(*name, setup_sql(name, names[0]));
    }
    builder.start().unwrap()
}

/// A pool over them, near the group `local`.
pub async fn pool(groups: &LocalGroups, local: &str) -> MultiPrimaryPool {
    pool_that_waits(groups, local, Duration::from_secs(20)).await
}

/// The same, whose statements wait for other groups for so long.
pub async fn pool_that_waits(
    groups: &LocalGroups,
    local: &str,
    wait: Duration,
) -> MultiPrimaryPool {
    let mut builder = MultiPrimaryPool::builder().local(local);
    for name in groups.names() {
        builder = builder.group(name, Builder::from_url(&groups.url(name)).unwrap());
    }
    builder.wait(wait).build().await.unwrap()
}

/// Writes a note: nothing if its number is there already.
pub async fn write(conn: &mut ReplicatedConnection, id: i64, owner: &str) -> QueryResult<usize> {
    let insert = sql_query(
        "INSERT INTO notes VALUES ($1, $2, 1) ON CONFLICT (id) DO UPDATE SET n = notes.n + 1",
    );
    let insert = insert.bind::<BigInt, _>(id).bind::<Text, _>(owner);
    insert.execute(conn).await
}

#[derive(QueryableByName)]
pub struct Number {
    #[diesel(sql_type = BigInt)]
    pub number: i64,
}

/// What a read of one number brings.
pub async fn number(conn: &mut ReplicatedConnection, sql: &str) -> QueryResult<i64> {
    let row: Number = sql_query(sql).get_result(conn).await?;
    Ok(row.number)
}

pub const SUM: &str = "SELECT coalesce(sum(n), 0)::bigint AS number FROM notes";

/// The first value of the first row of a query on a node; empty without any.
pub fn rows(node: &LocalNode, sql: &str) -> String {
    let rows = node.sql("app", sql).unwrap();
    let first = rows.into_iter().next().unwrap_or_default();
    first.into_iter().next().flatten().unwrap_or_default()
}

/// The group and kind of node of the last statement.
pub fn route(conn: &ReplicatedConnection) -> (String, String) {
    let route = conn.last_route().unwrap();
    (route.group.unwrap(), route.kind.to_string())
}

/// Lets others work, between two looks.
pub async fn pause() {
    tokio::time::sleep(Duration::from_millis(20)).await;
}
