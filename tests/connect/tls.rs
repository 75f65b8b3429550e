//! TLS: each of libpq's modes against servers with and without, and against those in between.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use diesel::QueryableByName;
use diesel::sql_types::{Bool, Text};
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};
use diesel_replicated::config::HealthConfig;
use diesel_replicated::testing::{Authority, LocalCluster, LocalNode};
use diesel_replicated::{Builder, Error, ReplicatedPool, rustls};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::middleman::{Does, Middleman};
use crate::support::{blocking, eventually, fill, insert, on};

/// Who may come how. `app` has the password `pencil`; the others need none.
const RULES: [&str; 7] = [
    "hostssl all app 127.0.0.1/32 scram-sha-256",
    "host all app 127.0.0.1/32 reject",
    "hostnossl all plain 127.0.0.1/32 trust",
    "host all plain 127.0.0.1/32 reject",
    "hostssl all holder 127.0.0.1/32 cert",
    "hostssl all clear 127.0.0.1/32 password",
    "host all either 127.0.0.1/32 trust",
];

const ROLES: &str = "CREATE ROLE app LOGIN PASSWORD 'pencil'; CREATE ROLE plain LOGIN; CREATE ROLE holder LOGIN; \
    CREATE ROLE clear LOGIN PASSWORD 'pencil'; CREATE ROLE either LOGIN; \
    GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC; GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO PUBLIC";

/// A cluster whose servers speak TLS, with these roles and rules.
pub fn secure_cluster(replicas: usize) -> LocalCluster {
    let builder = LocalCluster::builder().replicas(replicas).tls();
    let builder = RULES
        .into_iter()
        .fold(builder, |builder, rule| builder.rule(rule));
    let local = builder.start().unwrap();
    fill(&local, "app");
    local.primary().sql("app", ROLES).unwrap();
    local.wait_caught_up().unwrap();
    local
}

/// The one that tests share.
fn secure() -> &'static LocalCluster {
    static CLUSTER: OnceLock<LocalCluster> = OnceLock::new();
    CLUSTER.get_or_init(|| secure_cluster(1))
}

async fn server() -> &'static LocalNode {
    blocking(|| secure().primary()).await
}

/// The URL of a server that listens on `port`.
pub fn url(user: &str, host: &str, port: u16, parameters: &str) -> String {
    format!("postgres://{user}@{host}:{port}/app?{parameters}")
}

#[derive(QueryableByName, Debug, PartialEq)]
pub struct Session {
    #[diesel(sql_type = Bool)]
    pub ssl: bool,
    #[diesel(sql_type = Text)]
    pub version: String,
}

/// Connects by `builder`, and asks the server how it sees the connection.
pub async fn try_with(builder: Builder) -> Result<Session, String> {
    let health = HealthConfig::default().timeout(Duration::from_secs(20));
    let builder = builder.max_size(1).health(health);
    let pool = builder.build().await.map_err(|error| error.to_string())?;
    let mut conn = pool.get().await.map_err(|error| error.to_string())?;
    let look = "SELECT ssl, coalesce(version, '') AS version FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let session = diesel::sql_query(look).get_result(&mut conn).await;
    session.map_err(|error| error.to_string())
}

pub async fn try_url(url: &str) -> Result<Session, String> {
    try_with(Builder::from_url(url).map_err(|error| error.to_string())?).await
}

/// Asserts that a connection by `url` has TLS, or has none, or fails with all of these words.
pub async fn expect(url: &str, expected: Result<bool, &[&str]>) {
    match (try_url(url).await, expected) {
        (Ok(session), Ok(ssl)) => assert_eq!(session.ssl, ssl, "{url}"),
        (Err(said), Err(words)) => {
            for word in words {
                assert!(said.contains(word), "{url}: `{word}` is missing: {said}");
            }
            assert!(!said.contains("pencil"), "{said}");
        }
        (found, expected) => panic!("{url}: {found:?}, not {expected:?}"),
    }
}

fn root() -> String {
    format!("sslrootcert={}", secure().root_certificate().display())
}

/// A folder for files of one test, which is removed with it.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("connect-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &std::path::Path {
        &self.0
    }

    pub fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

