//! Connections whose own memory is stale heal.
