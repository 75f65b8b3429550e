//! Asking Patroni's REST API: several addresses, of which the first good answer counts.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::header::{AUTHORIZATION, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error as RequestError};
use hyper_util::rt::TokioExecutor;
use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, SignatureScheme};
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::time::Instant;

use super::members::Cluster;
use crate::discovery::DiscoveryError;
use crate::discovery::PATIENCE as IN_ALL;
use crate::discovery::checked::shown;
use crate::tls::provider;

/// How long one address may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// When the next address is asked beside one that has not answered yet, at the latest.
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
        // As Patroni itself writes them, or as people try them.
        let mut suffixes = ["/patroni", "/cluster"].into_iter();
        let path = suffixes
            .find_map(|suffix| path.strip_suffix(suffix))
            .unwrap_or(path);
        Self::at(&uri, &format!("{path}/cluster")).ok_or_else(|| {
            refused("has to begin with `http://` or `https://`, then a host, and a port if need be")
        })
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
        // With a password, or something else that is not to be shown, it is none.
        let authority = uri.authority().filter(|name| **name == *place(name))?;
        if authority.host().is_empty() {
            return None;
        }
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

/// Where it is. A path that was given may be a secret.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.0.scheme_str().unwrap_or_default();
        let place = self.0.authority().map(place).unwrap_or_default();
        write!(f, "{scheme}://{}", shown(&place))
    }
}

/// The host and the port.
fn place(authority: &Authority) -> String {
    let host = authority.host();
    match authority.port_u16() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// How the API is asked.
pub(super) struct Rest {
    client: Client<HttpsConnector<HttpConnector>, Body>,
    authorization: Option<HeaderValue>,
    certificate: Arc<NoCertificate>,
}

/// This side has no certificate. A server that insists on one may end the connection before it can say so.
#[derive(Debug, Default)]
struct NoCertificate {
    was_asked_for: AtomicBool,
}

impl ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.was_asked_for.store(true, Ordering::Relaxed);
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
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
        let certificate = Arc::<NoCertificate>::default();
        if !tls.client_auth_cert_resolver.has_certs() {
            tls.client_auth_cert_resolver = certificate.clone();
        }
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
            certificate,
        })
    }

    /// Asks one address after the other, and the next one beside those that are slow. Returns what `accept` makes of the
    /// first answer that it takes.
    pub(super) async fn first<T>(
        &self,
        endpoints: &[Endpoint],
        accept: impl Fn(Endpoint, &Cluster) -> Result<T, String>,
    ) -> Result<T, String> {
        let over = Instant::now() + IN_ALL;
        let next = next(endpoints.len());
        let mut waiting = endpoints.iter();
        let mut asked = FuturesUnordered::new();
        let mut failures = Vec::new();
        loop {
            if let Some(endpoint) = waiting.next() {
                asked.push(self.ask(endpoint));
            } else if asked.is_empty() {
                return Err(told(&failures));
            }
            let patience = tokio::time::sleep(if waiting.len() > 0 { next } else { PATIENCE });
            tokio::select! {
                Some(answer) = asked.next() => {
                    match answer.and_then(|(by, cluster)| accept(by, &cluster)) {
                        Ok(taken) => return Ok(taken),
                        Err(failure) => failures.push(failure),
                    }
                }
                () = patience => {}
                () = tokio::time::sleep_until(over) => {
                    failures.insert(0, format!("no good answer within {IN_ALL:?}"));
                    return Err(told(&failures));
                }
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
        let answer = answer.map_err(|error| self.explained(endpoint, &error))?;
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

    /// A failure, and what may be behind it.
    fn explained(&self, endpoint: &Endpoint, error: &RequestError) -> String {
        let failure = causes(error);
        let asked = self.certificate.was_asked_for.load(Ordering::Relaxed);
        let hint = match endpoint.is_encrypted() {
            true if failure.contains("InvalidContentType") => "does it speak `http://`?",
            true if asked => "servers ask for a client certificate, and there is none: `tls`",
            false if !error.is_connect() => {
                "does it speak `https://`? Is it the port of the REST API, 8008 by default?"
            }
            _ => return failure,
        };
        format!("{failure} ({hint})")
    }
}

/// When the next of so many addresses is asked: so that the last one has its time, too.
fn next(addresses: usize) -> Duration {
    let most = u32::try_from(addresses.max(1)).unwrap_or(u32::MAX);
    NEXT.min(IN_ALL.saturating_sub(PATIENCE) / most)
}

fn system() -> Result<ClientConfig, DiscoveryError> {
    let config = ClientConfig::builder_with_provider(provider())
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
    shown(&text)
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
            ("http://db1:8008/patroni", "http://db1:8008/cluster"),
            ("http://db1:8008/cluster", "http://db1:8008/cluster"),
            ("http://[::1]:8008", "http://[::1]:8008/cluster"),
        ] {
            assert_eq!(Endpoint::given(given).unwrap().0, asked);
        }
        for (given, why) in [
            ("", "like `https://db1:8008`"),
            ("db1", "begin with `http://`"),
            ("db1:8008", "begin with `http://`"),
            ("ftp://db1", "begin with `http://`"),
            ("http://", "like `https://db1:8008`"),
            ("http://u:hunter2@db1:8008", "by `basic_auth`"),
            ("http://u:hunter2", "and a port if need be"),
            ("http://db1:99999", "and a port if need be"),
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
        assert_eq!(told.0, "https://10.0.0.1:8008/cluster");
    }

    #[test]
    fn an_address_that_a_member_tells_with_a_password_is_left_out() {
        assert_eq!(
            Endpoint::told("http://patroni:hunter9@10.0.0.1:8008/"),
            None
        );
        assert_eq!(Endpoint::told("http://hunter9@10.0.0.1/patroni"), None);
        assert_eq!(Endpoint::told("http://patroni:hunter9"), None);
    }

    #[test]
    fn of_an_address_only_the_place_is_shown() {
        let gateway =
            Endpoint::given("https://gateway:8443/hunter2?token=hunter2#hunter2").unwrap();
        assert_eq!(gateway.0, "https://gateway:8443/hunter2/cluster");
        assert_eq!(gateway.to_string(), "https://gateway:8443");
        let long = Endpoint::told(&format!("http://{}/", "a".repeat(60_000))).unwrap();
        assert!(long.to_string().len() < 300);
    }

    #[test]
    fn every_address_has_its_time_however_many_there_are() {
        assert_eq!(next(2), NEXT);
        for addresses in [10_u32, 66, 9_000] {
            let last = next(usize::try_from(addresses).unwrap()) * (addresses - 1);
            assert!(last + PATIENCE <= IN_ALL);
        }
    }
}
