//! Nodes by Patroni's REST API. What stands for the API here answers as Patroni does, or worse; Patroni itself is in
//! `tests/orchestrators`.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use diesel_async::RunQueryDsl;
use diesel_replicated::config::HealthConfig;
use diesel_replicated::discovery::{Discovery, Patroni};
use diesel_replicated::status::Degradation;
use diesel_replicated::testing::{Authority, Certificate, LocalCluster};
use diesel_replicated::{Consistency, ReplicatedPool, rustls};
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{count, eventually, insert, on, own_cluster, takes_a_write};

const URL: &str = "postgres://postgres@/app";

/// What an API answers now. `None`: nothing at all, for ever.
type Answer = Arc<Mutex<Option<(StatusCode, String)>>>;

struct Api {
    answer: Answer,
    url: String,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Api {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Api {
    async fn new() -> Self {
        let answer = Answer::default();
        let router = axum::Router::new()
            .route("/cluster", axum::routing::get(answer_now))
            .with_state(Arc::clone(&answer));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serving = tokio::spawn(async move {
            axum::serve(listener, router).await.unwrap();
        });
        Self {
            answer,
            url,
            serving,
        }
    }

    fn says(&self, members: &[Value]) {
        self.says_all(&json!({ "scope": "ops", "members": members }));
    }

    fn says_all(&self, answer: &Value) {
        self.is(StatusCode::OK, &answer.to_string());
    }

    fn is(&self, status: StatusCode, text: &str) {
        *self.answer.lock() = Some((status, text.to_owned()));
    }

    fn hangs(&self) {
        *self.answer.lock() = None;
    }
}

async fn answer_now(State(answer): State<Answer>, headers: HeaderMap) -> Response {
    let now = answer.lock().clone();
    match now {
        Some((StatusCode::UNAUTHORIZED, text)) if headers.contains_key("authorization") => {
            // `patroni:hunter2`
            assert_eq!(headers["authorization"], "Basic cGF0cm9uaTpodW50ZXIy");
            (StatusCode::OK, text).into_response()
        }
        Some(now) => now.into_response(),
        None => std::future::pending().await,
    }
}

fn member(local: &LocalCluster, name: &str) -> Value {
    json!({
        "name": name,
        "host": "127.0.0.1",
        "port": local.node(name).unwrap().port(),
        "role": if name == "primary" { "leader" } else { "replica" },
        "state": "running",
    })
}

async fn pool(source: Patroni) -> ReplicatedPool {
    let quick = HealthConfig::default().interval(Duration::from_millis(200));
    let builder = ReplicatedPool::builder().health(quick).discovery(source);
    builder
        .failover_wait(Duration::from_secs(1))
        .build()
        .await
        .unwrap()
}

fn often(source: Patroni) -> Patroni {
    source.interval(Duration::from_millis(200))
}

fn names(pool: &ReplicatedPool) -> Vec<String> {
    let nodes = pool.status().nodes;
    nodes.into_iter().map(|node| node.name).collect()
}

async fn told(pool: &ReplicatedPool, what: &str) {
    eventually(&format!("it is told: {what}"), async || {
        let degraded = pool.status().degraded;
        let mut causes = degraded
            .iter()
            .filter(|d| d.reason == Degradation::Discovery);
        causes.any(|cause| cause.detail.contains(what) && !cause.detail.contains("hunter2"))
    })
    .await;
}

async fn read_on(pool: &ReplicatedPool) -> String {
    let mut conn = pool.get().await.unwrap();
    conn.set_consistency(Consistency::Eventual);
    count(&mut conn).await;
    conn.last_route().unwrap().node
}

async fn serves(pool: &ReplicatedPool, name: &str) {
    eventually(&format!("{name} serves"), async || {
        read_on(pool).await == name
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_tagged_noloadbalance_is_never_read_while_it_is_a_replica() {
    let local = own_cluster().await;
    let api = Api::new().await;
    let tagged = |tags: Value| {
        let mut second = member(&local, "replica-2");
        second["tags"] = tags;
        [
            member(&local, "primary"),
            member(&local, "replica-1"),
            second,
        ]
    };
    api.says(&tagged(json!({ "noloadbalance": true, "zone": "b" })));
    let pool = pool(often(Patroni::new([&api.url], URL))).await;
    eventually("all are up", async || crate::support::all_up(&pool)).await;
    for _ in 0..30 {
        assert_eq!(read_on(&pool).await, "replica-1");
    }
    // Not even when no other replica is there.
    pool.drain_replica("replica-1").await.unwrap();
    assert_eq!(read_on(&pool).await, "primary");
    let mut conn = pool.get().await.unwrap();
    let refused = diesel::sql_query("SELECT 1")
        .execute(&mut conn.replica())
        .await;
    assert!(refused.unwrap_err().to_string().contains("replica"));
    drop(conn);
    // Reads are no fallback then, and the primary is theirs without a limit.
    for _ in 0..20 {
        assert_eq!(read_on(&pool).await, "primary");
    }
    api.says(&tagged(json!({ "noloadbalance": false, "zone": "b" })));
    serves(&pool, "replica-2").await;
    api.says(&tagged(json!({ "noloadbalance": "yes" })));
    serves(&pool, "primary").await;
    // It may become the primary.
    on(&local, |local| {
        local.wait_caught_up().unwrap();
        local.primary().kill().unwrap();
        local.replicas()[1].promote().unwrap();
    })
    .await;
    eventually("it takes writes", async || {
        let mut conn = pool.get().await.unwrap();
        let written = insert(&format!("{:?}", std::time::Instant::now()))
            .execute(&mut conn)
            .await;
        written.is_ok() && conn.last_route().unwrap().node == "replica-2"
    })
    .await;
}

// patroni#1127: an API that hangs, at two clusters at once. patroni#626, 1379: the store of Patroni is away. patroni#2713: members
// without an address. A gateway that answers for it. Another cluster at the same address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_that_answers_badly_or_not_at_all_changes_nothing() {
    let local = own_cluster().await;
    let api = Api::new().await;
    let members = || vec![member(&local, "primary"), member(&local, "replica-1")];
    api.says(&members());
    let source = often(Patroni::new([&api.url], URL));
    assert!(!format!("{source:?}").contains("hunter2"));
    let pool = pool(source.basic_auth("patroni", "hunter2")).await;
    assert_eq!(names(&pool), ["primary", "replica-1"]);
    api.is(StatusCode::SERVICE_UNAVAILABLE, "");
    told(&pool, "503").await;
    api.is(StatusCode::OK, "<html>Bad gateway</html>");
    told(&pool, "not Patroni's").await;
    api.is(StatusCode::OK, &" ".repeat(2 << 20));
    told(&pool, "limit").await;
    api.says(&[]);
    told(&pool, "no members").await;
    api.says(&[json!({ "name": "n7", "role": "replica", "state": "creating replica" })]);
    told(&pool, "of no member where it is").await;
    let another = json!({ "scope": "other", "members": [member(&local, "replica-2")] });
    api.says_all(&another);
    told(&pool, "of the cluster `other`, not of `ops`").await;
    api.hangs();
    told(&pool, "no answer within 3s").await;
    assert_eq!(names(&pool), ["primary", "replica-1"]);
    let mut conn = pool.get().await.unwrap();
    insert("Hedy").execute(&mut conn).await.unwrap();
    // Members that tell no address any more stay where they were.
    let mut mute = members();
    mute[1]["host"] = Value::Null;
    mute.push(member(&local, "replica-2"));
    api.says(&mute);
    serves(&pool, "replica-2").await;
    assert_eq!(names(&pool).len(), 3);
    // And a password that is asked for.
    let body = json!({ "scope": "ops", "members": members() }).to_string();
    api.is(StatusCode::UNAUTHORIZED, &body);
    // Who is not listed any more is not gone at once: a store that was away knows nobody at first.
    crate::support::always("it stays", Duration::from_secs(1), async || {
        names(&pool).len() == 3
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_not_listed_any_more_leaves_after_a_while() {
    let local = own_cluster().await;
    let api = Api::new().await;
    let both = [member(&local, "primary"), member(&local, "replica-1")];
    api.says(&both);
    let briefly = Duration::from_millis(600);
    let pool = pool(often(Patroni::new([&api.url], URL)).forget_after(briefly)).await;
    api.says(&both[..1]);
    eventually("it leaves", async || names(&pool) == ["primary"]).await;
    api.says(&both);
    serves(&pool, "replica-1").await;
}

// go-choria#1167: only what was given at the start was asked. patroni#2263: the API of one node is away, its server lives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_members_own_addresses_are_asked_when_those_that_were_given_are_gone() {
    let local = own_cluster().await;
    let (given, second) = (Api::new().await, Api::new().await);
    let told_by = |api: &Api, name: &str| {
        let mut member = member(&local, name);
        member["api_url"] = format!("{}/patroni", api.url).into();
        member
    };
    let first = told_by(&second, "primary");
    given.says(std::slice::from_ref(&first));
    second.hangs();
    // One that nobody listens at, one that hangs, and the good one.
    let source = often(Patroni::new(
        ["http://127.0.0.1:1", &second.url, &given.url],
        URL,
    ));
    let pool = pool(source).await;
    assert_eq!(names(&pool), ["primary"]);
    second.says(&[first, told_by(&second, "replica-1")]);
    drop(given);
    serves(&pool, "replica-1").await;
}

/// An API over TLS, which wants a certificate of its clients. It always says the same.
async fn encrypted_api(authority: &Authority, answer: String) -> String {
    let roots = Arc::new(trusting(authority));
    let clients = rustls::server::WebPkiClientVerifier::builder(roots);
    let (chain, key) = in_rustls(&authority.server().unwrap());
    let config = rustls::ServerConfig::builder()
        .with_client_cert_verifier(clients.build().unwrap())
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let (acceptor, answer) = (acceptor.clone(), answer.clone());
            tokio::spawn(async move {
                let mut stream = acceptor.accept(socket).await?;
                let mut request = [0; 1024];
                let length = stream.read(&mut request).await?;
                assert!(request[..length].starts_with(b"GET /cluster HTTP/1.1\r\n"));
                let length = answer.len();
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{answer}");
                stream.write_all(head.as_bytes()).await?;
                stream.shutdown().await
            });
        }
    });
    format!("https://localhost:{port}")
}

fn trusting(authority: &Authority) -> rustls::RootCertStore {
    let mut roots = rustls::RootCertStore::empty();
    let pem = authority.pem();
    roots
        .add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap())
        .unwrap();
    roots
}

fn in_rustls(certificate: &Certificate) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let folder = tempfile::tempdir().unwrap();
    let (chain, key) = certificate.write(folder.path(), "api").unwrap();
    let chain = CertificateDer::pem_file_iter(chain).unwrap();
    (
        chain.map(Result::unwrap).collect(),
        PrivateKeyDer::from_pem_file(key).unwrap(),
    )
}

// Patroni's `verify_client: required`, and an authority of one's own. An address in plain text that a member tells is not asked
// if all that were given are encrypted: the password would go there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_is_asked_over_tls_and_nowhere_else_then() {
    let local = own_cluster().await;
    let authority = Authority::new().unwrap();
    let plain = Api::new().await;
    plain.says(&[member(&local, "primary"), member(&local, "replica-1")]);
    let mut first = member(&local, "primary");
    first["api_url"] = format!("{}/patroni", plain.url).into();
    let answer = json!({ "members": [first] }).to_string();
    let url = encrypted_api(&authority, answer).await;
    let refused = async |source: Patroni| {
        let built = ReplicatedPool::builder().discovery(source).build().await;
        built.unwrap_err().to_string()
    };
    let source = || often(Patroni::new([&url], URL).basic_auth("patroni", "hunter2"));
    // The system knows nothing of this authority.
    let unknown = refused(source()).await;
    assert!(unknown.contains("certificate"), "{unknown}");
    let config = |trusted: &Authority| {
        rustls::ClientConfig::builder().with_root_certificates(trusting(trusted))
    };
    let foreign = config(&Authority::new().unwrap()).with_no_client_auth();
    let foreign = refused(source().tls(foreign)).await;
    assert!(foreign.contains("certificate"), "{foreign}");
    let nobody = refused(source().tls(config(&authority).with_no_client_auth())).await;
    assert!(nobody.to_lowercase().contains("certificate"), "{nobody}");
    let (chain, key) = in_rustls(&authority.client("app").unwrap());
    let own = config(&authority)
        .with_client_auth_cert(chain, key)
        .unwrap();
    let pool = pool(source().tls(own)).await;
    assert_eq!(names(&pool), ["primary"]);
    // The wrong scheme, and the wrong port.
    let wrong = async |url: String| refused(Patroni::new([url], URL)).await;
    let encrypted = wrong(plain.url.replace("http:", "https:")).await;
    assert!(
        encrypted.contains("does it speak `http://`?"),
        "{encrypted}"
    );
    for address in [
        url.replace("https:", "http:"),
        format!("http://127.0.0.1:{}", local.primary().port()),
    ] {
        let unencrypted = wrong(address).await;
        assert!(unencrypted.contains("8008 by default"), "{unencrypted}");
    }
    // The other one would have told of a replica, and would have got the password.
    plain.is(StatusCode::UNAUTHORIZED, "{}");
    crate::support::always("it is not asked", Duration::from_secs(1), async || {
        names(&pool) == ["primary"]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_without_a_primary_asks_at_once() {
    let local = own_cluster().await;
    let api = Api::new().await;
    api.says(&[member(&local, "primary"), member(&local, "replica-1")]);
    let hourly = Duration::from_secs(3600);
    let pool = pool(Patroni::new([&api.url], URL).interval(hourly)).await;
    // The next primary is one that the pool has never heard of.
    on(&local, |local| {
        local.wait_caught_up().unwrap();
        local.primary().kill().unwrap();
        local.replicas()[1].promote().unwrap();
    })
    .await;
    api.says(&[member(&local, "replica-1"), member(&local, "replica-2")]);
    eventually("the next one takes writes", async || {
        takes_a_write(&pool).await
    })
    .await;
    assert_eq!(pool.status().primary.as_deref(), Some("replica-2"));
}

// What is in the wrong place may be a password, and what somebody else writes may look like a line of a log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_api_says_is_shown_in_one_line_and_without_its_secrets() {
    let local = own_cluster().await;
    let (api, other) = (Api::new().await, Api::new().await);
    let secret = api.url.replace("//", "//patroni:hunter2@");
    let mut members = [member(&local, "primary"), member(&local, "replica-1")];
    members[0]["api_url"] = format!("{secret}/patroni").into();
    members[1]["api_url"] = format!("{}/hunter2?token=hunter2", other.url).into();
    api.says(&members);
    other.is(StatusCode::BAD_GATEWAY, "hunter2");
    let pool = pool(often(Patroni::new([format!("{}/", api.url)], URL))).await;
    api.is(StatusCode::SERVICE_UNAVAILABLE, "");
    let both = format!(
        "{}: it answers 503 Service Unavailable; {}: it answers 502",
        api.url, other.url
    );
    told(&pool, &both).await;
    let with = |field: &str, value: Value| {
        let mut members = members.clone();
        members[1][field] = value;
        json!({ "scope": "ops", "members": members })
    };
    let long = "A".repeat(900_000);
    for (answer, what) in [
        (
            with("port", "hunter2".into()),
            "the `port` of member 2 (`replica-1`)",
        ),
        (
            with("tags", "password=hunter2".into()),
            "the `tags` of member 2 (`replica-1`)",
        ),
        (
            with("port", long.clone().into()),
            "the `port` of member 2 (`replica-1`)",
        ),
        (
            with("name", "x\nWARN forged".into()),
            "the `name` of member 2",
        ),
        (with("name", long.clone().into()), "the `name` of member 2"),
        (
            with("name", "primary".into()),
            "two members named `primary`",
        ),
        (
            json!({ "scope": "x\nWARN forged", "members": members }),
            r"of the cluster `x\nWARN forged`",
        ),
        (
            json!({ "scope": long, "members": members }),
            "of the cluster `AAA",
        ),
        (json!({ "members": "hunter2" }), "not Patroni's"),
    ] {
        api.says_all(&answer);
        told(&pool, what).await;
        for cause in pool.status().degraded {
            assert!(cause.detail.len() < 2000, "{}", cause.detail.len());
            assert!(!cause.detail.contains(['\n', '\r']), "{}", cause.detail);
        }
    }
    assert_eq!(names(&pool), ["primary", "replica-1"]);
    // Nonsense that is none: it is clear what is meant.
    let mut members = [member(&local, "primary"), member(&local, "replica-2")];
    members[0]["tags"] = Value::Null;
    members[1]["port"] = members[1]["port"].to_string().into();
    api.says(&members);
    serves(&pool, "replica-2").await;
}

#[tokio::test]
async fn an_answer_that_is_refused_teaches_nothing() {
    let (api, nobody) = (Api::new().await, Api::new().await);
    nobody.says(&[json!({ "name": "n1", "host": "nobody" })]);
    let source = Patroni::new([&api.url], URL);
    let listed =
        |name: String, host: &str| json!({ "name": name, "host": host, "api_url": nobody.url });
    let many = (0..65).map(|at| listed(format!("n{at}"), "h")).collect();
    let twice = vec![listed("n1".to_owned(), "a"), listed("n1".to_owned(), "b")];
    let nowhere = vec![listed("n1".to_owned(), "a b")];
    for (members, why) in [
        (many, "65 members"),
        (twice, "two members"),
        (nowhere, "`host`"),
    ] {
        let members: Vec<Value> = members;
        api.says_all(&json!({ "scope": "nonsense", "members": members }));
        let refused = source.nodes().await.unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}");
    }
    // The addresses that it told are not asked.
    api.is(StatusCode::SERVICE_UNAVAILABLE, "");
    assert!(source.nodes().await.is_err());
    // The name of the cluster is that of the first answer that counts.
    api.says(&[json!({ "name": "n1", "host": "h1" })]);
    assert_eq!(source.nodes().await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_address_that_is_another_clusters_now_does_not_hide_the_good_one() {
    let (strange, good) = (Api::new().await, Api::new().await);
    let members = [json!({ "name": "n1", "host": "h1" })];
    strange.says_all(&json!({ "scope": "other", "members": [{ "name": "x", "host": "x" }] }));
    good.says(&members);
    let source = Patroni::new([&strange.url, &good.url], URL).scope("ops");
    let nodes = source.nodes().await.unwrap();
    assert_eq!(nodes[0].name.as_deref(), Some("n1"));
}

#[tokio::test]
async fn however_many_addresses_hang_the_last_one_is_asked_in_time() {
    let good = Api::new().await;
    good.says(&[json!({ "name": "n1", "host": "h1" })]);
    // The system takes the connections, and nobody says anything there.
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mute = (0..60).map(|at| format!("http://{}/{at}", mute.local_addr().unwrap()));
    let source = Patroni::new(mute.chain([good.url.clone()]), URL);
    let nodes = tokio::time::timeout(Duration::from_secs(20), source.nodes()).await;
    assert_eq!(nodes.unwrap().unwrap().len(), 1);
}
