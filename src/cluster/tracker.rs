//! How many connections are out, and whether more may go out.

use std::sync::Arc;

use tokio::sync::watch;

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    out: usize,
    closed: bool,
}

/// Counts connections that the application holds.
#[derive(Clone, Debug)]
pub(crate) struct Tracker(Arc<watch::Sender<Count>>);

/// One connection that is out.
#[derive(Debug)]
pub(crate) struct Permit(Tracker);

impl Tracker {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Count::default())))
    }

    /// Lets one more out, unless the pool was closed.
    pub(crate) fn admit(&self) -> Option<Permit> {
        let mut admitted = false;
        self.0.send_if_modified(|count| {
            admitted = !count.closed;
            count.out += usize::from(admitted);
            // Nobody waits for more to go out.
            false
        });
        admitted.then(|| Permit(self.clone()))
    }

    pub(crate) fn out(&self) -> usize {
        self.0.borrow().out
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.0.borrow().closed
    }

    /// Lets no more out. Whether this call was the one that did so.
    pub(crate) fn close(&self) -> bool {
        let mut first = false;
        self.0.send_modify(|count| {
            first = !count.closed;
            count.closed = true;
        });
        first
    }

    /// Waits until all are back.
    pub(crate) async fn all_back(&self) {
        // The sender lives in `self`, so the wait cannot fail.
        let _ = self.0.subscribe().wait_for(|count| count.out == 0).await;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.0.send_if_modified(|count| {
            count.out = count.out.saturating_sub(1);
            count.out == 0
        });
    }
}
