//! With whom and with which password a node is logged in to.

use std::sync::Arc;

use crate::config::{Host, NodeSettings};
use crate::credentials::{Credentials, Given, Keeper, LoginRequest, PassFile};
use crate::error::{ConnectError, ConnectErrorKind};

/// Where the logins of a node come from.
#[derive(Debug)]
pub(super) struct Logins {
    source: Option<Keeper>,
    request: LoginRequest,
}

/// What one connection logs in with. Has no `Debug`, because it holds the password.
pub(super) struct Login {
    pub(super) postgres: tokio_postgres::Config,
    given: Option<Given>,
    /// Why there is no password.
    remark: Option<String>,
}

impl Logins {
    pub(super) fn new(settings: &NodeSettings, source: Option<Arc<dyn Credentials>>) -> Self {
        let postgres = &settings.login.postgres;
        let user = postgres.get_user().map(str::to_owned);
        // As libpq and tokio-postgres have it.
        let user = user.unwrap_or_else(|| whoami::username().unwrap_or_default());
        let (host, port) = match &settings.host {
            Host::Tcp { host, port, .. } => (host.clone(), *port),
            Host::Unix(path) => folder_and_port(path),
        };
        Self {
            source: source.map(Keeper::new),
            request: LoginRequest {
                node: settings.name.clone(),
                host,
                port,
                dbname: postgres.get_dbname().unwrap_or(&user).to_owned(),
                user,
            },
        }
    }

    /// What to log in with. `refused` is what the server has refused; `None` if there is nothing else.
    pub(super) async fn next(
        &self,
        settings: &NodeSettings,
        refused: Option<&Login>,
    ) -> Result<Option<Login>, ConnectError> {
        let mut postgres = settings.login.postgres.clone();
        postgres.user(&self.request.user);
        let mut login = Login {
            postgres,
            given: None,
            remark: None,
        };
        if let Some(source) = &self.source {
            let refused = refused.and_then(|refused| refused.given.as_ref());
            let given = source.ask(&self.request, refused).await.map_err(|error| {
                let kind = ConnectErrorKind::Credentials;
                ConnectError::new(&settings.name, kind, error.to_string())
            })?;
            if refused.is_some_and(|refused| refused.credential == given.credential) {
                return Ok(None);
            }
            if let Some(user) = &given.credential.user {
                login.postgres.user(user);
            }
            login.postgres.password(&given.credential.password);
            login.given = Some(given);
            return Ok(Some(login));
        }
        if refused.is_some() {
            return Ok(None);
        }
        if let Some(password) = &settings.login.password {
            login.postgres.password(password);
        } else if let Some(file) = &settings.login.passfile {
            if file.is_named || file.path.exists() {
                match PassFile::new(&file.path).password(&self.request) {
                    Ok(Some(password)) => {
                        login.postgres.password(password);
                    }
                    Ok(None) => {
                        let shown = file.path.display();
                        login.remark = Some(format!("`{shown}` has no line for this login"));
                    }
                    Err(problem) => login.remark = Some(problem),
                }
            }
        }
        Ok(Some(login))
    }
}

impl Login {
    /// The error of a log-in by this, with why there was no password.
    pub(super) fn remark_on(&self, error: ConnectError) -> ConnectError {
        match &self.remark {
            Some(remark) if error.kind == ConnectErrorKind::Authentication => ConnectError {
                message: format!("{}; {remark}", error.message),
                ..error
            },
            _ => error,
        }
    }
}

/// Of `/run/postgresql/.s.PGSQL.5432`.
fn folder_and_port(path: &std::path::Path) -> (String, u16) {
    let folder = path.parent().unwrap_or(path).display().to_string();
    let port = path
        .extension()
        .and_then(|port| port.to_str()?.parse().ok());
    (folder, port.unwrap_or(5432))
}
