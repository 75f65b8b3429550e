//! Promoting replicas, without being asked and by order: drives `election::promotion` with real servers.

mod automatic;
mod outlook;
mod promoter;
mod switchover;

pub(super) use outlook::Outlook;
pub(crate) use promoter::Order;
pub(super) use promoter::Promoter;