// graph-node 6473, diesel_async 36, 54, 73, 191: a URL of a server that asks for TLS works as copied.
// node-postgres 2375, 2709; rpg 711, 726; effect 8199: libpq's table of modes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_mode_does_what_libpq_does() {
    let port = server().await.port();
    let foreign = Folder::new("foreign");
    let foreign = foreign.write("root.crt", &Authority::new().unwrap().pem());
    let foreign = format!("sslrootcert={foreign}");
    let right = root();
    let encrypted: Result<bool, &[&str]> = Ok(true);
    for (user, parameters, expected) in [
        // A server that lets in those with TLS alone.
        ("app:pencil", String::new(), encrypted),
        ("app:pencil", "sslmode=prefer".to_owned(), encrypted),
        ("app:pencil", "sslmode=allow".to_owned(), encrypted),
        ("app:pencil", "sslmode=require".to_owned(), encrypted),
        ("app:pencil", "ssl=true".to_owned(), encrypted),
        (
            "app:pencil",
            "sslmode=disable".to_owned(),
            Err(&["does not let this user in", "no encryption"]),
        ),
        // One that lets in those without, and one that lets in both.
        ("plain", "sslmode=prefer".to_owned(), Ok(false)),
        ("plain", "sslmode=allow".to_owned(), Ok(false)),
        (
            "plain",
            "sslmode=require".to_owned(),
            Err(&["does not let this user in"]),
        ),
        ("either", "sslmode=allow".to_owned(), Ok(false)),
        ("either", "sslmode=prefer".to_owned(), encrypted),
        ("either", "sslmode=disable".to_owned(), Ok(false)),
        // Who has signed the certificate.
        ("either", format!("sslmode=verify-ca&{right}"), encrypted),
        ("either", format!("sslmode=verify-full&{right}"), encrypted),
        ("either", format!("sslmode=require&{right}"), encrypted),
        ("either", format!("sslmode=prefer&{foreign}"), encrypted),
        (
            "either",
            format!("sslmode=require&{foreign}"),
            Err(&["TLS failed", "`sslrootcert`", "`sslrootcert`"]),
        ),
        (
            "either",
            format!("sslmode=verify-ca&{foreign}"),
            Err(&["TLS failed", "`sslrootcert`"]),
        ),
        (
            "either",
            format!("sslmode=verify-full&{foreign}"),
            Err(&["TLS failed", "`sslrootcert`"]),
        ),
        // windmill 9591, crystal-pg 309: nothing to verify by is an error.
        (
            "either",
            "sslmode=verify-full".to_owned(),
            Err(&["`sslrootcert`", "`sslrootcert=system`"]),
        ),
        (
            "either",
            "sslmode=verify-ca&sslrootcert=/nowhere/root.crt".to_owned(),
            Err(&["`/nowhere/root.crt` cannot be read"]),
        ),
        (
            "either",
            "sslmode=require&sslrootcert=/nowhere/root.crt".to_owned(),
            Err(&["`/nowhere/root.crt` cannot be read"]),
        ),
        // ubicloud 5803: an authority of the system has not signed it.
        (
            "either",
            "sslrootcert=system".to_owned(),
            Err(&["TLS failed"]),
        ),
    ] {
        expect(&url(user, "localhost", port, &parameters), expected).await;
        // No HOME of the machine that runs this has a root of its own, so nothing else is looked at.
    }
}

