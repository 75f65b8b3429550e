//! Waits on the caller's own thread, for the sockets of its statements too.
//!
//! Synchronous Diesel waits for one statement at a time. If the connection's task did the talking, each statement would
//! wake it, and it would wake the caller: two changes of threads, which take longer than the statement. So a thread
//! that waits within [`block_on`] talks to the server itself. A socket that has nothing for it is put on the thread's
//! list ([`wait_for`]), and the thread sleeps in `poll(2)` until one of them, or a waker, ends that.

mod sleeper;
mod socket;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use diesel_async::async_connection_wrapper::BlockOn;

use sleeper::Sleeper;
pub(crate) use socket::Movable;
use socket::Own;

/// What a socket is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum For {
    Reading,
    Writing,
}

/// How this thread polls now.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// As any other.
    Usual,
    /// Within [`block_on`].
    Waits,
    /// It looks whether anything came, and does not wait.
    Looks,
}

thread_local! {
    static MODE: Cell<Mode> = const { Cell::new(Mode::Usual) };
    /// What the innermost [`block_on`] is to wait for.
    static SOCKETS: RefCell<Sockets> = const { RefCell::new(Vec::new()) };
}

type Sockets = Vec<(Arc<Own>, For)>;

/// Runs a future to its end on this thread, which waits. It needs no runtime, and may be called within one.
///
/// Synchronous code calls the async methods of a pool with it:
///
/// ```no_run
/// # fn example(pool: &diesel_replicated::ReplicatedPool) {
/// use diesel_replicated::blocking::block_on;
///
/// let left = block_on(pool.close(std::time::Duration::from_secs(5)));
/// # }
/// ```
///
/// It is for futures of this crate: timers and sockets of tokio's that are made within it need a runtime around it, as anywhere.
/// Within async code it holds up what else runs on this thread. If that is the single thread of the runtime that the
/// pool was built on, it holds up the pool too, and may wait for ever.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let sleeper = Sleeper::of_this_thread();
    let waker = Waker::from(Arc::clone(&sleeper));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    let mut sockets = Sockets::new();
    let output = loop {
        sockets.clear();
        let polled = within(Mode::Waits, &mut sockets, || {
            future.as_mut().poll(&mut context)
        });
        match polled {
            Poll::Ready(output) => break output,
            Poll::Pending => sleeper.sleep(&sockets),
        }
    };
    sleeper.is_free_again();
    output
}

/// Calls `work` in this mode, with this list. An outer mode and list come back, after a panic as well.
fn within<T>(mode: Mode, sockets: &mut Sockets, work: impl FnOnce() -> T) -> T {
    struct Outer<'a>(Mode, &'a mut Sockets);
    impl Drop for Outer<'_> {
        fn drop(&mut self) {
            MODE.set(self.0);
            exchange(self.1);
        }
    }
    // A thread that is ending has no place for a list any more. It waits as others do.
    let mode = if exchange(sockets) { mode } else { Mode::Usual };
    let _outer = Outer(MODE.replace(mode), sockets);
    work()
}

/// Puts this list in the place of the thread's.
fn exchange(sockets: &mut Sockets) -> bool {
    let exchanged = SOCKETS.try_with(|theirs| std::mem::swap(&mut *theirs.borrow_mut(), sockets));
    exchanged.is_ok()
}

/// Calls `work`, in which each socket says what came, and which waits for none. `None` while the thread is ending.
pub(crate) fn looking<T>(work: impl FnOnce() -> T) -> Option<T> {
    let looked = || (MODE.get() == Mode::Looks).then(work);
    within(Mode::Looks, &mut Sockets::new(), looked)
}

/// Whether this thread polls within [`block_on`].
pub(crate) fn is_within() -> bool {
    MODE.get() != Mode::Usual
}

/// Whether sockets are to say at once what came, without a wait.
fn looks() -> bool {
    MODE.get() == Mode::Looks
}

/// Has this thread wait for the socket as well, once all that can be done is done.
fn wait_for(socket: &Arc<Own>, what: For) {
    if MODE.get() == Mode::Waits {
        SOCKETS.with_borrow_mut(|sockets| sockets.push((Arc::clone(socket), what)));
    }
}

/// Has diesel-async's wrapper wait by [`block_on`]. It brings no runtime, so it can be used and dropped anywhere.
#[derive(Clone, Copy, Debug, Default)]
pub struct OnThisThread;

impl BlockOn for OnThisThread {
    fn block_on<F: Future>(&self, future: F) -> F::Output {
        block_on(future)
    }

    fn get_runtime() -> Self {
        Self
    }
}
