//! The blog itself, as a router: what it runs on is the caller's business.

mod api;
mod demo;
mod error;
mod input;
mod live;
mod markup;
mod metrics;
mod models;
mod pages;
mod routes;
mod schema;
mod served;
mod setup;
mod store;
mod switch;

pub(crate) use demo::pool_on;
pub(crate) use metrics::record;
pub(crate) use routes::{App, router};
pub(crate) use setup::prepare;
pub(crate) use switch::Key;