// lib_pq 1164, node-postgres 2263, rust-openssl 1572, TablePlus 2000, sqlx (etl 722): what the certificate has to fit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_name_of_the_url_is_the_one_that_counts() {
    let (local, named) = blocking(|| {
        let local = secure_cluster(0);
        let authority = local.authority().unwrap();
        let named = |names: &[&str]| authority.server_named(names).unwrap();
        let certificates = [
            named(&["localhost"]),
            named(&["127.0.0.1"]),
            named(&["db1.example.com"]),
            named(&["*.example.com"]),
        ];
        (Arc::new(local), certificates)
    })
    .await;
    let root = format!("sslrootcert={}", local.root_certificate().display());
    let port = local.primary().port();
    let wrong: Result<bool, &[&str]> = Err(&["TLS failed", "not valid for name"]);
    for (certificate, host, parameters, expected) in [
        (0, "localhost", "sslmode=verify-full", Ok(true)),
        (0, "127.0.0.1", "sslmode=verify-full", wrong),
        (0, "127.0.0.1", "sslmode=verify-ca", Ok(true)),
        (1, "127.0.0.1", "sslmode=verify-full", Ok(true)),
        (1, "localhost", "sslmode=verify-full", wrong),
        (1, "localhost", "sslmode=verify-ca", Ok(true)),
        (1, "localhost", "sslmode=require", Ok(true)),
        // The name is verified, and the address is connected to.
        (
            2,
            "db1.example.com",
            "sslmode=verify-full&hostaddr=127.0.0.1",
            Ok(true),
        ),
        (
            2,
            "db2.example.com",
            "sslmode=verify-full&hostaddr=127.0.0.1",
            wrong,
        ),
        (
            3,
            "db2.example.com",
            "sslmode=verify-full&hostaddr=127.0.0.1",
            Ok(true),
        ),
        (
            3,
            "a.db2.example.com",
            "sslmode=verify-full&hostaddr=127.0.0.1",
            wrong,
        ),
    ] {
        let certificate = named[certificate].clone();
        on(&local, move |local| {
            local.primary().set_certificate(&certificate).unwrap()
        })
        .await;
        let parameters = format!("{parameters}&{root}");
        expect(&url("either", host, port, &parameters), expected).await;
    }
}

// A server or a middleman that says "no TLS" gets no password. heroku-buildpack-pgbouncer 186.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_strips_tls_gets_no_password() {
    let port = server().await.port();
    for (does, words) in [
        (Does::Strips, "has no TLS"),
        (Does::Errs, "answered the request for TLS with an error"),
        (Does::Breaks, "TLS failed"),
        (Does::AsksForThePassword, "has no TLS"),
    ] {
        let between = Middleman::start(port, does);
        let strict = url("clear:pencil", "localhost", between.port, "sslmode=require");
        expect(&strict, Err(&[words])).await;
        assert!(between.has_heard_anything());
        for secret in ["pencil", "clear", "SCRAM"] {
            assert!(!between.has_heard(secret), "{does:?}: {secret}");
        }
    }
    // What was said in clear is not repeated: anybody may have said it.
    let between = Middleman::start(port, Does::Errs);
    let strict = url("app:pencil", "localhost", between.port, "sslmode=require");
    let said = try_url(&strict).await.unwrap_err();
    assert!(!said.contains("come back"), "{said}");
}

// lib_pq 1355, ponylang 128: `prefer` goes on without TLS if the handshake breaks, as libpq does, and `require` does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_only_prefers_tls_goes_on_without() {
    let port = server().await.port();
    let between = Middleman::start(port, Does::Strips);
    expect(
        &url("either", "localhost", between.port, "sslmode=prefer"),
        Ok(false),
    )
    .await;
    let between = Middleman::start(port, Does::Breaks);
    expect(
        &url("either", "localhost", between.port, "sslmode=prefer"),
        Ok(false),
    )
    .await;
    // Who answers with nonsense is not asked without TLS.
    let between = Middleman::start(port, Does::Errs);
    let preferring = url("clear:pencil", "localhost", between.port, "sslmode=prefer");
    expect(&preferring, Err(&["with an error"])).await;
    assert!(!between.has_heard("pencil"));
    // Both failures are told.
    let between = Middleman::start(port, Does::Breaks);
    let both: &[&str] = &["no encryption", "before that: "];
    expect(
        &url("app:pencil", "localhost", between.port, "sslmode=prefer"),
        Err(both),
    )
    .await;
}

