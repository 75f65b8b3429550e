//! Asks a server for TLS, and begins it.

use std::io;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::files::PROTOCOL;
use super::{Socket, Stream, Tls, TlsError, Way};

/// `SSLRequest`; see <https://www.postgresql.org/docs/18/protocol-message-formats.html>.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

pub(super) async fn begin(
    tls: &Tls,
    way: Way,
    mut socket: Box<dyn Socket>,
    host: &str,
) -> Result<Stream, TlsError> {
    let direct = tls.settings.direct;
    if !direct && !has_tls(&mut socket).await? {
        if way == Way::Preferred {
            return Ok(Stream::Plain(socket));
        }
        let message = "the server has no TLS, or something in between says so; `sslmode` does not allow a connection without";
        return Err(TlsError::Failed(message.to_owned()));
    }
    let config = tls.client.config(&tls.settings)?;
    let name = ServerName::try_from(host.to_owned()).map_err(|_| {
        TlsError::Failed(format!("`{host}` is no name that a certificate can have"))
    })?;
    let stream = TlsConnector::from(config).connect(name, socket).await;
    let stream = stream.map_err(|error| TlsError::of_handshake(&error))?;
    if direct && stream.get_ref().1.alpn_protocol() != Some(PROTOCOL) {
        let message = "the server does not speak PostgreSQL over TLS that begins at once: \
            `sslnegotiation=direct` needs PostgreSQL 17 or later";
        return Err(TlsError::Failed(message.to_owned()));
    }
    Ok(Stream::Tls(Box::new(stream)))
}

/// Whether the server has TLS. Nothing is read beyond its answer, so nobody can put words before the handshake.
async fn has_tls(socket: &mut Box<dyn Socket>) -> Result<bool, TlsError> {
    socket.write_all(&SSL_REQUEST).await?;
    socket.flush().await?;
    match socket.read_u8().await? {
        b'S' => Ok(true),
        b'N' => Ok(false),
        // What follows is not shown: anybody may have written it.
        b'E' => Err(TlsError::Nonsense(
            "the server answered the request for TLS with an error".to_owned(),
        )),
        _ => Err(TlsError::Nonsense(
            "what answers there does not speak the protocol of PostgreSQL".to_owned(),
        )),
    }
}

impl From<io::Error> for TlsError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl TlsError {
    /// What went wrong in a handshake, and what to do where that is clear.
    fn of_handshake(error: &io::Error) -> Self {
        let source = error.get_ref().and_then(|source| source.downcast_ref());
        let Some(error) = source else {
            return Self::Failed(format!("the server broke off the handshake: {error}"));
        };
        let hint = match error {
            // The second one is that of an authority of the same name.
            rustls::Error::InvalidCertificate(
                rustls::CertificateError::UnknownIssuer | rustls::CertificateError::BadSignature,
            ) => {
                ": no authority that is trusted has signed it; name the authority's certificate by `sslrootcert`, \
                 and have the server send those in between"
            }
            // It has no name of its own there.
            error if error.to_string().contains("UnsupportedCertVersion") => {
                ": the certificate, or one above it, is of version 1, which cannot be verified here; sign it anew with \
                 extensions (`openssl x509 -req -extfile …`)"
            }
            rustls::Error::PeerIncompatible(_) => ": TLS 1.2 is the oldest version here",
            _ => "",
        };
        Self::Failed(format!("{error}{hint}"))
    }
}
