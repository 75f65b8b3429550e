//! What becomes of each parameter of libpq 18, and of each of its environment variables.
//!
//! See <https://www.postgresql.org/docs/18/libpq-connect.html#LIBPQ-PARAMKEYWORDS> and
//! <https://www.postgresql.org/docs/18/libpq-envars.html>.

/// What becomes of a parameter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It does what libpq's documentation says, in these words.
    Honoured(&'static str),
    /// It is read and changes nothing, for this reason.
    Accepted(&'static str),
    /// It is a mistake, for this reason.
    Refused(&'static str),
}

/// A parameter of libpq.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parameter {
    /// Its name in a connection string; empty for a variable that has none.
    pub(crate) name: &'static str,
    /// The environment variable with its default.
    pub(crate) variable: Option<&'static str>,
    pub(crate) fate: Fate,
}

/// The parameter of this name.
pub(crate) fn find(name: &str) -> Option<&'static Parameter> {
    let mut named = PARAMETERS.iter().filter(|known| !known.name.is_empty());
    named.find(|known| known.name == name)
}

const fn honoured(
    name: &'static str,
    variable: Option<&'static str>,
    what: &'static str,
) -> Parameter {
    let fate = Fate::Honoured(what);
    Parameter {
        name,
        variable,
        fate,
    }
}

const fn accepted(
    name: &'static str,
    variable: Option<&'static str>,
    why: &'static str,
) -> Parameter {
    let fate = Fate::Accepted(why);
    Parameter {
        name,
        variable,
        fate,
    }
}

const fn refused(
    name: &'static str,
    variable: Option<&'static str>,
    why: &'static str,
) -> Parameter {
    let fate = Fate::Refused(why);
    Parameter {
        name,
        variable,
        fate,
    }
}

const NO_GSS: &str =
    "there is no GSSAPI here: remove it, and log in by a password or a client certificate";
const NO_OAUTH: &str = "there is no OAuth here: give `Builder::credentials` a function that fetches the token, where the server takes it as a password";

