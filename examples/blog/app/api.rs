//! The JSON endpoints.

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequest, Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::{Extension, Json};
use diesel_replicated::web::{ConnectionRejection, DatabaseConnection};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::error::{ApiError, Error};
use super::input::{CommentInput, Filter, PostInput, StatusInput};
use super::models::{PostSummary, User};
use super::routes::App;
use super::served::Trail;
use super::store;

type Result<T> = std::result::Result<T, ApiError>;

/// A handler's connection, or why there is none: that is told as the other errors are.
pub(crate) type Conn = std::result::Result<DatabaseConnection, ConnectionRejection>;

/// A body of JSON; what is wrong with it is told as JSON too.
pub(crate) struct Body<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self> {
        let Json(body) = Json::from_request(request, state).await?;
        Ok(Self(body))
    }
}

pub(crate) async fn users(
    conn: Conn,
    Extension(trail): Extension<Trail>,
) -> Result<Json<Vec<User>>> {
    let mut conn = conn?;
    let users = store::users(&mut conn).await?;
    trail.note("users", &conn);
    Ok(Json(users))
}

pub(crate) async fn posts(
    conn: Conn,
    Extension(trail): Extension<Trail>,
    filter: std::result::Result<Query<Filter>, QueryRejection>,
) -> Result<Json<Vec<PostSummary>>> {
    let Query(filter) = filter?;
    let mut conn = conn?;
    let posts = store::posts(&mut conn, filter.status, filter.before).await?;
    trail.note("posts", &conn);
    Ok(Json(posts))
}

pub(crate) async fn post(
    conn: Conn,
    Extension(trail): Extension<Trail>,
    id: PostId,
) -> Result<Json<Value>> {
    let id = post_id(id)?;
    let mut conn = conn?;
    let post = store::post(&mut conn, id).await?;
    trail.note("post", &conn);
    let post = post.ok_or_else(|| Error::no_post(id))?;
    let comments = store::comments(&mut conn, id).await?;
    trail.note("comments", &conn);
    Ok(Json(json!({ "post": post, "comments": comments })))
}

pub(crate) async fn add_post(
    conn: Conn,
    Extension(trail): Extension<Trail>,
    Body(input): Body<PostInput>,
) -> Result<impl IntoResponse> {
    let new = input.check()?;
    let mut conn = conn?;
    let id = store::add_post(&mut conn, &new).await;
    trail.note("add post", &conn);
    let id = id?;
    // Wherever this is read, it is found: on a replica that has it, else on the primary.
    let post = store::post(&mut conn, id).await?;
    trail.note("post", &conn);
    let location = [(header::LOCATION, format!("/api/posts/{id}"))];
    Ok((StatusCode::CREATED, location, Json(post)))
}

pub(crate) async fn add_comment(
    conn: Conn,
    Extension(trail): Extension<Trail>,
    id: PostId,
    Body(input): Body<CommentInput>,
) -> Result<impl IntoResponse> {
    let post_id = post_id(id)?;
    let new = input.check(post_id)?;
    let mut conn = conn?;
    let id = store::add_comment(&mut conn, &new).await;
    trail.note("add comment", &conn);
    let id = id?;
    let location = [(header::LOCATION, format!("/api/posts/{post_id}"))];
    let body = json!({ "id": id, "post_id": post_id, "body": new.body });
    Ok((StatusCode::CREATED, location, Json(body)))
}

pub(crate) async fn set_status(
    conn: Conn,
    Extension(trail): Extension<Trail>,
    id: PostId,
    Body(input): Body<StatusInput>,
) -> Result<impl IntoResponse> {
    let id = post_id(id)?;
    let mut conn = conn?;
    let done = store::set_status(&mut conn, id, input.status).await;
    trail.note("set status", &conn);
    done?;
    let post = store::post(&mut conn, id).await?;
    trail.note("post", &conn);
    Ok(Json(post))
}

/// Reads no table: what each node has served so far, and how the pool sees them.
pub(crate) async fn served(State(app): State<App>) -> Json<Value> {
    Json(json!({ "served": app.log.read(), "pool": app.pool.status() }))
}

pub(crate) type PostId = std::result::Result<Path<i64>, PathRejection>;

/// What is not a number is the id of no post.
pub(crate) fn post_id(id: PostId) -> std::result::Result<i64, Error> {
    id.map(|Path(id)| id)
        .map_err(|_| Error::NotFound("there is no such post: ids are numbers".to_owned()))
}
