//! `establish`, and the other pools that Diesel users have, over replicated connections.

use diesel_async::pooled_connection::AsyncDieselConnectionManager;
use diesel_async::{AsyncConnection, RunQueryDsl};
use diesel_replicated::{Consistency, ReplicatedConnection};

use crate::support::{cluster, count, current_setting, database, insert, process, run, who};

#[tokio::test]
async fn connections_established_from_one_url_share_one_cluster() {
    let database = database().await;
    let url = format!(
        "{}?application_name=shared_{database}",
        cluster().url(&database)
    );
    let mut conns = Vec::new();
    for _ in 0..15 {
        let mut conn = ReplicatedConnection::establish(&url).await.unwrap();
        assert_ne!(who(&mut conn).await, "primary");
        conns.push(conn);
    }
    drop(conns);
    let backends = crate::support::blocking(move || {
        let count = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'shared_{database}'"
        );
        let open = |node: &diesel_replicated::testing::LocalNode| -> u32 {
            node.sql("postgres", &count).unwrap()[0][0]
                .as_ref()
                .unwrap()
                .parse()
                .unwrap()
        };
        cluster().nodes().map(open).sum::<u32>()
    })
    .await;
    assert!(backends <= 21, "{backends} server connections");
}

#[tokio::test]
async fn a_bad_url_is_named_without_its_password() {
    for url in [
        "postgres://u:hunter2@h:99999/db",
        "postgres://u:hunter2@h/db?no_such_parameter=1",
        "mysql://u:hunter2@h/db",
        "",
    ] {
        let error = ReplicatedConnection::establish(url).await.unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}

/// Nothing keeps the reads of this session on the primary, once the replicas have what it wrote.
async fn assert_moves(conn: &mut ReplicatedConnection) {
    conn.set_consistency(Consistency::Eventual);
    let server = who(conn).await;
    assert_ne!(server, "primary", "{:?}", conn.last_route());
    conn.set_consistency(Consistency::default());
}

async fn use_connection(conn: &mut ReplicatedConnection, name: &str, earlier: i64) {
    assert_ne!(who(&mut conn.replica()).await, "primary");
    let before = count(conn).await;
    assert!(before >= 3 + earlier, "it reads what others wrote");
    conn.transaction(async |conn| insert(name).execute(conn).await)
        .await
        .unwrap();
    assert!(count(conn).await > before, "it reads what it wrote");
}

#[tokio::test]
async fn bb8_works_as_it_is() {
    let url = cluster().url(&database().await);
    let manager = AsyncDieselConnectionManager::<ReplicatedConnection>::new(url);
    let pool = diesel_async::pooled_connection::bb8::Pool::builder()
        .max_size(2)
        .build(manager)
        .await
        .unwrap();
    for n in 0..5 {
        let mut conn = pool.get().await.unwrap();
        use_connection(&mut conn, &format!("bb8 {n}"), n).await;
    }
    // Tests with one connection and a test transaction keep it.
    let mut conn = pool.get().await.unwrap();
    conn.begin_test_transaction().await.unwrap();
    insert("Test").execute(&mut conn).await.unwrap();
}

#[tokio::test]
async fn deadpool_works_as_it_is() {
    let url = cluster().url(&database().await);
    let manager = AsyncDieselConnectionManager::<ReplicatedConnection>::new(url);
    let pool = diesel_async::pooled_connection::deadpool::Pool::builder(manager)
        .max_size(2)
        .build()
        .unwrap();
    for n in 0..5 {
        let mut conn = pool.get().await.unwrap();
        use_connection(&mut conn, &format!("deadpool {n}"), n).await;
    }
}

#[tokio::test]
async fn mobc_works_as_it_is() {
    let url = cluster().url(&database().await);
    let manager = AsyncDieselConnectionManager::<ReplicatedConnection>::new(url);
    let pool = diesel_async::pooled_connection::mobc::Pool::new(manager);
    for n in 0..5 {
        let mut conn = pool.get().await.unwrap();
        use_connection(&mut conn, &format!("mobc {n}"), n).await;
    }
}

#[tokio::test]
async fn a_pool_over_us_hands_no_sessions_state_to_the_next_user() {
    let url = cluster().url(&database().await);
    let manager = AsyncDieselConnectionManager::<ReplicatedConnection>::new(url);
    let pool = diesel_async::pooled_connection::bb8::Pool::builder()
        .max_size(1)
        .build(manager)
        .await
        .unwrap();
    {
        let mut conn = pool.get().await.unwrap();
        run(&mut conn, "SET application_name = 'of the first user'")
            .await
            .unwrap();
        conn.transaction(async |conn| insert("x").execute(conn).await)
            .await
            .unwrap();
    }
    let mut conn = pool.get().await.unwrap();
    let name: String = diesel::select(current_setting("application_name"))
        .get_result(&mut conn)
        .await
        .unwrap();
    assert_ne!(name, "of the first user");
    assert_moves(&mut conn).await;
}

// A recycling query that resets a plain connection: sent to one of ours it took the prepared statements of a server's
// connection away, and kept the next user on the primary.
#[tokio::test]
async fn a_recycling_query_that_discards_all_leaves_the_next_user_the_replicas() {
    let url = cluster().url(&database().await);
    let mut config = diesel_async::pooled_connection::ManagerConfig::default();
    config.recycling_method =
        diesel_async::pooled_connection::RecyclingMethod::CustomQuery("DISCARD ALL".into());
    let manager =
        AsyncDieselConnectionManager::<ReplicatedConnection>::new_with_config(url, config);
    let pool = diesel_async::pooled_connection::deadpool::Pool::builder(manager)
        .max_size(1)
        .build()
        .unwrap();
    let mut pids = Vec::new();
    for n in 0..4 {
        let mut conn = pool.get().await.unwrap();
        assert_moves(&mut conn).await;
        use_connection(&mut conn, &format!("discard {n}"), n).await;
        run(&mut conn, "LISTEN news; CREATE TEMP TABLE kept (n int)")
            .await
            .unwrap();
        pids.push(process(&mut conn).await.unwrap());
    }
    // The connections to the servers stay.
    pids.sort_unstable();
    pids.dedup();
    assert!(pids.len() < 4, "{pids:?}");
}

#[tokio::test]
async fn discard_all_undoes_what_a_session_has_left() {
    let pool = crate::support::pool().await;
    let mut conn = pool.get().await.unwrap();
    run(
        &mut conn,
        "SET application_name = 'mine'; CREATE TEMP TABLE kept (n int); SELECT pg_advisory_lock(7)",
    )
    .await
    .unwrap();
    run(&mut conn, "DISCARD ALL;").await.unwrap();
    let name: String = diesel::select(current_setting("application_name"))
        .get_result(&mut conn)
        .await
        .unwrap();
    assert_ne!(name, "mine");
    assert_moves(&mut conn).await;
    crate::support::eventually("the table is gone", || async {
        let mut conn = pool.get().await.unwrap();
        let look = "SELECT count(*)::int AS number FROM pg_class WHERE relname = 'kept'";
        let found: crate::support::Number = diesel::sql_query(look)
            .get_result(&mut conn.primary())
            .await
            .unwrap();
        found.number == 0
    })
    .await;
    // What the session wrote before it still sees.
    insert("before").execute(&mut conn).await.unwrap();
    run(&mut conn, "discard all").await.unwrap();
    assert_eq!(count(&mut conn).await, 4);
    // The server refuses it in a transaction.
    let refused = conn
        .transaction(async |conn| run(conn, "DISCARD ALL").await)
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("transaction block"),
        "{refused}"
    );
}
