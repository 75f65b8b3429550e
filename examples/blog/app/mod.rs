//! The blog itself, as a router: what it runs on is the caller's business.

mod api;
mod error;
mod input;
mod markup;
mod models;
mod pages;
mod routes;
mod schema;
mod served;
mod setup;
mod store;

pub(crate) use routes::router;
pub(crate) use setup::prepare;
