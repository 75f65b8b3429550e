//! The outages of the demonstration: what this pool promises holds in each, and plain pools show theirs.

use axum::http::StatusCode;
use serde_json::Value;

use super::Blog;

/// Any order, some twice in a row.
const ORDER: [&str; 6] = [
    "dead-primary",
    "old-primary",
    "old-primary",
    "all-behind",
    "frozen-replica",
    "dead-primary",
];

/// One moment of both sides.
struct Sides(Value);

impl Sides {
    async fn of(blog: &Blog) -> Self {
        let mut status = blog.get("/status").await.json();
        Self(status["demo"]["traffic"].take())
    }

    fn count(&self, side: &str, figure: &str) -> u64 {
        self.0[side][figure].as_u64().unwrap()
    }

    /// What this pool promises in every outage.
    fn ours_is_right(&self) {
        for figure in ["stale_reads", "replaced_writes", "lost_rows"] {
            assert_eq!(self.count("ours", figure), 0, "{figure}: {}", self.0);
        }
    }
}

impl Blog {
    async fn wait_for_sides(&self, what: &str, holds: impl Fn(&Sides) -> bool) {
        self.wait_for(what, async || {
            let sides = Sides::of(self).await;
            sides.ours_is_right();
            holds(&sides)
        })
        .await;
    }

    /// Each side has more confirmed rows than now.
    async fn writes_go_on(&self, names: &[&str]) {
        for name in names {
            let before = Sides::of(self).await.count(name, "rows");
            let more = |sides: &Sides| sides.count(name, "rows") > before;
            self.wait_for_sides(&format!("row on the side `{name}`"), more)
                .await;
        }
    }

    async fn outage(&self, name: &str) {
        self.done(&format!("/status/outages/{name}")).await;
        let outage = self.get("/status").await.json()["demo"]["outage"].clone();
        assert_eq!(
            (&outage["outage"], &outage["phase"]),
            (&name.into(), &"on".into())
        );
        let plain = |figure| move |sides: &Sides| sides.count("plain", figure) > 0;
        match name {
            "old-primary" => {
                self.wait_for_sides("row on the old primary", plain("replaced_writes"))
                    .await;
                self.wait_for_sides("lost row", plain("lost_rows")).await;
            }
            "all-behind" => {
                self.wait_for_sides("stale read", plain("stale_reads"))
                    .await;
            }
            _ => {
                let more =
                    |sides: &Sides| sides.count("plain", "errors") > sides.count("ours", "errors");
                self.wait_for_sides("error of a plain pool", more).await;
            }
        }
        self.writes_go_on(&["ours"]).await;
    }

    async fn back_to_normal(&self) {
        self.done("/status/outages/none").await;
        self.all_up().await;
        let before = Sides::of(self).await.count("plain", "replaced_writes");
        self.writes_go_on(&["ours", "plain"]).await;
        // At most those that were on their way.
        let after = Sides::of(self).await.count("plain", "replaced_writes");
        assert!(after <= before + 2, "{before}, {after}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_outage_can_be_shown_after_any_other() {
    let blog = Blog::own().await;
    for name in ORDER {
        blog.outage(name).await;
    }
    blog.back_to_normal().await;
    blog.done("/status/traffic/stop").await;
    let answer = blog.press("/status/traffic/stop").await;
    assert_eq!(answer.status, StatusCode::CONFLICT);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_was_done_by_hand_is_mended_first() {
    let blog = Blog::own().await;
    blog.done("/status/nodes/replica-1/promote").await;
    blog.done("/status/nodes/replica-2/freeze").await;
    blog.outage("all-behind").await;
    blog.back_to_normal().await;

    for name in ["primary", "replica-1", "replica-2"] {
        blog.done(&format!("/status/nodes/{name}/kill")).await;
    }
    blog.done("/status/outages/none").await;
    blog.all_up().await;
    // The old primary takes writes, and nobody can make it the primary again.
    blog.outage("old-primary").await;
    let answer = blog.press("/status/nodes/replica-1/promote").await;
    assert_eq!(answer.status, StatusCode::CONFLICT, "{}", answer.text());
    blog.done("/status/nodes/replica-1/restart").await;
    blog.all_up().await;
    blog.back_to_normal().await;
}
