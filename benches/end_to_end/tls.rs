//! One configuration of TLS for all contenders.

use std::sync::Arc;

use diesel::{ConnectionError, ConnectionResult};
use diesel_async::AsyncPgConnection;
use diesel_async::pooled_connection::SetupCallback;
use diesel_replicated::rustls;
use diesel_replicated::testing::Authority;
use futures_util::FutureExt;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio_postgres_rustls::MakeRustlsConnect;

/// What all contenders speak TLS by.
#[derive(Clone)]
pub(crate) struct Tls(Arc<rustls::ClientConfig>);

impl Tls {
    pub(crate) fn new(authority: &Authority) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap();
        roots.add(root).unwrap();
        let config = rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self(Arc::new(config))
    }

    pub(crate) fn config(&self) -> Arc<rustls::ClientConfig> {
        Arc::clone(&self.0)
    }

    /// How diesel-async's own pools get connections with TLS.
    pub(crate) fn setup(&self) -> SetupCallback<AsyncPgConnection> {
        let tls = self.clone();
        Box::new(move |url| {
            let (tls, url) = (tls.clone(), url.to_owned());
            async move { tls.establish(&url).await }.boxed()
        })
    }

    pub(crate) async fn establish(&self, url: &str) -> ConnectionResult<AsyncPgConnection> {
        let connector = MakeRustlsConnect::new(rustls::ClientConfig::clone(&self.0));
        let url = format!("{url}?sslmode=require");
        let (client, connection) = tokio_postgres::connect(&url, connector)
            .await
            .map_err(|error| ConnectionError::BadConnection(error.to_string()))?;
        tokio::spawn(connection);
        AsyncPgConnection::try_from(client).await
    }
}
