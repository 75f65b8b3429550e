//! What becomes of libpq's parameters, service files and environment variables.

use std::fmt::Write as _;
use std::time::Duration;

use super::only_mistake;
use crate::config::libpq::{Fate, PARAMETERS};
use crate::config::{Config, ConfigErrors, DeclaredRole, Settings, SslMode, validate};

/// The parameters of libpq 18, from its documentation.
const LIBPQ_18: &[&str] = &[
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "passfile",
    "require_auth",
    "channel_binding",
    "connect_timeout",
    "client_encoding",
    "options",
    "application_name",
    "fallback_application_name",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
    "replication",
    "gssencmode",
    "sslmode",
    "requiressl",
    "sslnegotiation",
    "sslcompression",
    "sslcert",
    "sslkey",
    "sslkeylogfile",
    "sslpassword",
    "sslcertmode",
    "sslrootcert",
    "sslcrl",
    "sslcrldir",
    "sslsni",
    "requirepeer",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
    "min_protocol_version",
    "max_protocol_version",
    "krbsrvname",
    "gsslib",
    "gssdelegation",
    "scram_client_key",
    "scram_server_key",
    "service",
    "servicefile",
    "target_session_attrs",
    "load_balance_hosts",
    "oauth_issuer",
    "oauth_client_id",
    "oauth_client_secret",
    "oauth_scope",
];

/// Its environment variables.
const VARIABLES_18: &[&str] = &[
    "PGHOST",
    "PGHOSTADDR",
    "PGPORT",
    "PGDATABASE",
    "PGUSER",
    "PGPASSWORD",
    "PGPASSFILE",
    "PGREQUIREAUTH",
    "PGCHANNELBINDING",
    "PGSERVICE",
    "PGSERVICEFILE",
    "PGOPTIONS",
    "PGAPPNAME",
    "PGSSLMODE",
    "PGREQUIRESSL",
    "PGSSLNEGOTIATION",
    "PGSSLCOMPRESSION",
    "PGSSLCERT",
    "PGSSLKEY",
    "PGSSLCERTMODE",
    "PGSSLROOTCERT",
    "PGSSLCRL",
    "PGSSLCRLDIR",
    "PGSSLSNI",
    "PGREQUIREPEER",
    "PGSSLMINPROTOCOLVERSION",
    "PGSSLMAXPROTOCOLVERSION",
    "PGMINPROTOCOLVERSION",
    "PGMAXPROTOCOLVERSION",
    "PGGSSENCMODE",
    "PGKRBSRVNAME",
    "PGGSSLIB",
    "PGGSSDELEGATION",
    "PGCONNECT_TIMEOUT",
    "PGCLIENTENCODING",
    "PGTARGETSESSIONATTRS",
    "PGLOADBALANCEHOSTS",
    "PGDATESTYLE",
    "PGTZ",
    "PGGEQO",
    "PGSYSCONFDIR",
    "PGLOCALEDIR",
    "PGOAUTHDEBUG",
];

#[test]
fn each_parameter_and_variable_has_a_fate() {
    let sorted = |names: &mut dyn Iterator<Item = &'static str>| {
        let mut names: Vec<_> = names.collect();
        names.sort_unstable();
        names
    };
    let mut names = PARAMETERS.iter().map(|parameter| parameter.name);
    let known = sorted(&mut names.by_ref().filter(|name| !name.is_empty()));
    assert_eq!(known, sorted(&mut LIBPQ_18.iter().copied()));
    let mut variables = PARAMETERS.iter().filter_map(|parameter| parameter.variable);
    let known = sorted(&mut variables);
    assert_eq!(known, sorted(&mut VARIABLES_18.iter().copied()));
}

#[test]
fn the_guide_has_the_table() {
    let mut table = String::new();
    for parameter in PARAMETERS {
        let name = match parameter.name {
            "" => String::new(),
            name => format!("`{name}`"),
        };
        let variable = parameter
            .variable
            .map_or_else(String::new, |name| format!("`{name}`"));
        let fate = match parameter.fate {
            Fate::Honoured(what) => what.to_owned(),
            Fate::Accepted(why) => format!("Changes nothing. {why}"),
            Fate::Refused(why) => format!("Refused: {why}."),
        };
        let _ = writeln!(table, "| {name} | {variable} | {fate} |");
    }
    let guide = include_str!("../../guide/connecting.md");
    assert!(
        guide.contains(&table),
        "src/guide/connecting.md needs this table:\n{table}"
    );
}

fn read(url: &str, variables: &[(&str, &str)]) -> Result<Settings, ConfigErrors> {
    let lookup = |name: &str| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    let config = Config::new().node(url);
    validate::validate(&config, &lookup)
}

