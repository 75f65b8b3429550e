//! What is read from URLs and lists of `key=value`.

use std::path::PathBuf;
use std::time::Duration;

use super::{REPLICA, only_mistake};
use crate::config::WriteScope;
use crate::config::{
    Config, Consistency, ConsistencyConfig, DeclaredRole, Durability, HealthConfig, Host,
    NodeConfig, NodeSettings, Policy, Routing, Settings, check_url,
};
use crate::config::{ConfigError, UrlProblem};

fn settings(url: &str) -> Settings {
    let config = Config::from_url(url).unwrap_or_else(|error| panic!("{url}: {error}"));
    config
        .validate()
        .unwrap_or_else(|error| panic!("{url}: {error}"))
}

fn tcp(host: &str, port: u16) -> Host {
    Host::Tcp {
        host: host.to_owned(),
        hostaddr: None,
        port,
    }
}

/// At the address 10.0.0.1.
fn at(host: &str, port: u16) -> Host {
    Host::Tcp {
        host: host.to_owned(),
        hostaddr: Some("10.0.0.1".parse().unwrap()),
        port,
    }
}

#[test]
fn every_host_becomes_a_node() {
    let socket = |path: &str| Host::Unix(PathBuf::from(path));
    let table: Vec<(&str, Vec<Host>)> = vec![
        ("postgres://db1", vec![tcp("db1", 5432)]),
        (
            "postgres://app@db1,db2:5433/app",
            vec![tcp("db1", 5432), tcp("db2", 5433)],
        ),
        (
            "postgresql://[::1]:5433,127.0.0.1/",
            vec![tcp("::1", 5433), tcp("127.0.0.1", 5432)],
        ),
        (
            "postgres://u@db1,db2/a?port=6000",
            vec![tcp("db1", 6000), tcp("db2", 6000)],
        ),
        (
            "postgres://u@/a?host=db1,db2&port=1,2",
            vec![tcp("db1", 1), tcp("db2", 2)],
        ),
        ("postgres://u@%2Ftmp/a", vec![socket("/tmp/.s.PGSQL.5432")]),
        (
            "postgres:///a?host=/run/pg,db2&port=5433,5434",
            vec![socket("/run/pg/.s.PGSQL.5433"), tcp("db2", 5434)],
        ),
        (
            "host=db1,db2 port=5432 user=app",
            vec![tcp("db1", 5432), tcp("db2", 5432)],
        ),
        ("host = db1  port=1\tuser = 'a b'", vec![tcp("db1", 1)]),
        ("host=/tmp", vec![socket("/tmp/.s.PGSQL.5432")]),
        ("host=db1 hostaddr=10.0.0.1", vec![at("db1", 5432)]),
        (
            "host=db1,db2 hostaddr=10.0.0.1,10.0.0.1 port=1,2",
            vec![at("db1", 1), at("db2", 2)],
        ),
        (
            "hostaddr=10.0.0.1,10.0.0.2 port=1,2",
            vec![tcp("10.0.0.1", 1), tcp("10.0.0.2", 2)],
        ),
        (" postgres://db1\n", vec![tcp("db1", 5432)]),
    ];
    for (url, hosts) in table {
        let settings = settings(url);
        let found: Vec<Host> = settings
            .nodes
            .iter()
            .map(|node| node.host.clone())
            .collect();
        assert_eq!(found, hosts, "{url}");
        assert!(
            settings
                .nodes
                .iter()
                .all(|node| node.declared == DeclaredRole::Unknown)
        );
    }
}

#[test]
fn names_are_host_and_port() {
    let settings = settings("postgres://u@db1,[::1]:5433,%2Ftmp/a");
    let names: Vec<&str> = settings
        .nodes
        .iter()
        .map(|node| node.name.as_str())
        .collect();
    assert_eq!(names, ["db1:5432", "[::1]:5433", "/tmp:5432"]);
}

