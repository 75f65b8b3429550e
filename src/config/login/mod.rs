//! From a connection string to how a server is logged in to, with libpq's meanings.

mod require_auth;
mod service;
mod tls;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) use require_auth::{AuthMethod, RequireAuth};
#[cfg(feature = "rustls")]
pub(crate) use tls::{Roots, TlsVersion};
pub(crate) use tls::{SslMode, TlsSettings};

use super::conn_string::{ConnString, Param};
use super::libpq::{Fate, PARAMETERS, Parameter, find};
use super::node::DeclaredRole;
use super::pooler::Pooler;
use super::setting::{self, Text};
use crate::config::{ConfigError, UrlProblem};

/// Where libpq's environment variables are looked up.
pub(super) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The variables of this process.
pub(super) fn process(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// How a server is logged in to. Has no `Debug`, because it holds the password.
#[derive(Clone)]
pub(crate) struct Login {
    /// Without the password.
    pub(crate) postgres: tokio_postgres::Config,
    pub(crate) password: Option<Vec<u8>>,
    /// Where the password is, if it is not given.
    pub(crate) passfile: Option<ParamFile>,
    pub(crate) require_auth: Option<RequireAuth>,
    pub(crate) tls: TlsSettings,
    pub(crate) socket: SocketSettings,
    pub(crate) pooler: Option<Pooler>,
    pub(crate) zone: Option<String>,
    pub(crate) connect_timeout: Option<Duration>,
}

/// A file, and whether somebody named it. One that lies in its usual place may be missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ParamFile {
    pub(crate) path: PathBuf,
    pub(crate) is_named: bool,
}

/// How sockets are opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SocketSettings {
    pub(crate) keepalives: bool,
    pub(crate) keepalives_idle: Duration,
    pub(crate) keepalives_interval: Option<Duration>,
    pub(crate) keepalives_count: Option<u32>,
    /// `None` for the default of the system.
    pub(crate) tcp_user_timeout: Option<Duration>,
    /// The addresses of a name are tried in random order.
    pub(crate) shuffle: bool,
}

/// How long sent data may stay unacknowledged if nobody says. Keepalives alone do not notice a link that died with
/// data under way.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(15);

/// What a connection string says, completed by its service and by the environment.
pub(super) fn completed(
    parsed: &ConnString,
    label: &str,
    environment: Lookup<'_>,
    errors: &mut Vec<ConfigError>,
) -> ConnString {
    let mut whole = parsed.clone();
    let node = || label.to_owned();
    match service::parameters(parsed, environment) {
        Ok(found) => {
            for (name, value) in found {
                if let Err(problem) = whole.fill(Param::new(name, value)) {
                    errors.push(ConfigError::Url {
                        node: node(),
                        problem,
                    });
                }
            }
        }
        Err(problem) => errors.push(ConfigError::Service {
            node: node(),
            problem,
        }),
    }
    for parameter in PARAMETERS {
        let value = parameter.variable.and_then(environment);
        let Some(value) = value.filter(|value| !value.is_empty()) else {
            continue;
        };
        // Who names a host means that host.
        if parameter.name.is_empty() || (parameter.name == "hostaddr" && whole.names_hosts()) {
            continue;
        }
        let mut param = Param::new(parameter.name.to_owned(), value);
        param.variable = parameter.variable;
        if let Err(problem) = whole.fill(param) {
            errors.push(ConfigError::Url {
                node: node(),
                problem,
            });
        }
    }
    whole
}

/// How to log in by `whole`, or `None` and the mistakes in `errors`. They call the node `label`.
pub(super) fn read(
    whole: &ConnString,
    label: &str,
    role: DeclaredRole,
    environment: Lookup<'_>,
    errors: &mut Vec<ConfigError>,
) -> Option<Login> {
    let before = errors.len();
    let mut reader = Reader {
        whole,
        label,
        environment,
        errors,
    };
    reader.check_names();
    reader.check_values(role);
    let login = Login {
        postgres: reader.start_up(),
        password: whole.password.clone(),
        passfile: reader.file("passfile", Path::new(".pgpass")),
        require_auth: reader.require_auth(),
        tls: tls::read(&mut reader),
        socket: reader.socket(),
        pooler: reader.pooler(),
        zone: reader.zone(),
        connect_timeout: reader.seconds("connect_timeout"),
    };
    (errors.len() == before).then_some(login)
}

/// Reads the values of parameters, and collects the mistakes.
struct Reader<'a> {
    whole: &'a ConnString,
    label: &'a str,
    environment: Lookup<'a>,
    errors: &'a mut Vec<ConfigError>,
}

