//! Who waits for a connection of a node, in the order of asking.
//!
//! bb8 wakes those who wait in their order, but whoever asks in the meantime may take what they were woken for, and then they
//! wait again behind everybody else. So who gives a connection back, or finds one, gives it to the one who has waited
//! longest, and nobody takes a free one while others wait.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// A line of those who wait for a `T`.
pub(super) struct Line<T> {
    waiting: Mutex<Waiting<T>>,
    /// How many there are. It is read for every statement, so without the lock.
    length: AtomicUsize,
}

struct Waiting<T> {
    next: u64,
    /// By their numbers, so that who leaves from the middle of a long line is soon found.
    senders: BTreeMap<u64, oneshot::Sender<T>>,
}

/// One who waits. Who drops it leaves; what came for him meanwhile is dropped, too.
pub(super) struct Waiter<T> {
    line: Arc<Line<T>>,
    number: u64,
    given: oneshot::Receiver<T>,
}

impl<T> Line<T> {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            waiting: Mutex::new(Waiting {
                next: 0,
                senders: BTreeMap::new(),
            }),
            length: AtomicUsize::new(0),
        })
    }

    pub(super) fn len(&self) -> usize {
        self.length.load(Ordering::Acquire)
    }

    /// One who waits at the end.
    pub(super) fn join(self: &Arc<Self>) -> Waiter<T> {
        let (give, given) = oneshot::channel();
        let mut waiting = self.waiting.lock();
        let number = waiting.next;
        waiting.next += 1;
        waiting.senders.insert(number, give);
        self.length.store(waiting.senders.len(), Ordering::Release);
        drop(waiting);
        Waiter {
            line: Arc::clone(self),
            number,
            given,
        }
    }

    /// Gives it to the one who has waited longest. Returns it if nobody waits.
    pub(super) fn give(&self, it: T) -> Option<T> {
        self.give_unless(None, it)
    }

    /// The same. Returns it, too, if the one who has waited longest has this number.
    fn give_unless(&self, own: Option<u64>, mut it: T) -> Option<T> {
        while let Some((number, first)) = self.first() {
            if own == Some(number) {
                return Some(it);
            }
            match first.send(it) {
                Ok(()) => return None,
                // He has just left.
                Err(back) => it = back,
            }
        }
        Some(it)
    }

    /// Who has waited longest leaves the line.
    fn first(&self) -> Option<(u64, oneshot::Sender<T>)> {
        let mut waiting = self.waiting.lock();
        let first = waiting.senders.pop_first();
        self.length.store(waiting.senders.len(), Ordering::Release);
        first
    }
}

impl<T> Waiter<T> {
    /// Gives what was found to the one who has waited longest. Returns it if that is who found it, or if nobody
    /// waits any more.
    pub(super) fn found(&self, it: T) -> Option<T> {
        self.line.give_unless(Some(self.number), it)
    }

    /// What was given to this one already. Nothing is given to him after that.
    pub(super) fn leave(&mut self) -> Option<T> {
        self.given.close();
        self.given.try_recv().ok()
    }

    /// Waits for what others give. It is not to be asked again after that.
    pub(super) fn poll_given(&mut self, context: &mut Context<'_>) -> Poll<T> {
        match Pin::new(&mut self.given).poll(context) {
            Poll::Ready(Ok(it)) => Poll::Ready(it),
            // The line lives as long as its waiters, and closes to nobody.
            Poll::Ready(Err(_)) | Poll::Pending => Poll::Pending,
        }
    }
}

impl<T> fmt::Debug for Line<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line")
            .field("length", &self.len())
            .finish_non_exhaustive()
    }
}

impl<T> Drop for Waiter<T> {
    fn drop(&mut self) {
        let mut waiting = self.line.waiting.lock();
        waiting.senders.remove(&self.number);
        let length = waiting.senders.len();
        self.line.length.store(length, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_anyone_finds_goes_to_who_has_waited_longest() {
        let line = Line::new();
        let (mut first, mut second, third) = (line.join(), line.join(), line.join());
        assert_eq!(third.found("a"), None);
        assert_eq!(first.leave(), Some("a"));
        assert_eq!(third.found("b"), None);
        assert_eq!(second.leave(), Some("b"));
        assert_eq!(third.found("c"), Some("c"));
        assert_eq!(line.len(), 0);
    }

    #[test]
    fn who_leaves_holds_up_nobody_and_takes_nothing_along() {
        let line = Line::new();
        let (first, mut second, third) = (line.join(), line.join(), line.join());
        drop(first);
        assert_eq!(line.len(), 2);
        assert_eq!(third.found("a"), None);
        assert_eq!(second.leave(), Some("a"));
        // Given to one who leaves before he takes it: it is dropped with his waiter, as all that he holds.
        let item = Arc::new(());
        let line = Line::new();
        let (leaving, finder) = (line.join(), line.join());
        assert!(finder.found(Arc::clone(&item)).is_none());
        drop(leaving);
        assert_eq!(Arc::strong_count(&item), 1);
    }

    #[test]
    fn who_was_served_and_finds_another_gives_it_on_or_keeps_it() {
        let line = Line::new();
        let (mut first, mut second) = (line.join(), line.join());
        assert_eq!(second.found(1), None);
        assert_eq!(first.found(2), None);
        assert_eq!((first.leave(), second.leave()), (Some(1), Some(2)));
        assert_eq!(first.found(3), Some(3));
    }

    #[test]
    fn ten_thousand_leave_in_any_order() {
        let line = Line::<()>::new();
        let mut places: Vec<_> = (0..10_000).map(|_| Some(line.join())).collect();
        for step in 0..10_000 {
            // A stride that shares no factor with the number visits each once.
            places[step * 7919 % 10_000] = None;
        }
        assert_eq!(line.len(), 0);
    }
}
