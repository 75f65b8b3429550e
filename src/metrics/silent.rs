//! Without the feature `metrics` nothing is measured.

use std::time::Duration;

use super::{DirectionState, NodeState, PoolState, Route};
use crate::error::Outcome;

#[derive(Debug)]
pub(crate) struct NodeMeter;

#[derive(Debug)]
pub(crate) struct Pending;

#[expect(clippy::unused_self, reason = "as the other one")]
impl NodeMeter {
    pub(crate) fn new(_: &str, _: &str, _: u16) -> Self {
        Self
    }

    pub(crate) fn succeeded(&self, _: Route, _: Duration) {}

    pub(crate) fn waits(&self) -> Option<Pending> {
        None
    }

    pub(crate) fn waited_for_connection(&self, _: Duration) {}

    pub(crate) fn waited_in_vain(&self) {}

    pub(crate) fn created_connection(&self, _: Duration) {}

    pub(crate) fn used_connection(&self, _: Duration) {}

    pub(crate) fn waited_for_position(&self, _: Route, _: Duration) {}

    pub(crate) fn is(&self, _: NodeState) {}

    pub(crate) fn is_gone(&self) {}
}

pub(crate) const fn is_recording() -> bool {
    false
}

pub(crate) fn failed(_: Option<&NodeMeter>, _: Option<&str>, _: Outcome, _: Duration) {}

pub(crate) fn pool(_: &str, _: PoolState) {}

pub(crate) fn event(_: &'static str) {}

pub(crate) fn far(_: Option<&str>) {}

pub(crate) fn writes_go_on(_: Duration, _: bool) {}

pub(crate) fn direction(_: &str, _: &str, _: Option<DirectionState<'_>>) {}

pub(crate) fn home_moved(_: &str, _: &str, _: Duration) {}

#[cfg(feature = "tower")]
pub(crate) fn token_refused() {}
