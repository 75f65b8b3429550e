//! Notifications that a connection has received and nobody has read yet, a bounded number of them.

use std::collections::VecDeque;

use diesel::pg::PgNotification;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

/// How many bytes of channels and payloads are kept.
const BYTES: usize = 4 << 20;

/// The size of one notification without its texts.
const OVERHEAD: usize = 128;

/// One item for the reader.
#[derive(Debug)]
pub(crate) enum Received {
    Notification(PgNotification),
    /// So many were dropped, because nobody read them.
    Lost(u64),
    /// The connection is over.
    End,
}

/// The unread notifications of one connection.
#[derive(Debug, Default)]
pub(crate) struct Notifications {
    queue: Mutex<Queue>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    unread: VecDeque<PgNotification>,
    bytes: usize,
    lost: u64,
    over: bool,
}

impl Notifications {
    /// Keeps one more; the oldest go when there are too many.
    pub(super) fn push(&self, notification: PgNotification) {
        let mut queue = self.queue();
        queue.bytes += size(&notification);
        queue.unread.push_back(notification);
        while queue.bytes > BYTES {
            let Some(oldest) = queue.unread.pop_front() else {
                break;
            };
            queue.bytes -= size(&oldest);
            queue.lost += 1;
        }
        drop(queue);
        self.news.notify_one();
    }

    /// No more will come.
    pub(super) fn end(&self) {
        self.queue().over = true;
        self.news.notify_one();
    }

    /// Forgets what nobody has read.
    pub(crate) fn clear(&self) {
        let mut queue = self.queue();
        queue.unread = VecDeque::new();
        (queue.bytes, queue.lost) = (0, 0);
    }

    /// The next one. Nothing is lost if the future is dropped.
    pub(crate) async fn receive(&self) -> Received {
        loop {
            let news = self.news.notified();
            if let Some(received) = self.queue().next() {
                return received;
            }
            news.await;
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }
}

impl Queue {
    fn next(&mut self) -> Option<Received> {
        if self.lost > 0 {
            return Some(Received::Lost(std::mem::take(&mut self.lost)));
        }
        match self.unread.pop_front() {
            Some(notification) => {
                self.bytes -= size(&notification);
                Some(Received::Notification(notification))
            }
            None => self.over.then_some(Received::End),
        }
    }
}

fn size(notification: &PgNotification) -> usize {
    OVERHEAD + notification.channel.len() + notification.payload.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notification(payload: String) -> PgNotification {
        PgNotification {
            process_id: 1,
            channel: "news".to_owned(),
            payload,
        }
    }

    #[tokio::test]
    async fn the_newest_are_kept_and_the_loss_is_told() {
        let notifications = Notifications::default();
        let payload = "x".repeat(7_000);
        for _ in 0..10_000 {
            notifications.push(notification(payload.clone()));
        }
        notifications.push(notification("last".to_owned()));
        notifications.end();
        let Received::Lost(lost) = notifications.receive().await else {
            panic!("nothing was lost");
        };
        let mut read = 0;
        let mut last = String::new();
        loop {
            match notifications.receive().await {
                Received::Notification(it) => {
                    read += 1;
                    last = it.payload;
                }
                Received::Lost(_) => panic!("lost twice"),
                Received::End => break,
            }
        }
        assert_eq!(lost + read, 10_001);
        assert!(read > 500, "{read}");
        assert_eq!(last, "last");
    }
}
