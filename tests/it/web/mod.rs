//! The web: requests of one client are one session, whichever process serves them.

mod services;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{BoxError, Json, Router};
use diesel_async::RunQueryDsl;
use diesel_replicated::config::ConsistencyConfig;
use diesel_replicated::status::NodeKind;
use diesel_replicated::token::TokenKeys;
use diesel_replicated::web::{DatabaseConnection, InvalidCarrier, SessionLayer};
use diesel_replicated::{ReplicatedPool, Session, SessionToken};
use futures_util::{StreamExt, stream};
use tower::ServiceExt;

use crate::support::{
    all_up, blocking, builder, cluster, count, database, eventually, insert, pool, run,
};

/// A session token of some other cluster.
const FOREIGN: &str = "AWj7rAnFSZ1xAsiw0ZvrAgLIsNOb6wI";
const HEADER: &str = "x-session-token";

/// Reads wait for replicas as long as these may take on a busy machine, so that none goes to the
/// primary, and every token knows its place.
async fn patient(database: &str) -> ReplicatedPool {
    waiting(database, Duration::from_secs(30)).await
}

async fn waiting(database: &str, wait: Duration) -> ReplicatedPool {
    consistent(database, ConsistencyConfig::default().wait(wait)).await
}

async fn consistent(database: &str, consistency: ConsistencyConfig) -> ReplicatedPool {
    let builder = builder(database).consistency(consistency);
    let pool = builder.build().await.unwrap();
    eventually("the pool knows its cluster", || async {
        all_up(&pool) && pool.session().token().await.cluster() != 0
    })
    .await;
    pool
}

fn router(pool: &ReplicatedPool) -> Router {
    Router::new()
        .route("/", get(visitors))
        .route("/plain", get(async || "nothing of the database"))
        .route("/streamed", get(streamed))
        .route("/{name}", post(visit))
        .route("/all/{names}", post(visit_all))
        .with_state(pool.clone())
}

/// How many there are, by which kind of node.
async fn visitors(DatabaseConnection(mut conn): DatabaseConnection) -> Json<(i64, NodeKind)> {
    let count = count(&mut conn).await;
    Json((count, conn.last_route().unwrap().kind))
}

async fn visit(mut conn: DatabaseConnection, Path(name): Path<String>) -> Response {
    // As it is, through `Deref`.
    insert(&name).execute(&mut conn).await.unwrap();
    let private = [(header::SET_COOKIE, "theirs=1"), (header::VARY, "cookie")];
    (private, StatusCode::SEE_OTHER).into_response()
}

async fn visit_all(State(pool): State<ReplicatedPool>, Path(names): Path<String>) {
    let visits = names.split(',').map(async |name| {
        let mut conn = pool.get().await.unwrap();
        insert(name).execute(&mut conn).await.unwrap();
    });
    futures_util::future::join_all(visits).await;
}

/// What is asked while the body is under way, of whatever session that belongs to.
async fn streamed(mut conn: DatabaseConnection, State(pool): State<ReplicatedPool>) -> Body {
    let before = conn.session_token().await;
    count(&mut conn).await;
    Body::from_stream(stream::iter(0..3).then(move |_| {
        let (pool, before) = (pool.clone(), before.clone());
        async move {
            let mut conn = pool.get().await?;
            let line = format!("{} ", count(&mut conn).await);
            assert_eq!(conn.session_token().await, before);
            Ok::<_, BoxError>(line)
        }
    }))
}

/// A browser, as far as tokens go.
#[derive(Clone, Debug, Default)]
struct Client {
    token: Option<String>,
}

/// The tokens in the cookies, or the headers, of an answer.
fn tokens(headers: &HeaderMap, name: &str) -> Vec<String> {
    let cookies = headers.get_all(header::SET_COOKIE).into_iter();
    let cookies = cookies.filter_map(|cookie| cookie.to_str().unwrap().split_once('='));
    cookies
        .filter(|(other, _)| *other == name)
        .map(|(_, rest)| rest.split(';').next().unwrap().to_owned())
        .collect()
}