// tokio-postgres-rustls 14, bun 41703, pgconn 33: channel binding, and what `require_auth` lets pass.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_is_bound_to_its_channel() {
    let port = server().await.port();
    let of = |user, parameters: &str| url(user, "localhost", port, parameters);
    let bound = "channel_binding=require";
    expect(&of("app:pencil", bound), Ok(true)).await;
    expect(
        &of("app:pencil", &format!("{bound}&sslmode=require")),
        Ok(true),
    )
    .await;
    expect(&of("app:pencil", "channel_binding=disable"), Ok(true)).await;
    // Not with a password in clear, nor with none.
    let refused: &[&str] = &["channel binding"];
    expect(&of("clear:pencil", bound), Err(refused)).await;
    expect(&of("either", bound), Err(refused)).await;
    expect(
        &of("plain", &format!("{bound}&sslmode=disable")),
        Err(refused),
    )
    .await;
    for (user, required, expected) in [
        ("app:pencil", "scram-sha-256", None),
        ("app:pencil", "!password,!none", None),
        ("app:pencil", "md5", Some("scram-sha-256")),
        ("clear:pencil", "password", None),
        ("clear:pencil", "scram-sha-256", Some("`password`")),
        ("either", "none", None),
        ("either", "scram-sha-256", Some("`none`")),
        ("either", "!none", Some("`none`")),
    ] {
        let url = of(user, &format!("require_auth={required}"));
        match expected {
            None => expect(&url, Ok(true)).await,
            Some(asked) => expect(&url, Err(&["`require_auth` does not allow", asked])).await,
        }
    }
    // Nothing is answered to somebody who asks for what is not allowed.
    let between = Middleman::start(port, Does::AsksForThePassword);
    let parameters = "require_auth=scram-sha-256&sslmode=disable";
    let url = url("clear:pencil", "localhost", between.port, parameters);
    expect(&url, Err(&["`require_auth` does not allow", "`password`"])).await;
    eventually("he has heard the client", async || {
        between.has_heard("clear")
    })
    .await;
    assert!(!between.has_heard("pencil"));
}

// A certificate of the client's own; pgjdbc 3952, 2919: whose key may be read by whom.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_shows_its_certificate() {
    use std::os::unix::fs::PermissionsExt;

    let port = server().await.port();
    let folder = Folder::new("client");
    let authority = secure().authority().unwrap();
    let (certificate, key) = authority
        .client("holder")
        .unwrap()
        .write(folder.path(), "own")
        .unwrap();
    let (foreign, foreign_key) = Authority::new()
        .unwrap()
        .client("holder")
        .unwrap()
        .write(folder.path(), "foreign")
        .unwrap();
    let (other, other_key) = authority
        .client("app")
        .unwrap()
        .write(folder.path(), "other")
        .unwrap();
    let of = |certificate: &PathBuf, key: &PathBuf| {
        let parameters = format!(
            "sslmode=require&sslcert={}&sslkey={}",
            certificate.display(),
            key.display()
        );
        url("holder", "localhost", port, &parameters)
    };
    expect(&of(&certificate, &key), Ok(true)).await;
    let without = url("holder", "localhost", port, "sslmode=require");
    expect(&without, Err(&["valid client certificate"])).await;
    let hidden = format!("{}&sslcertmode=disable", of(&certificate, &key));
    expect(&hidden, Err(&["valid client certificate"])).await;
    expect(
        &of(&other, &other_key),
        Err(&["certificate authentication failed"]),
    )
    .await;
    assert!(try_url(&of(&foreign, &foreign_key)).await.is_err());
    expect(
        &of(&certificate, &other_key),
        Err(&["own.crt", "do not go together"]),
    )
    .await;
    expect(&of(&certificate, &certificate), Err(&["chmod"])).await;
    expect(
        &of(&certificate, &folder.path().to_owned()),
        Err(&["is not a file"]),
    )
    .await;
    for (mode, good) in [
        (0o600, true),
        (0o400, true),
        (0o640, true),
        (0o644, false),
        (0o620, false),
        (0o604, false),
    ] {
        // These tests run as root or not; 0640 is for root alone.
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
        let is_root = std::fs::metadata(&key)
            .map(|data| std::os::unix::fs::MetadataExt::uid(&data) == 0)
            .unwrap();
        if good && (mode != 0o640 || is_root) {
            expect(&of(&certificate, &key), Ok(true)).await;
        } else {
            expect(
                &of(&certificate, &key),
                Err(&["own.key", "may be read by others", "chmod"]),
            )
            .await;
        }
    }
}

