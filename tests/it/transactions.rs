//! Transactions behave as on a plain connection, on one node.

use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error};
use diesel_async::{AsyncConnection, RunQueryDsl};
use diesel_replicated::status::RouteReason;

use crate::support::{builder, count, database, insert, pool, run, users, who};

#[tokio::test]
async fn a_transaction_runs_on_the_primary_and_commits() {
    let pool = pool().await;
    let mut conn = pool.get().await.unwrap();
    let server = conn
        .transaction(async |conn| {
            assert_eq!(count(conn).await, 3);
            insert("Frances").execute(conn).await?;
            assert_eq!(
                conn.last_route().unwrap().reason,
                RouteReason::InTransaction
            );
            QueryResult::Ok(who(conn).await)
        })
        .await
        .unwrap();
    assert_eq!(server, "primary");
    let mut other = pool.get().await.unwrap();
    assert_eq!(count(&mut other.primary()).await, 4);
}

#[tokio::test]
async fn errors_roll_back_and_savepoints_nest() {
    let pool = pool().await;
    let mut conn = pool.get().await.unwrap();
    let failed = conn
        .transaction(async |conn| {
            insert("Lost").execute(conn).await?;
            QueryResult::<()>::Err(Error::RollbackTransaction)
        })
        .await;
    assert_eq!(failed, Err(Error::RollbackTransaction));
    assert_eq!(count(&mut conn).await, 3);

    conn.transaction(async |conn| {
        insert("Kept").execute(conn).await?;
        let inner = conn
            .transaction(async |conn| {
                insert("Undone").execute(conn).await?;
                insert("Undone").execute(conn).await
            })
            .await;
        assert!(matches!(
            inner,
            Err(Error::DatabaseError(DatabaseErrorKind::UniqueViolation, _))
        ));
        conn.transaction(async |conn| insert("Deep").execute(conn).await)
            .await
    })
    .await
    .unwrap();
    let names: Vec<String> = users::table
        .select(users::name)
        .order(users::id)
        .load(&mut conn)
        .await
        .unwrap();
    assert_eq!(names, ["Ada", "Grace", "Edsger", "Kept", "Deep"]);
}

#[tokio::test]
async fn the_builder_sends_what_it_was_given() {
    let pool = pool().await;
    let mut conn = pool.get().await.unwrap();
    let builder = conn.build_transaction().read_only().repeatable_read();
    let sql = diesel::debug_query::<diesel::pg::Pg, _>(&builder).to_string();
    let begin = "BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY";
    assert!(sql.starts_with(begin), "{sql}");
    let refused = conn
        .build_transaction()
        .read_only()
        .serializable()
        .deferrable()
        .run(async |conn| {
            let level: String =
                diesel::select(crate::support::current_setting("transaction_isolation"))
                    .get_result(conn)
                    .await?;
            assert_eq!(level, "serializable");
            assert_eq!(who(conn).await, "primary");
            insert("Never").execute(conn).await
        })
        .await;
    assert!(matches!(
        refused,
        Err(Error::DatabaseError(
            DatabaseErrorKind::ReadOnlyTransaction,
            _
        ))
    ));
    assert_ne!(who(&mut conn).await, "never in a transaction");
    assert_eq!(count(&mut conn).await, 3);
}

#[tokio::test]
async fn read_only_transactions_run_on_a_replica_where_the_pool_lets_them() {
    let database = database().await;
    let pool = builder(&database)
        .read_only_transactions_on_replicas(true)
        .build()
        .await
        .unwrap();
    let mut conn = pool.get().await.unwrap();
    let servers = conn
        .build_transaction()
        .read_only()
        .repeatable_read()
        .run(async |conn| {
            let first = who(conn).await;
            assert_eq!(
                conn.last_route().unwrap().reason,
                RouteReason::ReadOnlyTransaction
            );
            QueryResult::Ok((first, who(conn).await))
        })
        .await
        .unwrap();
    assert_ne!(servers.0, "primary");
    assert_eq!(servers.0, servers.1);

    let mut conn = pool.get().await.unwrap();
    let refused = conn
        .build_transaction()
        .read_only()
        .run(async |conn| insert("Never").execute(conn).await)
        .await;
    assert!(matches!(
        refused,
        Err(Error::DatabaseError(
            DatabaseErrorKind::ReadOnlyTransaction,
            _
        ))
    ));
    let server = conn
        .build_transaction()
        .read_only()
        .serializable()
        .run(async |conn| QueryResult::Ok(who(conn).await))
        .await
        .unwrap();
    assert_eq!(server, "primary", "standbys do not know serializable");
}

