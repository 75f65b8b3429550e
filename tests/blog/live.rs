//! What watches the nodes of the blog's cluster, and what breaks them.

use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::{Method, Request, StatusCode};
use diesel_replicated::Routing;
use diesel_replicated::status::NodeHealth;
use futures_util::StreamExt;
use serde_json::Value;
use tokio::time::timeout;
use tower::ServiceExt;

use super::Blog;

/// The expected status, and the path that is posted to.
const REFUSED: &str = "404 /status/nodes/nobody/kill
404 /status/nodes/replica-1/embrace
404 /status/traffic/embrace
404 /status/outages/embrace
409 /status/nodes/replica-1/thaw
409 /status/nodes/primary/pause
409 /status/nodes/primary/promote
409 /status/traffic/stop";

/// What comes over a stream of server-sent events.
struct Messages {
    body: BodyDataStream,
    text: String,
}

impl Messages {
    async fn of(blog: &Blog) -> Self {
        let request = Request::get("/status/events").body(Body::empty()).unwrap();
        let response = blog.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self {
            body: response.into_body().into_data_stream(),
            text: String::new(),
        }
    }

    /// The next one's name and data; nothing at the end of the stream.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some((message, rest)) = self.text.split_once("\n\n") {
                let line = |start| message.lines().find_map(|line| line.strip_prefix(start));
                let name = line("event: ").unwrap_or_default().to_owned();
                let data = serde_json::from_str(line("data: ").unwrap_or("null")).unwrap();
                self.text = rest.to_owned();
                return Some((name, data));
            }
            let chunk = timeout(Duration::from_secs(30), self.body.next()).await;
            let chunk = chunk.unwrap()?.unwrap();
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }
}

impl Blog {
    pub(crate) async fn own() -> Self {
        Self::start_with(true).await
    }

    /// As the page does it.
    pub(crate) async fn press(&self, path: &str) -> super::Answer {
        let request = Request::post(path).header("x-requested-with", "test");
        self.send(request.body(Body::empty()).unwrap()).await
    }

    pub(crate) async fn done(&self, path: &str) {
        let answer = self.press(path).await;
        assert_eq!(answer.status, StatusCode::NO_CONTENT, "{}", answer.text());
    }

    fn health(&self, name: &str) -> NodeHealth {
        self.pool.status().node(name).unwrap().health
    }

