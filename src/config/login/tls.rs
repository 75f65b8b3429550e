//! What a connection string says of TLS.

use std::path::{Path, PathBuf};

use super::{ParamFile, Reader};
use crate::config::setting::Text;

/// How much TLS a connection must have; see
/// <https://www.postgresql.org/docs/18/libpq-ssl.html#LIBPQ-SSL-PROTECTION>.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SslMode {
    Disable,
    /// Only if the server refuses a connection without.
    Allow,
    /// If the server has it.
    #[default]
    Prefer,
    Require,
    /// The certificate must come from a trusted authority.
    VerifyCa,
    /// It must also name the host.
    VerifyFull,
}

impl Text for SslMode {
    const EXPECTED: &'static str =
        "`disable`, `allow`, `prefer`, `require`, `verify-ca` or `verify-full`";

    fn read(text: &str) -> Option<Self> {
        Some(match text {
            "disable" => Self::Disable,
            "allow" => Self::Allow,
            "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            _ => return None,
        })
    }
}

/// A version of TLS. There is none older here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TlsVersion {
    V12,
    V13,
}

/// Who is trusted to sign certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Roots {
    System,
    /// `None` without a home.
    File(Option<ParamFile>),
}

/// What a connection string says of TLS, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsSettings {
    pub(crate) mode: SslMode,
    /// TLS begins at once, without asking the server for it.
    pub(crate) direct: bool,
    /// The name of the host is told.
    pub(crate) sni: bool,
    pub(crate) roots: Roots,
    /// The client's own; `None` if it must not be sent.
    pub(crate) certificate: Option<ParamFile>,
    pub(crate) key: Option<ParamFile>,
    pub(crate) revoked: Option<ParamFile>,
    pub(crate) revoked_folder: Option<PathBuf>,
    pub(crate) oldest: TlsVersion,
    pub(crate) newest: TlsVersion,
}

/// Reads the parameters. Mistakes go to `reader`.
pub(super) fn read(reader: &mut Reader<'_>) -> TlsSettings {
    let system = reader.value("sslrootcert") == Some("system");
    let mode = mode(reader, system);
    let direct = reader.one_of("sslnegotiation", &["postgres", "direct"]) == Some("direct");
    if direct && mode < SslMode::Require {
        let expected = "allowed with this `sslmode`: TLS that begins at once needs `sslmode=require` or stronger";
        reader.invalid("sslnegotiation", expected);
    }
    let roots = if system {
        if mode < SslMode::VerifyFull {
            let expected = "allowed with this `sslmode`: anybody can get a certificate of a public authority for a name of his own, \
                so `sslrootcert=system` needs `sslmode=verify-full`";
            reader.invalid("sslrootcert", expected);
        }
        Roots::System
    } else {
        Roots::File(file(reader, "sslrootcert", "root.crt"))
    };
    let sends = reader.one_of("sslcertmode", &["disable", "allow", "require"]);
    if sends == Some("require") {
        let expected = "`disable` or `allow`: let `pg_hba.conf` ask for the certificate (`clientcert=verify-full`)";
        reader.invalid("sslcertmode", expected);
    }
    let certificate =
        file(reader, "sslcert", "postgresql.crt").filter(|_| sends != Some("disable"));
    let (oldest, newest) = versions(reader);
    let revoked_folder = reader.value("sslcrldir").map(PathBuf::from);
    if system && (revoked_folder.is_some() || reader.value("sslcrl").is_some()) {
        let name = if revoked_folder.is_some() {
            "sslcrldir"
        } else {
            "sslcrl"
        };
        reader.invalid(
            name,
            "allowed with `sslrootcert=system`: name the file of the authority",
        );
    }
    settings_without_tls(reader, mode, direct, system);
    TlsSettings {
        mode,
        direct,
        sni: reader.switch("sslsni").unwrap_or(true),
        roots,
        certificate,
        key: file(reader, "sslkey", "postgresql.key"),
        revoked: file(reader, "sslcrl", "root.crl"),
        revoked_folder,
        oldest,
        newest,
    }
}

fn mode(reader: &mut Reader<'_>, system: bool) -> SslMode {
    let required = reader.switch("requiressl") == Some(true);
    // libpq has the strongest default for authorities that anybody may use.
    let default = match (system, required) {
        (true, _) => SslMode::VerifyFull,
        (false, true) => SslMode::Require,
        (false, false) => SslMode::Prefer,
    };
    reader.read("sslmode").unwrap_or(default)
}

fn versions(reader: &mut Reader<'_>) -> (TlsVersion, TlsVersion) {
    const ALL: &[&str] = &["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"];
    let oldest = match reader.one_of("ssl_min_protocol_version", ALL) {
        Some("TLSv1.3") => TlsVersion::V13,
        _ => TlsVersion::V12,
    };
    let newest = match reader.one_of("ssl_max_protocol_version", ALL) {
        Some("TLSv1" | "TLSv1.1") => {
            reader.invalid(
                "ssl_max_protocol_version",
                "`TLSv1.2` or `TLSv1.3`: older ones are broken",
            );
            TlsVersion::V13
        }
        Some("TLSv1.2") => TlsVersion::V12,
        _ => TlsVersion::V13,
    };
    if oldest > newest {
        reader.invalid(
            "ssl_min_protocol_version",
            "as old as `ssl_max_protocol_version`",
        );
    }
    (oldest, newest)
}

fn file(reader: &Reader<'_>, name: &str, usual: &str) -> Option<ParamFile> {
    reader.file(name, &Path::new(".postgresql").join(usual))
}

/// Whoever asks for TLS that is not there is told.
#[cfg(not(feature = "rustls"))]
fn settings_without_tls(reader: &mut Reader<'_>, mode: SslMode, direct: bool, system: bool) {
    let asks = match (mode, direct) {
        (_, true) => Some("sslnegotiation"),
        (mode, false) if mode >= SslMode::Require => {
            Some(if system { "sslrootcert" } else { "sslmode" })
        }
        _ if reader.value("channel_binding") == Some("require") => Some("channel_binding"),
        _ => None,
    };
    if let Some(setting) = asks {
        reader.tls_unavailable(setting);
    }
}

#[cfg(feature = "rustls")]
fn settings_without_tls(_: &mut Reader<'_>, _: SslMode, _: bool, _: bool) {}
