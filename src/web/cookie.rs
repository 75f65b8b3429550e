//! The cookie that carries a session's token.

use std::borrow::Cow;
use std::time::Duration;

use cookie::{Cookie, SameSite};
use http::HeaderValue;

use super::error::InvalidCarrier;

const NAME: &str = "drs";

/// The cookie that carries a session's token.
///
/// | | default | why |
/// |---|---|---|
/// | name | `drs` | Applications on other clusters that share the host, and layers for other pools, need one of their own: ports do not keep cookies apart. |
/// | `Max-Age` | one hour | After the last write the token matters as long as a replica may be behind it. |
/// | `HttpOnly` | yes | No script needs it. |
/// | `Secure` | yes | Without it browsers would send it over plain HTTP. They take it from `http://localhost` all the same, most of them. |
/// | `SameSite` | `Lax` | Links from elsewhere lead into the session, forms from elsewhere do not. |
/// | `Path` | `/` | |
/// | `Domain` | none | The host alone that set it gets it back. |
///
/// ```
/// use std::time::Duration;
/// use diesel_replicated::web::{SameSite, SessionCookie};
///
/// # fn main() -> Result<(), diesel_replicated::web::InvalidCarrier> {
/// let cookie = SessionCookie::named("__Host-blog")?
///     .same_site(SameSite::Strict)
///     .max_age(Duration::from_secs(600));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct SessionCookie {
    name: Cow<'static, str>,
    path: Cow<'static, str>,
    domain: Option<Cow<'static, str>>,
    max_age: Duration,
    same_site: SameSite,
    secure: bool,
    http_only: bool,
}

impl Default for SessionCookie {
    fn default() -> Self {
        Self {
            name: Cow::Borrowed(NAME),
            path: Cow::Borrowed("/"),
            domain: None,
            max_age: Duration::from_secs(60 * 60),
            same_site: SameSite::Lax,
            secure: true,
            http_only: true,
        }
    }
}

impl SessionCookie {
    /// A cookie of this name.
    ///
    /// # Errors
    ///
    /// No cookie can have this name.
    pub fn named(name: impl Into<Cow<'static, str>>) -> Result<Self, InvalidCarrier> {
        let name = name.into();
        // The grammar of both is the same: a token of HTTP.
        if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
            return Err(InvalidCarrier::CookieName(name.into_owned()));
        }
        Ok(Self {
            name,
            ..Self::default()
        })
    }

    /// Sets the path. Browsers send the cookie to this path and below.
    ///
    /// # Errors
    ///
    /// The path does not begin with `/`, or has a character that a cookie cannot hold.
    pub fn path(mut self, path: impl Into<Cow<'static, str>>) -> Result<Self, InvalidCarrier> {
        let path = path.into();
        if !path.starts_with('/') || !path.bytes().all(is_of_an_attribute) {
            return Err(InvalidCarrier::CookiePath(path.into_owned()));
        }
        self.path = path;
        Ok(self)
    }

    /// Sets the domain. Browsers send the cookie to all its hosts.
    ///
    /// # Errors
    ///
    /// The domain is empty, or has a character that a cookie cannot hold.
    pub fn domain(mut self, domain: impl Into<Cow<'static, str>>) -> Result<Self, InvalidCarrier> {
        let domain = domain.into();
        if domain.is_empty() || !domain.bytes().all(is_of_an_attribute) {
            return Err(InvalidCarrier::CookieDomain(domain.into_owned()));
        }
        self.domain = Some(domain);
        Ok(self)
    }

    /// Sets how long browsers keep the cookie, in whole seconds. The time begins anew with each response that brings
    /// a token. A token comes after a write. If a replica is further behind than this, it may show the client an
    /// older state.
    #[must_use]
    pub fn max_age(mut self, max_age: Duration) -> Self {
        self.max_age = max_age;
        self
    }

    /// Sets whether browsers send it with requests that come from other sites.
    #[must_use]
    pub fn same_site(mut self, same_site: SameSite) -> Self {
        self.same_site = same_site;
        self
    }

    /// Sets whether browsers send the cookie over HTTPS only.
    #[must_use]
    pub fn secure(mut self, secure: bool) -> Self {
        self.secure = secure;
        self
    }

    /// Sets whether it is hidden from scripts.
    #[must_use]
    pub fn http_only(mut self, http_only: bool) -> Self {
        self.http_only = http_only;
        self
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The value of the `Set-Cookie` header that brings `value`.
    pub(super) fn set(&self, value: String) -> Option<HeaderValue> {
        // Browsers keep no cookie longer than 400 days.
        let max_age = self
            .max_age
            .try_into()
            .unwrap_or(cookie::time::Duration::MAX);
        let mut cookie = Cookie::build((&*self.name, value))
            .path(&*self.path)
            .max_age(max_age)
            .same_site(self.same_site)
            .secure(self.secure)
            .http_only(self.http_only)
            .build();
        if let Some(domain) = &self.domain {
            cookie.set_domain(&**domain);
        }
        HeaderValue::try_from(cookie.to_string()).ok()
    }
}

fn is_of_an_attribute(byte: u8) -> bool {
    (byte.is_ascii_graphic() || byte == b' ') && byte != b';'
}
