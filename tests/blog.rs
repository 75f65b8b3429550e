//! The blog of the examples, driven through its router on a cluster of its own.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

#[path = "../examples/blog/app/mod.rs"]
mod app;
#[path = "blog/browser.rs"]
mod browser;
#[path = "blog/groups.rs"]
mod groups;
#[path = "blog/live.rs"]
mod live;
#[path = "blog/outages.rs"]
mod outages;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode, header, request};
use diesel_replicated::ReplicatedPool;
use diesel_replicated::status::NodeKind;
use diesel_replicated::testing::LocalCluster;
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::ServiceExt;

/// The expected status, and the request.
const WRONG: &str = r#"400 POST /api/posts {"author_id": 1,
422 POST /api/posts {"author_id": 1}
422 POST /api/posts {"author_id": 1, "title": " "}
422 POST /api/posts {"author_id": 1, "title": "a\u0000"}
422 POST /api/posts {"author_id": 1, "title": "a", "status": "published"}
422 POST /api/posts {"author_id": 99, "title": "a"}
404 POST /api/posts/99/comments {"author_id": 1, "body": "a"}
422 POST /api/posts/1/comments {"author_id": 99, "body": "a"}
404 PATCH /api/posts/99 {"status": "published"}
422 PATCH /api/posts/1 {"status": "gone"}
404 GET /api/posts/99
404 GET /api/posts/abc
400 GET /api/posts?status=gone
404 GET /api/nothing
405 DELETE /api/posts"#;

struct Blog {
    router: Router,
    pool: ReplicatedPool,
    stop: watch::Sender<bool>,
    cluster: Arc<LocalCluster>,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Blog {
    async fn start() -> Self {
        Self::start_with(false).await
    }

    /// `own`: it may do to the servers what it likes.
    async fn start_with(own: bool) -> Self {
        Self::start_for(own, None).await
    }

    /// `key`: who has it may move the switch of the routing.
    async fn start_for(own: bool, key: Option<&str>) -> Self {
        let cluster = tokio::task::spawn_blocking(|| {
            let cluster = LocalCluster::start().unwrap();
            cluster.create_database("blog").unwrap();
            cluster
        });
        let cluster = Arc::new(cluster.await.unwrap());
        app::record();
        let pool = app::pool_on(&cluster, "blog").await.unwrap();
        app::prepare(&pool).await.unwrap();
        let stop = watch::Sender::new(false);
        let own = own.then_some((&cluster, "blog"));
        let app = app::App::new(pool.clone(), own, stop.subscribe());
        let app = app.key(key.map(|key| app::Key::new(key).unwrap()));
        let blog = Self {
            router: app::router(app),
            pool,
            stop,
            cluster,
        };
        // What was prepared on the primary takes its time to reach the replicas.
        for replica in blog.names(NodeKind::Replica) {
            blog.wait_for(&format!("the seeds on {replica}"), async || {
                let answer = blog.get("/api/users").await;
                answer.served_by() == [replica.clone()] && answer.json() != json!([])
            })
            .await;
        }
        blog
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        Answer {
            status: head.status,
            headers: head.headers,
            body: to_bytes(body, usize::MAX).await.unwrap(),
        }
    }

    async fn get(&self, path: &str) -> Answer {
        self.get_with(path, "").await
    }

    async fn get_with(&self, path: &str, cookie: &str) -> Answer {
        let request = Request::get(path).header(header::COOKIE, cookie);
        self.send(request.body(Body::empty()).unwrap()).await
    }

    async fn json(&self, method: &str, path: &str, body: impl Into<Body>) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json")
            .body(body.into())
            .unwrap();
        self.send(request).await
    }

    async fn form(&self, path: &str, body: &str, cookie: &str) -> Answer {
        let request = Request::post(path)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(header::COOKIE, cookie)
            .body(Body::from(body.to_owned()))
            .unwrap();
        self.send(request).await
    }

    fn names(&self, kind: NodeKind) -> BTreeSet<String> {
        let nodes = self.pool.status().nodes;
        nodes
            .into_iter()
            .filter(|node| node.kind == Some(kind))
            .map(|node| node.name)
            .collect()
    }

