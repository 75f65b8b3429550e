//! The certificates, keys and lists that a connection string names, read anew when they change.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::verifier::Verifier;
use super::{OwnConfig, TlsError, provider};
use crate::config::{ParamFile, Roots, SslMode, TlsSettings, TlsVersion};

/// What the protocol is called within TLS.
pub(super) const PROTOCOL: &[u8] = b"postgresql";

/// What the files were when they were read: a file that was replaced has another time or length.
type Fingerprint = Vec<(PathBuf, Option<(SystemTime, u64)>)>;

/// The configuration of rustls, made when it is first needed.
pub(super) struct Client {
    own: Option<OwnConfig>,
    made: Mutex<Option<(Fingerprint, Arc<ClientConfig>)>>,
}

impl Client {
    pub(super) fn new(own: Option<OwnConfig>) -> Self {
        let own = own.map(|own| {
            if own.alpn_protocols.is_empty() {
                let mut config = ClientConfig::clone(&own);
                config.alpn_protocols = vec![PROTOCOL.to_vec()];
                Arc::new(config)
            } else {
                own
            }
        });
        Self {
            own,
            made: Mutex::new(None),
        }
    }

    pub(super) fn config(&self, settings: &TlsSettings) -> Result<Arc<ClientConfig>, TlsError> {
        if let Some(own) = &self.own {
            return Ok(Arc::clone(own));
        }
        let now = fingerprint(settings);
        let mut made = self.made.lock();
        if let Some((then, config)) = &*made {
            if *then == now {
                return Ok(Arc::clone(config));
            }
        }
        let config = Arc::new(make(settings).map_err(TlsError::Failed)?);
        *made = Some((now, Arc::clone(&config)));
        Ok(config)
    }
}

fn fingerprint(settings: &TlsSettings) -> Fingerprint {
    let mut paths = Vec::new();
    if let Roots::File(Some(file)) = &settings.roots {
        paths.push(file.path.clone());
    }
    let files = [&settings.certificate, &settings.key, &settings.revoked];
    paths.extend(files.into_iter().flatten().map(|file| file.path.clone()));
    if let Some(folder) = &settings.revoked_folder {
        paths.push(folder.clone());
        paths.extend(listed(folder).unwrap_or_default());
    }
    let look = |path: PathBuf| {
        let seen = fs::metadata(&path).ok();
        let seen = seen.and_then(|data| Some((data.modified().ok()?, data.len())));
        (path, seen)
    };
    paths.into_iter().map(look).collect()
}

/// The files in a folder, in order.
fn listed(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder)?.filter_map(Result::ok);
    let mut paths: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .collect();
    paths.sort();
    Ok(paths)
}

fn make(settings: &TlsSettings) -> Result<ClientConfig, String> {
    let provider = provider();
    let versions: Vec<_> = [
        (TlsVersion::V13, &rustls::version::TLS13),
        (TlsVersion::V12, &rustls::version::TLS12),
    ]
    .into_iter()
    .filter(|(version, _)| (settings.oldest..=settings.newest).contains(version))
    .map(|(_, version)| version)
    .collect();
    let verifier = verifier(settings, &provider)?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match certificate(settings)? {
        Some((chain, key, path)) => config
            .with_client_auth_cert(chain, key)
            .map_err(|error| {
                let shown = path.display();
                let told = error.to_string();
                let hint = if told.contains("UnsupportedCertVersion") {
                    "; it is of version 1: sign it anew with extensions (`openssl x509 -req -extfile …`)"
                } else {
                    ""
                };
                format!("`{shown}` and its key do not go together: {told}{hint}")
            })?,
        None => config.with_no_client_auth(),
    };
    config.enable_sni = settings.sni;
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(config)
}

/// What the file of roots makes of `sslmode`.
fn verifier(settings: &TlsSettings, provider: &Arc<CryptoProvider>) -> Result<Verifier, String> {
    let mut verifier = Verifier {
        chain: None,
        trusted: Vec::new(),
        names: settings.mode == SslMode::VerifyFull,
        provider: Arc::clone(provider),
    };
    let file = match &settings.roots {
        Roots::System => {
            let system = rustls_platform_verifier::Verifier::new(Arc::clone(provider))
                .map_err(|error| format!("the system's authorities cannot be read: {error}"))?;
            verifier.chain = Some(Arc::new(system));
            return Ok(verifier);
        }
        Roots::File(file) => file.as_ref(),
    };
    // As with libpq, a file of roots makes of `require` what `verify-ca` is, and weaker modes do not look at it.
    if settings.mode < SslMode::Require {
        return Ok(verifier);
    }
    let Some(file) = file.filter(|file| file.is_named || file.path.exists()) else {
        if settings.mode == SslMode::Require {
            return Ok(verifier);
        }
        return Err("there is no certificate of an authority to verify the server's by: name its file by `sslrootcert`, \
            or take those of the system by `sslrootcert=system`"
            .to_owned());
    };
    let trusted = certificates(&file.path)?;
    verifier.chain = Some(chain(settings, &file.path, &trusted, provider)?);
    verifier.trusted = trusted;
    Ok(verifier)
}

