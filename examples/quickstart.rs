//! Writes a row, reads it, and tells which server did what: `cargo run --example quickstart`.
#![expect(clippy::print_stdout, reason = "that is what it is for")]

use diesel::prelude::*;
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};
use diesel_replicated::ReplicatedPool;
use diesel_replicated::testing::LocalCluster;

mod schema {
    diesel::table! { notes (id) { id -> Integer, text -> Text, } }
}
use schema::notes;

const TABLE: &str = "CREATE TABLE notes (id SERIAL PRIMARY KEY, text TEXT NOT NULL)";

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cluster = LocalCluster::start()?;
    let pool = ReplicatedPool::connect(&cluster.url("postgres")).await?;

    let mut conn = pool.get().await?;
    conn.batch_execute(TABLE).await?;
    println!("created: {:?}", conn.last_route());
    let note = diesel::insert_into(notes::table).values(notes::text.eq("hello"));
    note.execute(&mut conn).await?;
    println!("written: {:?}", conn.last_route());
    let count: i64 = notes::table.count().get_result(&mut conn).await?;
    println!("counted {count} after the write: {:?}", conn.last_route());

    cluster.wait_caught_up()?;
    let mut conn = pool.get().await?;
    let query = notes::table.select(notes::text);
    let texts: Vec<String> = query.load(&mut conn).await?;
    println!("read {texts:?}: {:?}", conn.last_route());
    Ok(())
}
