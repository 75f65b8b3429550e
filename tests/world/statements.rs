//! Statements as people write them: which are reads, which are not, and what odd ones do to their connection.

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Text};
use diesel_async::RunQueryDsl;
use diesel_replicated::status::{NodeKind, RouteReason};
use diesel_replicated::{ReplicatedConnection, ReplicatedPool};

use crate::support::{
    Number, assert_route, blocking, builder, cluster, count, database, eventually, insert, pool,
    run, users,
};

fn kind(conn: &ReplicatedConnection) -> NodeKind {
    conn.last_route().unwrap().kind
}

/// Whether it was taken for a read: where the replicas are not as far as they must be, the primary serves one.
fn is_read(conn: &ReplicatedConnection) -> bool {
    let route = conn.last_route().unwrap();
    route.kind == NodeKind::Replica || route.reason == RouteReason::OwnWrite
}

async fn number(conn: &mut ReplicatedConnection, sql: &str) -> i32 {
    let row: Number = sql_query(sql).get_result(conn).await.unwrap();
    row.number
}

/// A connection whose reads go to replicas, and do.
async fn reading(pool: &ReplicatedPool) -> ReplicatedConnection {
    let mut conn = pool.get().await.unwrap();
    eventually("replicas serve", || async {
        let mut conn = pool.get().await.unwrap();
        count(&mut conn).await;
        kind(&conn) == NodeKind::Replica
    })
    .await;
    count(&mut conn).await;
    conn
}

// pgcat #829, active_record_proxy_adapters #45: a statement with a `WITH` is taken for a read, whatever is in it.
#[tokio::test]
async fn a_query_that_writes_in_its_with_runs_on_the_primary_once() {
    let pool = pool().await;
    let mut conn = reading(&pool).await;
    for (n, sql) in [
        "WITH made AS (INSERT INTO users (name) VALUES ('w0') RETURNING id) SELECT id AS number FROM made",
        "WITH one AS (SELECT 1), made AS (UPDATE users SET visits = 7 WHERE name = 'Ada' RETURNING visits) \
         SELECT visits AS number FROM made, one",
        "(WITH gone AS (DELETE FROM users WHERE name = 'w0' RETURNING id) SELECT id AS number FROM gone)",
    ]
    .into_iter()
    .enumerate()
    {
        assert!(number(&mut conn, sql).await > 0, "{n}");
        assert_route(&conn, "primary");
    }
    assert_eq!(count(&mut conn).await, 3);
}

// rails #40315, janus-ar #159: with a comment before it a read is not taken for one, and a write for one.
#[tokio::test]
async fn comments_before_a_statement_change_nothing() {
    let pool = pool().await;
    let mut conn = reading(&pool).await;
    for before in [
        "/* select */ ",
        "-- select\n",
        "/* a /* nested */ select */\n  ",
        " ;; ",
    ] {
        let write = format!("{before}UPDATE users SET visits = visits + 1 WHERE name = 'Ada'");
        run(&mut conn, &write).await.unwrap();
        assert_route(&conn, "primary");
        let mut fresh = pool.get().await.unwrap();
        let read = format!("{before}SELECT 1 AS number");
        run(&mut fresh, &read).await.unwrap();
        assert!(is_read(&fresh), "{read}: {:?}", fresh.last_route());
    }
    let visits = "SELECT visits AS number FROM users WHERE name = 'Ada'";
    assert_eq!(number(&mut conn, visits).await, 4);
}

// pgcat #750 and #887, db-replica #75, sequel #1041, shardingsphere #11711: a select that locks goes to a replica.
#[tokio::test]
async fn a_job_is_taken_from_a_queue_on_the_primary() {
    let pool = pool().await;
    let mut conn = reading(&pool).await;
    let take = "SELECT id AS number FROM users ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED";
    let mut other = pool.get().await.unwrap();
    run(&mut conn, "BEGIN").await.unwrap();
    assert_eq!(number(&mut conn, take).await, 1);
    // Outside of a transaction, and wrapped, as queues do it.
    let wrapped = format!("SELECT * FROM ({take}) AS job");
    assert_eq!(number(&mut other, &wrapped).await, 2);
    assert_route(&other, "primary");
    run(&mut conn, "COMMIT").await.unwrap();
    assert_eq!(number(&mut other, take).await, 1);
    for strength in [
        "NO KEY UPDATE OF users SKIP LOCKED",
        "SHARE",
        "KEY SHARE NOWAIT",
    ] {
        let mut fresh = pool.get().await.unwrap();
        let lock = format!("SELECT id AS number FROM users WHERE id = 1 FOR {strength}");
        assert_eq!(number(&mut fresh, &lock).await, 1);
        assert_route(&fresh, "primary");
    }
}

