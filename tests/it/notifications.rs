//! LISTEN and NOTIFY, over the primary's connection.

use diesel::sql_query;
use diesel_async::RunQueryDsl;
use futures_util::StreamExt;

use crate::support::{blocking, cluster, pool, run, who};

#[tokio::test]
async fn what_is_notified_arrives_in_order() {
    let pool = pool().await;
    let mut listener = pool.get().await.unwrap();
    sql_query("LISTEN news")
        .execute(&mut listener)
        .await
        .unwrap();
    let mut speaker = pool.get().await.unwrap();
    run(&mut speaker, "NOTIFY news, 'first'").await.unwrap();
    sql_query("SELECT pg_notify('news', 'second')")
        .execute(&mut speaker)
        .await
        .unwrap();
    let mut news = std::pin::pin!(listener.notifications_stream());
    for expected in ["first", "second"] {
        let notification = news.next().await.unwrap().unwrap();
        assert_eq!(
            (notification.channel.as_str(), notification.payload.as_str()),
            ("news", expected)
        );
        assert!(notification.process_id > 0);
    }
}

#[tokio::test]
async fn the_end_of_the_listening_connection_is_told_once() {
    let pool = pool().await;
    let mut listener = pool.get().await.unwrap();
    run(
        &mut listener,
        "LISTEN ending; SET application_name = 'the listener that ends'",
    )
    .await
    .unwrap();
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'the listener that ends'";
    blocking(move || cluster().primary().sql("postgres", end).unwrap()).await;
    {
        let mut news = std::pin::pin!(listener.notifications_stream());
        let error = news.next().await.unwrap().unwrap_err();
        assert!(error.to_string().contains("terminat"), "{error}");
        assert!(news.next().await.is_none());
    }
    // What this session had set up died with its connection, and is not silently missing.
    let lost = run(&mut listener, "SELECT 1").await.unwrap_err();
    assert!(lost.to_string().contains("session's state"), "{lost}");
    let mut fresh = pool.get().await.unwrap();
    assert_ne!(who(&mut fresh.replica()).await, "primary");
}
