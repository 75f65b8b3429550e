//! Tests of the configuration as a whole: every mistake is found, named, and told with all others.

mod environment;
mod fuzz;
mod libpq;
mod secrets;
mod setters;
mod urls;

#[cfg(feature = "serde")]
mod files;

use std::time::Duration;

use super::{Config, DeclaredRole, Host, NodeConfig, PoolConfig};
use crate::config::{ConfigError, ConfigErrors, UrlProblem};

const PRIMARY: &str = "postgres://app:hunter2@db1/app";
const REPLICA: &str = "postgres://app:hunter2@db2/app";

fn valid() -> Config {
    Config::new().primary(PRIMARY).replica(REPLICA)
}

/// The only mistake, whose text names all of `words` and no password.
fn only_mistake(errors: &ConfigErrors, words: &[&str]) -> ConfigError {
    let text = errors.to_string();
    assert_eq!(errors.iter().count(), 1, "{text}");
    for word in words {
        assert!(text.contains(word), "`{word}` is missing: {text}");
    }
    assert!(!text.contains("hunter2"), "{text}");
    assert!(!format!("{errors:?}").contains("hunter2"));
    errors.iter().next().cloned().unwrap()
}

#[test]
fn nodes_that_do_not_fit_together_are_refused() {
    let twin = NodeConfig::new("postgres://other:hunter2@DB2:5432/app").name("twin");
    let named = |url: &str| NodeConfig::new(url).name("x");
    let table: Vec<(Config, &[&str])> = vec![
        (Config::new(), &["no node"]),
        (
            Config::new().replica(REPLICA),
            &["primary", "every node is declared a replica"],
        ),
        (
            Config::new().primary(PRIMARY).primary(REPLICA),
            &["`db1:5432`", "`db2:5432`", "primary"],
        ),
        (
            valid().replica(twin),
            &["`db2:5432`", "`twin`", "same server"],
        ),
        (
            valid()
                .replica(named("postgres://db3"))
                .replica(named("postgres://db4")),
            &["two nodes are named `x`"],
        ),
        (
            Config::new().primary("postgres://db1,db2/app"),
            &["`db1:5432`", "2 hosts", "Config::from_url"],
        ),
        (
            Config::new().primary("postgres:///app"),
            &["`#1`", "no host"],
        ),
        (
            Config::new().primary("postgres://:5432/app"),
            &["`#1`", "no host"],
        ),
        (
            valid().replica(NodeConfig::new("postgres://db3").name(" ")),
            &["`db3:5432`", "name"],
        ),
        (
            valid().replica(NodeConfig::new("postgres://db3").tag("", "a")),
            &["`db3:5432`", "tag"],
        ),
    ];
    for (config, words) in table {
        only_mistake(&config.check().unwrap_err(), words);
    }
}

#[test]
fn numbers_out_of_bounds_are_refused() {
    let replica = || NodeConfig::new("postgres://db3:5433").name("eu");
    let table: Vec<(Config, &[&str])> = vec![
        (
            valid().replica(replica().weight(-1)),
            &["`eu`", "`weight` is -1"],
        ),
        (
            valid().replica(replica().weight(10_001)),
            &["`eu`", "`weight` is 10001", "10000"],
        ),
        (
            valid().replica(replica().weight(i64::MAX)),
            &["`eu`", "`weight`"],
        ),
        (valid().max_size(0), &["pool", "`max_size` is 0"]),
        (
            valid().replica(replica().max_size(0)),
            &["`eu`", "`max_size` is 0"],
        ),
        (
            valid().min_idle(11),
            &["pool", "`min_idle` is 11", "`max_size`, which is 10"],
        ),
        (
            valid().replica(replica().min_idle(11)),
            &["`eu`", "`min_idle` is 11"],
        ),
        (
            valid().min_idle(5).replica(replica().max_size(4)),
            &["`eu`", "`min_idle` is 5", "is 4"],
        ),
    ];
    for (config, words) in table {
        only_mistake(&config.check().unwrap_err(), words);
    }
}