impl Reader<'_> {
    /// An empty value counts as not set, as in libpq.
    fn value(&self, name: &str) -> Option<&str> {
        self.whole.param(name).filter(|value| !value.is_empty())
    }

    fn home(&self) -> Option<String> {
        (self.environment)("HOME").filter(|home| !home.is_empty())
    }

    /// The name under which somebody gave a parameter: its own, or that of a variable.
    fn given_as(&self, name: &'static str) -> &'static str {
        let mut params = self.whole.params.iter();
        let given = params.find(|param| param.name == name);
        given.and_then(|param| param.variable).unwrap_or(name)
    }

    fn invalid(&mut self, name: &'static str, expected: &'static str) {
        self.errors.push(ConfigError::InvalidParameter {
            node: self.label.to_owned(),
            name: self.given_as(name),
            expected,
        });
    }

    fn refuse(&mut self, name: &'static str, reason: &'static str) {
        self.errors.push(ConfigError::RefusedParameter {
            node: self.label.to_owned(),
            name: self.given_as(name),
            reason,
        });
    }

    #[cfg(not(feature = "rustls"))]
    fn tls_unavailable(&mut self, setting: &'static str) {
        self.errors.push(ConfigError::TlsUnavailable {
            node: self.label.to_owned(),
            setting: self.given_as(setting),
        });
    }

    fn read<T: Text>(&mut self, name: &'static str) -> Option<T> {
        let read = T::read(self.value(name)?);
        if read.is_none() {
            self.invalid(name, T::EXPECTED);
        }
        read
    }

    /// A whole number.
    fn number(&mut self, name: &'static str) -> Option<i64> {
        let read = self.value(name)?.trim().parse().ok();
        if read.is_none() {
            self.errors.push(ConfigError::Url {
                node: self.label.to_owned(),
                problem: UrlProblem::Value(self.given_as(name)),
            });
        }
        read
    }

    /// A time; zero and less is for no time at all, as in libpq.
    fn seconds(&mut self, name: &'static str) -> Option<Duration> {
        let seconds = u64::try_from(self.number(name)?).ok()?;
        (seconds > 0).then(|| Duration::from_secs(seconds))
    }

    /// `1` or `0`.
    fn switch(&mut self, name: &'static str) -> Option<bool> {
        match self.one_of(name, &["0", "1"])? {
            "1" => Some(true),
            _ => Some(false),
        }
    }

    fn one_of(&mut self, name: &'static str, values: &[&'static str]) -> Option<&'static str> {
        let value = self.value(name)?;
        let found = values.iter().find(|known| **known == value).copied();
        if found.is_none() {
            self.errors.push(ConfigError::Url {
                node: self.label.to_owned(),
                problem: UrlProblem::Value(self.given_as(name)),
            });
        }
        found
    }

    fn check_names(&mut self) {
        for param in &self.whole.params {
            let node = self.label.to_owned();
            if let Some(name) = setting::of_pool().find(|name| *name == param.name) {
                self.errors
                    .push(ConfigError::MisplacedParameter { node, name });
                continue;
            }
            match find(&param.name) {
                None if param.name == setting::RETRIES
                    || setting::OF_NODE.contains(&&*param.name) => {}
                None => {
                    let name = (!param.tainted).then(|| param.name.clone());
                    self.errors
                        .push(ConfigError::UnknownParameter { node, name });
                }
                Some(Parameter {
                    name,
                    fate: Fate::Refused(reason),
                    ..
                }) if !is_default(name, &param.value) => self.refuse(name, reason),
                Some(_) => {}
            }
        }
    }

    /// What is accepted as long as it asks for nothing that is not there.
    fn check_values(&mut self, role: DeclaredRole) {
        const ALL: &[&str] = &[
            "any",
            "read-write",
            "primary",
            "prefer-standby",
            "standby",
            "read-only",
        ];
        let attrs = self.one_of("target_session_attrs", ALL);
        if matches!(attrs, Some("standby" | "read-only")) && role != DeclaredRole::Replica {
            let reason =
                "this pool writes on the primary: remove it, or declare the node a replica";
            self.refuse("target_session_attrs", reason);
        }
        let encoding = self.value("client_encoding").map(str::to_ascii_lowercase);
        if encoding.is_some_and(|name| !["utf8", "utf-8", "unicode", "auto"].contains(&&*name)) {
            self.refuse("client_encoding", "Diesel works in UTF-8: remove it");
        }
        if self.one_of("gssencmode", &["disable", "prefer", "require"]) == Some("require") {
            let reason = "there is no GSSAPI here: use `sslmode` for encryption";
            self.refuse("gssencmode", reason);
        }
        if self
            .one_of("min_protocol_version", &["3.0", "3.2", "latest"])
            .is_some_and(|version| version != "3.0")
        {
            self.refuse(
                "min_protocol_version",
                "version 3.0 of the protocol is spoken: remove it",
            );
        }
    }

    /// What the server is told at the start.
    fn start_up(&mut self) -> tokio_postgres::Config {
        let mut postgres = tokio_postgres::Config::new();
        if let Some(user) = &self.whole.user {
            postgres.user(user);
        }
        if let Some(dbname) = &self.whole.dbname {
            postgres.dbname(dbname);
        }
        let options = self.options();
        if !options.is_empty() {
            postgres.options(options);
        }
        let name = self.value("application_name");
        let name = name.or(self.value("fallback_application_name"));
        postgres.application_name(name.map_or_else(program, str::to_owned));
        let binding = match self.one_of("channel_binding", &["disable", "prefer", "require"]) {
            Some("disable") => tokio_postgres::config::ChannelBinding::Disable,
            Some("require") => tokio_postgres::config::ChannelBinding::Require,
            _ => tokio_postgres::config::ChannelBinding::Prefer,
        };
        postgres.channel_binding(binding);
        postgres
    }

    /// With the settings of a session that have variables of their own.
    fn options(&self) -> String {
        let own = self.value("options").map(str::to_owned);
        let setting = |(variable, setting): (&str, &str)| {
            let value = (self.environment)(variable).filter(|value| !value.is_empty())?;
            let escaped = value.replace('\\', "\\\\").replace(' ', "\\ ");
            Some(format!("-c {setting}={escaped}"))
        };
        let variables = [("PGDATESTYLE", "DateStyle")];
        // Of two, the last one counts.
        let all: Vec<String> = variables
            .into_iter()
            .filter_map(setting)
            .chain(own)
            .collect();
        all.join(" ")
    }

    /// A file that a parameter names, else the one of libpq's usual place.
    fn file(&self, name: &str, below_home: &Path) -> Option<ParamFile> {
        let named = |path: &str| ParamFile {
            path: PathBuf::from(path),
            is_named: true,
        };
        let usual = || {
            Some(ParamFile {
                path: Path::new(&self.home()?).join(below_home),
                is_named: false,
            })
        };
        self.value(name).map(named).or_else(usual)
    }

    /// Of several hosts each has its own URL by now; see [`url::read`](super::url::read).
    fn zone(&mut self) -> Option<String> {
        let text = self.whole.param(setting::ZONE)?;
        super::zone::of_one(text, self.label, self.errors)
    }

    fn pooler(&mut self) -> Option<Pooler> {
        let prisma = self.one_of("pgbouncer", &["true", "false"]) == Some("true");
        let pooler = self.read("pooler");
        pooler.or(prisma.then_some(Pooler::Transaction))
    }

    fn require_auth(&mut self) -> Option<RequireAuth> {
        // An empty list would allow nothing. Whoever writes it means something else.
        let read = RequireAuth::read(self.whole.param("require_auth")?);
        if read.is_none() {
            self.invalid("require_auth", RequireAuth::EXPECTED);
        }
        read
    }

    fn socket(&mut self) -> SocketSettings {
        const TWO_HOURS: Duration = Duration::from_secs(2 * 60 * 60);
        let retries = self.number(setting::RETRIES);
        let count = self.number("keepalives_count").or(retries);
        if retries.is_some_and(|retries| u32::try_from(retries).is_err()) {
            self.errors.push(ConfigError::Url {
                node: self.label.to_owned(),
                problem: UrlProblem::Value(setting::RETRIES),
            });
        }
        let timeout = match self.number("tcp_user_timeout") {
            None => Some(TCP_USER_TIMEOUT),
            Some(millis) => u64::try_from(millis)
                .ok()
                .filter(|millis| *millis > 0)
                .map(Duration::from_millis),
        };
        SocketSettings {
            keepalives: self.number("keepalives") != Some(0),
            keepalives_idle: self.seconds("keepalives_idle").unwrap_or(TWO_HOURS),
            keepalives_interval: self.seconds("keepalives_interval"),
            keepalives_count: count
                .and_then(|count| u32::try_from(count).ok())
                .filter(|count| *count > 0),
            tcp_user_timeout: timeout,
            shuffle: self.one_of("load_balance_hosts", &["disable", "random"]) == Some("random"),
        }
    }
}

/// Whether a parameter that is refused says nothing, as in a list of all of libpq's defaults.
fn is_default(name: &str, value: &str) -> bool {
    match name {
        "replication" => ["false", "off", "no", "0"].contains(&value),
        "krbsrvname" => value == "postgres",
        "gssdelegation" => value == "0",
        _ => value.is_empty(),
    }
}

/// What the server's views call a connection whose URL does not say: the name of this program, as `psql` and
/// others give theirs.
fn program() -> String {
    let own = || {
        let program = std::env::current_exe().ok()?;
        Some(program.file_stem()?.to_string_lossy().into_owned())
    };
    own().unwrap_or_else(|| "diesel-replicated".to_owned())
}
