//! How many connections are in use, and whether more may be lent.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// The bit that says that the pool was closed; the count is in the others.
const CLOSED: usize = 1;
const ONE: usize = 2;

#[derive(Debug, Default)]
struct State {
    count: AtomicUsize,
    all_back: Notify,
}

/// Counts connections that the application holds.
///
/// Every checkout passes here twice, so it is one atomic number. Until the pool is closed it wakes nobody and takes
/// no lock.
#[derive(Clone, Debug)]
pub(crate) struct CheckoutTracker(Arc<State>);

/// One connection that is in use.
#[derive(Debug)]
pub(crate) struct Permit(CheckoutTracker);

impl CheckoutTracker {
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }

    /// Lends one more, unless the pool was closed.
    pub(crate) fn admit(&self) -> Option<Permit> {
        let open = |count| (count & CLOSED == 0).then_some(count + ONE);
        let admitted = self
            .0
            .count
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, open);
        admitted.is_ok().then(|| Permit(self.clone()))
    }

    pub(crate) fn out(&self) -> usize {
        self.0.count.load(Ordering::Acquire) / ONE
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.0.count.load(Ordering::Acquire) & CLOSED != 0
    }

    /// Lends no more. Returns whether this call closed it.
    pub(crate) fn close(&self) -> bool {
        self.0.count.fetch_or(CLOSED, Ordering::AcqRel) & CLOSED == 0
    }

    /// Waits until all are back. Call [`CheckoutTracker::close`] before: an open pool tells nobody.
    pub(crate) async fn all_back(&self) {
        // It must exist before the count is read.
        let told = self.0.all_back.notified();
        if self.out() > 0 {
            // None is lent any more, so once is enough.
            told.await;
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let state = &self.0.0;
        if state.count.fetch_sub(ONE, Ordering::AcqRel) == ONE | CLOSED {
            state.all_back.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_closed_pool_lets_none_out_and_waits_for_those_that_are() {
        let tracker = CheckoutTracker::new();
        let (one, two) = (tracker.admit(), tracker.admit());
        assert_eq!(tracker.out(), 2);
        assert!(tracker.close() && !tracker.close() && tracker.is_closed());
        assert!(tracker.admit().is_none());
        let mut all_back = Box::pin(tracker.all_back());
        assert!((&mut all_back).now_or_never().is_none());
        drop(one);
        assert!((&mut all_back).now_or_never().is_none());
        drop(two);
        assert!(all_back.now_or_never().is_some());
        assert!(tracker.all_back().now_or_never().is_some());
        assert_eq!(tracker.out(), 0);
    }
}
