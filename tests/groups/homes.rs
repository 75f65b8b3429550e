//! Where statements go, and what they see.

use diesel::prelude::*;
use diesel::sql_query;
use diesel_async::{AsyncConnection, RunQueryDsl};

use crate::support::{SUM, groups, number, pool, route, write};

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_written_at_home_and_read_where_it_is_near() {
    let groups = groups(&["eu", "us"]);
    let pool = pool(&groups, "eu").await;
    let home = pool.place("ada", "us").await.unwrap();
    assert_eq!((home.group.as_str(), home.settled), ("us", true));
    let mut conn = pool.for_key("ada").await.unwrap();
    assert_eq!(number(&mut conn, SUM).await.unwrap(), 0);
    assert_eq!(route(&conn).0, "eu");
    assert_eq!(write(&mut conn, 1, "ada").await.unwrap(), 1);
    assert_eq!(route(&conn), ("us".to_owned(), "primary".to_owned()));
    // At once, wherever it runs.
    assert_eq!(number(&mut conn, SUM).await.unwrap(), 1);
    // When the local group has it, it serves.
    while route(&conn).0 != "eu" {
        assert_eq!(number(&mut conn, SUM).await.unwrap(), 1);
    }
    let sum: i64 = conn
        .transaction(async |conn| {
            write(conn, 2, "ada").await?;
            number(conn, SUM).await
        })
        .await
        .unwrap();
    assert_eq!(sum, 2);
    assert_eq!(route(&conn).0, "us");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_believes_in_an_old_home_finds_the_new_one() {
    let groups = groups(&["eu", "us"]);
    let (eu, us) = (pool(&groups, "eu").await, pool(&groups, "us").await);
    eu.place("ada", "eu").await.unwrap();
    let mut here = eu.for_key("ada").await.unwrap();
    let mut there = us.for_key("ada").await.unwrap();
    write(&mut here, 1, "ada").await.unwrap();
    write(&mut there, 1, "ada").await.unwrap();
    let moved = eu.move_home(["ada"], "us").await.unwrap();
    println!("held {:?}", moved[0].held);
    write(&mut there, 1, "ada").await.unwrap();
    assert_eq!(route(&there).0, "us");
    write(&mut here, 1, "ada").await.unwrap();
    assert_eq!(route(&here).0, "us");
    assert_eq!(number(&mut here, SUM).await.unwrap(), 4);
    groups.wait_applied().unwrap();
    for name in groups.names() {
        let rows = groups
            .group(name)
            .unwrap()
            .primary()
            .sql("app", "SELECT n FROM notes");
        assert_eq!(rows.unwrap()[0][0].as_deref(), Some("4"), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_key_writes_nothing() {
    let groups = groups(&["eu", "us"]);
    let pool = pool(&groups, "us").await;
    let mut conn = pool.get().await.unwrap();
    assert_eq!(number(&mut conn, SUM).await.unwrap(), 0);
    let error = write(&mut conn, 1, "ada").await.unwrap_err();
    assert!(error.to_string().contains("for_key"), "{error}");
    let mut conn = pool.for_key("nobody").await.unwrap();
    let error = write(&mut conn, 1, "nobody").await.unwrap_err();
    assert!(error.to_string().contains("place"), "{error}");
    let rows = sql_query("SELECT 1").execute(&mut conn).await.unwrap_err();
    assert!(rows.to_string().contains("place"), "{rows}");
}
