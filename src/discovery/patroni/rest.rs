//! Asking Patroni's REST API: several addresses, of which the first good answer counts.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::header::{AUTHORIZATION, HeaderValue};
use http::uri::{PathAndQuery, Scheme};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::ClientConfig;
use rustls_platform_verifier::BuilderVerifierExt;

use super::members::Cluster;
use crate::discovery::DiscoveryError;

/// How long one address may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// When the next address is asked beside one that has not answered yet.
const NEXT: Duration = Duration::from_millis(500);

/// The longest answer that is read, in bytes. That of a cluster with 64 members and many tags has a tenth of it.
const LONGEST: usize = 1 << 20;

/// Of how many addresses an error tells what they said.
const TOLD: usize = 4;

type Body = Empty<&'static [u8]>;

/// One address of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint(Uri);

impl Endpoint {
    /// Reads one that was given. It may have a path, if the API is behind something that has.
    pub(super) fn given(text: &str) -> Result<Self, String> {
        let refused = |why: &str| format!("an address of Patroni's REST API {why}");
        let uri: Uri = text
            .parse()
            .map_err(|_| refused("has to be a URL like `https://db1:8008`"))?;
        let Some(authority) = uri.authority() else {
            return Err(refused("has to be a URL like `https://db1:8008`"));
        };
        if authority.as_str().contains('@') {
            return Err(refused(
                "must have no password in it: give that by `basic_auth`",
            ));
        }
        let path = uri.path().trim_end_matches('/');
        Self::at(&uri, &format!("{path}/cluster"))
            .ok_or_else(|| refused("has to begin with `http://` or `https://`, and have a host"))
    }

    /// The one that a member tells of itself. `None` if that leads nowhere.
    pub(super) fn told(api_url: &str) -> Option<Self> {
        Self::at(&api_url.parse().ok()?, "/cluster")
    }

    fn at(uri: &Uri, path: &str) -> Option<Self> {
        let scheme = uri.scheme()?;
        if scheme != &Scheme::HTTP && scheme != &Scheme::HTTPS {
            return None;
        }
        let authority = uri.authority().filter(|name| !name.host().is_empty())?;
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(scheme.clone());
        parts.authority = Some(authority.clone());
        parts.path_and_query = PathAndQuery::try_from(path).ok();
        Uri::from_parts(parts).ok().map(Self)
    }

