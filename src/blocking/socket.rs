//! A socket that a runtime watches, or the thread that waits for it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::{For, is_within, looks, wait_for};

/// A socket of tokio's.
pub(crate) trait Watched: AsyncRead + AsyncWrite + AsFd + Unpin + Send + Sized {
    /// Has the runtime around this call watch the socket.
    fn watch(socket: OwnedFd) -> io::Result<Self>;
}

impl Watched for TcpStream {
    fn watch(socket: OwnedFd) -> io::Result<Self> {
        Self::from_std(socket.into())
    }
}

impl Watched for UnixStream {
    fn watch(socket: OwnedFd) -> io::Result<Self> {
        Self::from_std(socket.into())
    }
}

/// A socket that no runtime watches.
#[derive(Debug)]
pub(super) struct Own {
    socket: OwnedFd,
    /// There may be something to read.
    has_news: AtomicBool,
}

impl Own {
    pub(super) fn has_news(&self) {
        self.has_news.store(true, Ordering::Release);
    }

    fn receive(&self, room: &mut [u8]) -> Result<usize, Errno> {
        loop {
            match recv(&self.socket, &mut *room, RecvFlags::DONTWAIT) {
                Err(Errno::INTR) => {}
                Ok((count, _)) => {
                    // What comes after this is told by the next wait.
                    self.has_news.store(count == room.len(), Ordering::Release);
                    return Ok(count);
                }
                Err(error) => {
                    self.has_news
                        .store(error != Errno::AGAIN, Ordering::Release);
                    return Err(error);
                }
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<usize, Errno> {
        loop {
            match send(
                &self.socket,
                bytes,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Err(Errno::INTR) => {}
                sent => return sent,
            }
        }
    }
}

impl AsFd for Own {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A socket that is watched by whoever polls it: a thread within [`block_on`](super::block_on), or else the runtime
/// around the poll. It moves from one to the other by itself.
#[derive(Debug)]
pub(crate) struct Movable<T>(By<T>);

/// By whom a socket is watched.
#[derive(Debug)]
enum By<T> {
    Runtime(T),
    Thread(Arc<Own>),
    /// It could not move from one to the other.
    Nobody,
}

impl<T: Watched> Movable<T> {
    pub(crate) fn new(socket: T) -> Self {
        Self(By::Runtime(socket))
    }

    /// For a thread that waits.
    fn own(&mut self) -> io::Result<&Arc<Own>> {
        if let By::Runtime(_) = self.0 {
            self.leave_runtime()?;
        }
        match &self.0 {
            By::Thread(own) => Ok(own),
            By::Runtime(_) | By::Nobody => Err(gone()),
        }
    }

    fn leave_runtime(&mut self) -> io::Result<()> {
        if let By::Runtime(watched) = std::mem::replace(&mut self.0, By::Nobody) {
            // A second descriptor, because closing tokio's is what ends the watching.
            self.0 = By::Thread(Arc::new(Own {
                socket: watched.as_fd().try_clone_to_owned()?,
                has_news: AtomicBool::new(true),
            }));
        }
        Ok(())
    }

    /// For the runtime around this call.
    fn watched(&mut self) -> io::Result<Pin<&mut T>> {
        if let By::Thread(_) = self.0 {
            self.leave_thread()?;
        }
        match &mut self.0 {
            By::Runtime(watched) => Ok(Pin::new(watched)),
            By::Thread(_) | By::Nobody => Err(gone()),
        }
    }

    fn leave_thread(&mut self) -> io::Result<()> {
        if let By::Thread(own) = std::mem::replace(&mut self.0, By::Nobody) {
            self.0 = By::Runtime(T::watch(own.socket.try_clone()?)?);
        }
        Ok(())
    }
}

/// It could not move before.
fn gone() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

impl<T: Watched> AsyncRead for Movable<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !is_within() {
            return match &mut self.0 {
                By::Runtime(watched) => Pin::new(watched).poll_read(cx, buf),
                By::Thread(_) | By::Nobody => self.watched()?.poll_read(cx, buf),
            };
        }
        let own = self.own()?;
        if own.has_news.load(Ordering::Acquire) || looks() {
            match own.receive(buf.initialize_unfilled()) {
                Ok(count) => {
                    buf.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::AGAIN) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
        wait_for(own, For::Reading);
        Poll::Pending
    }
}

impl<T: Watched> AsyncWrite for Movable<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if !is_within() {
            return match &mut self.0 {
                By::Runtime(watched) => Pin::new(watched).poll_write(cx, buf),
                By::Thread(_) | By::Nobody => self.watched()?.poll_write(cx, buf),
            };
        }
        let own = self.own()?;
        match own.send(buf) {
            Ok(count) => Poll::Ready(Ok(count)),
            Err(Errno::AGAIN) => {
                wait_for(own, For::Writing);
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A socket keeps nothing back.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.0 {
            By::Runtime(_) | By::Nobody => self.watched()?.poll_shutdown(cx),
            By::Thread(own) => Poll::Ready(Ok(rustix::net::shutdown(
                own,
                rustix::net::Shutdown::Write,
            )?)),
        }
    }
}