impl Client {
    fn with(token: impl ToString) -> Self {
        Self {
            token: Some(token.to_string()),
        }
    }

    fn request(&self, method: &str, path: &str) -> Request<Body> {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(token) = &self.token {
            request = request.header(header::COOKIE, format!("other=1; drs={token}"));
        }
        request.body(Body::empty()).unwrap()
    }

    async fn send(&mut self, router: &Router, method: &str, path: &str) -> Response {
        let request = self.request(method, path);
        let response = router.clone().oneshot(request).await.unwrap();
        assert!(!response.status().is_server_error(), "{response:?}");
        if let [token] = &tokens(response.headers(), "drs")[..] {
            self.token = Some(token.clone());
        }
        response
    }

    async fn visitors(&mut self, router: &Router) -> (i64, NodeKind) {
        let response = self.send(router, "GET", "/").await;
        body_of(response).await
    }

    fn token(&self) -> SessionToken {
        self.token.as_ref().unwrap().parse().unwrap()
    }
}

async fn body_of<T: serde::de::DeserializeOwned>(response: Response) -> T {
    let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    serde_json::from_slice(&body).unwrap()
}

#[tokio::test]
async fn a_client_reads_what_it_wrote_wherever_it_asks() {
    let database = database().await;
    // Two processes, and the clients meet now the one and now the other.
    let pools = [patient(&database).await, patient(&database).await];
    let routers = pools
        .each_ref()
        .map(|pool| router(pool).layer(SessionLayer::new(pool)));
    let mut client = Client::default();
    let mut served = Vec::new();
    for round in 0..30 {
        let [here, there] = [round % 2, (round + 1) % 2].map(|place| &routers[place]);
        let answer = client.send(here, "POST", &format!("/n{round}")).await;
        assert_eq!(answer.status(), StatusCode::SEE_OTHER);
        let (count, kind) = client.visitors(there).await;
        assert_eq!(count, i64::try_from(4 + round).unwrap());
        served.push(kind);
    }
    assert!(served.contains(&NodeKind::Replica), "{served:?}");
}

#[tokio::test]
async fn without_a_wait_a_client_still_reads_what_it_wrote() {
    let database = database().await;
    let hasty = waiting(&database, Duration::ZERO).await;
    let patient = patient(&database).await;
    let [hasty, patient] =
        [hasty, patient].map(|pool| router(&pool).layer(SessionLayer::new(&pool)));
    let open = |client: &Client| client.token().written().unwrap().timeline != 1;
    let mut client = Client::default();
    let mut written = 0;
    let mut unknown = 0;
    while unknown < 10 {
        let path = format!("/n{written}");
        client.send(&hasty, "POST", &path).await;
        written += 1;
        // The token may say only that there was a write: its place replaces it.
        unknown += i32::from(open(&client));
        let mut elsewhere = client.clone();
        elsewhere.send(&patient, "GET", "/plain").await;
        assert!(!open(&elsewhere));
        for client in [&mut client, &mut elsewhere] {
            assert_eq!(client.visitors(&hasty).await.0, 3 + written);
            assert_eq!(client.visitors(&patient).await.0, 3 + written);
        }
    }
}

