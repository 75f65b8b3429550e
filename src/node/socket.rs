//! Opens sockets to the addresses that a node has.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use rand::seq::SliceRandom;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream, lookup_host};

use crate::blocking::Movable;
use crate::config::{Host, SocketSettings};
use crate::tls::Socket;

/// One address of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

impl Address {
    /// All addresses of `host` now, in the order in which they are tried. A name is looked up each time: it may be
    /// given to another server.
    pub(super) async fn all(host: &Host, settings: &SocketSettings) -> io::Result<Vec<Self>> {
        let mut addresses = match host {
            Host::Unix(path) => return Ok(vec![Self::Unix(path.clone())]),
            Host::Tcp {
                hostaddr: Some(ip),
                port,
                ..
            } => return Ok(vec![Self::Tcp(SocketAddr::new(*ip, *port))]),
            Host::Tcp { host, port, .. } => {
                let found = lookup_host((host.as_str(), *port)).await?;
                found.map(Self::Tcp).collect::<Vec<_>>()
            }
        };
        addresses.dedup();
        if settings.shuffle {
            addresses.shuffle(&mut rand::rng());
        }
        if addresses.is_empty() {
            return Err(io::Error::other("the name has no address"));
        }
        Ok(addresses)
    }

    pub(super) async fn open(&self, settings: &SocketSettings) -> io::Result<Box<dyn Socket>> {
        Ok(match self {
            Self::Unix(path) => Box::new(Movable::new(UnixStream::connect(path).await?)),
            Self::Tcp(address) => Box::new(Movable::new(tcp(*address, settings).await?)),
        })
    }

    pub(super) fn is_unix(&self) -> bool {
        matches!(self, Self::Unix(_))
    }
}

async fn tcp(address: SocketAddr, settings: &SocketSettings) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    if settings.keepalives {
        let mut keepalive = TcpKeepalive::new().with_time(settings.keepalives_idle);
        if let Some(interval) = settings.keepalives_interval {
            keepalive = keepalive.with_interval(interval);
        }
        if let Some(count) = settings.keepalives_count {
            keepalive = keepalive.with_retries(count);
        }
        socket.set_tcp_keepalive(&keepalive)?;
    }
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(settings.tcp_user_timeout)?;
    Ok(stream)
}
