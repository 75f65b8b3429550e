//! TLS to a server, with the meanings that libpq's parameters have.
//!
//! TLS is begun here, and not by `tokio-postgres`: it knows neither `allow` nor the verifying modes, and what passes
//! has to be seen after decryption. See <https://www.postgresql.org/docs/18/libpq-ssl.html>.

#[cfg(feature = "rustls")]
mod channel_binding;
#[cfg(feature = "rustls")]
mod files;
#[cfg(feature = "rustls")]
mod handshake;
mod stream;
#[cfg(feature = "rustls")]
mod verifier;

use std::fmt;

pub(crate) use stream::{Established, Socket, Stream};

use crate::config::{SslMode, TlsSettings};

/// A configuration of the application's own. Without the feature there is none.
#[cfg(feature = "rustls")]
pub(crate) type OwnConfig = std::sync::Arc<rustls::ClientConfig>;
#[cfg(not(feature = "rustls"))]
pub(crate) type OwnConfig = std::convert::Infallible;

/// The cryptography that the application has chosen for its process, or that of this crate.
#[cfg(feature = "rustls")]
pub(crate) fn provider() -> std::sync::Arc<rustls::crypto::CryptoProvider> {
    rustls::crypto::CryptoProvider::get_default().map_or_else(
        || std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
        std::sync::Arc::clone,
    )
}

/// How one connection is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Plain,
    /// With TLS if the server has it.
    Preferred,
    Required,
}

/// No TLS could be begun.
#[derive(Debug)]
#[cfg_attr(
    not(feature = "rustls"),
    expect(dead_code, reason = "without TLS nothing is begun")
)]
pub(crate) enum TlsError {
    /// The socket broke.
    Io(std::io::Error),
    /// In these words.
    Failed(String),
    /// In these words; and what answers there is no server that may be asked again without TLS.
    Nonsense(String),
}

/// How TLS is begun with one server.
pub(crate) struct Tls {
    settings: TlsSettings,
    #[cfg(feature = "rustls")]
    client: files::Client,
}

impl Tls {
    #[cfg_attr(
        not(feature = "rustls"),
        expect(unused_variables, reason = "without TLS there is none")
    )]
    pub(crate) fn new(settings: TlsSettings, own: Option<OwnConfig>) -> Self {
        Self {
            #[cfg(feature = "rustls")]
            client: files::Client::new(own),
            settings,
        }
    }

    /// How a connection is tried, in this order. The next one is tried if the server lets nobody in by the one before.
    pub(crate) fn ways(&self) -> &'static [Way] {
        if cfg!(not(feature = "rustls")) {
            return &[Way::Plain];
        }
        match self.settings.mode {
            SslMode::Disable => &[Way::Plain],
            SslMode::Allow => &[Way::Plain, Way::Required],
            SslMode::Prefer => &[Way::Preferred, Way::Plain],
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[Way::Required],
        }
    }

    /// Begins TLS on `socket`, as `way` says. The certificate has to fit `host`.
    #[cfg_attr(
        not(feature = "rustls"),
        expect(
            clippy::unused_async,
            unused_variables,
            reason = "without TLS there is none"
        )
    )]
    pub(crate) async fn begin(
        &self,
        way: Way,
        socket: Box<dyn Socket>,
        host: &str,
    ) -> Result<Stream, TlsError> {
        #[cfg(feature = "rustls")]
        if way != Way::Plain {
            return handshake::begin(self, way, socket, host).await;
        }
        Ok(Stream::Plain(socket))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.settings, f)
    }
}
