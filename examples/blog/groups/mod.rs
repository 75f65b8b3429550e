//! The blog in two places at once: users have a home, and the page shows where each statement went, and why.

mod page;
mod world;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::extract::{Query, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Form, Router};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Text};
use diesel_async::RunQueryDsl;
use diesel_replicated::multi_primary::{GroupStatus, MultiPrimarySession};
use diesel_replicated::{ReplicatedConnection, Route};
use serde::Deserialize;

pub(crate) use world::World;

pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A statement, where it went, how long it took, and what went wrong.
pub(crate) struct Step {
    what: String,
    route: Option<Route>,
    took: Duration,
    error: Option<String>,
}

/// What a request has asked, for the page that comes after it.
#[derive(Default)]
pub(crate) struct Trail(Vec<Step>);

#[derive(Clone)]
struct Oceans {
    world: Arc<World>,
    /// What the last form has done.
    last: Arc<Mutex<Trail>>,
}

#[derive(QueryableByName)]
pub(crate) struct User {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Text)]
    home: String,
    #[diesel(sql_type = BigInt)]
    posts: i64,
}

#[derive(QueryableByName)]
pub(crate) struct Post {
    #[diesel(sql_type = Text)]
    title: String,
    #[diesel(sql_type = Text)]
    author: String,
}

/// What the page shows.
pub(crate) struct Seen {
    place: String,
    users: Vec<User>,
    posts: Vec<Post>,
    groups: Vec<GroupStatus>,
    cut: bool,
}

#[derive(Deserialize)]
struct From {
    from: Option<String>,
}

#[derive(Deserialize)]
struct Write {
    from: String,
    user: i64,
    title: String,
}

#[derive(Deserialize)]
struct Move {
    from: String,
    user: i64,
    to: String,
}

#[derive(Deserialize)]
struct Cut {
    from: String,
    on: bool,
}

/// The key of a user.
fn key(user: i64) -> String {
    format!("user:{user}")
}

pub(crate) fn router(world: Arc<World>) -> Router {
    let last = Arc::default();
    Router::new()
        .route("/", get(show))
        .route("/posts", post(write))
        .route("/moves", post(move_user))
        .route("/cable", post(cut))
        .with_state(Oceans { world, last })
}

impl Trail {
    /// Notes how a statement over this connection went.
    fn note<T, E: ToString>(
        &mut self,
        what: &str,
        conn: &ReplicatedConnection,
        began: Instant,
        result: &Result<T, E>,
    ) {
        self.0.push(Step {
            what: what.to_owned(),
            route: result.as_ref().ok().and_then(|_| conn.last_route()),
            took: began.elapsed(),
            error: result.as_ref().err().map(ToString::to_string),
        });
    }
}

/// The session of the visitor, in whichever place he is now.
fn session(oceans: &Oceans, place: &str, headers: &HeaderMap) -> MultiPrimarySession {
    let cookies = headers.get(header::COOKIE).and_then(|it| it.to_str().ok());
    let mut cookies = cookies.unwrap_or_default().split("; ");
    let token = cookies.find_map(|cookie| cookie.strip_prefix("session="));
    oceans.world.pool(place).resume(token.unwrap_or_default())
}

async fn with_session(session: &MultiPrimarySession, response: impl IntoResponse) -> Response {
    let cookie = format!(
        "session={}; Path=/; HttpOnly; SameSite=Lax",
        session.token().await
    );
    ([(header::SET_COOKIE, cookie)], response).into_response()
}

fn place(from: Option<String>) -> String {
    let known = from.filter(|from| world::PLACES.contains(&from.as_str()));
    known.unwrap_or_else(|| world::PLACES[0].to_owned())
}

