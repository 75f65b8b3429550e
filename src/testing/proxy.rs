//! A TCP proxy in front of a server, by which its network can be made to fail.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::error::{ClusterError, io};
use super::ports::free_port;

/// How often waiting threads look whether something has changed.
const LOOK: Duration = Duration::from_millis(2);

/// The network in front of one node.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The server's port.
    target: AtomicU16,
    over: AtomicBool,
    cut: AtomicBool,
    black_hole: AtomicBool,
    delay_micros: AtomicU64,
    /// 0 is without bound.
    bytes_per_second: AtomicU64,
    links: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    pub(super) fn start(target: u16) -> Result<Self, ClusterError> {
        let port = free_port()?;
        let shared = Arc::new(Shared {
            target: AtomicU16::new(target),
            ..Shared::default()
        });
        let proxy = Self { port, shared };
        proxy.listen()?;
        Ok(proxy)
    }

    /// Where it listens on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Leads to the server at this port of 127.0.0.1 from now on, as a name does that was given to another server.
    /// Links that are open end.
    pub fn lead_to(&self, port: u16) {
        self.shared.target.store(port, Ordering::Release);
        self.shared.close_links();
    }

    /// Closes every link and refuses new ones.
    pub fn cut(&self) {
        self.shared.cut.store(true, Ordering::Release);
        self.shared.close_links();
    }

    /// Keeps every link open and lets nothing through; new links are accepted and dead.
    pub fn black_hole(&self) {
        self.shared.black_hole.store(true, Ordering::Release);
    }

    /// Delays each piece of data, in each direction.
    pub fn delay(&self, delay: Duration) {
        let micros = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        self.shared.delay_micros.store(micros, Ordering::Release);
    }

    /// Lets through no more than this, in each direction of each link.
    pub fn slow(&self, bytes_per_second: u64) {
        self.shared
            .bytes_per_second
            .store(bytes_per_second.max(1), Ordering::Release);
    }

    /// Ends all troubles. Links that were cut stay closed; data held back goes on its way.
    pub fn heal(&self) {
        self.delay(Duration::ZERO);
        self.shared.bytes_per_second.store(0, Ordering::Release);
        self.shared.black_hole.store(false, Ordering::Release);
        self.shared.cut.store(false, Ordering::Release);
    }

    fn listen(&self) -> Result<(), ClusterError> {
        let what = "cannot start the proxy";
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, self.port)).map_err(io(what))?;
        listener.set_nonblocking(true).map_err(io(what))?;
        let shared = Arc::clone(&self.shared);
        let port = self.port;
        let name = format!("proxy-{port}");
        let accept = move || accept(Some(listener), port, &shared);
        thread::Builder::new()
            .name(name)
            .spawn(accept)
            .map_err(io(what))?;
        Ok(())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Release);
        self.shared.close_links();
    }
}

impl Shared {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    fn close_links(&self) {
        let mut links = self.links.lock();
        for link in links.drain(..) {
            let _ = link.shutdown(Shutdown::Both);
        }
    }

    fn keep(&self, link: &TcpStream) -> io::Result<()> {
        let mut links = self.links.lock();
        links.push(link.try_clone()?);
        Ok(())
    }
}

/// Accepts links. While the network is cut there is no listener, so that the system refuses.
fn accept(mut listener: Option<TcpListener>, port: u16, shared: &Arc<Shared>) {
    while !shared.is_over() {
        if shared.cut.load(Ordering::Acquire) {
            listener = None;
        } else if listener.is_none() {
            listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
                .ok()
                .filter(|listener| listener.set_nonblocking(true).is_ok());
        }
        match listener.as_ref().map(TcpListener::accept) {
            Some(Ok((client, _))) => {
                let shared = Arc::clone(shared);
                thread::spawn(move || {
                    let _ = link(&client, &shared);
                    let _ = client.shutdown(Shutdown::Both);
                });
            }
            _ => thread::sleep(LOOK),
        }
    }
}

fn link(client: &TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    client.set_nonblocking(false)?;
    client.set_nodelay(true)?;
    shared.keep(client)?;
    while shared.black_hole.load(Ordering::Acquire) && !shared.is_over() {
        thread::sleep(LOOK);
    }
    let port = shared.target.load(Ordering::Acquire);
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    server.set_nodelay(true)?;
    shared.keep(&server)?;
    let (from_server, to_client) = (server.try_clone()?, client.try_clone()?);
    let other = Arc::clone(shared);
    let back = thread::spawn(move || pump(from_server, to_client, &other));
    let there = pump(client.try_clone()?, server, shared);
    let _ = back.join();
    there
}

/// Passes data one way until either end closes. What is read while earlier data is on its way travels behind it, as in a
/// long cable.
fn pump(mut from: TcpStream, to: TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    let (sender, receiver) = mpsc::channel();
    let (end, other) = (to.try_clone()?, Arc::clone(shared));
    let writer = thread::spawn(move || deliver(&receiver, to, &other));
    let mut buffer = [0; 16 * 1024];
    let result = loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(read) => read,
            Err(error) => break Err(error),
        };
        let delay = Duration::from_micros(shared.delay_micros.load(Ordering::Acquire));
        if sender
            .send((Instant::now() + delay, buffer[..read].to_vec()))
            .is_err()
        {
            break Ok(());
        }
    };
    drop(sender);
    let _ = writer.join();
    let _ = end.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
    result
}

/// Hands each piece over when it is due.
fn deliver(pieces: &mpsc::Receiver<(Instant, Vec<u8>)>, mut to: TcpStream, shared: &Shared) {
    while let Ok((due, piece)) = pieces.recv() {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let rate = shared.bytes_per_second.load(Ordering::Acquire);
        if rate > 0 {
            let time = Duration::from_secs(piece.len() as u64);
            thread::sleep(time / u32::try_from(rate).unwrap_or(u32::MAX));
        }
        while shared.black_hole.load(Ordering::Acquire) && !shared.is_over() {
            thread::sleep(LOOK);
        }
        if to.write_all(&piece).is_err() {
            // The other side hears of it when it reads.
            let _ = to.shutdown(Shutdown::Both);
            return;
        }
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy")
            .field("port", &self.port)
            .field("shared", &self.shared)
            .finish()
    }
}
