//! The pages and their forms: post, redirect, get.

use std::convert::Infallible;

use axum::extract::rejection::{FormRejection, QueryRejection};
use axum::extract::{FromRequestParts, Query, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::{Extension, Form};

use super::api::{PostId, post_id};
use super::error::{Error, Mistake, PageError};
use super::input::{CommentInput, Filter, PostInput, StatusInput};
use super::markup::{self, Home, Reading, Report};
use super::routes::App;
use super::served::Trail;
use super::store::{self, Connection};

type Result<T> = std::result::Result<T, PageError>;
type FormOf<T> = std::result::Result<Form<T>, FormRejection>;

/// Part of the address that a write redirects to.
const WROTE: &str = "written=1";

/// Whether this reader has just written. A connection remembers that it has written, but the page
/// after a redirect is another request with another connection: this carries the memory over, so
/// that people see what they have just written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct JustWrote(bool);

impl<S: Sync> FromRequestParts<S> for JustWrote {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> std::result::Result<Self, Infallible> {
        let query = parts.uri.query().unwrap_or_default();
        Ok(Self(query.split('&').any(|part| part == WROTE)))
    }
}

pub(crate) async fn home(
    State(app): State<App>,
    Extension(trail): Extension<Trail>,
    wrote: JustWrote,
    filter: std::result::Result<Query<Filter>, QueryRejection>,
) -> Result<Response> {
    let Query(filter) = filter?;
    let page = home_page(&app, &trail, wrote, filter, PostInput::default(), &[]).await?;
    Ok(page.into_response())
}

pub(crate) async fn add_post(
    State(app): State<App>,
    Extension(trail): Extension<Trail>,
    wrote: JustWrote,
    form: FormOf<PostInput>,
) -> Result<Response> {
    let Form(input) = form?;
    match save_post(&app, &trail, &input).await {
        Ok(id) => Ok(written(&format!("/posts/{id}"))),
        Err(Error::Invalid(mistakes)) => {
            let filter = Filter::default();
            let page = home_page(&app, &trail, wrote, filter, input, &mistakes).await?;
            Ok((StatusCode::UNPROCESSABLE_ENTITY, page).into_response())
        }
        Err(other) => Err(other.into()),
    }
}

async fn save_post(app: &App, trail: &Trail, input: &PostInput) -> std::result::Result<i64, Error> {
    let new = input.check()?;
    let mut conn = app.pool.get().await?;
    let id = store::add_post(&mut conn, &new).await;
    trail.note("add post", &conn);
    let id = id?;
    Ok(id)
}

async fn home_page(
    app: &App,
    trail: &Trail,
    wrote: JustWrote,
    filter: Filter,
    input: PostInput,
    mistakes: &[Mistake],
) -> std::result::Result<maud::Markup, Error> {
    let mut conn = app.pool.get().await?;
    let home = if wrote.0 {
        read_home(&mut conn.primary(), trail, filter, input).await?
    } else {
        read_home(&mut conn, trail, filter, input).await?
    };
    Ok(markup::home(&home, mistakes, &report(app, trail, wrote)))
}

async fn read_home(
    conn: &mut Connection,
    trail: &Trail,
    filter: Filter,
    input: PostInput,
) -> std::result::Result<Home, Error> {
    let posts = store::posts(conn, filter.status, filter.before).await?;
    trail.note("posts", conn);
    let users = store::users(conn).await?;
    trail.note("users", conn);
    Ok(Home {
        posts,
        users,
        filter,
        input,
    })
}

pub(crate) async fn show_post(
    State(app): State<App>,
    Extension(trail): Extension<Trail>,
    wrote: JustWrote,
    id: PostId,
) -> Result<Response> {
    let id = post_id(id)?;
    let page = post_page(&app, &trail, wrote, id, CommentInput::default(), &[]).await?;
    Ok(page.into_response())
}

pub(crate) async fn add_comment(
    State(app): State<App>,
    Extension(trail): Extension<Trail>,
    wrote: JustWrote,
    id: PostId,
    form: FormOf<CommentInput>,
) -> Result<Response> {
    let id = post_id(id)?;
    let Form(input) = form?;
    match save_comment(&app, &trail, id, &input).await {
        Ok(()) => Ok(written(&format!("/posts/{id}#comments"))),
        Err(Error::Invalid(mistakes)) => {
            let page = post_page(&app, &trail, wrote, id, input, &mistakes).await?;
            Ok((StatusCode::UNPROCESSABLE_ENTITY, page).into_response())
        }
        Err(other) => Err(other.into()),
    }
}

async fn save_comment(
    app: &App,
    trail: &Trail,
    post_id: i64,
    input: &CommentInput,
) -> std::result::Result<(), Error> {
    let new = input.check(post_id)?;
    let mut conn = app.pool.get().await?;
    let done = store::add_comment(&mut conn, &new).await;
    trail.note("add comment", &conn);
    done?;
    Ok(())
}

pub(crate) async fn set_status(
    State(app): State<App>,
    Extension(trail): Extension<Trail>,
    id: PostId,
    form: FormOf<StatusInput>,
) -> Result<Response> {
    let id = post_id(id)?;
    let Form(input) = form?;
    let mut conn = app.pool.get().await?;
    let done = store::set_status(&mut conn, id, input.status).await;
    trail.note("set status", &conn);
    done?;
    Ok(written(&format!("/posts/{id}")))
}

async fn post_page(
    app: &App,
    trail: &Trail,
    wrote: JustWrote,
    id: i64,
    input: CommentInput,
    mistakes: &[Mistake],
) -> std::result::Result<maud::Markup, Error> {
    let mut conn = app.pool.get().await?;
    let reading = if wrote.0 {
        read_post(&mut conn.primary(), trail, id, input).await?
    } else {
        read_post(&mut conn, trail, id, input).await?
    };
    Ok(markup::post(&reading, mistakes, &report(app, trail, wrote)))
}

async fn read_post(
    conn: &mut Connection,
    trail: &Trail,
    id: i64,
    input: CommentInput,
) -> std::result::Result<Reading, Error> {
    let post = store::post(conn, id).await?;
    trail.note("post", conn);
    let post = post.ok_or_else(|| Error::no_post(id))?;
    let comments = store::comments(conn, id).await?;
    trail.note("comments", conn);
    let users = store::users(conn).await?;
    trail.note("users", conn);
    Ok(Reading {
        post,
        comments,
        users,
        input,
    })
}

pub(crate) async fn style() -> impl IntoResponse {
    let css = include_str!("style.css");
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], css)
}

fn report(app: &App, trail: &Trail, wrote: JustWrote) -> Report {
    Report {
        steps: trail.steps(),
        served: app.log.read(),
        pool: app.pool.state(),
        just_wrote: wrote.0,
    }
}

fn written(place: &str) -> Response {
    let (page, part) = match place.split_once('#') {
        Some((page, part)) => (page, format!("#{part}")),
        None => (place, String::new()),
    };
    Redirect::to(&format!("{page}?{WROTE}{part}")).into_response()
}
