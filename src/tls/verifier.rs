//! Judges a server's certificate by as much as `sslmode` asks for.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};
use x509_cert::Certificate;
use x509_cert::der::{Decode, Encode};

/// A verifier with libpq's levels.
#[derive(Debug)]
pub(super) struct Verifier {
    /// Judges the chain and the name; `None` if nothing is judged.
    pub(super) chain: Option<Arc<dyn ServerCertVerifier>>,
    /// The certificates of the file of roots. A server may have one of these itself.
    pub(super) trusted: Vec<CertificateDer<'static>>,
    /// The name counts, too.
    pub(super) names: bool,
    pub(super) provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        if self.trusted.iter().any(|trusted| trusted == end_entity) {
            return self.is_itself_trusted(end_entity, server_name, now);
        }
        let judged =
            chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match judged {
            // The chain is judged before the name.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.names => Ok(ServerCertVerified::assertion()),
            judged => judged,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        // A certificate of version 1, as `openssl x509 -req` made them for long, is not read by rustls. Its key is.
        // The signature counts even if nothing else does: SCRAM binds the login to this certificate.
        match raw_key(cert) {
            Some(key) => verify_tls13_signature_with_raw_key(message, &key, dss, algorithms),
            None => rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

impl Verifier {
    /// A certificate that signs itself and lies in the file of roots. rustls takes no authority for a server.
    fn is_itself_trusted(
        &self,
        certificate: &CertificateDer<'_>,
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = Certificate::from_der(certificate)
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let validity = parsed.tbs_certificate().validity();
        let (begin, end) = (
            validity.not_before.to_unix_duration().as_secs(),
            validity.not_after.to_unix_duration().as_secs(),
        );
        if now.as_secs() < begin {
            return Err(Error::InvalidCertificate(CertificateError::NotValidYet));
        }
        if now.as_secs() > end {
            return Err(Error::InvalidCertificate(CertificateError::Expired));
        }
        if self.names {
            verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
        }
        Ok(ServerCertVerified::assertion())
    }
}

/// The public key of a certificate of version 1.
fn raw_key(certificate: &CertificateDer<'_>) -> Option<SubjectPublicKeyInfoDer<'static>> {
    let parsed = Certificate::from_der(certificate).ok()?;
    let tbs = parsed.tbs_certificate();
    if tbs.version() != x509_cert::certificate::Version::V1 {
        return None;
    }
    let key = tbs.subject_public_key_info().to_der().ok()?;
    Some(SubjectPublicKeyInfoDer::from(key))
}