#[test]
fn both_forms_log_in_alike() {
    for url in [
        "postgres://a%20b:p%40%27%5C%2F%26@db1/d%2Fb?application_name=x%26y&connect_timeout=3",
        "postgres://db1/d%2Fb?user=a%20b&password=p%40%27%5C%2F%26&application_name=x%26y&connect_timeout=3",
        r"host=db1 user='a b' password='p@\'\\/&' dbname=d/b application_name=x&y connect_timeout=3",
        r"host=db1 user=a\ b password=p@'\\/& dbname=d/b application_name=x&y connect_timeout=3",
    ] {
        let settings = settings(url);
        let node = &settings.nodes[0];
        let postgres = &node.login.postgres;
        assert_eq!(postgres.get_user(), Some("a b"), "{url}");
        assert_eq!(
            node.login.password.as_deref(),
            Some(br"p@'\/&".as_slice()),
            "{url}"
        );
        assert_eq!(postgres.get_dbname(), Some("d/b"), "{url}");
        assert_eq!(postgres.get_application_name(), Some("x&y"), "{url}");
        assert_eq!(node.pool.connect_timeout, Duration::from_secs(3), "{url}");
    }
}

#[test]
fn a_password_may_be_any_bytes_and_may_come_without_a_user() {
    let one = settings("postgres://u:%FF%00@db1");
    assert_eq!(
        one.nodes[0].login.password.as_deref(),
        Some(b"\xff\x00".as_slice())
    );
    let other = settings("postgres://:pw@db1");
    assert_eq!(other.nodes[0].login.postgres.get_user(), None);
    assert_eq!(
        other.nodes[0].login.password.as_deref(),
        Some(b"pw".as_slice())
    );
}

#[test]
fn parameters_of_the_pool_are_read() {
    let config = Config::from_url(
        "postgres://u@db1,db2/a?max_size=20&min_idle=2&connection_timeout=1.5&max_lifetime=never\
         &idle_timeout=5min&failover_wait=1s&max_lag=30s&max_lag_bytes=1000&health_interval=500ms&health_timeout=2s&routing=opt_in&assumed_lag=1s&policy=round_robin&prefer_zones=a,b&weights=0,3&fallback_share=0.25\
         &consistency=bounded_staleness:5s&write_scope=session&consistency_wait=1ms&durability=off\
         &start_read_only=true&read_only_transactions_on_replicas=on&sslmode=disable\
         &target_session_attrs=any",
    )
    .unwrap();
    let expected = Config::new()
        .node("postgres://u@db1:5432/a?sslmode=disable&target_session_attrs=any")
        .node("postgres://u@db2:5432/a?sslmode=disable&target_session_attrs=any")
        .max_size(20)
        .min_idle(2)
        .connection_timeout(Duration::from_millis(1500))
        .max_lifetime(None)
        .idle_timeout(Duration::from_secs(300))
        .failover_wait(Duration::from_secs(1))
        .health(
            HealthConfig::default()
                .max_lag(Duration::from_secs(30))
                .max_lag_bytes(1000)
                .interval(Duration::from_millis(500))
                .timeout(Duration::from_secs(2)),
        )
        .policy(Policy::RoundRobin)
        .fallback_share(0.25)
        .start_read_only(true)
        .read_only_transactions_on_replicas(true)
        .consistency(
            ConsistencyConfig::from(Consistency::BoundedStaleness(Duration::from_secs(5)))
                .write_scope(WriteScope::Session)
                .wait(Duration::from_millis(1))
                .assumed_lag(Duration::from_secs(1)),
        )
        .routing(Routing::OptIn)
        .durability(Durability::Off);
    let expected = Config {
        prefer_zones: vec!["a".to_owned(), "b".to_owned()],
        ..expected
    };
    let weights: Vec<_> = config.nodes.iter().map(|node| node.weight).collect();
    assert_eq!(weights, [Some(0), Some(3)]);
    let mut unweighted = config;
    for node in &mut unweighted.nodes {
        node.weight = None;
    }
    assert_eq!(unweighted, expected);
}

use UrlProblem as P;