// vitess-sqlparser #36: `EXPLAIN ANALYZE` of a write is taken for a read.
#[tokio::test]
async fn an_explained_write_that_is_analysed_runs_on_the_primary() {
    let pool = pool().await;
    let mut conn = reading(&pool).await;
    run(
        &mut conn,
        "EXPLAIN (ANALYZE, FORMAT JSON) INSERT INTO users (name) VALUES ('explained')",
    )
    .await
    .unwrap();
    assert_route(&conn, "primary");
    assert_eq!(count(&mut conn).await, 4);
    let mut fresh = pool.get().await.unwrap();
    run(&mut fresh, "EXPLAIN ANALYZE SELECT * FROM users")
        .await
        .unwrap();
    assert!(is_read(&fresh), "{:?}", fresh.last_route());
}

// pgjdbc #90: too many parameters close the connection, and the pool goes on handing it out.
#[tokio::test]
async fn more_values_than_the_protocol_carries_are_refused_and_break_nothing() {
    let pool = pool().await;
    let mut conn = reading(&pool).await;
    let many: Vec<i32> = (0..65_536).collect();
    let found = users::table
        .filter(users::id.eq_any(many.clone()))
        .count()
        .get_result::<i64>(&mut conn)
        .await;
    // An array is one value.
    assert_eq!(found.unwrap(), 3);
    let values: Vec<_> = (0..40_000)
        .map(|n| (users::name.eq(format!("n{n}")), users::visits.eq(n)))
        .collect();
    let refused = diesel::insert_into(users::table)
        .values(values)
        .execute(&mut conn)
        .await;
    assert!(refused.is_err(), "{refused:?}");
    assert_eq!(count(&mut conn).await, 3);
    insert("after").execute(&mut conn).await.unwrap();
    assert_eq!(count(&mut conn).await, 4);
}

// node-postgres #2080: a zero byte in a text is refused by the server.
#[tokio::test]
async fn a_zero_byte_in_a_text_fails_its_statement_alone() {
    let pool = pool().await;
    let mut conn = reading(&pool).await;
    let refused = insert("a\0b").execute(&mut conn).await.unwrap_err();
    assert!(!refused.to_string().is_empty());
    let nobody = users::table.filter(users::name.eq("a\0b")).count();
    assert!(nobody.get_result::<i64>(&mut conn).await.is_err());
    let lost = run(&mut conn, "SELECT 'a\0b'").await;
    assert!(lost.is_err());
    insert("after").execute(&mut conn).await.unwrap();
    assert_eq!(count(&mut conn).await, 4);
}

// pgx #687: an empty statement is waited for without an end.
#[tokio::test]
async fn an_empty_statement_is_answered() {
    let pool = pool().await;
    let mut conn = reading(&pool).await;
    for nothing in ["", " ", ";", "-- nothing", "/* nothing */", ";;\n;"] {
        run(&mut conn, nothing).await.unwrap();
        let done = sql_query(nothing).execute(&mut conn).await;
        // Several empty statements are a syntax error to the extended protocol of no server.
        assert_eq!(done.unwrap(), 0, "{nothing:?}");
    }
    assert_eq!(count(&mut conn).await, 3);
}

