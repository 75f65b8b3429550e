//! What binds a login to the very connection that it goes over.

use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256, Sha384, Sha512};
use tokio_postgres::tls::ChannelBinding;
use tokio_rustls::client::TlsStream;
use x509_cert::Certificate;
use x509_cert::der::asn1::ContextSpecific;
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::der::oid::db::rfc5912::{
    ECDSA_WITH_SHA_256, ECDSA_WITH_SHA_384, ECDSA_WITH_SHA_512, ID_RSASSA_PSS, ID_SHA_256,
    ID_SHA_384, ID_SHA_512, SHA_1_WITH_RSA_ENCRYPTION, SHA_256_WITH_RSA_ENCRYPTION,
    SHA_384_WITH_RSA_ENCRYPTION, SHA_512_WITH_RSA_ENCRYPTION,
};
use x509_cert::der::{Decode, SliceReader, TagNumber};
use x509_cert::spki::AlgorithmIdentifierOwned;

/// The hash of the server's certificate, by which SCRAM binds a login to this very connection; see
/// [RFC 5929](https://www.rfc-editor.org/rfc/rfc5929#section-4.1). Certificates signed without a hash of their own, as
/// with Ed25519, have none.
pub(super) fn of<S>(stream: &TlsStream<S>) -> ChannelBinding {
    let certificates = stream.get_ref().1.peer_certificates();
    let hash = certificates.and_then(|chain| hash_of(chain.first()?));
    hash.map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
}

fn hash_of(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let parsed = Certificate::from_der(certificate).ok()?;
    let signature = parsed.signature_algorithm();
    let hash = match signature.oid {
        ID_RSASSA_PSS => hash_of_pss(signature)?,
        SHA_1_WITH_RSA_ENCRYPTION | SHA_256_WITH_RSA_ENCRYPTION | ECDSA_WITH_SHA_256 => ID_SHA_256,
        SHA_384_WITH_RSA_ENCRYPTION | ECDSA_WITH_SHA_384 => ID_SHA_384,
        SHA_512_WITH_RSA_ENCRYPTION | ECDSA_WITH_SHA_512 => ID_SHA_512,
        _ => return None,
    };
    Some(match hash {
        ID_SHA_384 => Sha384::digest(certificate).to_vec(),
        ID_SHA_512 => Sha512::digest(certificate).to_vec(),
        // Also instead of SHA-1.
        _ => Sha256::digest(certificate).to_vec(),
    })
}

/// RSASSA-PSS tells its hash among its parameters; see [RFC 4055](https://www.rfc-editor.org/rfc/rfc4055#section-3.1).
fn hash_of_pss(signature: &AlgorithmIdentifierOwned) -> Option<ObjectIdentifier> {
    let mut reader = SliceReader::new(signature.parameters.as_ref()?.value()).ok()?;
    let hash = ContextSpecific::decode_explicit(&mut reader, TagNumber(0)).ok()?;
    let hash = hash.map(|hash: ContextSpecific<AlgorithmIdentifierOwned>| hash.value.oid);
    // The default is SHA-1, which SHA-256 stands in for.
    Some(hash.unwrap_or(ID_SHA_256))
}
