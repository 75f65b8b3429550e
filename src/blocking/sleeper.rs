//! A thread that sleeps until a socket has something for it, or a waker is called.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::Wake;
use std::thread::Thread;

use rustix::event::{PollFd, PollFlags, poll};

use super::For;
use super::socket::Own;

thread_local! {
    static SLEEPER: RefCell<Option<Arc<Sleeper>>> = const { RefCell::new(None) };
}

/// Nobody has woken the thread, which is awake.
const AWAKE: u8 = 0;
/// It is to poll again.
const WOKEN: u8 = 1;
/// It is parked.
const PARKED: u8 = 2;
/// It is in `poll(2)`.
const POLLING: u8 = 3;

/// A thread that sleeps, and what wakes it.
pub(super) struct Sleeper {
    thread: Thread,
    state: AtomicU8,
    /// Wakes the thread from `poll(2)`.
    bell: Option<(UnixStream, UnixStream)>,
}

impl Sleeper {
    /// The thread's own, unless an outer [`block_on`](super::block_on) uses it.
    pub(super) fn of_this_thread() -> Arc<Self> {
        let own = SLEEPER.try_with(|sleeper| sleeper.borrow_mut().take());
        own.ok().flatten().unwrap_or_else(|| {
            Arc::new(Self {
                thread: std::thread::current(),
                state: AtomicU8::new(AWAKE),
                bell: bell().ok(),
            })
        })
    }

    pub(super) fn is_free_again(self: Arc<Self>) {
        self.state.store(AWAKE, Ordering::Release);
        // While the thread ends there is no place for it.
        let _ = SLEEPER.try_with(|sleeper| *sleeper.borrow_mut() = Some(self));
    }

    pub(super) fn sleep(&self, sockets: &[(Arc<Own>, For)]) {
        match &self.bell {
            Some((_, heard)) if !sockets.is_empty() => self.sleep_in_poll(heard, sockets),
            // Without a bell the sockets' own task is to wake it; see `wire::drive`.
            _ => self.sleep_parked(),
        }
    }

    fn goes_to(&self, state: u8) -> bool {
        let order = (Ordering::AcqRel, Ordering::Acquire);
        let gone = self.state.compare_exchange(AWAKE, state, order.0, order.1);
        gone.is_ok()
    }

    fn sleep_parked(&self) {
        if self.goes_to(PARKED) {
            while self.state.load(Ordering::Acquire) == PARKED {
                std::thread::park();
            }
        }
        self.state.store(AWAKE, Ordering::Release);
    }

    fn sleep_in_poll(&self, mut heard: &UnixStream, sockets: &[(Arc<Own>, For)]) {
        if self.goes_to(POLLING) {
            let mut all = Vec::with_capacity(sockets.len() + 1);
            all.push(PollFd::new(heard, PollFlags::IN));
            all.extend(sockets.iter().map(|(socket, what)| {
                let flags = match what {
                    For::Reading => PollFlags::IN,
                    For::Writing => PollFlags::OUT,
                };
                PollFd::from_borrowed_fd(socket.as_fd(), flags)
            }));
            // An interruption, and whatever else ends it, is a reason to poll the future again.
            let _ = poll(&mut all, None);
            for ((socket, what), polled) in sockets.iter().zip(&all[1..]) {
                if *what == For::Reading && !polled.revents().is_empty() {
                    socket.has_news();
                }
            }
            let rung = !all.first().is_none_or(|bell| bell.revents().is_empty());
            let state = self.state.swap(AWAKE, Ordering::AcqRel);
            if rung || state == WOKEN {
                // Whoever has woken it may still be about to ring: then the next sleep ends early, once.
                while heard.read(&mut [0; 16]).is_ok_and(|count| count == 16) {}
            }
            return;
        }
        self.state.store(AWAKE, Ordering::Release);
    }
}

fn bell() -> io::Result<(UnixStream, UnixStream)> {
    let (ring, heard) = UnixStream::pair()?;
    ring.set_nonblocking(true)?;
    heard.set_nonblocking(true)?;
    Ok((ring, heard))
}

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        match self.state.swap(WOKEN, Ordering::AcqRel) {
            PARKED => self.thread.unpark(),
            POLLING => {
                if let Some((ring, _)) = &self.bell {
                    let mut ring = ring;
                    // If it is full it rings already.
                    while ring
                        .write(&[0])
                        .is_err_and(|error| error.kind() == ErrorKind::Interrupted)
                    {
                    }
                }
            }
            _ => {}
        }
    }
}

impl fmt::Debug for Sleeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleeper")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}
