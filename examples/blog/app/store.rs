//! Every query of the application: ordinary Diesel, none of which knows of replicas.

use chrono::Utc;
use diesel::prelude::*;
use diesel_async::{AsyncConnection, RunQueryDsl};
use diesel_replicated::ReplicatedConnection;

use super::error::Error;
use super::models::{Comment, NewComment, NewPost, Post, PostSummary, Status, User};
use super::schema::{comments, posts, users};

/// The one line that replication changes: without it, this would be `AsyncPgConnection`.
pub(crate) type Connection = ReplicatedConnection;

/// How many posts a list has at most.
pub(crate) const PAGE: i64 = 20;

pub(crate) async fn users(conn: &mut Connection) -> QueryResult<Vec<User>> {
    users::table
        .order(users::name)
        .select(User::as_select())
        .load(conn)
        .await
}

/// The newest posts, of one status or of both, starting below the id `before`.
pub(crate) async fn posts(
    conn: &mut Connection,
    status: Option<Status>,
    before: Option<i64>,
) -> QueryResult<Vec<PostSummary>> {
    let comments = comments::table
        .filter(comments::post_id.eq(posts::id))
        .count()
        .single_value()
        .assume_not_null();
    let mut query = posts::table
        .inner_join(users::table)
        .order(posts::id.desc())
        .limit(PAGE)
        .select((
            posts::id,
            posts::title,
            users::name,
            posts::status,
            posts::created_at,
            comments,
        ))
        .into_boxed();
    if let Some(status) = status {
        query = query.filter(posts::status.eq(status));
    }
    if let Some(before) = before {
        query = query.filter(posts::id.lt(before));
    }
    query.load(conn).await
}

pub(crate) async fn post(conn: &mut Connection, id: i64) -> QueryResult<Option<Post>> {
    posts::table
        .inner_join(users::table)
        .filter(posts::id.eq(id))
        .select(Post::as_select())
        .first(conn)
        .await
        .optional()
}

pub(crate) async fn comments(conn: &mut Connection, post_id: i64) -> QueryResult<Vec<Comment>> {
    comments::table
        .inner_join(users::table)
        .filter(comments::post_id.eq(post_id))
        .order(comments::id)
        .select(Comment::as_select())
        .load(conn)
        .await
}

pub(crate) async fn add_post(conn: &mut Connection, new: &NewPost) -> QueryResult<i64> {
    diesel::insert_into(posts::table)
        .values(new)
        .returning(posts::id)
        .get_result(conn)
        .await
}

pub(crate) async fn add_comment(conn: &mut Connection, new: &NewComment) -> QueryResult<i64> {
    diesel::insert_into(comments::table)
        .values(new)
        .returning(comments::id)
        .get_result(conn)
        .await
}

/// Publishes a post or takes it back. What is checked here must still hold when the change is
/// made, so it is one transaction and the row is locked; both happen on the primary.
pub(crate) async fn set_status(
    conn: &mut Connection,
    id: i64,
    status: Status,
) -> Result<(), Error> {
    conn.transaction(async |conn| {
        let found: Option<(Status, String)> = posts::table
            .find(id)
            .select((posts::status, posts::body))
            .for_update()
            .first(conn)
            .await
            .optional()?;
        let Some((current, body)) = found else {
            return Err(Error::no_post(id));
        };
        if current == status {
            return Ok(());
        }
        let published = status == Status::Published;
        if published && body.is_empty() {
            return Err(Error::Conflict(
                "a post without a body cannot be published".to_owned(),
            ));
        }
        diesel::update(posts::table.find(id))
            .set((
                posts::status.eq(status),
                posts::published_at.eq(published.then(Utc::now)),
            ))
            .execute(conn)
            .await?;
        Ok(())
    })
    .await
}