// neon 10152, pgx 2340: a request to cancel goes over TLS, too. graph-node 2097: so does every other connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_connection_has_tls() {
    let node = server().await;
    let between = Middleman::start(node.port(), Does::IsSilent);
    assert!(!between.has_heard_anything());
    let url = secure().url("app").replace("postgres@", "app:pencil@");
    let url = format!("{url}?sslmode=verify-full&{}", root());
    let pool = ReplicatedPool::connect(&url).await.unwrap();
    let mut conn = pool.get().await.unwrap();
    insert("Tony").execute(&mut conn).await.unwrap();
    let token = conn.cancel_token();
    let sleep = tokio::spawn(async move { conn.batch_execute("BEGIN; SELECT pg_sleep(60)").await });
    eventually("a statement runs", async || {
        let look = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'BEGIN; SELECT pg_sleep%' AND state = 'active' AND usename = 'app'";
        let rows = blocking(move || secure().primary().sql("app", look).unwrap()).await;
        rows[0][0].as_deref() == Some("1")
    })
    .await;
    token.cancel().await.unwrap();
    let ended = sleep.await.unwrap().unwrap_err();
    assert!(ended.to_string().contains("canceling statement"), "{ended}");
    for node in secure().nodes() {
        eventually("each node is connected to, and only with TLS", async || {
            let look = "SELECT count(*) FILTER (WHERE ssl), count(*) FILTER (WHERE NOT ssl) \
                FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'app'";
            let rows = blocking(move || node.sql("app", look).unwrap()).await;
            assert_eq!(rows[0][1].as_deref(), Some("0"), "{}", node.name());
            rows[0][0].as_deref() != Some("0")
        })
        .await;
    }
}

// pgconn 92, pgjdbc 3040, hyperindex 1158: somebody who accepts and stays silent costs `connect_timeout`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_server_costs_the_connect_timeout() {
    let port = server().await.port();
    let between = Middleman::start(port, Does::IsSilent);
    let url = url(
        "app:pencil",
        "localhost",
        between.port,
        "sslmode=require&connect_timeout=1",
    );
    expect(&url, Err(&["no answer in time", "`connect_timeout` is 1s"])).await;
}

// lib_pq 1331, 1354; rust-postgres 1151: TLS that begins at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_that_begins_at_once_needs_a_server_that_knows_it() {
    let port = server().await.port();
    let direct = "sslmode=require&sslnegotiation=direct";
    let url = url("app:pencil", "localhost", port, direct);
    if secure().major_version() >= 17 {
        expect(&url, Ok(true)).await;
    } else {
        assert!(try_url(&url).await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_versions_of_tls_are_chosen() {
    let port = server().await.port();
    for (parameters, version) in [
        ("ssl_max_protocol_version=TLSv1.2", "TLSv1.2"),
        ("ssl_min_protocol_version=TLSv1.3", "TLSv1.3"),
        ("ssl_min_protocol_version=TLSv1", "TLSv1.3"),
        (
            "ssl_min_protocol_version=TLSv1.2&ssl_max_protocol_version=TLSv1.2&channel_binding=require",
            "TLSv1.2",
        ),
    ] {
        let session = try_url(&url("app:pencil", "localhost", port, parameters))
            .await
            .unwrap();
        assert_eq!(session.version, version, "{parameters}");
    }
}

// sui 22968, martin: what no URL can say is given as code.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_brings_its_own_configuration() {
    let port = server().await.port();
    let config = |pem: String| {
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap())
            .unwrap();
        rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth()
    };
    let with = |host: &str, pem: String| {
        let url = url(
            "app:pencil",
            host,
            port,
            "sslmode=require&channel_binding=require",
        );
        Builder::from_url(&url).unwrap().tls(config(pem))
    };
    let own = secure().authority().unwrap().pem();
    assert!(try_with(with("localhost", own)).await.unwrap().ssl);
    let foreign = Authority::new().unwrap().pem();
    let said = try_with(with("localhost", foreign)).await.unwrap_err();
    assert!(said.contains("`sslrootcert`"), "{said}");
}

