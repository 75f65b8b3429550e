//! What is read from files and written to them.

use std::time::Duration;

use crate::config::{Config, Consistency, DeclaredRole, Durability, NodeConfig, Policy, Routing};

fn full() -> Config {
    Config::new()
        .primary("postgres://app:secret@db1/app")
        .replica(
            NodeConfig::new("postgres://app:secret@db2/app")
                .name("eu-1")
                .weight(3)
                .zone("a")
                .tag("size", "large")
                .max_size(20)
                .min_idle(1)
                .connection_timeout(Duration::from_millis(1_500))
                .connect_timeout(Duration::from_secs(1))
                .max_lifetime(None)
                .idle_timeout(Duration::from_secs(60)),
        )
        .min_idle(2)
        .max_lifetime(None)
        .policy(Policy::Nearest {
            window: Duration::from_millis(5),
        })
        .routing(Routing::Automatic { share: 0.25 })
        .fallback_share(0.25)
        .start_read_only(true)
        .consistency(Consistency::BoundedStaleness(Duration::from_micros(
            2_500_001,
        )))
        .durability(Durability::RemoteWrite)
        .allow_function("one")
        .deny_function("two")
        .setup_sql("SET statement_timeout = '5s'")
}

#[test]
fn what_is_written_is_read_back() {
    for config in [Config::new(), full()] {
        let toml = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<Config>(&toml).unwrap(), config, "{toml}");
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(
            serde_json::from_str::<Config>(&json).unwrap(),
            config,
            "{json}"
        );
    }
}

#[test]
fn a_file_reads_well() {
    let config: Config = toml::from_str(
        r#"
        policy = "round_robin"
        failover_wait = 2.5

        [pool]
        max_size = 20
        connection_timeout = "250ms"
        idle_timeout = "never"

        [[nodes]]
        url = "postgres://db1/app"
        role = "master"

        [[nodes]]
        url = "postgres://db2/app"
        role = "replica"
        weight = -3
        tags = { zone = "a" }
        pool = { max_size = 5, max_lifetime = "never", connect_timeout = 2 }
        "#,
    )
    .unwrap();
    assert_eq!(config.policy, Policy::RoundRobin);
    assert_eq!(config.failover_wait, Duration::from_millis(2_500));
    assert_eq!(config.pool.connection_timeout, Duration::from_millis(250));
    assert_eq!(config.pool.idle_timeout, None);
    assert_eq!(config.nodes[0].role, DeclaredRole::Primary);
    let replica = &config.nodes[1];
    assert_eq!(replica.pool.max_lifetime, Some(None));
    assert_eq!(replica.pool.connect_timeout, Some(Duration::from_secs(2)));
    let errors = config.check().unwrap_err();
    assert!(errors.to_string().contains("`weight` is -3"), "{errors}");
}

#[test]
fn typing_errors_are_told() {
    for (text, words) in [
        ("max_sise = 1", "max_sise"),
        ("[pool]\nmax_sise = 1", "max_sise"),
        ("[[nodes]]\nurl = ''\npool = { max_sise = 1 }", "max_sise"),
        ("[[nodes]]\nname = 'x'", "url"),
        ("policy = 'fastest'", "least_in_flight"),
        ("[pool]\nidle_timeout = 'soon'", "`10min`"),
        ("[pool]\nidle_timeout = -1", "negative"),
        ("[pool]\nidle_timeout = nan", "negative"),
        ("[pool]\nconnection_timeout = 'never'", "never"),
        ("[pool]\nconnection_timeout = true", "duration"),
    ] {
        let error = toml::from_str::<Config>(text).unwrap_err().to_string();
        assert!(error.contains(words), "{text}: {error}");
    }
}