#[tokio::test]
async fn serialization_failures_roll_everything_back() {
    let pool = pool().await;
    let (mut one, mut two) = (pool.get().await.unwrap(), pool.get().await.unwrap());
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ";
    run(&mut one, begin).await.unwrap();
    assert_eq!(count(&mut one).await, 3);
    diesel::update(users::table)
        .set(users::visits.eq(1))
        .execute(&mut two)
        .await
        .unwrap();
    let conflict = diesel::update(users::table)
        .set(users::visits.eq(2))
        .execute(&mut one)
        .await;
    assert!(matches!(
        conflict,
        Err(Error::DatabaseError(
            DatabaseErrorKind::SerializationFailure,
            _
        ))
    ));
    run(&mut one, "ROLLBACK").await.unwrap();
    assert_eq!(count(&mut one).await, 3);

    let failed = one
        .build_transaction()
        .repeatable_read()
        .run(async |one| {
            assert_eq!(count(one).await, 3);
            diesel::update(users::table)
                .set(users::visits.eq(3))
                .execute(&mut two)
                .await?;
            // The failure inside a savepoint dooms the whole transaction.
            one.transaction(async |one| {
                diesel::update(users::table)
                    .set(users::visits.eq(4))
                    .execute(one)
                    .await
            })
            .await
        })
        .await;
    assert!(matches!(
        failed,
        Err(Error::DatabaseError(
            DatabaseErrorKind::SerializationFailure,
            _
        ))
    ));
    // The other session wrote it, which this one's reads on replicas may miss.
    let visits: Vec<i32> = users::table
        .select(users::visits)
        .load(&mut one.primary())
        .await
        .unwrap();
    assert_eq!(visits, [3, 3, 3]);
}

#[tokio::test]
async fn test_transactions_leave_nothing_behind() {
    let pool = pool().await;
    let mut conn = pool.get().await.unwrap();
    conn.begin_test_transaction().await.unwrap();
    insert("Ghost").execute(&mut conn).await.unwrap();
    assert_eq!(count(&mut conn).await, 4);
    drop(conn);
    let mut conn = pool.get().await.unwrap();
    assert_eq!(count(&mut conn.primary()).await, 3);
    let counted = conn
        .test_transaction(async |conn| {
            insert("Ghost").execute(conn).await?;
            QueryResult::Ok(count(conn).await)
        })
        .await;
    assert_eq!(counted, 4);
    assert_eq!(count(&mut conn).await, 3);
}

#[tokio::test]
async fn raw_transaction_control_is_understood() {
    let pool = pool().await;
    let mut conn = pool.get().await.unwrap();
    run(&mut conn, "BEGIN").await.unwrap();
    assert_eq!(who(&mut conn).await, "primary");
    assert_eq!(
        conn.last_route().unwrap().reason,
        RouteReason::InTransaction
    );
    run(&mut conn, "INSERT INTO users (name) VALUES ('Raw'); COMMIT")
        .await
        .unwrap();
    assert_eq!(count(&mut conn).await, 4);
}

#[tokio::test]
async fn a_panic_in_a_transaction_leaks_nothing() {
    let database = database().await;
    let pool = builder(&database).max_size(1).build().await.unwrap();
    let conn = pool.get().await.unwrap();
    let panicked = tokio::spawn(async move {
        let mut conn = conn;
        let _: QueryResult<()> = conn
            .transaction(async |conn| {
                insert("Ghost").execute(conn).await?;
                panic!("in the middle of a transaction")
            })
            .await;
    })
    .await;
    assert!(panicked.is_err());
    let mut conn = pool.get().await.unwrap();
    assert_eq!(count(&mut conn.primary()).await, 3);
}

#[tokio::test]
async fn save_changes_works() {
    #[derive(Clone, Copy, Debug, PartialEq, Queryable, Identifiable, AsChangeset)]
    #[diesel(table_name = users)]
    struct Visit {
        id: i32,
        visits: i32,
    }
    use diesel_async::SaveChangesDsl;

    #[derive(Debug, PartialEq, Queryable)]
    struct User {
        id: i32,
        name: String,
        visits: i32,
    }
    let pool = pool().await;
    let mut conn = pool.get().await.unwrap();
    let visit = Visit { id: 1, visits: 42 };
    let saved: User = SaveChangesDsl::save_changes(&visit, &mut conn)
        .await
        .unwrap();
    assert_eq!(
        saved,
        User {
            id: 1,
            name: "Ada".to_owned(),
            visits: 42
        }
    );
}
