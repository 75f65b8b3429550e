//! Errors for a cookie or a header that cannot carry a token.

/// Why a cookie or header cannot carry a token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidCarrier {
    /// It cannot be the name of a header.
    #[error("`{0}` cannot be the name of a header")]
    Header(String),
    /// It cannot be the name of a cookie.
    #[error("`{0}` cannot be the name of a cookie")]
    CookieName(String),
    /// It cannot be the path of a cookie.
    #[error("`{0}` cannot be the path of a cookie")]
    CookiePath(String),
    /// It cannot be the domain of a cookie.
    #[error("`{0}` cannot be the domain of a cookie")]
    CookieDomain(String),
}
