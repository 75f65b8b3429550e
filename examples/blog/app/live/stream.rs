//! What happens, as server-sent events: `snapshot` is everything, `pool` one event of the pool.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event as Message, KeepAlive, Sse};
use diesel_replicated::status::Events;
use futures_util::stream::{self, Stream, StreamExt};
use serde::Serialize;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use super::super::routes::App;
use super::Snapshot;

/// Snapshots come no more often than this.
const SHORTEST: Duration = Duration::from_millis(250);

/// If nothing changes, one comes after this time all the same.
const LONGEST: Duration = Duration::from_secs(1);

/// Everything at once, and from then on what changes. The stream ends with the application, which
/// would else wait for it, and with the pool.
pub(super) async fn events(
    State(app): State<App>,
) -> Sse<impl Stream<Item = Result<Message, Infallible>>> {
    let mut stop = app.stop.clone();
    let stopped = async move {
        // An error means that nobody is left to say it.
        let _ = stop.wait_for(|stop| *stop).await;
    };
    let messages = stream::unfold(Viewer::new(app), Viewer::next);
    Sse::new(messages.take_until(Box::pin(stopped)).map(Ok)).keep_alive(KeepAlive::default())
}

/// One who looks on.
struct Viewer {
    app: App,
    events: Events,
    tick: Interval,
    shown: Option<(Snapshot, Instant)>,
}

impl Viewer {
    fn new(app: App) -> Self {
        let mut tick = interval(SHORTEST);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            // From before the first snapshot on, so that nothing is missed in between.
            events: app.pool.subscribe(),
            app,
            tick,
            shown: None,
        }
    }

    async fn next(mut self) -> Option<(Message, Self)> {
        loop {
            let message = tokio::select! {
                event = self.events.next() => Some(message("pool", &event?)),
                _ = self.tick.tick() => self.news(),
            };
            if let Some(message) = message {
                return Some((message, self));
            }
        }
    }

    /// A snapshot, unless it would tell what the last one has told a moment ago.
    fn news(&mut self) -> Option<Message> {
        let snapshot = Snapshot::take(&self.app);
        let now = Instant::now();
        if let Some((shown, at)) = &self.shown {
            if *shown == snapshot && now < *at + LONGEST {
                return None;
            }
        }
        let message = message("snapshot", &snapshot);
        self.shown = Some((snapshot, now));
        Some(message)
    }
}

fn message(name: &str, data: &impl Serialize) -> Message {
    match Message::default().event(name).json_data(data) {
        Ok(message) => message,
        Err(error) => Message::default().comment(error.to_string()),
    }
}
