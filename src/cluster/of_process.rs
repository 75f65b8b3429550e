//! What belongs to one process, and not to a child that it forks.

use std::mem::ManuallyDrop;

use parking_lot::Mutex;

/// What belongs to one process. A forked child finds nothing here: its copy has the parent's sockets and none of its
/// threads, so it is neither used there nor dropped, which would talk over those sockets.
pub(super) struct OfProcess<T>(Mutex<Option<(u32, ManuallyDrop<T>)>>);

impl<T: Default> OfProcess<T> {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(None))
    }

    pub(super) fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
        self.with_of(std::process::id(), work)
    }

    fn with_of<R>(&self, process: u32, work: impl FnOnce(&mut T) -> R) -> R {
        let mut held = self.0.lock();
        if let Some((_, it)) = held.as_mut().filter(|(of, _)| *of == process) {
            return work(it);
        }
        let (_, it) = held.insert((process, ManuallyDrop::new(T::default())));
        work(it)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    // psycopg2 #1205 and #487, mysql2 #1493: the child uses its parent's sockets, or closes the parent's session on them.
    #[test]
    fn a_child_finds_nothing_of_its_parent_and_drops_nothing_of_it() {
        static HELD: OfProcess<Vec<Arc<()>>> = OfProcess::new();
        let socket = Arc::new(());
        HELD.with_of(1, |held| held.push(Arc::clone(&socket)));
        HELD.with_of(1, |held| assert_eq!(held.len(), 1));
        HELD.with_of(2, |held| assert!(held.is_empty()));
        assert_eq!(Arc::strong_count(&socket), 2);
    }
}