// pgx #1260: a prepared transaction does not belong to the connection any more that prepared it.
#[tokio::test]
async fn a_prepared_transaction_is_the_primarys() {
    let local = blocking(|| {
        let builder = diesel_replicated::testing::LocalCluster::builder().replicas(1);
        let local = builder
            .setting("max_prepared_transactions", "4")
            .start()
            .unwrap();
        crate::support::fill(&local, "app");
        local
    })
    .await;
    let pool = crate::support::builder_for(&local, "app")
        .build()
        .await
        .unwrap();
    let mut conn = reading(&pool).await;
    run(&mut conn, "BEGIN").await.unwrap();
    insert("two phases").execute(&mut conn).await.unwrap();
    run(&mut conn, "PREPARE TRANSACTION 'first'").await.unwrap();
    assert_route(&conn, "primary");
    assert_eq!(count(&mut conn).await, 3);
    // Whoever comes next finishes it.
    let mut other = pool.get().await.unwrap();
    run(&mut other, "COMMIT PREPARED 'first'").await.unwrap();
    assert_route(&other, "primary");
    assert_eq!(count(&mut other).await, 4);
    assert_eq!(count(&mut conn).await, 4);
}

#[tokio::test]
async fn a_materialized_view_is_read_as_it_was_refreshed() {
    let pool = pool().await;
    let mut conn = pool.get().await.unwrap();
    run(
        &mut conn,
        "CREATE MATERIALIZED VIEW names AS SELECT count(*)::int AS number FROM users",
    )
    .await
    .unwrap();
    for n in 4..10 {
        insert(&format!("m{n}")).execute(&mut conn).await.unwrap();
        run(&mut conn, "REFRESH MATERIALIZED VIEW names")
            .await
            .unwrap();
        assert_route(&conn, "primary");
        assert_eq!(number(&mut conn, "SELECT number FROM names").await, n);
    }
}

// sqlalchemy #10591: what cannot run inside of a transaction block is run in one.
#[tokio::test]
async fn what_may_be_in_no_transaction_is_in_none() {
    let pool = pool().await;
    let mut conn = reading(&pool).await;
    for sql in [
        "CREATE INDEX CONCURRENTLY by_visits ON users (visits)",
        "REINDEX INDEX CONCURRENTLY by_visits",
        "VACUUM users",
        "DROP INDEX CONCURRENTLY by_visits",
    ] {
        run(&mut conn, sql).await.unwrap();
        assert_route(&conn, "primary");
    }
    assert_eq!(count(&mut conn).await, 3);
}

#[tokio::test]
async fn a_select_that_makes_a_table_is_a_write() {
    let pool = pool().await;
    let mut conn = reading(&pool).await;
    run(&mut conn, "SELECT name INTO copies FROM users")
        .await
        .unwrap();
    assert_route(&conn, "primary");
    let copies = "SELECT count(*)::int AS number FROM copies";
    assert_eq!(number(&mut conn, copies).await, 3);
    run(&mut conn, "CREATE TABLE more AS SELECT * FROM copies")
        .await
        .unwrap();
    let more = "SELECT count(*)::int AS number FROM more";
    assert_eq!(number(&mut pool.get().await.unwrap(), more).await, 3);
}

// silverstripe-postgresql #77: the last value is asked for, and it is that of another session.
#[tokio::test]
async fn the_last_value_of_a_sequence_is_the_sessions_own() {
    let pool = pool().await;
    let (mut one, mut two) = (pool.get().await.unwrap(), pool.get().await.unwrap());
    let own = "SELECT currval('users_id_seq')::int AS number";
    insert("one").execute(&mut one).await.unwrap();
    insert("two").execute(&mut two).await.unwrap();
    let (first, second) = (number(&mut one, own).await, number(&mut two, own).await);
    assert_eq!((first, second), (4, 5));
    let last = "SELECT lastval()::int AS number";
    assert_eq!(number(&mut one, last).await, 4);
}

// sequelize #9216: an upsert reads its row back from a replica that does not have it yet.
#[tokio::test]
async fn an_upsert_is_read_back() {
    let pool = pool().await;
    let mut conn = reading(&pool).await;
    for n in 1..20 {
        let upsert = diesel::insert_into(users::table)
            .values((users::name.eq("Ada"), users::visits.eq(n)))
            .on_conflict(users::name)
            .do_update()
            .set(users::visits.eq(n));
        upsert.execute(&mut conn).await.unwrap();
        let visits = users::table
            .filter(users::name.eq("Ada"))
            .select(users::visits);
        assert_eq!(visits.first::<i32>(&mut conn).await.unwrap(), n);
        // And on another connection of the pool.
        let mut other = pool.get().await.unwrap();
        assert_eq!(visits.first::<i32>(&mut other).await.unwrap(), n);
    }
}