/// What cannot be read, and why. The passwords contain `hunter2`.
const UNREADABLE: &[(&str, UrlProblem)] = &[
    ("", P::Empty),
    ("mysql://u:hunter2@h/db", P::Scheme),
    ("postgres:/u:hunter2@h/db?x=y", P::Scheme),
    ("u:hunter2@h", P::Scheme),
    ("postgres://u:hunter2@ss@h/db", P::Escaping),
    ("postgres://u:p@hunter2@h/db", P::Escaping),
    ("postgres://u:hun/hunter2@h/db", P::Escaping),
    ("postgres://u:a@b/hunter2@h/db", P::Escaping),
    ("postgres://h/db?password=hunter2@x", P::Escaping),
    ("postgres://u:hunter2@h:99999/db", P::Value("port")),
    ("postgres://u:hunter2@h:0/db", P::Value("port")),
    ("postgres://u:hunter2/h", P::Value("port")),
    ("postgres://u:hunter2@a b/db", P::Value("host")),
    ("postgres://u:hunter2@[::1/db", P::Value("host")),
    ("postgres://u:hunter2@[::1]x/db", P::Value("host")),
    ("postgres://u:hunter2@h,/db", P::Value("host")),
    ("postgres://u:hunter2@h/%FF", P::Encoding),
    ("postgres://h/db?password=hunter2&hunter2", P::Parameter),
    ("postgres://h/db?password=&hunter2.=1", P::Parameter),
    ("host=h password=a hunter2", P::Scheme),
    ("host=h password='hunter2", P::Quote),
    ("host=h password='a'hunter2'", P::Quote),
    ("postgres://u:hunter2@h/db?user=x", P::Repeated("user")),
    ("host=h host=i password=hunter2", P::Repeated("host")),
    ("postgres://u:hunter2@h:1/db?port=2", P::Repeated("port")),
    (
        "postgres://u:hunter2@h/db?connect_timeout=1&connect_timeout=2",
        P::Repeated("connect_timeout"),
    ),
    (
        "postgres://u:hunter2@h/db?connect_timeout=soon",
        P::Value("connect_timeout"),
    ),
    (
        "postgres://u:hunter2@h/db?keepalives_retries=-1",
        P::Value("keepalives_retries"),
    ),
    ("host=h hostaddr=hunter2", P::Value("hostaddr")),
    (
        "host=h,i hostaddr=::1",
        P::Count {
            setting: "hostaddr",
            count: 1,
            hosts: 2,
        },
    ),
    (
        "host=h,i port=1,2,3",
        P::Count {
            setting: "port",
            count: 3,
            hosts: 2,
        },
    ),
];

#[test]
fn what_cannot_be_read_is_told_without_the_password() {
    for (url, expected) in UNREADABLE {
        for errors in [
            Config::from_url(url).unwrap_err(),
            Config::new()
                .primary("postgres://db1")
                .replica(*url)
                .check()
                .unwrap_err(),
        ] {
            match only_mistake(&errors, &["node `", "URL"]) {
                ConfigError::Url { problem, .. } => assert_eq!(problem, *expected, "{url}"),
                other => panic!("{url}: {other}"),
            }
        }
        assert!(
            !format!("{:?}", NodeConfig::new(*url)).contains("hunter2"),
            "{url}"
        );
    }
}

#[test]
fn what_is_not_supported_is_named() {
    let table: &[(&str, &[&str])] = &[
        (
            "postgres://db1/a?max_sise=3",
            &["`db1:5432`", "`max_sise`", "max_size", "`max_size`"],
        ),
        (
            "host=db1 password='hunter2' nope=3",
            &["`db1:5432`", "`nope`"],
        ),
        #[cfg(not(feature = "rustls"))]
        (
            "postgres://db1/a?sslmode=require",
            &["`db1:5432`", "`sslmode`", "Cargo feature `rustls`"],
        ),
        #[cfg(not(feature = "rustls"))]
        (
            "postgres://db1/a?sslmode=require&sslnegotiation=direct",
            &["`db1:5432`", "`sslnegotiation`", "Cargo feature `rustls`"],
        ),
        #[cfg(not(feature = "rustls"))]
        (
            "postgres://db1/a?channel_binding=require",
            &["`db1:5432`", "`channel_binding`", "Cargo feature `rustls`"],
        ),
        (
            "postgres://db1/a?target_session_attrs=read-only",
            &["`db1:5432`", "remove it"],
        ),
    ];
    for (url, words) in table {
        only_mistake(&Config::from_url(url).unwrap_err(), words);
        only_mistake(&Config::new().primary(*url).check().unwrap_err(), words);
    }
    let errors = Config::from_url("postgres://db1,db2/a?x=1&sslmode=no&y=2").unwrap_err();
    assert_eq!(errors.iter().count(), 3, "{errors}");
}

#[test]
fn an_unknown_parameter_that_may_be_a_password_is_not_named() {
    for url in [
        "postgres://db1/a?password=x&hunter2=y",
        "host=db1 password=x hunter2=y",
    ] {
        only_mistake(
            &Config::from_url(url).unwrap_err(),
            &["`db1:5432`", "after the password"],
        );
        assert!(
            !format!("{:?}", NodeConfig::new(url)).contains("hunter2"),
            "{url}"
        );
    }
}