#[test]
fn time_limits_of_nothing_and_bad_shares_are_refused() {
    let replica = || NodeConfig::new("postgres://db3:5433").name("eu");
    let zero = Duration::ZERO;
    let table: Vec<(Config, &[&str])> = vec![
        (
            valid().connection_timeout(zero),
            &["pool", "`connection_timeout`"],
        ),
        (
            valid().connect_timeout(zero),
            &["pool", "`connect_timeout`"],
        ),
        (
            valid().max_lifetime(zero),
            &["pool", "`max_lifetime`", "never"],
        ),
        (
            valid().idle_timeout(zero),
            &["pool", "`idle_timeout`", "never"],
        ),
        (
            valid().replica(replica().connection_timeout(zero)),
            &["`eu`", "`connection_timeout`"],
        ),
        (
            valid().replica(replica().connect_timeout(zero)),
            &["`eu`", "`connect_timeout`"],
        ),
        (
            valid().replica(replica().max_lifetime(zero)),
            &["`eu`", "`max_lifetime`"],
        ),
        (
            valid().replica(replica().idle_timeout(zero)),
            &["`eu`", "`idle_timeout`"],
        ),
        (
            valid().fallback_share(f64::NAN),
            &["`fallback_share` is NaN"],
        ),
        (
            valid().routing(crate::config::Routing::Automatic { share: -0.5 }),
            &["`routing` is -0.5"],
        ),
        (valid().fallback_share(-0.1), &["`fallback_share` is -0.1"]),
        (valid().fallback_share(1.1), &["`fallback_share` is 1.1"]),
    ];
    for (config, words) in table {
        only_mistake(&config.check().unwrap_err(), words);
    }
}

#[test]
fn empty_and_contradictory_texts_are_refused() {
    let table: Vec<(Config, &[&str])> = vec![
        (
            valid()
                .allow_function("App.Balance")
                .deny_function("app.balance "),
            &["`app.balance`", "functions.allow", "functions.deny"],
        ),
        (valid().allow_function(""), &["functions.allow", "empty"]),
        (valid().deny_function(" "), &["functions.deny", "empty"]),
        (
            valid().setup_sql("SET a = b").setup_sql(" "),
            &["`setup_sql`", "statement 2"],
        ),
    ];
    for (config, words) in table {
        only_mistake(&config.check().unwrap_err(), words);
    }
}

#[test]
fn all_mistakes_are_told_at_once() {
    let errors = Config::new()
        .replica(NodeConfig::new("postgres://db1").weight(-1))
        .replica("mysql://app:hunter2@db2/app")
        .max_size(0)
        .fallback_share(7.0)
        .check()
        .unwrap_err();
    let expected = [
        ConfigError::NoPrimary { replicas: 2 },
        ConfigError::ZeroMaxSize { node: None },
        ConfigError::FallbackShare { share: 7.0 },
        ConfigError::NegativeWeight {
            node: "db1:5432".to_owned(),
            weight: -1,
        },
        ConfigError::Url {
            node: "#2".to_owned(),
            problem: UrlProblem::Scheme,
        },
    ];
    assert_eq!(errors.clone().into_iter().collect::<Vec<_>>(), expected);
    let text = errors.to_string();
    assert!(
        text.starts_with("the configuration has 5 mistakes:\n- "),
        "{text}"
    );
    assert_eq!(text.lines().count(), 6);
}

#[test]
fn a_mistake_shared_by_all_nodes_is_told_once() {
    let errors = valid().min_idle(99).check().unwrap_err();
    let expected = ConfigError::MinIdleAboveMaxSize {
        node: None,
        min_idle: 99,
        max_size: 10,
    };
    assert_eq!(only_mistake(&errors, &[]), expected);
}

#[test]
fn declared_and_undeclared_nodes_may_be_mixed() {
    for config in [
        Config::new().node(PRIMARY),
        Config::new().node(PRIMARY).replica(REPLICA),
        Config::new().primary(PRIMARY).node(REPLICA),
        Config::new()
            .primary(PRIMARY)
            .replica(NodeConfig::new(REPLICA).weight(0)),
    ] {
        assert_eq!(config.check(), Ok(()));
    }
}