    pub(super) fn is_encrypted(&self) -> bool {
        self.0.scheme() == Some(&Scheme::HTTPS)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// How the API is asked.
pub(super) struct Rest {
    client: Client<HttpsConnector<HttpConnector>, Body>,
    authorization: Option<HeaderValue>,
}

impl Rest {
    /// With the application's configuration of TLS, or with the authorities that the system trusts.
    pub(super) fn new(
        tls: Option<&ClientConfig>,
        basic_auth: Option<&(String, String)>,
    ) -> Result<Self, DiscoveryError> {
        let mut tls = match tls {
            Some(own) => own.clone(),
            None => system()?,
        };
        // Whoever makes the connection tells what is spoken in it.
        tls.alpn_protocols.clear();
        let mut plain = HttpConnector::new();
        plain.enforce_http(false);
        plain.set_connect_timeout(Some(PATIENCE));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(plain);
        Ok(Self {
            // Patroni has a thread for each connection. So none is kept.
            client: Client::builder(TokioExecutor::new())
                .pool_max_idle_per_host(0)
                .build(connector),
            authorization: basic_auth.map(authorization).transpose()?,
        })
    }

    /// Asks one address after the other, and the next one beside those that are slow. Returns the first good answer, and
    /// whose it is.
    pub(super) async fn cluster(
        &self,
        endpoints: &[Endpoint],
    ) -> Result<(Endpoint, Cluster), DiscoveryError> {
        let mut waiting = endpoints.iter();
        let mut asked = FuturesUnordered::new();
        let mut failures = Vec::new();
        loop {
            if let Some(endpoint) = waiting.next() {
                asked.push(self.ask(endpoint));
            } else if asked.is_empty() {
                return Err(told(&failures).into());
            }
            let patience = tokio::time::sleep(if waiting.len() > 0 { NEXT } else { PATIENCE });
            tokio::select! {
                Some(answer) = asked.next() => match answer {
                    Ok(found) => return Ok(found),
                    Err(failure) => failures.push(failure),
                },
                () = patience => {}
            }
        }
    }

    async fn ask(&self, endpoint: &Endpoint) -> Result<(Endpoint, Cluster), String> {
        let answer = tokio::time::timeout(PATIENCE, self.answer(endpoint)).await;
        let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")));
        match answer.and_then(|body| Cluster::read(&body)) {
            Ok(cluster) => Ok((endpoint.clone(), cluster)),
            Err(cause) => Err(format!("{endpoint}: {cause}")),
        }
    }

    async fn answer(&self, endpoint: &Endpoint) -> Result<Vec<u8>, String> {
        let mut request = Request::new(Body::new());
        *request.uri_mut() = endpoint.0.clone();
        if let Some(value) = &self.authorization {
            request.headers_mut().insert(AUTHORIZATION, value.clone());
        }
        let answer = self.client.request(request).await;
        let answer = answer.map_err(|error| causes(&error))?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED => {
                return Err("it wants a user and a password (`basic_auth`), or others".to_owned());
            }
            status => return Err(format!("it answers {status}")),
        }
        let body = Limited::new(answer.into_body(), LONGEST).collect().await;
        let body = body.map_err(|error| causes(&*error))?;
        Ok(body.to_bytes().to_vec())
    }
}

fn system() -> Result<ClientConfig, DiscoveryError> {
    let provider = rustls::crypto::CryptoProvider::get_default().map_or_else(
        || std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
        std::sync::Arc::clone,
    );
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_platform_verifier()?;
    Ok(config.with_no_client_auth())
}

fn authorization((user, password): &(String, String)) -> Result<HeaderValue, DiscoveryError> {
    let text = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
    // Base64 has nothing that a header could not; the error would hold the text.
    let mut value = HeaderValue::try_from(text).map_err(|_| "no header can be made of it")?;
    value.set_sensitive(true);
    Ok(value)
}

/// An error and what is behind it, in one line.
fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// What the addresses said that gave no good answer.
fn told(failures: &[String]) -> String {
    let mut text = failures[..failures.len().min(TOLD)].join("; ");
    if failures.len() > TOLD {
        text = format!("{text}; and {} others failed", failures.len() - TOLD);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_mistakes_are_named() {
        for (given, asked) in [
            ("http://db1:8008", "http://db1:8008/cluster"),
            ("https://db1:8008/", "https://db1:8008/cluster"),
            ("https://gateway/ops/", "https://gateway/ops/cluster"),
            ("http://[::1]:8008", "http://[::1]:8008/cluster"),
        ] {
            assert_eq!(Endpoint::given(given).unwrap().to_string(), asked);
        }
        for (given, why) in [
            ("", "like `https://db1:8008`"),
            ("db1", "begin with `http://`"),
            ("db1:8008", "begin with `http://`"),
            ("ftp://db1", "begin with `http://`"),
            ("http://", "like `https://db1:8008`"),
            ("http://u:hunter2@db1:8008", "by `basic_auth`"),
        ] {
            let refused = Endpoint::given(given).unwrap_err();
            assert!(refused.contains(why), "{given}: {refused}");
            assert!(!refused.contains("hunter2"));
        }
    }

    // patroni#2713.
    #[test]
    fn an_address_that_leads_nowhere_is_left_out() {
        assert_eq!(Endpoint::told("http://:8008/patroni"), None);
        assert_eq!(Endpoint::told(""), None);
        let told = Endpoint::told("https://10.0.0.1:8008/patroni").unwrap();
        assert_eq!(told.to_string(), "https://10.0.0.1:8008/cluster");
    }
}
