//! Free ports that nothing else is about to take.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

use super::error::ClusterError;

/// Below the range from which systems give client sockets their ports.
const FIRST: u16 = 15_000;
const LAST: u16 = 31_999;

/// A port that is free now. Each process starts elsewhere and goes on from there, so that two
/// seldom try the same; a server that finds its port taken is started again on another.
pub(super) fn free_port() -> Result<u16, ClusterError> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let count = LAST - FIRST + 1;
    let start = u16::try_from(std::process::id() * 61 % u32::from(count)).unwrap_or(0);
    for _ in 0..count {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let offset = (u32::from(start) + u32::from(step)) % u32::from(count);
        let port = FIRST + u16::try_from(offset).unwrap_or(0);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    Err(ClusterError::NoPort {
        from: FIRST,
        to: LAST,
    })
}
