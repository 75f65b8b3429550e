//! What is read from environment variables.

use std::time::Duration;

use super::only_mistake;
use crate::config::ConfigErrors;
use crate::config::{
    CommitResolution, Config, Consistency, ConsistencyConfig, DeclaredRole, Durability,
    HealthConfig, Policy, Routing, WriteScope,
};

/// Names and values.
type Variables<'a> = &'a [(&'a str, &'a str)];

fn read(variables: Variables<'_>) -> Result<Config, ConfigErrors> {
    Config::from_env_with("DATABASE", |name| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    })
}

fn roles(variables: Variables<'_>) -> Vec<(String, DeclaredRole)> {
    let settings = read(variables).unwrap().validate().unwrap();
    settings
        .nodes
        .into_iter()
        .map(|node| (node.name, node.declared))
        .collect()
}

#[test]
fn roles_follow_from_the_variables() {
    use DeclaredRole::{Primary, Replica, Unknown};
    let (url, primary) = ("DATABASE_URL", "DATABASE_PRIMARY_URL");
    let replicas = ("DATABASE_REPLICA_URLS", "postgres://b\n postgres://c,d ");
    let table: &[(Variables<'_>, &[DeclaredRole])] = &[
        (&[(url, "postgres://a")], &[Unknown]),
        (&[(url, "postgres://a,b")], &[Unknown, Unknown]),
        (
            &[(url, "postgres://a"), replicas],
            &[Primary, Replica, Replica, Replica],
        ),
        (
            &[(url, "postgres://a,e"), replicas],
            &[Unknown, Unknown, Replica, Replica, Replica],
        ),
        (&[(primary, "postgres://a")], &[Primary]),
        (
            &[(primary, "postgres://a"), replicas],
            &[Primary, Replica, Replica, Replica],
        ),
        (
            &[(primary, "postgres://a"), (url, " postgres://a ")],
            &[Primary],
        ),
        (&[(primary, "postgres://a"), (url, "")], &[Primary]),
    ];
    for (variables, expected) in table {
        let found: Vec<DeclaredRole> = roles(variables).into_iter().map(|(_, role)| role).collect();
        assert_eq!(found, *expected, "{variables:?}");
    }
}

#[test]
fn what_reads_and_writes_are_to_be_has_variables() {
    let config = read(&[
        ("DATABASE_URL", "postgres://a/x?consistency=eventual"),
        ("DATABASE_CONSISTENCY", "causal"),
        ("DATABASE_WRITE_SCOPE", "session"),
        ("DATABASE_CONSISTENCY_WAIT", "20ms"),
        ("DATABASE_STRONG_READS_ON_REPLICAS", "yes"),
        ("DATABASE_DURABILITY", "remote_apply"),
    ])
    .unwrap();
    let expected = Config::new()
        .consistency(
            ConsistencyConfig::from(Consistency::Causal)
                .write_scope(WriteScope::Session)
                .wait(Duration::from_millis(20))
                .strong_reads_on_replicas(true),
        )
        .durability(Durability::RemoteApply);
    assert_eq!(config.consistency, expected.consistency);
    assert_eq!(config.durability, expected.durability);
}

#[test]
fn every_setting_has_a_variable_that_wins_over_the_url() {
    let config = read(&[
        (
            "DATABASE_URL",
            "postgres://a/x?max_size=3&policy=round_robin",
        ),
        ("DATABASE_REPLICA_URLS", "postgres://b postgres://c"),
        ("DATABASE_REPLICA_WEIGHTS", "3, 1"),
        ("DATABASE_MAX_SIZE", "20"),
        ("DATABASE_MIN_IDLE", "2"),
        ("DATABASE_CONNECTION_TIMEOUT", "1"),
        ("DATABASE_CONNECT_TIMEOUT", "250ms"),
        ("DATABASE_MAX_LIFETIME", "never"),
        ("DATABASE_IDLE_TIMEOUT", "5min"),
        ("DATABASE_FAILOVER_WAIT", "250ms"),
        ("DATABASE_POLICY", "least_in_flight"),
        ("DATABASE_ROUTING", "automatic:5%"),
        ("DATABASE_FALLBACK_SHARE", "1"),
        ("DATABASE_START_READ_ONLY", "yes"),
        ("DATABASE_READ_ONLY_TRANSACTIONS_ON_REPLICAS", "1"),
        ("DATABASE_FUNCTIONS_ALLOW", "app.one, two"),
        ("DATABASE_FUNCTIONS_DENY", "three\nfour"),
        ("DATABASE_SETUP_SQL", "SET statement_timeout = '5s'"),
    ])
    .unwrap();
    let weights: Vec<_> = config.nodes.iter().map(|node| node.weight).collect();
    assert_eq!(weights, [None, Some(3), Some(1)]);
    let expected = Config::new()
        .max_size(20)
        .min_idle(2)
        .connection_timeout(Duration::from_secs(1))
        .connect_timeout(Duration::from_millis(250))
        .max_lifetime(None)
        .idle_timeout(Duration::from_secs(300))
        .failover_wait(Duration::from_millis(250))
        .policy(Policy::LeastInFlight)
        .routing(Routing::Automatic { share: 0.05 })
        .fallback_share(1.0)
        .start_read_only(true)
        .read_only_transactions_on_replicas(true)
        .allow_function("app.one")
        .allow_function("two")
        .deny_function("three")
        .deny_function("four")
        .setup_sql("SET statement_timeout = '5s'");
    assert_eq!(
        Config {
            nodes: Vec::new(),
            ..config.clone()
        },
        expected
    );
    config.check().unwrap();
}

#[test]
fn the_watching_of_nodes_has_variables() {
    let config = read(&[
        ("DATABASE_URL", "postgres://a/x"),
        ("DATABASE_MAX_LAG", "never"),
        ("DATABASE_AUTOMATIC_PROMOTION", "on"),
        ("DATABASE_COMMIT_RESOLUTION", "marker"),
        ("DATABASE_MAX_LAG_BYTES", "16777216"),
        ("DATABASE_HEALTH_INTERVAL", "2"),
        ("DATABASE_HEALTH_TIMEOUT", "3"),
        ("DATABASE_STANDBYS_FOLLOW", "true"),
    ]);
    let expected = HealthConfig::default()
        .max_lag_bytes(16_777_216)
        .interval(Duration::from_secs(2))
        .timeout(Duration::from_secs(3));
    let config = config.unwrap();
    assert_eq!(config.health, expected);
    assert!(config.promotion.automatic && config.promotion.standbys_follow);
    assert_eq!(config.commit_resolution, CommitResolution::Marker);
    let wrong = Config::from_url("postgres://a/x?health_interval=0&max_lag_bytes=0").unwrap();
    let text = wrong.check().unwrap_err().to_string();
    assert!(
        text.contains("`health.interval`") && text.contains("`health.max_lag_bytes`"),
        "{text}"
    );
}

#[test]
fn mistakes_name_the_variable() {
    let url = ("DATABASE_URL", "postgres://u:hunter2@a");
    let other = ("DATABASE_PRIMARY_URL", "postgres://u:hunter2@b");
    let table: &[(Variables<'_>, &[&str])] = &[
        (&[], &["`DATABASE_URL`", "`DATABASE_PRIMARY_URL`"]),
        (
            &[url, other],
            &["`DATABASE_URL`", "`DATABASE_PRIMARY_URL`", "differ"],
        ),
        (
            &[("DATABASE_URL", "u:hunter2@a")],
            &["`DATABASE_URL`", "`postgres://`"],
        ),
        (
            &[url, ("DATABASE_REPLICA_URLS", "postgres://u:hunter2@")],
            &["`DATABASE_REPLICA_URLS`"],
        ),
        (
            &[url, ("DATABASE_MAX_SIZE", "hunter2")],
            &["`DATABASE_MAX_SIZE`", "whole number"],
        ),
        (
            &[url, ("DATABASE_IDLE_TIMEOUT", "hunter2")],
            &["`DATABASE_IDLE_TIMEOUT`", "`never`"],
        ),
        (
            &[url, ("DATABASE_REPLICA_WEIGHTS", "x")],
            &["`DATABASE_REPLICA_WEIGHTS`", "3,1"],
        ),
        (
            &[url, ("DATABASE_REPLICA_WEIGHTS", "3")],
            &["`DATABASE_REPLICA_WEIGHTS`", "the 0 nodes"],
        ),
        (
            &[url, ("DATABASE_REPLICA_URLS", "postgres://b/a?max_size=3")],
            &["`b:5432`", "`max_size`", "belongs to the pool"],
        ),
    ];
    for (variables, words) in table {
        only_mistake(&read(variables).unwrap_err(), words);
    }
    let several = read(&[("DATABASE_MAX_SIZE", "x"), ("DATABASE_POLICY", "y")]).unwrap_err();
    assert_eq!(several.iter().count(), 3, "{several}");
}
