//! The pages and their forms: post, redirect, get.

use axum::extract::rejection::{FormRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::{Extension, Form};

use super::api::{Conn, PostId, post_id};
use super::error::{Error, Mistake, PageError};
use super::input::{CommentInput, Filter, PostInput, StatusInput};
use super::markup::{self, Home, Reading, Report};
use super::routes::App;
use super::served::Trail;
use super::store::{self, Connection};

type Result<T> = std::result::Result<T, PageError>;
type FormOf<T> = std::result::Result<Form<T>, FormRejection>;

pub(crate) async fn home(
    State(app): State<App>,
    Extension(trail): Extension<Trail>,
    conn: Conn,
    filter: std::result::Result<Query<Filter>, QueryRejection>,
) -> Result<Response> {
    let Query(filter) = filter?;
    let mut conn = conn?;
    let page = home_page(&app, &trail, &mut conn, filter, PostInput::default(), &[]).await?;
    Ok(page.into_response())
}

pub(crate) async fn add_post(
    State(app): State<App>,
    Extension(trail): Extension<Trail>,
    conn: Conn,
    form: FormOf<PostInput>,
) -> Result<Response> {
    let Form(input) = form?;
    let mut conn = conn?;
    match save_post(&trail, &mut conn, &input).await {
        Ok(id) => Ok(redirect(&format!("/posts/{id}"))),
        Err(Error::Invalid(mistakes)) => {
            let filter = Filter::default();
            let page = home_page(&app, &trail, &mut conn, filter, input, &mistakes).await?;
            Ok((StatusCode::UNPROCESSABLE_ENTITY, page).into_response())
        }
        Err(other) => Err(other.into()),
    }
}

async fn save_post(
    trail: &Trail,
    conn: &mut Connection,
    input: &PostInput,
) -> std::result::Result<i64, Error> {
    let new = input.check()?;
    let id = store::add_post(conn, &new).await;
    trail.note("add post", conn);
    let id = id?;
    Ok(id)
}

async fn home_page(
    app: &App,
    trail: &Trail,
    conn: &mut Connection,
    filter: Filter,
    input: PostInput,
    mistakes: &[Mistake],
) -> std::result::Result<maud::Markup, Error> {
    let home = read_home(conn, trail, filter, input).await?;
    Ok(markup::home(&home, mistakes, &report(app, trail)))
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
    conn: Conn,
    id: PostId,
) -> Result<Response> {
    let id = post_id(id)?;
    let mut conn = conn?;
    let page = post_page(&app, &trail, &mut conn, id, CommentInput::default(), &[]).await?;
    Ok(page.into_response())
}

pub(crate) async fn add_comment(
    State(app): State<App>,
    Extension(trail): Extension<Trail>,
    conn: Conn,
    id: PostId,
    form: FormOf<CommentInput>,
) -> Result<Response> {
    let id = post_id(id)?;
    let Form(input) = form?;
    let mut conn = conn?;
    match save_comment(&trail, &mut conn, id, &input).await {
        Ok(()) => Ok(redirect(&format!("/posts/{id}#comments"))),
        Err(Error::Invalid(mistakes)) => {
            let page = post_page(&app, &trail, &mut conn, id, input, &mistakes).await?;
            Ok((StatusCode::UNPROCESSABLE_ENTITY, page).into_response())
        }
        Err(other) => Err(other.into()),
    }
}

async fn save_comment(
    trail: &Trail,
    conn: &mut Connection,
    post_id: i64,
    input: &CommentInput,
) -> std::result::Result<(), Error> {
    let new = input.check(post_id)?;
    let done = store::add_comment(conn, &new).await;
    trail.note("add comment", conn);
    done?;
    Ok(())
}

pub(crate) async fn set_status(
    conn: Conn,
    Extension(trail): Extension<Trail>,
    id: PostId,
    form: FormOf<StatusInput>,
) -> Result<Response> {
    let id = post_id(id)?;
    let Form(input) = form?;
    let mut conn = conn?;
    let done = store::set_status(&mut conn, id, input.status).await;
    trail.note("set status", &conn);
    done?;
    Ok(redirect(&format!("/posts/{id}")))
}

async fn post_page(
    app: &App,
    trail: &Trail,
    conn: &mut Connection,
    id: i64,
    input: CommentInput,
    mistakes: &[Mistake],
) -> std::result::Result<maud::Markup, Error> {
    let reading = read_post(conn, trail, id, input).await?;
    Ok(markup::post(&reading, mistakes, &report(app, trail)))
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

fn report(app: &App, trail: &Trail) -> Report {
    Report {
        steps: trail.steps(),
        served: app.log.read(),
        pool: app.pool.status(),
    }
}

fn redirect(place: &str) -> Response {
    Redirect::to(place).into_response()
}
