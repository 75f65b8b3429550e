//! Async closures whose futures can be sent between threads.

use std::future::Future;

/// An async closure, with a name for its future: so that one can ask that it be `Send`.
///
/// The future of an `AsyncFnOnce` cannot be named on stable Rust. Every async closure is one of these, so
/// this is nothing to implement.
pub trait AsyncFunc<T, R>:
    AsyncFnOnce(T) -> R + FnOnce(T) -> <Self as AsyncFunc<T, R>>::Fut
{
    /// The closure's future.
    type Fut: Future<Output = R>;
}

impl<F, T, Fut, R> AsyncFunc<T, R> for F
where
    F: AsyncFnOnce(T) -> R + FnOnce(T) -> Fut,
    Fut: Future<Output = R>,
{
    type Fut = Fut;
}
