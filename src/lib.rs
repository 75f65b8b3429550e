//! A connection pool for Diesel over one PostgreSQL primary and its streaming replicas.
#![forbid(unsafe_code)]
#![deny(missing_docs)]
