//! Promoting replicas, without being asked and by order: drives `election::promotion` with real servers.

mod automatic;
mod outlook;
mod promoter;
mod switchover;

pub(super) use outlook::Outlook;
pub(super) use promoter::Promoter;
pub(crate) use promoter::PromotionRequest;
