//! From a connection string to the driver's own configuration.

use super::conn_string::ConnString;
use super::setting;
use crate::config::{ConfigError, UrlProblem};

/// The driver's configuration for `parsed`, or `None` and the mistakes in `errors`. They call the
/// node `label`.
pub(super) fn read(
    parsed: &ConnString,
    label: &str,
    errors: &mut Vec<ConfigError>,
) -> Option<tokio_postgres::Config> {
    let before = errors.len();
    for param in &parsed.params {
        let node = label.to_owned();
        if let Some(name) = setting::of_pool().find(|name| *name == param.name) {
            errors.push(ConfigError::MisplacedParameter { node, name });
        } else if !setting::LIBPQ.contains(&param.name.as_str()) {
            let name = (!param.tainted).then(|| param.name.clone());
            errors.push(ConfigError::UnknownParameter { node, name });
        } else if let Some(setting) = asks_for_tls(&param.name, &param.value) {
            errors.push(ConfigError::TlsUnavailable { node, setting });
        } else if param.name == "target_session_attrs" && param.value != "any" {
            errors.push(ConfigError::TargetSessionAttrs { node });
        }
    }
    if errors.len() > before {
        return None;
    }
    match parsed
        .to_url_without_password()
        .parse::<tokio_postgres::Config>()
    {
        Ok(mut postgres) => {
            if let Some(password) = &parsed.password {
                postgres.password(password);
            }
            if postgres.get_application_name().is_none() {
                postgres.application_name(program());
            }
            Some(postgres)
        }
        Err(error) => {
            let problem = UrlProblem::Value(named(&error));
            errors.push(ConfigError::Url {
                node: label.to_owned(),
                problem,
            });
            None
        }
    }
}

/// What the server's views call a connection whose URL does not say: the name of this program, as `psql` and
/// others give theirs. `PGAPPNAME` wins, as with libpq.
fn program() -> String {
    let given = std::env::var("PGAPPNAME")
        .ok()
        .filter(|name| !name.is_empty());
    let own = || {
        let program = std::env::current_exe().ok()?;
        Some(program.file_stem()?.to_string_lossy().into_owned())
    };
    given
        .or_else(own)
        .unwrap_or_else(|| "diesel-replicated".to_owned())
}

/// Whether a parameter can only be honoured with TLS. The one place to change once there is TLS.
fn asks_for_tls(name: &str, value: &str) -> Option<&'static str> {
    match (name, value) {
        ("sslmode", "disable" | "prefer")
        | ("sslnegotiation", "postgres")
        | ("channel_binding", "disable" | "prefer") => None,
        ("sslmode", _) => Some("sslmode"),
        ("sslnegotiation", "direct") => Some("sslnegotiation"),
        ("channel_binding", "require") => Some("channel_binding"),
        _ => None,
    }
}

/// The parameter that the driver refused. Its text is not passed on, so that nothing depends on
/// what it quotes.
fn named(error: &tokio_postgres::Error) -> &'static str {
    let text = std::error::Error::source(error).map_or_else(String::new, ToString::to_string);
    let quoted = text.split('`').nth(1);
    quoted.and_then(setting::known).unwrap_or("a parameter")
}
