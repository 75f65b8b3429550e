//! How a token travels with requests and responses: in which header, and in which form.

use cookie::Cookie;
use http::header::{CACHE_CONTROL, COOKIE, SET_COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::cookie::SessionCookie;
use crate::metrics;
#[cfg(feature = "signed")]
use crate::token::TokenKeys;
use crate::token::{InvalidToken, SessionToken};

/// A well-meaning client has fewer tokens. Further ones are ignored.
pub(super) const MOST: usize = 8;

/// How a token travels.
#[derive(Clone, Debug, Default)]
pub(super) struct Carrier {
    pub(super) place: TokenPlace,
    #[cfg(feature = "signed")]
    pub(super) keys: Option<TokenKeys>,
}

#[derive(Clone, Debug)]
pub(super) enum TokenPlace {
    Cookie(SessionCookie),
    Header(HeaderName),
}

impl Default for TokenPlace {
    fn default() -> Self {
        Self::Cookie(SessionCookie::default())
    }
}

impl Carrier {
    /// The tokens that came with a request. Other values are left out.
    pub(super) fn read(&self, headers: &HeaderMap) -> Vec<SessionToken> {
        // Other cookies may hold bytes that are not text. A token holds none.
        let text = |value| String::from_utf8_lossy(HeaderValue::as_bytes(value));
        let texts: Vec<String> = match &self.place {
            TokenPlace::Cookie(cookie) => {
                let cookies = headers.get_all(COOKIE).into_iter().map(text);
                cookies
                    .flat_map(Cookie::split_parse)
                    .flatten()
                    .filter(|other| other.name() == cookie.name())
                    .map(|cookie| cookie.value_trimmed().to_owned())
                    .take(MOST)
                    .collect()
            }
            TokenPlace::Header(name) => {
                let values: Vec<_> = headers.get_all(name).into_iter().map(text).collect();
                // A proxy may have joined several headers into one.
                values
                    .iter()
                    .flat_map(|value| value.split(','))
                    .map(|value| value.trim().to_owned())
                    .take(MOST)
                    .collect()
            }
        };
        let tokens = texts.iter().filter_map(|text| match self.open(text) {
            Ok(token) => Some(token),
            Err(error) => {
                // The text is not logged: anybody can send anything.
                metrics::token_refused();
                tracing::debug!(target: "diesel_replicated", %error, "token_refused");
                None
            }
        });
        tokens.collect()
    }

    /// Adds `token` to the headers of a response.
    pub(super) fn write(&self, token: &SessionToken, headers: &mut HeaderMap) {
        let text = self.seal(token);
        let (name, value) = match &self.place {
            TokenPlace::Cookie(cookie) => (&SET_COOKIE, cookie.set(text)),
            TokenPlace::Header(name) => (name, HeaderValue::try_from(text).ok()),
        };
        // Names and attributes were checked before, and every token is valid there.
        let Some(value) = value else {
            return;
        };
        // It fails only if there are tens of thousands of headers.
        let _ = match &self.place {
            // The handler's own cookies stay.
            TokenPlace::Cookie(_) => headers.try_append(name, value).map(drop),
            TokenPlace::Header(_) => headers.try_insert(name, value).map(drop),
        };
        // A shared cache would give the token of this client to others.
        if let Ok(entry) = headers.try_entry(CACHE_CONTROL) {
            entry.or_insert(HeaderValue::from_static("private"));
        }
    }

    fn open(&self, text: &str) -> Result<SessionToken, InvalidToken> {
        #[cfg(feature = "signed")]
        if let Some(keys) = &self.keys {
            return keys.open(text);
        }
        text.parse()
    }

    fn seal(&self, token: &SessionToken) -> String {
        #[cfg(feature = "signed")]
        if let Some(keys) = &self.keys {
            return keys.seal(token);
        }
        token.to_string()
    }
}