#[tokio::test]
async fn an_answer_brings_a_token_only_if_that_says_more() {
    let pool = patient(&database().await).await;
    let router = router(&pool).layer(SessionLayer::new(&pool));
    let mut client = Client::default();
    let silent = |response: &Response| {
        assert!(tokens(response.headers(), "drs").is_empty());
        assert!(!response.headers().contains_key(header::CACHE_CONTROL));
    };
    for path in ["/plain", "/"] {
        silent(&client.send(&router, "GET", path).await);
    }
    let response = client.send(&router, "POST", "/Ann").await;
    let cookies: Vec<_> = response
        .headers()
        .get_all(header::SET_COOKIE)
        .iter()
        .collect();
    assert_eq!(cookies[0], "theirs=1");
    let attributes = "; HttpOnly; SameSite=Lax; Secure; Path=/; Max-Age=3600";
    let expected = format!("drs={}{attributes}", client.token.clone().unwrap());
    assert_eq!(cookies[1], &expected);
    assert_eq!(response.headers()[header::CACHE_CONTROL], "private");
    let first = client.token();
    for path in ["/plain", "/", "/streamed"] {
        silent(&client.send(&router, "GET", path).await);
    }
    client.send(&router, "POST", "/Ben").await;
    assert!(client.token().advances(&first));
}

#[tokio::test]
async fn clients_that_keep_tokens_themselves_send_all_they_have() {
    let database = database().await;
    let (here, there) = (patient(&database).await, patient(&database).await);
    let [here, there] = [here, there]
        .map(|pool| router(&pool).layer(SessionLayer::new(&pool).header(HEADER).unwrap()));
    let send = async |router: &Router, method: &str, path: &str, tokens: &[&str]| {
        let mut request = Request::builder().method(method).uri(path);
        for token in tokens {
            request = request.header(HEADER, *token);
        }
        let request = request.body(Body::empty()).unwrap();
        router.clone().oneshot(request).await.unwrap()
    };
    let token_of = |response: &Response| {
        assert_eq!(response.headers()[header::CACHE_CONTROL], "private");
        assert!(tokens(response.headers(), "drs").is_empty());
        response.headers()[HEADER].to_str().unwrap().to_owned()
    };
    for round in 0..5 {
        let paths = ["a", "b"].map(|name| format!("/{round}{name}"));
        let (one, other) = tokio::join!(
            send(&here, "POST", &paths[0], &[]),
            send(&here, "POST", &paths[1], &[]),
        );
        let (one, other) = (token_of(&one), token_of(&other));
        let list = format!("{other}, {one}");
        for tokens in [&[&*one, &other][..], &[&list], &[FOREIGN, &one, &other]] {
            let response = send(&there, "GET", "/", tokens).await;
            assert!(!response.headers().contains_key(HEADER));
            let (count, _): (i64, NodeKind) = body_of(response).await;
            assert_eq!(count, 5 + 2 * round);
        }
    }
    let invalid = SessionLayer::new(&pool().await).header("a b").unwrap_err();
    assert_eq!(invalid, InvalidCarrier::Header("a b".to_owned()));
}

#[tokio::test]
async fn queries_of_a_handler_that_run_at_once_are_of_one_session() {
    let database = database().await;
    let (here, there) = (patient(&database).await, patient(&database).await);
    let [here, there] = [here, there].map(|pool| router(&pool).layer(SessionLayer::new(&pool)));
    let mut client = Client::default();
    for round in 0..5 {
        let names: Vec<_> = (0..5).map(|name| format!("{round}-{name}")).collect();
        let path = format!("/all/{}", names.join(","));
        client.send(&here, "POST", &path).await;
        assert_eq!(client.visitors(&there).await.0, 3 + 5 * (round + 1));
    }
}

#[tokio::test]
async fn the_body_is_of_the_session_too() {
    let pool = patient(&database().await).await;
    let router = router(&pool).layer(SessionLayer::new(&pool));
    let mut client = Client::default();
    for round in 0..5 {
        client.send(&router, "POST", &format!("/n{round}")).await;
        let response = client.send(&router, "GET", "/streamed").await;
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        let expected = format!("{} ", 4 + round).repeat(3);
        assert_eq!(body, expected);
    }
}

