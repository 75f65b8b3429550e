//! What surrounds the layer: other layers, services that are no router, a pool that was closed.

use std::convert::Infallible;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{Request, Response, StatusCode, header};
use axum::routing::post;
use axum::{Json, Router};
use diesel_async::RunQueryDsl;
use diesel_replicated::config::ConsistencyConfig;
use diesel_replicated::web::{
    ConnectionRejection, DatabaseConnection, SessionCookie, SessionLayer,
};
use diesel_replicated::{Consistency, Error, ReplicatedPool, Session};
use futures_util::future::BoxFuture;
use tower::{Layer, Service, ServiceExt, service_fn};

use super::{Client, HEADER, body_of, consistent, patient, router, tokens};
use crate::support::{count, database, insert, pool};

#[tokio::test]
async fn layers_of_two_pools_keep_their_sessions_apart() {
    let databases = [database().await, database().await];
    let pools = [patient(&databases[0]).await, patient(&databases[1]).await];
    let [one, other] = pools.clone();
    let handler = async move || {
        let mut counts = Vec::new();
        for (pool, names) in [(&one, &["a", "b"][..]), (&other, &["c"])] {
            let mut conn = pool.get().await.unwrap();
            let session = conn.session_token().await;
            counts.push((count(&mut conn).await, session.is_empty()));
            for name in names {
                let name = format!("{name}{}", counts[0].0);
                insert(&name).execute(&mut conn).await.unwrap();
            }
        }
        Json(counts)
    };
    let [one, other] = &pools;
    let cookie = SessionCookie::named("other").unwrap().secure(false);
    let router = Router::new()
        .route("/", post(handler))
        .layer(SessionLayer::new(one))
        .layer(SessionLayer::new(other).cookie(cookie));
    let mut cookies = String::new();
    for round in 0..5 {
        let request = Request::post("/")
            .header(header::COOKIE, &cookies)
            .body(Body::empty())
            .unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let [of_one, of_other] = ["drs", "other"].map(|name| tokens(response.headers(), name));
        assert_eq!((of_one.len(), of_other.len()), (1, 1));
        cookies = format!("drs={}; other={}", of_one[0], of_other[0]);
        let counts: Vec<(i64, bool)> = body_of(response).await;
        let first = round == 0;
        assert_eq!(counts, [(3 + 2 * round, first), (3 + round, first)]);
    }
}

#[tokio::test]
async fn with_causal_reads_a_client_never_goes_back() {
    let database = database().await;
    let causal = ConsistencyConfig::from(Consistency::Causal).wait(Duration::from_secs(30));
    let pools = [
        consistent(&database, causal.clone()).await,
        consistent(&database, causal).await,
    ];
    let routers = pools
        .each_ref()
        .map(|pool| router(pool).layer(SessionLayer::new(pool)));
    let (mut writer, mut reader) = (Client::default(), Client::default());
    let mut seen = 3;
    for round in 0..20 {
        let [here, there] = [round % 2, (round + 1) % 2].map(|place| &routers[place]);
        writer.send(here, "POST", &format!("/n{round}")).await;
        // What others wrote may take its time to be seen; once it was, it stays.
        for router in [here, there] {
            let (now, _) = reader.visitors(router).await;
            assert!(now >= seen, "{now} after {seen}");
            seen = now;
        }
        assert!(reader.token().seen().is_some());
        assert!(reader.token().written().is_none());
    }
}

/// Fails in a way that cannot be sent to another thread.
type Failure = Rc<str>;

#[tokio::test]
async fn errors_of_a_service_pass_through() {
    let pool = pool().await;
    let fails =
        service_fn(async |_: Request<&'static str>| Err::<Response<()>, _>(Failure::from("no")));
    let service = SessionLayer::new(&pool).layer(fails);
    let error = service.oneshot(Request::new("body")).await.unwrap_err();
    assert_eq!(&*error, "no");
}

/// Must be asked whether it is ready before each call, as a service that limits its load.
#[derive(Default)]
struct Reserved {
    ready: bool,
}

impl Clone for Reserved {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Service<Request<ReplicatedPool>> for Reserved {
    type Response = Response<()>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<()>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<ReplicatedPool>) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "it was not asked");
        Box::pin(async move {
            let session = request.extensions().get::<Session>().unwrap();
            let mut conn = session.get().await.unwrap();
            insert(request.uri().path())
                .execute(&mut conn)
                .await
                .unwrap();
            // Of the same session, though nobody said so.
            let mut ambient = request.body().get().await.unwrap();
            let count = count(&mut ambient).await.to_string();
            let mut response = Response::new(());
            response
                .headers_mut()
                .insert("x-count", count.parse().unwrap());
            Ok(response)
        })
    }
}

#[tokio::test]
async fn the_service_that_is_ready_is_the_one_that_is_called() {
    let pool = patient(&database().await).await;
    let layer = SessionLayer::new(&pool).header(HEADER).unwrap();
    let mut service = layer.layer(Reserved::default());
    for round in 0..3 {
        let request = Request::get(format!("/{round}"))
            .body(pool.clone())
            .unwrap();
        let ready = ServiceExt::<Request<ReplicatedPool>>::ready(&mut service).await;
        let response = ready.unwrap().call(request).await.unwrap();
        assert!(response.headers().contains_key(HEADER));
        let count = response.headers()["x-count"].to_str().unwrap();
        assert_eq!(count, (4 + round).to_string());
    }
}

#[tokio::test]
async fn without_a_pool_there_is_no_connection() {
    let pool = pool().await;
    let told = async |conn: Result<DatabaseConnection, ConnectionRejection>| match conn {
        Ok(_) => "there is one",
        Err(rejection) => {
            assert!(matches!(rejection.into_inner(), Error::Closed));
            "there is none"
        }
    };
    let router = router(&pool)
        .merge(
            Router::new()
                .route("/told/it", post(told))
                .with_state(pool.clone()),
        )
        .layer(SessionLayer::new(&pool));
    let ask = async |method: &str, path: &str| {
        let request = Request::builder().method(method).uri(path);
        let request = request.body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    };
    let told = async || ask("POST", "/told/it").await.1;
    assert_eq!(told().await, "there is one");
    assert_eq!(ask("GET", "/").await.0, StatusCode::OK);
    assert_eq!(pool.close(Duration::from_secs(30)).await, 0);
    let (status, text) = ask("GET", "/").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(text, "no connection to the database: the pool is closed");
    assert_eq!(told().await, "there is none");
}