/// All of them, in the order of libpq's documentation.
pub(crate) const PARAMETERS: &[Parameter] = &[
    honoured(
        "host",
        Some("PGHOST"),
        "Each host is a node. A path is the folder of a Unix socket.",
    ),
    honoured(
        "hostaddr",
        Some("PGHOSTADDR"),
        "Connects to this IP address. Certificates are checked against `host`. The variable counts only where nothing names a host.",
    ),
    honoured(
        "port",
        Some("PGPORT"),
        "One for all hosts, or one for each.",
    ),
    honoured(
        "dbname",
        Some("PGDATABASE"),
        "The default is the user's name.",
    ),
    honoured(
        "user",
        Some("PGUSER"),
        "The default is the user of the operating system.",
    ),
    honoured(
        "password",
        Some("PGPASSWORD"),
        "Never shown. `Builder::credentials` wins over it.",
    ),
    honoured(
        "passfile",
        Some("PGPASSFILE"),
        "Read anew for each connection. Refused if others may read it. The default is `~/.pgpass`.",
    ),
    honoured(
        "require_auth",
        Some("PGREQUIREAUTH"),
        "`password`, `md5`, `scram-sha-256` and `none`, also with `!`. Nothing is answered to another question.",
    ),
    honoured(
        "channel_binding",
        Some("PGCHANNELBINDING"),
        "`disable`, `prefer` or `require`.",
    ),
    honoured(
        "connect_timeout",
        Some("PGCONNECT_TIMEOUT"),
        "In seconds, for each address. Wins over `PoolConfig::connect_timeout`.",
    ),
    accepted(
        "client_encoding",
        Some("PGCLIENTENCODING"),
        "Diesel works in UTF-8. `UTF8` and `auto` are accepted, others are refused.",
    ),
    honoured(
        "options",
        Some("PGOPTIONS"),
        "Sent as they are. Many poolers refuse them.",
    ),
    honoured(
        "application_name",
        Some("PGAPPNAME"),
        "The default is `fallback_application_name`, then the name of the program.",
    ),
    honoured(
        "fallback_application_name",
        None,
        "Used without `application_name`.",
    ),
    honoured(
        "keepalives",
        None,
        "`0` switches them off. On Unix sockets there are none.",
    ),
    honoured(
        "keepalives_idle",
        None,
        "In seconds. The default is two hours.",
    ),
    honoured("keepalives_interval", None, "In seconds."),
    honoured("keepalives_count", None, "Also as `keepalives_retries`."),
    honoured(
        "tcp_user_timeout",
        None,
        "In milliseconds. The default is 15 seconds, where libpq leaves it to the system.",
    ),
    refused(
        "replication",
        None,
        "a replication connection runs no queries: remove it",
    ),
    accepted(
        "gssencmode",
        Some("PGGSSENCMODE"),
        "There is no GSSAPI here. `disable` and `prefer` are accepted, `require` is refused.",
    ),
    honoured(
        "sslmode",
        Some("PGSSLMODE"),
        "`disable`, `allow`, `prefer`, `require`, `verify-ca` or `verify-full`. The default is `prefer`; with `sslrootcert=system` it is `verify-full`. Unix sockets have no TLS.",
    ),
    honoured(
        "requiressl",
        Some("PGREQUIRESSL"),
        "`1` is `sslmode=require`, which wins over it.",
    ),
    honoured(
        "sslnegotiation",
        Some("PGSSLNEGOTIATION"),
        "`postgres` or `direct`. `direct` needs `sslmode=require` or stronger.",
    ),
    accepted(
        "sslcompression",
        Some("PGSSLCOMPRESSION"),
        "There is no compression of TLS any more.",
    ),
    honoured(
        "sslcert",
        Some("PGSSLCERT"),
        "A PEM file. The default is `~/.postgresql/postgresql.crt`, if it is there.",
    ),
    honoured(
        "sslkey",
        Some("PGSSLKEY"),
        "A PEM file without a password. Refused if others may read it. The default is `~/.postgresql/postgresql.key`.",
    ),
    refused(
        "sslpassword",
        None,
        "keys with a password are not read here: remove the password by `openssl pkey -in KEY -out NEW`, and keep NEW readable for its owner alone",
    ),
    honoured(
        "sslcertmode",
        Some("PGSSLCERTMODE"),
        "`disable` or `allow`. `require` is refused: let `pg_hba.conf` ask for the certificate.",
    ),
    honoured(
        "sslrootcert",
        Some("PGSSLROOTCERT"),
        "A PEM file, or `system`. The default is `~/.postgresql/root.crt`, if it is there. Read anew when it changes.",
    ),
    honoured(
        "sslcrl",
        Some("PGSSLCRL"),
        "A PEM file. The default is `~/.postgresql/root.crl`, if it is there.",
    ),
    honoured(
        "sslcrldir",
        Some("PGSSLCRLDIR"),
        "A folder of PEM files; all are read, whatever they are called.",
    ),
    honoured(
        "sslsni",
        Some("PGSSLSNI"),
        "`0` does not tell the name of the host.",
    ),
    refused(
        "sslkeylogfile",
        None,
        "keys of connections are not written down here: remove it, or set the log of keys in the `rustls::ClientConfig` of `Builder::tls`",
    ),
    refused(
        "requirepeer",
        Some("PGREQUIREPEER"),
        "the owner of a Unix socket is not checked here: remove it, and let only the server's user write to the socket's folder",
    ),
    honoured(
        "ssl_min_protocol_version",
        Some("PGSSLMINPROTOCOLVERSION"),
        "`TLSv1.2`, as with the older ones, or `TLSv1.3`.",
    ),
    honoured(
        "ssl_max_protocol_version",
        Some("PGSSLMAXPROTOCOLVERSION"),
        "`TLSv1.2` or `TLSv1.3`. Older ones are refused.",
    ),
    accepted(
        "min_protocol_version",
        Some("PGMINPROTOCOLVERSION"),
        "Version 3.0 of the protocol is spoken. `3.0` is accepted, later ones are refused.",
    ),
    accepted(
        "max_protocol_version",
        Some("PGMAXPROTOCOLVERSION"),
        "Version 3.0 of the protocol is spoken.",
    ),
    refused("krbsrvname", Some("PGKRBSRVNAME"), NO_GSS),
    refused("gsslib", Some("PGGSSLIB"), NO_GSS),
    refused("gssdelegation", Some("PGGSSDELEGATION"), NO_GSS),
    refused(
        "scram_client_key",
        None,
        "SCRAM keys cannot replace the password here: give the password",
    ),
    refused(
        "scram_server_key",
        None,
        "SCRAM keys cannot replace the password here: give the password",
    ),
    honoured(
        "service",
        Some("PGSERVICE"),
        "What the service file says, where the connection string does not.",
    ),
    honoured(
        "servicefile",
        Some("PGSERVICEFILE"),
        "The default is `~/.pg_service.conf`, then `pg_service.conf` in `PGSYSCONFDIR` or `/etc/postgresql-common`.",
    ),
    accepted(
        "target_session_attrs",
        Some("PGTARGETSESSIONATTRS"),
        "The pool finds the primary by itself. `standby` and `read-only` are refused, but for a node that is declared a replica.",
    ),
    honoured(
        "load_balance_hosts",
        Some("PGLOADBALANCEHOSTS"),
        "`random` tries the addresses of a name in random order. Hosts are nodes, and chosen by `policy`.",
    ),
    refused("oauth_issuer", None, NO_OAUTH),
    refused("oauth_client_id", None, NO_OAUTH),
    refused("oauth_client_secret", None, NO_OAUTH),
    refused("oauth_scope", None, NO_OAUTH),
    honoured(
        "",
        Some("PGSYSCONFDIR"),
        "The folder of the service file for all.",
    ),
    accepted(
        "",
        Some("PGTZ"),
        "Diesel sets the time zone of each session to UTC.",
    ),
    honoured(
        "",
        Some("PGDATESTYLE"),
        "The `DateStyle` of each session, by `options`.",
    ),
    accepted("", Some("PGGEQO"), "Use `setup_sql` or `options`."),
    accepted(
        "",
        Some("PGLOCALEDIR"),
        "Messages of libpq are not shown here.",
    ),
    accepted("", Some("PGOAUTHDEBUG"), "There is no OAuth here."),
];
