//! Replicas that are beyond a fork, follow nobody, or may not say where they are.
