//! A query that can travel: owned, `Send`, and able to run again on another node.

mod binds;
mod capture;
mod oids;

pub(crate) use binds::Bound;
pub(crate) use capture::{Rows, Statement};
pub(crate) use oids::{CustomType, OidMap, Oids};