    async fn wait_for(&self, what: &str, holds: impl AsyncFn() -> bool) {
        let start = Instant::now();
        while !holds().await {
            assert!(start.elapsed() < Duration::from_secs(30), "no {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The nodes in `x-served-by`, without their reasons.
    fn served_by(&self) -> Vec<String> {
        let header = self.headers.get("x-served-by");
        let header = header.map_or("", |value| value.to_str().unwrap());
        header
            .split(", ")
            .filter_map(|served| served.split_once(" ("))
            .map(|(node, _)| node.to_owned())
            .collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_are_spread_and_writes_go_to_the_primary() {
    let blog = Blog::start().await;
    let primary = blog.names(NodeKind::Primary);
    let replicas = blog.names(NodeKind::Replica);
    assert_eq!((primary.len(), replicas.len()), (1, 2));

    let mut readers = BTreeSet::new();
    for _ in 0..100 {
        let answer = blog.get("/api/posts").await;
        assert_eq!(answer.status, StatusCode::OK);
        readers.extend(answer.served_by());
    }
    assert_eq!(readers, replicas);

    let new = json!({ "author_id": 1, "title": "Hello", "body": "<b>", "status": "draft" });
    let answer = blog.json("POST", "/api/posts", new.to_string()).await;
    assert_eq!(answer.status, StatusCode::CREATED);
    assert_eq!(answer.json()["title"], "Hello");
    assert!(primary.contains(&answer.served_by()[0]));
    let id = answer.json()["id"].clone();

    let comment = json!({ "author_id": 2, "body": "Hi" }).to_string();
    let answer = blog
        .json("POST", &format!("/api/posts/{id}/comments"), comment)
        .await;
    assert_eq!(answer.status, StatusCode::CREATED);
    let publish = json!({ "status": "published" }).to_string();
    let answer = blog
        .json("PATCH", &format!("/api/posts/{id}"), publish)
        .await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.json()["status"], "published");

    blog.wait_for("published post on a replica", async || {
        let answer = blog.get(&format!("/api/posts/{id}")).await;
        answer.json()["post"]["status"] == "published"
            && answer.json()["comments"][0]["body"] == "Hi"
            && answer
                .served_by()
                .iter()
                .all(|node| replicas.contains(node))
    })
    .await;
    let served = blog.get("/api/served").await.json();
    assert!(
        served["served"]["nodes"].as_object().unwrap().len() == 3,
        "{served}"
    );
    assert_eq!(blog.pool.close(Duration::from_secs(5)).await, 0);
    let answer = blog.get("/api/posts").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_told() {
    let blog = Blog::start().await;
    for row in WRONG.lines() {
        let mut parts = row.splitn(4, ' ');
        let [status, method, path] = [(); 3].map(|()| parts.next().unwrap());
        let body = parts.next().unwrap_or_default();
        let answer = blog.json(method, path, body).await;
        assert_eq!(answer.status.as_str(), status, "{row}");
        assert!(answer.json()["error"].is_string(), "{row}");
    }
    let not_text = b"{\"author_id\": 1, \"title\": \"\xff\"}".as_slice();
    let answer = blog.json("POST", "/api/posts", not_text).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    let answer = blog.json("POST", "/api/posts", vec![b' '; 200_000]).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_sees_what_they_wrote() {
    let blog = Blog::start().await;
    let replicas = blog.names(NodeKind::Replica);
    let mut cookie = String::new();
    for round in 0..20 {
        let body = format!("author_id=1&title=%3Cscript%3E{round}&body=%22%3E&status=published");
        let answer = blog.form("/posts", &body, &cookie).await;
        assert_eq!(answer.status, StatusCode::SEE_OTHER);
        let set = answer.headers[header::SET_COOKIE].to_str().unwrap();
        assert!(!set.contains("Secure"), "{set}");
        cookie = set.split(';').next().unwrap().to_owned();
        let page = answer.headers[header::LOCATION].to_str().unwrap();
        let title = format!("&lt;script&gt;{round}");
        // It is there at once, and at the latest when the replicas have it, they serve it.
        blog.wait_for("replica that has the post", async || {
            let answer = blog.get_with(page, &cookie).await;
            assert_eq!(answer.status, StatusCode::OK);
            assert!(answer.text().contains(&title));
            assert!(!answer.text().contains("<script"));
            assert!(answer.text().contains("all that you wrote"));
            let served_by = answer.served_by();
            !served_by.is_empty() && served_by.iter().all(|node| replicas.contains(node))
        })
        .await;
        let home = blog.get_with("/", &cookie).await;
        assert!(home.text().contains(&title));
    }

    let answer = blog
        .form("/posts", "author_id=1&title=+&body=kept&status=draft", "")
        .await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(answer.text().contains("Title must not be empty"));
    assert!(answer.text().contains("kept"));
    assert_eq!(blog.get("/posts/99").await.status, StatusCode::NOT_FOUND);
}

// Statements are counted, and what would move while the blog observes.
#[tokio::test(flavor = "multi_thread")]
async fn prometheus_reads_what_the_blog_does() {
    let blog = Blog::start_with(true).await;
    let count = async |series: &str| -> f64 {
        let answer = blog.get("/metrics").await;
        let page = answer.text();
        let lines = page.lines().filter(|line| line.starts_with(series));
        lines
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum()
    };
    let moved = count("diesel_replicated_statements{").await;
    let held_back = count("diesel_replicated_held_back{").await;
    assert_eq!(blog.get("/").await.status, StatusCode::OK);
    assert!(count("diesel_replicated_statements{").await > moved);
    let observe = Request::post("/status/routing/observe")
        .header("x-requested-with", "1")
        .header("sec-fetch-site", "same-origin");
    let answer = blog.send(observe.body(Body::empty()).unwrap()).await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    let answer = blog.get("/api/users").await;
    assert_eq!(answer.served_by(), ["primary"]);
    assert!(count("diesel_replicated_held_back{").await > held_back);
}
