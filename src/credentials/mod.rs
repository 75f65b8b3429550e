//! Users and passwords that change while the pool runs.
//!
//! A URL has one password, for as long as the pool lives. [`Builder::credentials`](crate::Builder::credentials) takes
//! something that is asked for each new connection instead: tokens of a cloud, a vault, a file.
//!
//! ```
//! use std::time::Duration;
//!
//! use diesel_replicated::credentials::{Credential, from_fn};
//! # async fn fetch_token(_host: &str, _user: &str) -> Result<String, std::io::Error> { Ok("t".to_owned()) }
//!
//! # fn example() -> Result<(), diesel_replicated::Error> {
//! let tokens = from_fn(|login| async move {
//!     let token = fetch_token(&login.host, &login.user).await?;
//!     Ok(Credential::new(token).expires_in(Duration::from_secs(15 * 60)))
//! });
//! let builder = diesel_replicated::Builder::from_url("postgres://app@db1,db2/app?sslmode=require")?
//!     .credentials(tokens);
//! # Ok(())
//! # }
//! ```

mod keeper;
mod passfile;

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

pub(crate) use keeper::{Given, Keeper};
pub use passfile::PassFile;

/// What a source of credentials may fail with. Its text is shown in errors and logs, so it must hold no secret.
pub type CredentialsError = Box<dyn Error + Send + Sync>;

/// Where somebody wants to log in.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoginRequest {
    /// The name of the node.
    pub node: String,
    /// The host as the URL names it; for a Unix socket its folder. A token is made for this name, whatever address
    /// it has.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The user that the URL names, else that of the operating system.
    pub user: String,
    /// The database that the URL names, else that of the user's name.
    pub dbname: String,
}

/// A password, and perhaps a user. `Debug` shows neither.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    pub(crate) user: Option<String>,
    pub(crate) password: Vec<u8>,
    expires: Option<SystemTime>,
}

impl Credential {
    /// A password for the user of the URL. It is asked for again for each connection, unless it
    /// [expires](Self::expires_at).
    pub fn new(password: impl Into<Vec<u8>>) -> Self {
        Self {
            user: None,
            password: password.into(),
            expires: None,
        }
    }

    /// Another user than that of the URL.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Until then it is kept, and not asked for again; but for the last minute, or the last tenth if that is less.
    /// Connections that are open go on.
    #[must_use]
    pub fn expires_at(mut self, at: SystemTime) -> Self {
        self.expires = Some(at);
        self
    }

    /// As [`expires_at`](Self::expires_at), from now on.
    #[must_use]
    pub fn expires_in(self, time: Duration) -> Self {
        match SystemTime::now().checked_add(time) {
            Some(at) => self.expires_at(at),
            None => self,
        }
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("user", &self.user.as_ref().map(|_| "***"))
            .field("password", &"***")
            .field("expires", &self.expires)
            .finish()
    }
}

/// A source of users and passwords, for [`Builder::credentials`](crate::Builder::credentials).
///
/// It is asked for each new server connection, of the pool and of its monitors. Those who wait at the same time share
/// one answer. If the server refuses an answer (SQLSTATE `28P01` or `28000`), the source is asked once more; if it
/// says the same, the connection fails. Asking may take as long as `connect_timeout`. A failure is not kept.
#[async_trait]
pub trait Credentials: Send + Sync + 'static {
    /// What to log in with.
    ///
    /// # Errors
    ///
    /// There is none now. The text of the error is shown, in errors and logs.
    async fn credential(&self, login: &LoginRequest) -> Result<Credential, CredentialsError>;
}

/// The same credential for all.
#[async_trait]
impl Credentials for Credential {
    async fn credential(&self, _: &LoginRequest) -> Result<Self, CredentialsError> {
        Ok(self.clone())
    }
}

/// [`from_fn`].
pub struct FromFn<F>(F);

/// A function as a source of credentials.
pub fn from_fn<F, R>(function: F) -> FromFn<F>
where
    F: Fn(LoginRequest) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Credential, CredentialsError>> + Send,
{
    FromFn(function)
}

#[async_trait]
impl<F, R> Credentials for FromFn<F>
where
    F: Fn(LoginRequest) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Credential, CredentialsError>> + Send,
{
    async fn credential(&self, login: &LoginRequest) -> Result<Credential, CredentialsError> {
        (self.0)(login.clone()).await
    }
}

impl<F> fmt::Debug for FromFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FromFn").finish_non_exhaustive()
    }
}