#[tokio::test]
async fn a_client_that_goes_away_in_the_middle_of_a_write_harms_nobody() {
    let database = database().await;
    let consistency = ConsistencyConfig::default().wait(Duration::from_secs(30));
    let pool = builder(&database)
        .consistency(consistency)
        .max_size(2)
        .build()
        .await
        .unwrap();
    let kept = Arc::new(Mutex::new(None::<Session>));
    let keep = Arc::clone(&kept);
    let interrupted = async move |Extension(session): Extension<Session>,
                                  mut conn: DatabaseConnection| {
        *keep.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
        insert("cut short").execute(&mut conn).await.unwrap();
    };
    let router = router(&pool)
        .merge(
            Router::new()
                .route("/slow", post(interrupted))
                .with_state(pool.clone()),
        )
        .layer(SessionLayer::new(&pool));
    let mut client = Client::default();
    client.send(&router, "POST", "/Ann").await;

    let mut other = pool.get().await.unwrap();
    run(
        &mut other,
        "BEGIN; LOCK TABLE users IN SHARE ROW EXCLUSIVE MODE",
    )
    .await
    .unwrap();
    let request = router.clone().oneshot(client.request("POST", "/slow"));
    let waiting = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}' AND wait_event_type = 'Lock'"
    );
    let begun = eventually("it waits for the lock", || async {
        let sql = waiting.clone();
        let rows = blocking(move || cluster().primary().sql("postgres", &sql).unwrap()).await;
        rows[0][0].as_deref() == Some("1")
    });
    tokio::select! {
        _ = request => unreachable!("the table is locked"),
        () = begun => {}
    }
    // The client is gone, its request was dropped, and its write is on the server.
    let session = kept.lock().unwrap().take().unwrap();
    let mut conn = session.get().await.unwrap();
    assert_eq!(count(&mut conn).await, 4);
    assert_eq!(conn.last_route().unwrap().kind, NodeKind::Primary);
    drop(conn);
    run(&mut other, "COMMIT").await.unwrap();
    drop(other);

    assert!([4, 5].contains(&client.visitors(&router).await.0));
    for round in 0..5 {
        client.send(&router, "POST", &format!("/n{round}")).await;
        let (count, _) = client.visitors(&router).await;
        assert!([5 + round, 6 + round].contains(&count), "{count}");
    }
}

#[tokio::test]
async fn tokens_of_strangers_are_as_good_as_none() {
    let pool = patient(&database().await).await;
    let keys = |key: u8| TokenKeys::new([key; 32]).unwrap();
    let open = router(&pool).layer(SessionLayer::new(&pool));
    let sealed = router(&pool).layer(SessionLayer::new(&pool).keys(keys(1)));
    let mut client = Client::default();
    client.send(&open, "POST", "/Ann").await;
    let own = client.token();
    let long = "A".repeat(5000);
    let other_key = keys(2).seal(&own);
    let never = ["", "?", "Zm9v", &long, FOREIGN, &other_key];
    let unsealed = own.to_string();
    let cases = never.iter().map(|text| (&open, *text));
    let cases = cases.chain(never.iter().map(|text| (&sealed, *text)));
    for (round, (router, text)) in cases.chain([(&sealed, &*unsealed)]).enumerate() {
        let mut stranger = Client::with(text);
        let response = stranger.send(router, "GET", "/").await;
        assert_eq!(response.status(), StatusCode::OK);
        assert!(tokens(response.headers(), "drs").is_empty(), "{text}");
        // It is replaced as soon as there is something to say.
        stranger
            .send(router, "POST", &format!("/stranger{round}"))
            .await;
        assert_ne!(stranger.token.as_deref(), Some(text));
        let written = i64::try_from(5 + round).unwrap();
        assert_eq!(stranger.visitors(router).await.0, written, "{text}");
    }
    let mut client = Client::default();
    client.send(&sealed, "POST", "/sealed").await;
    let text = client.token.clone().unwrap();
    assert!(text.parse::<SessionToken>().is_err());
    assert!(keys(1).open(&text).unwrap().advances(&own));
}