async fn show(
    State(oceans): State<Oceans>,
    Query(from): Query<From>,
    headers: HeaderMap,
) -> Response {
    let place = place(from.from);
    let session = session(&oceans, &place, &headers);
    let mut trail = std::mem::take(&mut *oceans.last.lock().unwrap_or_else(|it| it.into_inner()));
    let (users, posts) = read(&session, &mut trail).await;
    let limit = Duration::from_secs(1);
    let groups = oceans.world.pool(&place).check(limit).await;
    let cut = oceans.world.is_cut();
    let seen = Seen {
        place,
        users,
        posts,
        groups,
        cut,
    };
    with_session(&session, page::page(&seen, &trail)).await
}

async fn read(session: &MultiPrimarySession, trail: &mut Trail) -> (Vec<User>, Vec<Post>) {
    let Ok(mut conn) = session.get().await else {
        return (Vec::new(), Vec::new());
    };
    let began = Instant::now();
    let users = sql_query(
        "SELECT u.id, u.name, h.home, (SELECT count(*) FROM posts p WHERE p.author_id = u.id) AS posts \
         FROM users u JOIN diesel_replicated.homes h ON h.key = 'user:' || u.id ORDER BY u.name",
    );
    let users: QueryResult<Vec<User>> = users.load(&mut conn).await;
    trail.note("users", &conn, began, &users);
    let began = Instant::now();
    let posts = sql_query(
        "SELECT p.title, u.name AS author FROM posts p JOIN users u ON u.id = p.author_id \
         ORDER BY p.created_at DESC, p.id DESC LIMIT 10",
    );
    let posts: QueryResult<Vec<Post>> = posts.load(&mut conn).await;
    trail.note("posts", &conn, began, &posts);
    (users.unwrap_or_default(), posts.unwrap_or_default())
}

async fn write(
    State(oceans): State<Oceans>,
    headers: HeaderMap,
    Form(form): Form<Write>,
) -> Response {
    let place = place(Some(form.from));
    let session = session(&oceans, &place, &headers);
    let mut trail = Trail::default();
    if let Ok(mut conn) = session.for_key(key(form.user)).await {
        let began = Instant::now();
        let added = add_post(&mut conn, form.user, &form.title).await;
        trail.note("add post", &conn, began, &added);
    }
    *oceans.last.lock().unwrap_or_else(|it| it.into_inner()) = trail;
    with_session(&session, Redirect::to(&format!("/?from={place}"))).await
}

async fn move_user(State(oceans): State<Oceans>, Form(form): Form<Move>) -> Response {
    let place = place(Some(form.from));
    let began = Instant::now();
    let pool = oceans.world.pool(&place);
    let moved = pool.move_home([key(form.user)], &form.to).await;
    let what = match moved.as_deref().ok().and_then(<[_]>::first) {
        Some(moved) => format!(
            "move to {}: writes were held for {:.0?}",
            form.to, moved.held
        ),
        None => format!("move to {}", form.to),
    };
    let step = Step {
        what,
        route: None,
        took: began.elapsed(),
        error: moved.err().map(|error| error.to_string()),
    };
    oceans.last.lock().unwrap_or_else(|it| it.into_inner()).0 = vec![step];
    Redirect::to(&format!("/?from={place}")).into_response()
}

async fn cut(State(oceans): State<Oceans>, Form(form): Form<Cut>) -> Response {
    oceans.world.cut(form.on);
    Redirect::to(&format!("/?from={}", place(Some(form.from)))).into_response()
}

async fn add_post(conn: &mut ReplicatedConnection, author: i64, title: &str) -> QueryResult<usize> {
    let insert = sql_query(
        "INSERT INTO posts (author_id, title, body, status, published_at) VALUES ($1, $2, '', 'published', now())",
    );
    let insert = insert.bind::<BigInt, _>(author).bind::<Text, _>(title);
    insert.execute(conn).await
}

async fn add_user(conn: &mut ReplicatedConnection, id: i64, name: &str) -> QueryResult<usize> {
    let insert = sql_query("INSERT INTO users (id, name) OVERRIDING SYSTEM VALUE VALUES ($1, $2)");
    let insert = insert.bind::<BigInt, _>(id).bind::<Text, _>(name);
    insert.execute(conn).await
}
