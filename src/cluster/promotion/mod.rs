//! Promoting replicas, by itself and by order: drives the machines of `election::promotion` with real servers.
//!
//! 1. [`automatic`] sees that the primary is gone and stays away, or an operator asks for a promotion.
//! 2. [`promoter`] connects to every node. One node after the other agrees, by a session advisory lock
//!    (`node::PromotionLock`). Each is asked where it is *after* it has agreed, and all once more at the end.
//! 3. `election::promotion` decides by the answers: a majority of all configured servers, no replica that hears of the
//!    primary, the most log, no greater loss than is tolerated. What is not known counts against it.
//! 4. One message has `pg_promote` and what it rests on: a deadline by that server's own clock, and that the server has
//!    heard nothing of the primary. However late it arrives, it does nothing that was not decided just now.
//! 5. The locks are held until the server takes writes on its new timeline.
//!
//! Afterwards [`standbys`] has the other standbys follow the new primary, if that is wanted.
//!
//! A [`switchover`] does the same to a primary that lives. It claims the primary by another lock, closes the gate of the
//! topology so that new statements wait, fences the primary, lets the replica catch up, and promotes it. Whoever drops
//! it, fails or panics opens the gate and lifts the fence again, unless the promotion may have begun or another process
//! has claimed the primary since.

mod automatic;
mod outlook;
mod promoter;
mod standbys;
mod switchover;

pub(super) use outlook::Outlook;
pub(super) use promoter::Promoter;
pub(crate) use promoter::PromotionRequest;
pub(super) use standbys::Standbys;