fn chain(
    settings: &TlsSettings,
    path: &Path,
    trusted: &[CertificateDer<'static>],
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, String> {
    let shown = path.display();
    let mut roots = RootCertStore::empty();
    let (taken, ignored) = roots.add_parsable_certificates(trusted.iter().cloned());
    if taken == 0 {
        return Err(format!(
            "`{shown}` has no certificate of an authority that can be used ({ignored} cannot be read)"
        ));
    }
    let builder =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
            .with_crls(revoked(settings)?)
            .enforce_revocation_expiration();
    match builder.build() {
        Ok(verifier) => Ok(verifier),
        Err(error) => Err(format!(
            "`{shown}` or the lists of what was revoked: {error}"
        )),
    }
}

/// The lists of what was revoked. If there is one, it must tell of each authority.
fn revoked(settings: &TlsSettings) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let mut paths = Vec::new();
    if let Some(file) = &settings.revoked {
        if file.is_named || file.path.exists() {
            paths.push(file.path.clone());
        }
    }
    if let Some(folder) = &settings.revoked_folder {
        let found = listed(folder);
        paths.extend(found.map_err(|error| format!("`{}`: {error}", folder.display()))?);
    }
    let mut lists = Vec::new();
    for path in paths {
        let read = CertificateRevocationListDer::pem_file_iter(&path).and_then(Iterator::collect);
        let read: Vec<_> = read.map_err(|error| unreadable(&path, &error))?;
        if read.is_empty() && settings.revoked_folder.is_none() {
            return Err(format!(
                "`{}` has no list of what was revoked",
                path.display()
            ));
        }
        lists.extend(read);
    }
    Ok(lists)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let read: Vec<_> = read.map_err(|error| unreadable(path, &error))?;
    if read.is_empty() {
        return Err(format!("`{}` has no certificate in PEM", path.display()));
    }
    Ok(read)
}

/// The error's own text tells where in the file it is, and nothing of what stands there.
fn unreadable(path: &Path, error: &pem::Error) -> String {
    let why = match error {
        pem::Error::Io(error) => error.to_string(),
        _ => "it is not in PEM".to_owned(),
    };
    format!("`{}` cannot be read: {why}", path.display())
}

type ClientCertificate = (
    Vec<CertificateDer<'static>>,
    PrivateKeyDer<'static>,
    PathBuf,
);

/// The client's own certificate and its key.
fn certificate(settings: &TlsSettings) -> Result<Option<ClientCertificate>, String> {
    let there = |file: &&ParamFile| file.is_named || file.path.exists();
    let Some(certificate) = settings.certificate.as_ref().filter(there) else {
        return Ok(None);
    };
    let chain = certificates(&certificate.path)?;
    let key = settings.key.as_ref().filter(there).ok_or_else(|| {
        let path = certificate.path.display();
        format!("there is a certificate, `{path}`, and no key for it: name it by `sslkey`")
    })?;
    is_kept(&key.path)?;
    Ok(Some((
        chain,
        private_key(&key.path)?,
        certificate.path.clone(),
    )))
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let shown = path.display();
    let bytes = fs::read(path).map_err(|error| format!("`{shown}` cannot be read: {error}"))?;
    if let Ok(key) = PrivateKeyDer::from_pem_slice(&bytes) {
        return Ok(key);
    }
    let text = String::from_utf8_lossy(&bytes);
    if text.contains("ENCRYPTED") {
        return Err(format!(
            "`{shown}` has a password, and such keys are not read here: remove it by `openssl pkey -in KEY -out NEW`"
        ));
    }
    PrivateKeyDer::try_from(bytes).map_err(|_| format!("`{shown}` is no key in PEM or DER"))
}

/// Refuses a key that others may read, as libpq does.
#[cfg(unix)]
fn is_kept(path: &Path) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt;

    let shown = path.display();
    let data = fs::metadata(path).map_err(|error| format!("`{shown}` cannot be read: {error}"))?;
    if !data.is_file() {
        return Err(format!("`{shown}` is not a file"));
    }
    let others = if data.uid() == 0 { 0o037 } else { 0o077 };
    if data.mode() & others & 0o777 != 0 {
        return Err(format!(
            "`{shown}` may be read by others: `chmod 0600` it, or, if it is root's, `chmod 0640`"
        ));
    }
    Ok(())
}

#[cfg(not(unix))]
fn is_kept(_: &Path) -> Result<(), String> {
    Ok(())
}
