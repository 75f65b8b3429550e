//! Fences, quorums and late promotions.