// civitai #3796: a delete goes by what a replica still shows.
#[tokio::test]
async fn what_was_deleted_is_not_read_any_more() {
    let pool = pool().await;
    let mut conn = reading(&pool).await;
    for n in 0..20 {
        let name = format!("d{n}");
        insert(&name).execute(&mut conn).await.unwrap();
        let there = users::table.filter(users::name.eq(name.clone()));
        diesel::delete(there.clone())
            .execute(&mut conn)
            .await
            .unwrap();
        let mut other = pool.get().await.unwrap();
        let rows: i64 = there.count().get_result(&mut other).await.unwrap();
        assert_eq!(rows, 0);
    }
}

// distribute_reads #17: a select in parentheses is not taken for one.
#[tokio::test]
async fn each_form_of_a_query_is_a_read() {
    let pool = pool().await;
    for sql in [
        "VALUES (1), (2)",
        "(SELECT 1)",
        "((SELECT 1) UNION ALL (VALUES (2)))",
        "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 3) SELECT i FROM n",
        "select\n1",
        "SELECT 'update users set visits = 1; delete from users'",
        "SELECT 1 AS \"for update\"",
    ] {
        let mut conn = reading(&pool).await;
        run(&mut conn, sql).await.unwrap();
        assert!(is_read(&conn), "{sql}: {:?}", conn.last_route());
    }
}

// hatchet #3898: a timeout that was set for one transaction stays for the next user of the connection.
#[tokio::test]
async fn what_is_set_for_a_transaction_ends_with_it() {
    let database = database().await;
    let pool = builder(&database).max_size(1).build().await.unwrap();
    let mut conn = reading(&pool).await;
    let name = "SELECT current_setting('application_name') AS name";
    #[derive(QueryableByName)]
    struct Name {
        #[diesel(sql_type = Text)]
        name: String,
    }
    use diesel_async::AsyncConnection;
    conn.transaction(async |conn| {
        run(
            conn,
            "SET LOCAL application_name = 'local'; SET LOCAL statement_timeout = '1h'",
        )
        .await?;
        let row: Name = sql_query(name).get_result(conn).await?;
        assert_eq!(row.name, "local");
        QueryResult::Ok(())
    })
    .await
    .unwrap();
    let row: Name = sql_query(name)
        .get_result(&mut conn.primary())
        .await
        .unwrap();
    assert_ne!(row.name, "local");
    drop(conn);
    let mut next = pool.get().await.unwrap();
    let row: Name = sql_query(name)
        .get_result(&mut next.primary())
        .await
        .unwrap();
    assert_ne!(row.name, "local");
}

// ey-cookbooks-stable-v5 #290: replicas had another time zone than the primary.
#[tokio::test]
async fn times_read_the_same_on_every_node() {
    let database = database().await;
    let name = database.clone();
    blocking(move || {
        let set = format!("ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'; ALTER DATABASE {name} SET datestyle = 'German'");
        cluster().primary().sql("postgres", &set).unwrap();
        cluster().wait_caught_up().unwrap();
    })
    .await;
    let pool = builder(&database).build().await.unwrap();
    let mut conn = reading(&pool).await;
    #[derive(QueryableByName)]
    struct Shown {
        #[diesel(sql_type = Text)]
        shown: String,
        #[diesel(sql_type = BigInt)]
        micros: i64,
    }
    let look = || {
        sql_query(
            "SELECT '2026-01-02 03:04:05+00'::timestamptz::text AS shown, \
             (EXTRACT(epoch FROM '2026-01-02 03:04:05+00'::timestamptz) * 1000000)::bigint AS micros",
        )
    };
    let replica: Shown = look().get_result(&mut conn.replica()).await.unwrap();
    let primary: Shown = look().get_result(&mut conn.primary()).await.unwrap();
    assert_eq!(
        (replica.shown, replica.micros),
        (primary.shown, primary.micros)
    );
}