/// Prisma's and pgx's URLs.
#[test]
fn what_other_libraries_call_a_setting_is_told_by_our_name() {
    for (theirs, ours) in [
        ("connection_limit", "`max_size`"),
        ("pool_max_conns", "`max_size`"),
        ("pool_timeout", "`connection_timeout`"),
    ] {
        let url = format!("postgres://u:hunter2@db1/a?{theirs}=10");
        only_mistake(&Config::from_url(&url).unwrap_err(), &[theirs, ours]);
    }
}

/// `main` and `unwrap` show an error by `Debug`.
#[test]
fn the_debug_form_of_the_mistakes_is_their_text() {
    let errors = Config::new().replica(REPLICA).check().unwrap_err();
    assert_eq!(format!("{errors:?}"), errors.to_string());
    assert!(errors.to_string().contains("`.primary(url)`"));
}

#[test]
fn parameters_of_the_pool_must_fit() {
    let table: &[(&str, &[&str])] = &[
        ("max_size=many", &["`max_size`", "whole number"]),
        ("max_size=-1", &["`max_size`", "whole number"]),
        (
            "connection_timeout=never",
            &["`connection_timeout`", "duration"],
        ),
        ("max_lifetime=soon", &["`max_lifetime`", "`never`"]),
        ("policy=fastest", &["`policy`", "`least_in_flight`"]),
        ("consistency=bounded", &["`consistency`", "`causal`"]),
        ("consistency=causal:1s", &["`consistency`", "`causal`"]),
        ("write_scope=all", &["`write_scope`", "`pool`"]),
        ("durability=always", &["`durability`", "`remote_apply`"]),
        ("weights=1", &["`weights`", "2 nodes", "it lists 1"]),
        ("weights=1,x", &["`weights`", "3,1"]),
        ("routing=off", &["`routing`", "`observe`"]),
        ("routing=automatic:150%", &["`routing`", "`automatic:5%`"]),
        ("routing=automatic:NaN", &["`routing`", "`automatic:5%`"]),
        ("fallback_share=half", &["`fallback_share`", "0.0 to 1.0"]),
        ("start_read_only=maybe", &["`start_read_only`", "`true`"]),
        #[cfg(not(feature = "promotion"))]
        (
            "standbys_follow=true",
            &["`standbys_follow`", "the Cargo feature `promotion`"],
        ),
        #[cfg(not(feature = "promotion"))]
        (
            "automatic_promotion=true",
            &["`automatic_promotion`", "the Cargo feature `promotion`"],
        ),
    ];
    for (query, words) in table {
        let url = format!("postgres://u:hunter2@db1,db2/a?{query}");
        only_mistake(&Config::from_url(&url).unwrap_err(), words);
    }
    let errors = Config::new()
        .primary("postgres://db1/a?max_size=3")
        .check()
        .unwrap_err();
    only_mistake(&errors, &["`db1:5432`", "`max_size`", "Config::from_url"]);
}

#[test]
fn passwords_are_masked_where_urls_are_shown() {
    for (url, shown) in [
        ("postgres://u:hunter2@db1/a", "postgres://u:***@db1:5432/a"),
        ("postgres://u@db1/a", "postgres://u@db1:5432/a"),
        (
            "postgres://db1/a?password=hunter2&sslmode=prefer",
            "postgres://:***@db1:5432/a?sslmode=prefer",
        ),
        (
            "host=db1 user=u password='hunter2'",
            "host=db1 user=u password=***",
        ),
        (
            "postgres://u:p@hunter2@db1",
            "postgres://… (26 bytes that cannot be read)",
        ),
        (
            "host=db1 sslpassword=hunter2 scram_client_key=hunter2",
            "host=db1 sslpassword=*** scram_client_key=***",
        ),
        ("hunter2", "… (7 bytes that cannot be read)"),
    ] {
        let shown = format!("url: {shown},");
        let debug = format!("{:?}", NodeConfig::new(url));
        assert!(debug.contains(&shown), "{debug}");
    }
}

#[test]
fn a_misspelled_parameter_is_told_with_the_one_that_was_meant() {
    for (wrong, meant) in [
        ("maxsize", Some("max_size")),
        ("weight", Some("weights")),
        ("conection_timeout", Some("connection_timeout")),
        ("consistancy", Some("consistency")),
        ("schema", None),
    ] {
        let url = format!("postgres://app@db1/app?{wrong}=1");
        let said = Config::from_url(&url).unwrap_err().to_string();
        match meant {
            Some(meant) => assert!(said.contains(&format!("did you mean `{meant}`?")), "{said}"),
            None => assert!(
                said.contains("remove it") && !said.contains("did you"),
                "{said}"
            ),
        }
    }
}