    pub(crate) async fn all_up(&self) {
        self.wait_for("primary with two replicas", async || {
            let status = self.pool.status();
            let up = |node: &&_| -> bool {
                let node: &diesel_replicated::status::NodeStatus = node;
                let follows = node.upstream == status.primary;
                node.health == NodeHealth::Up && (node.kind.is_some() && follows)
            };
            status.takes_writes && status.nodes.iter().filter(up).count() == 2
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_tells_what_is_possible() {
    let blog = Blog::start().await;
    let answer = blog.get("/healthz").await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.json()["writes"], true);

    let cluster = std::sync::Arc::clone(&blog.cluster);
    let kill = tokio::task::spawn_blocking(move || cluster.primary().kill().unwrap());
    kill.await.unwrap();
    blog.wait_for("loss of the primary", async || {
        blog.get("/healthz").await.status == StatusCode::SERVICE_UNAVAILABLE
    })
    .await;
    let answer = blog.get("/healthz").await;
    assert_eq!(answer.json()["writes"], false);
    assert_eq!(answer.json()["reads"], true);
    assert_eq!(answer.json()["nodes"].as_array().unwrap().len(), 3);
    assert_eq!(blog.get("/healthz?reads").await.status, StatusCode::OK);

    blog.pool.close(Duration::from_secs(5)).await;
    let answer = blog.get("/healthz?reads").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_of_others_are_only_looked_at() {
    let blog = Blog::start().await;
    blog.get("/api/posts").await;
    let status = blog.get("/status").await.json();
    assert_eq!(status["pool"]["nodes"].as_array().unwrap().len(), 3);
    assert_eq!(
        (&status["demo"], &status["switch"]),
        (&Value::Null, &Value::Null)
    );
    let served = status["served"].as_object().unwrap();
    let reads = served
        .values()
        .map(|counts| counts["reads"].as_u64().unwrap());
    assert!(reads.sum::<u64>() > 0, "{status}");
    for path in [
        "/status/nodes/replica-1/kill",
        "/status/traffic/start",
        "/status/outages/frozen-replica",
        "/status/routing/observe",
    ] {
        assert_eq!(blog.press(path).await.status, StatusCode::NOT_FOUND);
    }
    for file in ["live", "live/live.js", "live/live.css"] {
        let answer = blog.get(&format!("/status/{file}")).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert!(answer.headers.contains_key("content-security-policy"));
    }
    let answer = blog.get("/status/live/nothing.js").await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert!(blog.get("/").await.text().contains("/status/live"));
}

// Whoever reaches the page could take all reads from the replicas.
#[tokio::test(flavor = "multi_thread")]
async fn the_routing_of_others_is_set_by_whoever_has_the_key() {
    for wrong in ["", "too short", "a key with spaces in it"] {
        assert!(super::app::Key::new(wrong).is_err(), "{wrong}");
    }
    let key = "the-operators-own-key".to_owned();
    let blog = Blog::start_for(false, Some(&key)).await;
    assert_eq!(blog.get("/status").await.json()["switch"], "key");
    let mode = || blog.pool.status().routing.mode;
    let set = async |name: &str, value: String| {
        let request = Request::post("/status/routing/observe").header(name, value);
        blog.send(request.body(Body::empty()).unwrap()).await
    };
    let almost = key.replace('k', "q");
    for (name, value) in [
        ("x-requested-with", "live".to_owned()),
        ("authorization", key.clone()),
        ("authorization", "Bearer ".to_owned()),
        ("authorization", format!("Bearer {almost}")),
        ("authorization", format!("Bearer {key}-")),
        ("authorization", format!("Bearer {}", &key[1..])),
    ] {
        let answer = set(name, value).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
        assert!(!answer.text().contains(&key));
    }
    assert_eq!(mode(), Routing::default());
    let answer = set("authorization", format!("Bearer {key}")).await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    assert_eq!(mode(), Routing::Observe);
    // The key opens nothing else.
    let kill = Request::post("/status/nodes/replica-1/kill")
        .header("authorization", format!("Bearer {key}"))
        .header("x-requested-with", "live");
    let answer = blog.send(kill.body(Body::empty()).unwrap()).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused() {
    let blog = Blog::own().await;
    for row in REFUSED.lines() {
        let (status, path) = row.split_once(' ').unwrap();
        let answer = blog.press(path).await;
        assert_eq!(answer.status.as_str(), status, "{row}");
        assert!(answer.json()["error"].is_string(), "{row}");
    }
    for (name, value) in [("x-test", ""), ("sec-fetch-site", "cross-site")] {
        let request = Request::builder()
            .method(Method::POST)
            .uri("/status/nodes/primary/kill")
            .header(name, value)
            .body(Body::empty());
        let answer = blog.send(request.unwrap()).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN);
    }
    assert!(blog.cluster.nodes().all(|node| node.is_running()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_tells_what_happens_and_ends_with_the_application() {
    let blog = Blog::own().await;
    let mut messages = Messages::of(&blog).await;
    let (name, snapshot) = messages.next().await.unwrap();
    assert_eq!(name, "snapshot");
    assert_eq!(snapshot["pool"]["primary"], "primary");
    assert_eq!(snapshot["demo"]["servers"]["replica-1"]["running"], true);

    blog.done("/status/nodes/replica-1/kill").await;
    loop {
        let (name, event) = messages.next().await.unwrap();
        if name == "pool" && event["node"] == "replica-1" && event["to"] == "down" {
            break;
        }
    }
    loop {
        let (name, snapshot) = messages.next().await.unwrap();
        if name == "snapshot" && snapshot["pool"]["nodes"][1]["health"] == "down" {
            assert_eq!(snapshot["demo"]["servers"]["replica-1"]["running"], false);
            break;
        }
    }
    blog.stop.send_replace(true);
    while messages.next().await.is_some() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_promoted_and_one_primary_is_left() {
    let blog = Blog::own().await;
    blog.done("/status/traffic/start").await;
    assert_eq!(
        blog.press("/status/traffic/start").await.status,
        StatusCode::CONFLICT
    );
    // One that is frozen meanwhile, and the old primary, come back as copies of the new one.
    blog.done("/status/nodes/replica-2/freeze").await;
    blog.done("/status/nodes/replica-1/promote").await;
    blog.wait_for("new primary", async || {
        let status = blog.get("/status").await.json();
        status["pool"]["primary"] == "replica-1"
            && status["served"]["replica-1"]["writes"].as_u64() > Some(0)
            && status["demo"]["servers"]["primary"]["running"] == false
    })
    .await;
    blog.done("/status/nodes/replica-2/thaw").await;
    blog.done("/status/nodes/primary/restart").await;
    blog.all_up().await;
    blog.done("/status/nodes/primary/pause").await;
    blog.done("/status/nodes/primary/resume").await;

    // And back, while the others answer.
    blog.done("/status/nodes/primary/promote").await;
    blog.done("/status/nodes/replica-1/restart").await;
    blog.all_up().await;
    assert_eq!(blog.pool.status().primary.as_deref(), Some("primary"));
    blog.done("/status/traffic/stop").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_primary_to_copy_has_to_wait() {
    let blog = Blog::own().await;
    blog.done("/status/nodes/replica-1/promote").await;
    blog.done("/status/nodes/replica-1/kill").await;
    let answer = blog.press("/status/nodes/primary/restart").await;
    assert_eq!(answer.status, StatusCode::CONFLICT);
    assert!(answer.text().contains("replica-1"), "{}", answer.text());
    blog.done("/status/nodes/replica-1/restart").await;
    blog.done("/status/nodes/primary/restart").await;
    blog.all_up().await;
    assert_eq!(blog.health("primary"), NodeHealth::Up);
}
