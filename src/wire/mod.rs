//! What passes on a connection: SQLSTATEs, transaction status, role and death of a connection.
//!
//! Diesel hides nearly everything that a router must know. The [`Tap`] around each socket follows
//! the message headers of the protocol in both directions and keeps what it sees in a [`Wire`].

mod auth;
mod driver;
mod fields;
mod frame;
mod generation;
mod notifications;
mod remark;
mod state;
mod unnamed;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsStream};

pub(crate) use driver::{Driver, drive};
use frame::{BackendScanner, FrontendScanner};
pub(crate) use generation::{Generation, Lifetime};
pub(crate) use notifications::{Notifications, Received};
pub(crate) use remark::{Remark, Says};
pub(crate) use state::{Pooling, ReadOnly, ServerRole, Wire};
use unnamed::Unnamed;

#[cfg(test)]
impl Wire {
    /// One that broke before the last request was answered.
    pub(crate) fn broken() -> Self {
        let wire = Self::default();
        wire.sent_request();
        wire.close(state::Death {
            sqlstate: None,
            message: "broken".to_owned(),
            ours: false,
        });
        wire
    }
}

/// A stream that passes all bytes on, and looks at them. It changes none, unless a pooler in between needs statements
/// without names.
#[derive(Debug)]
pub(crate) struct Tap<S> {
    inner: S,
    backend: BackendScanner,
    frontend: FrontendScanner,
    unnamed: Option<Box<Renaming>>,
    wire: Arc<Wire>,
}

/// What is under way while names are taken out.
#[derive(Debug, Default)]
struct Renaming {
    unnamed: Unnamed,
    /// For the server.
    out: Vec<u8>,
    /// For the client.
    back: Vec<u8>,
}

impl<S> Tap<S> {
    pub(crate) fn new(inner: S, wire: Arc<Wire>) -> Self {
        Self {
            inner,
            backend: BackendScanner::default(),
            frontend: FrontendScanner::default(),
            unnamed: None,
            wire,
        }
    }
}

impl<S: AsyncRead + Unpin> Tap<S> {
    /// Reads what the server sends to clients without names.
    fn poll_back(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(renaming) = &mut self.unnamed else {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        };
        while renaming.back.is_empty() {
            let mut bytes = [0; 8 * 1024];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut self.inner).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            renaming.unnamed.receives(read.filled(), &mut renaming.back);
        }
        let count = renaming.back.len().min(buf.remaining());
        buf.put_slice(&renaming.back[..count]);
        renaming.back.drain(..count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> Tap<S> {
    /// Writes what is left for the server.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(renaming) = &mut self.unnamed else {
            return Poll::Ready(Ok(()));
        };
        while !renaming.out.is_empty() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(cx, &renaming.out))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            renaming.out.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Tap<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        ready!(this.poll_back(cx, buf))?;
        this.backend.scan(&buf.filled()[before..], &this.wire);
        // Nothing is answered to a question that must not be asked.
        if this.wire.refused_auth().is_some() {
            buf.set_filled(before);
            return Poll::Ready(Err(io::ErrorKind::PermissionDenied.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tap<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.unnamed.is_none() && this.wire.wants_no_names() {
            // The log-in is over, and nothing is half sent.
            this.unnamed = Some(Box::default());
        }
        let Some(_) = &this.unnamed else {
            let written = ready!(Pin::new(&mut this.inner).poll_write(cx, buf))?;
            this.frontend.scan(&buf[..written], &this.wire);
            return Poll::Ready(Ok(written));
        };
        ready!(this.poll_out(cx))?;
        if let Some(renaming) = &mut this.unnamed {
            renaming.unnamed.sends(buf, &mut renaming.out);
        }
        this.frontend.scan(buf, &this.wire);
        // What cannot be written now is written before the next bytes, or when they are flushed.
        if let Poll::Ready(Err(error)) = this.poll_out(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_out(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_out(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl<S: TlsStream + Unpin> TlsStream for Tap<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.inner.channel_binding()
    }
}
