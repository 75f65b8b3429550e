//! Certificates of a local cluster, signed by an authority of its own.

use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

use super::error::{ClusterError, io};
use super::privileges::Privileges;

/// The names that a server of a local cluster has.
const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// A certificate and its key, in PEM. `Debug` does not show the key.
#[derive(Clone)]
#[non_exhaustive]
pub struct Certificate {
    /// The certificate, and those that come between it and the authority, if there are any.
    pub chain: String,
    /// The key.
    pub key: String,
}

impl Certificate {
    /// From two texts in PEM.
    pub fn new(chain: impl Into<String>, key: impl Into<String>) -> Self {
        Self {
            chain: chain.into(),
            key: key.into(),
        }
    }

    /// Writes both into a folder, as `NAME.crt` and `NAME.key`, where only the owner may read the key.
    ///
    /// # Errors
    ///
    /// The files cannot be written.
    pub fn write(&self, folder: &Path, name: &str) -> Result<(PathBuf, PathBuf), ClusterError> {
        let certificate = folder.join(format!("{name}.crt"));
        let key = folder.join(format!("{name}.key"));
        fs::write(&certificate, &self.chain).map_err(io("cannot write a certificate"))?;
        fs::write(&key, &self.key).map_err(io("cannot write a key"))?;
        let own = fs::Permissions::from_mode(0o600);
        fs::set_permissions(&key, own).map_err(io("cannot protect a key"))?;
        Ok((certificate, key))
    }

    /// Puts both where a server looks for its own.
    pub(super) fn install(&self, data: &Path, owner: Privileges) -> Result<(), ClusterError> {
        let (certificate, key) = self.write(data, "server")?;
        owner.own(&certificate)?;
        owner.own(&key)
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("chain", &self.chain)
            .finish_non_exhaustive()
    }
}

/// An authority that signs certificates.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// A new one, which nobody trusts yet.
    ///
    /// # Errors
    ///
    /// No key can be made.
    pub fn new() -> Result<Self, ClusterError> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let name = &mut params.distinguished_name;
        name.push(DnType::CommonName, "an authority of a local cluster");
        let key = KeyPair::generate().map_err(failed)?;
        let issuer = CertifiedIssuer::self_signed(params, key).map_err(failed)?;
        Ok(Self { issuer })
    }

    /// Its certificate in PEM, as `sslrootcert` takes it.
    #[must_use]
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Signs a certificate for a server of a local cluster.
    ///
    /// # Errors
    ///
    /// No key can be made.
    pub fn server(&self) -> Result<Certificate, ClusterError> {
        self.server_named(&NAMES)
    }

    /// Signs a certificate for a server with these names and IP addresses.
    ///
    /// # Errors
    ///
    /// No key can be made, or a name cannot be one.
    pub fn server_named(&self, names: &[&str]) -> Result<Certificate, ClusterError> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).map_err(failed)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(&params)
    }

    /// Signs a certificate by which a user logs in, with the method `cert` of `pg_hba.conf`.
    ///
    /// # Errors
    ///
    /// No key can be made.
    pub fn client(&self, user: &str) -> Result<Certificate, ClusterError> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, user);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&params)
    }

    fn sign(&self, params: &CertificateParams) -> Result<Certificate, ClusterError> {
        let key = KeyPair::generate().map_err(failed)?;
        let signed = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Certificate::new(signed.pem(), key.serialize_pem()))
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

fn failed(error: rcgen::Error) -> ClusterError {
    ClusterError::Config(format!("a certificate cannot be made: {error}"))
}
