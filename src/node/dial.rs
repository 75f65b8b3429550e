//! Gets from an address to a server that has let us in: socket, TLS, log-in.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_postgres::{Client, Connection};

use super::socket::Address;
use crate::config::{Host, NodeSettings};
use crate::error::{ConnectError, ConnectErrorKind, SqlState};
use crate::tls::{Established, OwnConfig, Stream, Tls, TlsError, Way};
use crate::wire::{Generation, Tap, Wire};

/// `CancelRequest`; see <https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-CANCELING-REQUESTS>.
const CANCEL_REQUEST: [u8; 8] = [0, 0, 0, 16, 0x04, 0xd2, 0x16, 0x2e];

/// How the server of a node is reached.
#[derive(Debug)]
pub(super) struct Dialer {
    tls: Tls,
}

/// A server that has let us in.
pub(super) struct Dialed {
    pub(super) client: Client,
    pub(super) connection: Connection<Tap<Stream>, Tap<Stream>>,
    pub(super) wire: Arc<Wire>,
    pub(super) peer: Peer,
}

/// Whom to ask to cancel what a connection runs.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    address: Address,
    wire: Arc<Wire>,
}

/// Why one way failed, and whether there was no TLS.
struct Refused {
    error: ConnectError,
    plain: bool,
}

impl Dialer {
    pub(super) fn new(settings: &NodeSettings, own: Option<OwnConfig>) -> Self {
        Self {
            tls: Tls::new(settings.login.tls.clone(), own),
        }
    }

    /// Connects to `address` and logs in as `login` says, with TLS or without as `sslmode` says.
    pub(super) async fn dial(
        &self,
        settings: &NodeSettings,
        login: &tokio_postgres::Config,
        address: &Address,
        generation: &Arc<Generation>,
    ) -> Result<Dialed, ConnectError> {
        let mut first: Option<Refused> = None;
        for way in self.ways(address) {
            // Without TLS it was tried, as the server has none.
            if *way == Way::Plain && first.as_ref().is_some_and(|first| first.plain) {
                break;
            }
            let refused = match self
                .try_by(*way, settings, login, address, generation)
                .await
            {
                Ok(dialed) => return Ok(dialed),
                Err(refused) => refused,
            };
            let another_may_do = refused.error.kind == ConnectErrorKind::Tls
                || refused.error.sqlstate == Some(SqlState::INVALID_AUTHORIZATION);
            match first {
                Some(first) => return Err(both(&first.error, refused.error)),
                None if another_may_do => first = Some(refused),
                None => return Err(refused.error),
            }
        }
        Err(match first {
            Some(refused) => refused.error,
            None => ConnectError::new(&settings.name, ConnectErrorKind::Other, "no way to connect"),
        })
    }

    /// Unix sockets have no TLS.
    fn ways(&self, address: &Address) -> &'static [Way] {
        if address.is_unix() {
            &[Way::Plain]
        } else {
            self.tls.ways()
        }
    }

    async fn try_by(
        &self,
        way: Way,
        settings: &NodeSettings,
        login: &tokio_postgres::Config,
        address: &Address,
        generation: &Arc<Generation>,
    ) -> Result<Dialed, Refused> {
        let stream = self.stream(way, settings, address).await;
        let stream = stream.map_err(|error| Refused {
            error,
            plain: false,
        })?;
        let plain = stream.is_plain();
        let wire = Arc::new(Wire::of(generation, settings.login.require_auth));
        let tap = Tap::new(stream, Arc::clone(&wire));
        let mut login = login.clone();
        Established::prepare(&mut login);
        match login.connect_raw(tap, Established).await {
            Ok((client, connection)) => Ok(Dialed {
                client,
                connection,
                peer: Peer {
                    address: address.clone(),
                    wire: Arc::clone(&wire),
                },
                wire,
            }),
            Err(error) => {
                let error = match wire.refused_auth() {
                    Some(method) => {
                        let message = format!(
                            "the server asks for `{}`, which `require_auth` does not allow",
                            method.as_str()
                        );
                        let kind = ConnectErrorKind::Authentication;
                        ConnectError::new(&settings.name, kind, message)
                    }
                    None => ConnectError::from_postgres(&settings.name, &error),
                };
                Err(Refused { error, plain })
            }
        }
    }

    /// A stream on which the server can be talked to.
    async fn stream(
        &self,
        way: Way,
        settings: &NodeSettings,
        address: &Address,
    ) -> Result<Stream, ConnectError> {
        let node = &settings.name;
        let from_io = |error| ConnectError::from_io(node, &error);
        let socket = address
            .open(&settings.login.socket)
            .await
            .map_err(from_io)?;
        let host = match &settings.host {
            Host::Tcp { host, .. } => host,
            Host::Unix(_) => "",
        };
        let begun = self.tls.begin(way, socket, host).await;
        begun.map_err(|error| match error {
            TlsError::Io(error) => from_io(error),
            TlsError::Failed(message) => ConnectError::new(node, ConnectErrorKind::Tls, message),
            TlsError::Nonsense(message) => {
                ConnectError::new(node, ConnectErrorKind::Other, message)
            }
        })
    }

    /// Asks the server to cancel what runs on the connection that leads to `peer`.
    pub(super) async fn cancel(
        &self,
        settings: &NodeSettings,
        peer: &Peer,
    ) -> Result<(), ConnectError> {
        let Some((process, secret)) = peer.wire.key() else {
            // A server that gave no key cancels nothing.
            return Ok(());
        };
        let way = self.ways(&peer.address).first().copied();
        let way = way.unwrap_or(Way::Plain);
        let mut stream = self.stream(way, settings, &peer.address).await?;
        let request = async {
            let mut message = CANCEL_REQUEST.to_vec();
            message.extend(process.to_be_bytes());
            message.extend(secret.to_be_bytes());
            stream.write_all(&message).await?;
            stream.flush().await?;
            // The server closes when it has passed the request on. A pooler drops a request whose sender is gone.
            let _ = stream.read(&mut [0]).await;
            Ok(())
        };
        let sent: std::io::Result<()> = request.await;
        sent.map_err(|error| ConnectError::from_io(&settings.name, &error))
    }
}

/// The error of the second way, which also tells how the first one failed.
fn both(first: &ConnectError, second: ConnectError) -> ConnectError {
    let message = format!("{}; before that: {}", second.message, first.message);
    ConnectError { message, ..second }
}
