//! A query that can travel: owned, `Send`, and able to run again on another node.

mod binds;
mod capture;
mod oids;
mod replay;

pub(crate) use binds::Bound;
pub(crate) use capture::Statement;
pub(crate) use oids::{CustomType, OidMap, Oids};
pub(crate) use replay::Rows;
