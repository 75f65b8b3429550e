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

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsStream};

pub(crate) use driver::drive;
use frame::{BackendScanner, FrontendScanner};
pub(crate) use generation::Generation;
pub(crate) use notifications::{Notifications, Received};
pub(crate) use remark::{Remark, Says};
pub(crate) use state::{ReadOnly, ServerRole, Wire};

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

/// A stream that passes all bytes on unchanged, and looks at them.
#[derive(Debug)]
pub(crate) struct Tap<S> {
    inner: S,
    backend: BackendScanner,
    frontend: FrontendScanner,
    wire: Arc<Wire>,
}

impl<S> Tap<S> {
    pub(crate) fn new(inner: S, wire: Arc<Wire>) -> Self {
        Self {
            inner,
            backend: BackendScanner::default(),
            frontend: FrontendScanner::default(),
            wire,
        }
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
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
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
        let written = ready!(Pin::new(&mut this.inner).poll_write(cx, buf))?;
        this.frontend.scan(&buf[..written], &this.wire);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl<S: TlsStream + Unpin> TlsStream for Tap<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.inner.channel_binding()
    }
}