// node-postgres 2720, 2775: a server that gets TLS while the pool runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_begins_to_speak_tls() {
    let local = Arc::new(blocking(|| secure_cluster(0)).await);
    let set = |value: &'static str| {
        on(&local, move |local| {
            local
                .primary()
                .sql("app", &format!("ALTER SYSTEM SET ssl = {value}"))
                .unwrap();
            local.primary().reload().unwrap();
        })
    };
    set("off").await;
    let preferring = url(
        "either",
        "localhost",
        local.primary().port(),
        "sslmode=prefer",
    );
    expect(&preferring, Ok(false)).await;
    let pool = ReplicatedPool::connect(&preferring).await.unwrap();
    let requiring = url(
        "either",
        "localhost",
        local.primary().port(),
        "sslmode=require",
    );
    expect(&requiring, Err(&["the server has no TLS"])).await;
    set("on").await;
    expect(&requiring, Ok(true)).await;
    // What is opened now has TLS.
    let ask = "SELECT ssl, '' AS version FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let mut held = Vec::new();
    let mut seen = Vec::new();
    for _ in 0..10 {
        let mut conn = pool.get().await.unwrap();
        conn.batch_execute("BEGIN").await.unwrap();
        let session: Session = diesel::sql_query(ask).get_result(&mut conn).await.unwrap();
        seen.push(session.ssl);
        held.push(conn);
    }
    assert!(seen.contains(&true), "{seen:?}");
}

// Failover with TLS.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_with_tls() {
    let local = Arc::new(blocking(|| secure_cluster(2)).await);
    let url = local.url("app").replace("postgres@", "app:pencil@");
    let root = local.root_certificate();
    let url = format!(
        "{url}?sslmode=verify-full&channel_binding=require&sslrootcert={}",
        root.display()
    );
    let pool = ReplicatedPool::connect(&url).await.unwrap();
    let mut conn = pool.get().await.unwrap();
    insert("before").execute(&mut conn).await.unwrap();
    on(&local, |local| {
        local.wait_caught_up().unwrap();
        local.primary().kill().unwrap();
        local.replicas()[0].promote().unwrap();
    })
    .await;
    eventually("writes go on", async || {
        let Ok(mut after) = pool.get().await else {
            return false;
        };
        insert("after").execute(&mut after).await.is_ok()
    })
    .await;
}

/// A mistake is found before anything is connected to.
#[test]
fn what_makes_no_sense_is_refused() {
    for (parameters, words) in [
        ("sslmode=no-verify", vec!["`sslmode`", "`verify-full`"]),
        (
            "sslmode=require&sslrootcert=system",
            vec!["`sslrootcert`", "`sslmode=verify-full`"],
        ),
        (
            "sslnegotiation=direct",
            vec!["`sslnegotiation`", "`sslmode=require`"],
        ),
        (
            "sslmode=allow&sslnegotiation=direct",
            vec!["`sslnegotiation`"],
        ),
        (
            "ssl_max_protocol_version=TLSv1.1",
            vec!["`ssl_max_protocol_version`", "`TLSv1.3`"],
        ),
        (
            "ssl_min_protocol_version=TLSv1.3&ssl_max_protocol_version=TLSv1.2",
            vec!["`ssl_min_protocol_version`"],
        ),
        ("sslpassword=pencil", vec!["`sslpassword`", "openssl pkey"]),
        (
            "sslcertmode=require",
            vec!["`sslcertmode`", "`pg_hba.conf`"],
        ),
        (
            "require_auth=scram",
            vec!["`require_auth`", "`scram-sha-256`"],
        ),
        ("sslrootcert=system&sslcrl=/x", vec!["`sslcrl`"]),
    ] {
        let error = Builder::from_url(&format!("postgres://app@db1/app?{parameters}")).unwrap_err();
        assert!(matches!(error, Error::Config(_)));
        let said = error.to_string();
        for word in words {
            assert!(said.contains(word), "{parameters}: {said}");
        }
        assert!(!said.contains("pencil"), "{said}");
    }
}