#[test]
fn zones_are_read_as_libpq_reads_ports() {
    let zones = |url: &str| -> Vec<Option<String>> {
        let nodes = settings(url).nodes;
        let zone = |node: &NodeSettings| node.zone().map(str::to_owned);
        nodes.iter().map(zone).collect()
    };
    let some = |zone: &str| Some(zone.to_owned());
    let (a, b) = (some("a"), some("b"));
    for (url, found) in [
        ("postgres://h1,h2/x?zone=a", vec![a.clone(), a.clone()]),
        ("postgres://h1,h2/x?zone=a,b", vec![a.clone(), b.clone()]),
        ("host=h1,h2,h3 zone='a, b,'", vec![a, b, None]),
        ("postgres://h1,h2/x?zone=", vec![None, None]),
        ("postgres://h1,h2/x", vec![None, None]),
    ] {
        assert_eq!(zones(url), found, "{url}");
    }
    let errors = Config::from_url("postgres://h1,h2,h3/x?zone=a,b").unwrap_err();
    let words = &["3 hosts", "2 zones", "`zone=a,a,b`"];
    only_mistake(&errors, words);
    let one = NodeConfig::new("postgres://h1/x?zone=a,b");
    let errors = Config::new().node(one).check().unwrap_err();
    only_mistake(&errors, &["1 hosts", "2 zones"]);
    // A name may have white space in it.
    let url = "postgres://h/x?zone=%20us%20west%20&prefer_zones=us%20west,%20b";
    assert_eq!(zones(url), [some("us west")]);
    let preferred = settings(url).shared.prefer_zones;
    assert_eq!(preferred, ["us west", "b"]);
}

#[test]
fn another_url_leaves_the_zone_that_was_given_and_brings_its_own_otherwise() {
    let zone = |node: NodeConfig, url: &str| {
        let nodes = Config::new().node(node).validate().unwrap().nodes;
        let settings = check_url(url.to_owned(), nodes[0].clone()).unwrap();
        settings.zone().map(str::to_owned)
    };
    let (old, new) = ("postgres://h/x?zone=old", "postgres://h/x?zone=new");
    let given = || NodeConfig::new(old).zone("given");
    assert_eq!(zone(given(), old).as_deref(), Some("given"));
    assert_eq!(zone(given(), new).as_deref(), Some("given"));
    assert_eq!(zone(NodeConfig::new(old), new).as_deref(), Some("new"));
    let tagged = NodeConfig::new(old).tag("zone", "tag");
    assert_eq!(zone(tagged, "postgres://h/x").as_deref(), Some("tag"));
}

#[test]
fn the_zone_of_a_node_wins_over_its_url_and_that_over_its_tag() {
    let zone = |node: NodeConfig| {
        let config = Config::new().node(node);
        let nodes = config.validate().unwrap().nodes;
        nodes[0].zone().map(str::to_owned)
    };
    let tagged = |url: &str| NodeConfig::new(url).tag("zone", "tag");
    let (bare, with) = ("postgres://h/x", "postgres://h/x?zone=url");
    assert_eq!(zone(tagged(bare)).as_deref(), Some("tag"));
    assert_eq!(zone(tagged(with)).as_deref(), Some("url"));
    assert_eq!(zone(tagged(with).zone("node")).as_deref(), Some("node"));
    assert_eq!(zone(NodeConfig::new(bare)), None);
}

#[test]
fn zones_without_a_name_and_zones_named_twice_are_told() {
    let preferring = |zones: &[&str]| Config {
        prefer_zones: zones.iter().map(|zone| (*zone).to_owned()).collect(),
        ..Config::new().node(NodeConfig::new(REPLICA))
    };
    let mistake = |config: Config, words: &[&str]| {
        only_mistake(&config.check().unwrap_err(), words);
    };
    mistake(
        preferring(&["a", " "]),
        &["`prefer_zones`", "name 2 is empty"],
    );
    mistake(
        preferring(&["a", "b", "a"]),
        &["`prefer_zones`", "`a` twice"],
    );
    let unnamed = Config::new().node(NodeConfig::new(REPLICA).zone(" "));
    mistake(unnamed, &["node `db2:5432`", "zone", "empty"]);
}