// pgdog #1061: a huge `IN` list takes minutes and all memory in the parser.
#[tokio::test]
async fn a_long_list_is_read_on_a_replica() {
    let pool = pool().await;
    let mut conn = reading(&pool).await;
    let list: Vec<String> = (1..=15_000).map(|n| n.to_string()).collect();
    let sql = format!(
        "SELECT count(*)::int AS number FROM users WHERE id IN ({})",
        list.join(", ")
    );
    assert_eq!(number(&mut conn, &sql).await, 3);
    let literal = format!("SELECT length('{}') AS number", "x".repeat(200_000));
    assert_eq!(number(&mut conn, &literal).await, 200_000);
}

// pgdog #1275: of several statements in one text only the first was looked at.
#[tokio::test]
async fn a_write_behind_a_select_in_one_text_is_a_write() {
    let pool = pool().await;
    let mut conn = reading(&pool).await;
    for (n, sql) in [
        "SELECT 1; INSERT INTO users (name) VALUES ('s0')",
        "SELECT ';'; INSERT INTO users (name) VALUES ('s1');",
        "SELECT $$;$$ /* ; */; INSERT INTO users (name) VALUES ('s2') -- ;",
    ]
    .into_iter()
    .enumerate()
    {
        run(&mut conn, sql).await.unwrap();
        assert_route(&conn, "primary");
        assert_eq!(count(&mut conn).await, 4 + i64::try_from(n).unwrap());
    }
}

// datafusion-sqlparser-rs #400, #1792, node-sql-parser #961, #2315, #1583, fern-proxy #9, pgcat #865, #884, #887: a pooler's
// parser does not know a statement, which then goes to whichever server. Here each goes where it belongs.
#[tokio::test]
async fn what_parsers_do_not_know_goes_where_it_belongs() {
    let pool = pool().await;
    let reads = [
        "SELECT",
        "SELECT;",
        "TABLE users",
        "SELECT ARRAY(SELECT 1)",
        "SELECT 1 FROM users WHERE id IN ((SELECT id FROM users) UNION (SELECT id FROM users))",
        "SELECT '2020-01-01'::TIMESTAMP WITH TIME ZONE + make_interval(secs => 3) AS at FROM users",
        "SELECT * FROM users WHERE name ISNULL OR name NOTNULL",
        "SELECT id FROM users ORDER BY id FETCH FIRST (1 + 1) ROWS WITH TIES",
        "SELECT * FROM users WHERE id BETWEEN SYMMETRIC 5 AND 3",
        "SELECT * FROM ROWS FROM (generate_series(1, 2), unnest(ARRAY['a', 'b'])) WITH ORDINALITY AS t(a, b, c)",
        "SELECT (u).name, (u).* FROM users u WHERE (u) IS NOT NULL",
        "SELECT concat(VARIADIC ARRAY['a', 'b'])",
        "SELECT CASE WHEN 'pg_signal_backend' = ANY (ARRAY(WITH RECURSIVE cte AS (SELECT oid, rolname FROM pg_roles \
         UNION ALL SELECT r.oid, r.rolname FROM cte JOIN pg_auth_members m ON m.member = cte.oid \
         JOIN pg_roles r ON r.oid = m.roleid) SELECT rolname FROM cte)) THEN true ELSE false END",
        "EXPLAIN (SELECT 1)",
    ];
    for sql in reads {
        let mut conn = reading(&pool).await;
        run(&mut conn, sql).await.unwrap();
        assert!(is_read(&conn), "{sql}: {:?}", conn.last_route());
    }
    let writes = [
        "INSERT INTO users (name) VALUES ('p') ON CONFLICT DO NOTHING RETURNING id",
        "MERGE INTO users u USING (SELECT 1 AS id) s ON u.id = s.id WHEN MATCHED THEN UPDATE SET visits = 0",
        "DELETE FROM users WHERE id IN ((SELECT 100) UNION (SELECT 101)) RETURNING (id)",
        "SELECT id FROM users\nORDER BY id\nLIMIT 1\nFOR NO KEY\nUPDATE OF users SKIP LOCKED",
        "ANALYZE users",
        "COPY users TO STDOUT",
    ];
    for sql in writes {
        let mut conn = reading(&pool).await;
        let _ = run(&mut conn, sql).await;
        assert_route(&conn, "primary");
    }
}