#[test]
fn the_url_wins_over_the_service_and_that_over_the_environment() {
    let folder = std::env::temp_dir().join(format!("service-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("pg_service.conf");
    let text = "[app]\nhost=db9\nuser=service\ndbname=service\nsslmode=disable\npassword=hunter2\n";
    std::fs::write(&file, text).unwrap();
    let file = file.display().to_string();
    let sysconf = folder.display().to_string();
    let environment = [
        ("PGSERVICEFILE", file.as_str()),
        ("PGDATABASE", "environment"),
        ("PGHOST", "elsewhere"),
        ("PGPORT", "6000"),
        ("PGSSLMODE", "require"),
        ("PGCONNECT_TIMEOUT", "7"),
        ("PGDATESTYLE", "ISO, DMY"),
        ("PGOPTIONS", "-c work_mem=1MB"),
    ];
    let one = read("postgres://url@/?service=app", &environment).unwrap();
    let node = &one.nodes[0];
    assert_eq!(node.name, "db9:6000");
    let postgres = &node.login.postgres;
    assert_eq!(postgres.get_user(), Some("url"));
    assert_eq!(postgres.get_dbname(), Some("service"));
    assert_eq!(node.login.tls.mode, SslMode::Disable);
    assert_eq!(node.login.password.as_deref(), Some(b"hunter2".as_slice()));
    assert_eq!(node.pool.connect_timeout, Duration::from_secs(7));
    let options = "-c DateStyle=ISO,\\ DMY -c work_mem=1MB";
    assert_eq!(postgres.get_options(), Some(options));
    // Without the service the environment is left.
    let other = read("postgres://", &environment).unwrap();
    assert_eq!(other.nodes[0].name, "elsewhere:6000");
    #[cfg(feature = "rustls")]
    assert_eq!(other.nodes[0].login.tls.mode, SslMode::Require);
    // The file for all is found, too.
    let all = [("PGSYSCONFDIR", sysconf.as_str()), ("PGSERVICE", "app")];
    assert_eq!(read("postgres://", &all).unwrap().nodes[0].name, "db9:5432");
    let errors = read("postgres://?service=other", &all)
        .unwrap_err()
        .to_string();
    assert!(
        errors.contains("no service file has a section `[other]`"),
        "{errors}"
    );
    assert!(!errors.contains("hunter2"), "{errors}");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_variable_that_is_wrong_is_named() {
    for (variable, value, words) in [
        ("PGSSLMODE", "always", ["`PGSSLMODE`", "`verify-full`"]),
        (
            "PGREQUIREPEER",
            "postgres",
            ["`PGREQUIREPEER`", "remove it"],
        ),
        (
            "PGCONNECT_TIMEOUT",
            "soon",
            ["`PGCONNECT_TIMEOUT`", "`db1:5432`"],
        ),
        ("PGGSSENCMODE", "require", ["`PGGSSENCMODE`", "`sslmode`"]),
        (
            "PGCLIENTENCODING",
            "LATIN1",
            ["`PGCLIENTENCODING`", "UTF-8"],
        ),
    ] {
        let errors = read("postgres://db1/a", &[(variable, value)]).unwrap_err();
        only_mistake(&errors, &words);
    }
}

#[test]
fn what_changes_nothing_is_accepted() {
    for parameter in [
        "gssencmode=disable",
        "gssencmode=prefer",
        "client_encoding=UTF8",
        "client_encoding=auto",
        "target_session_attrs=read-write",
        "target_session_attrs=primary",
        "target_session_attrs=prefer-standby",
        "load_balance_hosts=random",
        "sslcompression=0",
        "replication=false",
        "krbsrvname=postgres",
        "min_protocol_version=3.0",
        "max_protocol_version=latest",
        "keepalives_count=3",
        "keepalives_retries=3",
        "options=endpoint%3Dep-cool-darkness-123456",
    ] {
        let read = read(&format!("postgres://db1/a?{parameter}"), &[]);
        assert!(read.is_ok(), "{parameter}: {read:?}");
    }
    for parameter in [
        "require_auth=",
        "target_session_attrs=standby",
        "target_session_attrs=read-only",
        "target_session_attrs=nearest",
        "replication=database",
        "client_encoding=LATIN1",
        "krbsrvname=other",
        "scram_client_key=x",
        "oauth_issuer=https%3A%2F%2Fx",
        "sslkeylogfile=/tmp/x",
        "min_protocol_version=3.2",
    ] {
        let errors = read(&format!("postgres://db1/a?{parameter}"), &[]).unwrap_err();
        only_mistake(
            &errors,
            &["`db1:5432`", parameter.split('=').next().unwrap()],
        );
    }
    // A replica that only reads may say so.
    let node = crate::NodeConfig::new("postgres://db2/a?target_session_attrs=standby");
    let config = Config::new()
        .primary("postgres://db1/a")
        .node(node.role(DeclaredRole::Replica));
    assert_eq!(config.check(), Ok(()));
}

#[test]
fn sockets_are_as_libpq_has_them() {
    let of = |parameters: &str| {
        let read = read(&format!("postgres://db1/a?{parameters}"), &[]).unwrap();
        read.nodes[0].login.socket.clone()
    };
    let usual = of("");
    assert!(usual.keepalives && !usual.shuffle);
    assert_eq!(usual.tcp_user_timeout, Some(Duration::from_secs(15)));
    // In milliseconds, where tokio-postgres takes seconds.
    let set =
        of("tcp_user_timeout=2500&keepalives_idle=60&keepalives_interval=5&keepalives_count=4");
    assert_eq!(set.tcp_user_timeout, Some(Duration::from_millis(2500)));
    assert_eq!(set.keepalives_idle, Duration::from_secs(60));
    assert_eq!(set.keepalives_interval, Some(Duration::from_secs(5)));
    assert_eq!(set.keepalives_count, Some(4));
    assert_eq!(of("tcp_user_timeout=0").tcp_user_timeout, None);
    assert!(!of("keepalives=0").keepalives);
    assert!(of("load_balance_hosts=random").shuffle);
}
