//! Brings the database to what the application expects.

use chrono::Utc;
use diesel::prelude::*;
use diesel_async::{AsyncConnection, AsyncMigrationHarness, RunQueryDsl};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use diesel_replicated::ReplicatedPool;

use super::models::{NewComment, NewPost, Status};
use super::schema::users;
use super::store::{self, Connection};

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations");

const USERS: [&str; 3] = ["Ada", "Edgar", "Grace"];

/// Runs the migrations that have not run yet, and fills an empty database with something to read.
///
/// Needs the multi-threaded runtime, as diesel-async's migration harness does.
pub(crate) async fn prepare(
    pool: &ReplicatedPool,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut harness = AsyncMigrationHarness::new(pool.get().await?);
    for version in harness.run_pending_migrations(MIGRATIONS)? {
        tracing::info!(%version, "migrated");
    }
    seed(&mut harness.into_inner()).await?;
    Ok(())
}

async fn seed(conn: &mut Connection) -> QueryResult<()> {
    conn.transaction(async |conn| {
        let names: Vec<_> = USERS.iter().map(|name| users::name.eq(*name)).collect();
        let ids: Vec<i64> = diesel::insert_into(users::table)
            .values(names)
            .on_conflict_do_nothing()
            .returning(users::id)
            .get_results(conn)
            .await?;
        // Fewer: they were there before, or another process is faster.
        let [ada, edgar, grace] = ids[..] else {
            return Ok(());
        };
        let hello = post(
            ada,
            "One primary, two replicas",
            "Pages like this one are read from the replicas.\n\nWrite a post, and see where that goes: the \
             table at the end of the page tells for each query which node answered it, and why.\n\n\
             You see your post at once. A replica shows it as soon as it is there; that is what the \
             page waits for, a few milliseconds at the most.",
        );
        let hello = store::add_post(conn, &hello).await?;
        let draft = NewPost {
            status: Status::Draft,
            published_at: None,
            ..post(
                edgar,
                "What a transaction sees",
                "Publishing this draft locks its row, checks it and changes it, all on the \
                 primary.",
            )
        };
        store::add_post(conn, &draft).await?;
        let comment = NewComment {
            post_id: hello,
            author_id: grace,
            body: "Reload a few times: the replicas take turns by their weights.".to_owned(),
        };
        store::add_comment(conn, &comment).await?;
        Ok(())
    })
    .await
}

fn post(author_id: i64, title: &str, body: &str) -> NewPost {
    NewPost {
        author_id,
        title: title.to_owned(),
        body: body.to_owned(),
        status: Status::Published,
        published_at: Some(Utc::now()),
    }
}