#[test]
fn the_checked_form_is_complete() {
    let settings = valid()
        .max_lifetime(None)
        .connect_timeout(Duration::from_secs(7))
        .replica(
            NodeConfig::new("postgres://app@db3:6000/app?connect_timeout=2")
                .name("eu")
                .weight(3)
                .tag("zone", "a")
                .max_size(20)
                .connect_timeout(Duration::from_secs(9))
                .max_lifetime(Duration::from_secs(60)),
        )
        .validate()
        .unwrap();
    let [primary, _, eu] = settings.nodes.as_slice() else {
        panic!("{settings:?}");
    };
    assert_eq!(primary.name, "db1:5432");
    assert_eq!(primary.declared, DeclaredRole::Primary);
    assert_eq!(primary.pool.connect_timeout, Duration::from_secs(7));
    assert_eq!(primary.pool.max_lifetime, None);
    assert_eq!(
        primary.login.password.as_deref(),
        Some(b"hunter2".as_slice())
    );
    assert_eq!(eu.name, "eu");
    assert_eq!(eu.tags["zone"], "a");
    assert_eq!(
        eu.host,
        Host::Tcp {
            host: "db3".to_owned(),
            hostaddr: None,
            port: 6000
        }
    );
    let expected = PoolConfig {
        max_size: 20,
        connect_timeout: Duration::from_secs(2),
        max_lifetime: Some(Duration::from_secs(60)),
        ..PoolConfig::default()
    };
    assert_eq!(eu.pool, expected);
}

#[test]
fn a_weight_holds_in_the_declared_role() {
    use DeclaredRole::{Primary, Replica, Unknown};
    for (declared, weight, as_primary, as_replica) in [
        (Primary, None, 0, 1),
        (Replica, None, 0, 1),
        (Unknown, None, 0, 1),
        (Primary, Some(5), 5, 1),
        (Replica, Some(5), 0, 5),
        (Unknown, Some(5), 0, 5),
        (Replica, Some(0), 0, 0),
    ] {
        let mut node = NodeConfig::new("postgres://db9").role(declared);
        node.weight = weight;
        let settings = Config::new()
            .node("postgres://db1")
            .node(node)
            .validate()
            .unwrap();
        let node = &settings.nodes[1];
        assert_eq!(
            node.weight,
            weight.map(|weight| u32::try_from(weight).unwrap())
        );
        assert_eq!(
            node.weight_as(Primary),
            as_primary,
            "{declared:?} {weight:?}"
        );
        assert_eq!(
            node.weight_as(Replica),
            as_replica,
            "{declared:?} {weight:?}"
        );
        assert_eq!(
            node.weight_as(Unknown),
            as_replica,
            "{declared:?} {weight:?}"
        );
    }
}

#[test]
fn the_defaults_of_the_pool_are_those_of_bb8() {
    let ours = PoolConfig::default();
    assert_eq!(ours.max_size, 10);
    assert_eq!(ours.min_idle, None);
    assert_eq!(ours.connection_timeout, Duration::from_secs(30));
    assert_eq!(ours.max_lifetime, Some(Duration::from_secs(1800)));
    assert_eq!(ours.idle_timeout, Some(Duration::from_secs(600)));
}

#[test]
fn where_standbys_reach_a_node_is_an_address_alone() {
    let checked = |node: NodeConfig| Config::new().primary(node).validate();
    let at = |node: NodeConfig| {
        let settings = checked(node).unwrap();
        settings.nodes[0]
            .replication_address()
            .map(|it| it.to_string())
    };
    let node = || NodeConfig::new("postgres://pooler:6432/a");
    for (address, expected) in [
        ("10.0.0.1:6000", "10.0.0.1:6000"),
        ("db1.internal", "db1.internal:5432"),
        ("[::1]:7", "[::1]:7"),
    ] {
        let found = at(node().replication_address(address));
        assert_eq!(found.as_deref(), Some(expected));
    }
    assert_eq!(at(node()).as_deref(), Some("pooler:6432"));
    let around = at(node().monitor("postgres://db1:6000/a"));
    assert_eq!(around.as_deref(), Some("db1:6000"));
    assert_eq!(at(NodeConfig::new("host=/run/postgresql dbname=a")), None);
    for wrong in ["", "u:hunter2@db1", "db1/x", "db1:x", "a,b"] {
        let errors = checked(node().replication_address(wrong)).map(drop);
        only_mistake(&errors.unwrap_err(), &["`replication_address`"]);
    }
}
