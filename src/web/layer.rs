//! The layer that runs each request within its client's session.

use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::future::BoxFuture;
use http::{HeaderName, Request, Response};
use tower_layer::Layer;
use tower_service::Service;

use super::body::SessionBody;
use super::carrier::{Carrier, TokenPlace};
use super::cookie::SessionCookie;
use super::error::InvalidCarrier;
use crate::pool::ReplicatedPool;
use crate::position::Position;
#[cfg(feature = "signed")]
use crate::token::TokenKeys;
use crate::token::{SessionToken, UNKNOWN};

/// Runs each request within its client's session, so that what one request writes, the next reads.
///
/// - The session goes on from the token that the request brings. Whatever is no token, or not one of
///   this cluster, is as if it had not come.
/// - Connections that are taken from the pool while the request is handled, or while the body of the
///   answer is made, belong to the session. A handler that needs it itself finds the
///   [`Session`](crate::Session) in the request's extensions.
/// - The answer brings the session's token where that says more than the one that came, and
///   nothing otherwise. It is asked for when the headers are ready, and waited for no longer than
///   reads wait ([`ConsistencyConfig::wait`](crate::config::ConsistencyConfig::wait)). With
///   [`Consistency::Causal`](crate::Consistency::Causal) reads count, so that most answers bring one.
/// - An answer that brings a token gets `Cache-Control: private`, because a cache that serves many
///   would give it to others: their sessions would then go on from a place that is not theirs. If
///   the handler has set a `Cache-Control`, that one stays, and this is the handler's to
///   prevent. The answer's own cookies stay, too.
///
/// It fits any service over HTTP whose request and response can be sent between threads; errors
/// pass through. In a stack of layers its place is of no importance as long as it is outside of all
/// that uses the pool. Where a request meets several pools, give each its layer, with a cookie or a
/// header of its own; the extensions then have the session of the innermost.
///
/// See the [module](super) for an example, and for what it cannot do.
#[derive(Clone, Debug)]
pub struct SessionLayer {
    pool: ReplicatedPool,
    carrier: Carrier,
}

impl SessionLayer {
    /// A layer for this pool, which keeps the token in [`SessionCookie::default`].
    #[must_use]
    pub fn new(pool: &ReplicatedPool) -> Self {
        Self {
            pool: pool.clone(),
            carrier: Carrier::default(),
        }
    }

    /// Keeps the token in this cookie.
    #[must_use]
    pub fn cookie(mut self, cookie: SessionCookie) -> Self {
        self.carrier.place = TokenPlace::Cookie(cookie);
        self
    }

    /// Takes the token from this header of the request, and sends it in the same one of the answer:
    /// for clients that keep it themselves.
    ///
    /// A client sends the last one that it got, or, after requests that ran at the same time, all
    /// that they brought, in any order, up to eight: several headers, or one with commas between the
    /// tokens. What they promise together counts.
    ///
    /// ```
    /// # use diesel_replicated::web::{InvalidCarrier, SessionLayer};
    /// # fn example(pool: &diesel_replicated::ReplicatedPool) -> Result<(), InvalidCarrier> {
    /// let layer = SessionLayer::new(pool).header("x-session-token")?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// No header can have this name.
    pub fn header(mut self, name: &str) -> Result<Self, InvalidCarrier> {
        let name = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| InvalidCarrier::Header(name.to_owned()))?;
        self.carrier.place = TokenPlace::Header(name);
        Ok(self)
    }

    /// Seals tokens with these keys, and refuses those that were not.
    #[cfg(feature = "signed")]
    #[must_use]
    pub fn keys(mut self, keys: TokenKeys) -> Self {
        self.carrier.keys = Some(keys);
        self
    }
}

impl<S> Layer<S> for SessionLayer {
    type Service = SessionService<S>;

    fn layer(&self, inner: S) -> SessionService<S> {
        SessionService {
            inner,
            layer: Arc::new(self.clone()),
        }
    }
}

/// What [`SessionLayer`] makes of a service.
#[derive(Clone, Debug)]
pub struct SessionService<S> {
    inner: S,
    layer: Arc<SessionLayer>,
}

impl<S, Q, A> Service<Request<Q>> for SessionService<S>
where
    S: Service<Request<Q>, Response = Response<A>> + Clone + Send + 'static,
    S::Future: Send,
    Q: Send + 'static,
    A: Send,
{
    type Response = Response<SessionBody<A>>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Q>) -> Self::Future {
        // The clone may not be ready; the one that was asked is.
        let next = self.inner.clone();
        let mut inner = mem::replace(&mut self.inner, next);
        let layer = Arc::clone(&self.layer);
        Box::pin(async move {
            let tokens = layer.carrier.read(request.headers());
            let came = merged(&layer.pool, &tokens).await;
            let session = match &came {
                Some(token) => layer.pool.resume(token),
                None => layer.pool.session(),
            };
            request.extensions_mut().insert(session.clone());
            let handled = async move { inner.call(request).await };
            let mut response = session.scope(handled).await?;
            let token = session.token().await;
            // One with a place that a failover has lost is replaced, though nothing was gained.
            if is_news(&token, came.as_ref()) || session.lost_write().is_some() {
                layer.carrier.write(&token, response.headers_mut());
            }
            Ok(response.map(|body| SessionBody::new(body, session)))
        })
    }
}

/// What the tokens promise together.
async fn merged(pool: &ReplicatedPool, tokens: &[SessionToken]) -> Option<SessionToken> {
    let [first, others @ ..] = tokens else {
        return None;
    };
    let mut start = first;
    if others
        .iter()
        .any(|token| token.cluster() != first.cluster())
    {
        let here = pool.session().token().await.cluster();
        if here == UNKNOWN {
            // Which of them count cannot be told. A write whose place is to be found covers all.
            let somewhere = Some(Position::somewhere(0));
            return Some(SessionToken::new(here, somewhere, None));
        }
        // Those of other clusters must not hide the one of this cluster.
        let of = |cluster| tokens.iter().find(|token| token.cluster() == cluster);
        start = of(here).or_else(|| of(UNKNOWN)).unwrap_or(first);
    }
    let merge = |all: SessionToken, token| all.merge(token);
    Some(tokens.iter().fold(start.clone(), merge))
}

/// Whether the client should have `token` in the place of the one that came.
fn is_news(token: &SessionToken, came: Option<&SessionToken>) -> bool {
    let Some(came) = came else {
        return !token.is_empty();
    };
    // Every request would have to learn anew where it is. So the place replaces it once
    // it is known; until then it is sent again, because a write since then looks the same.
    let is_open = |position: Option<Position>| position.is_some_and(Position::is_somewhere);
    let was_open = is_open(came.written()) || is_open(came.seen());
    token.advances(came) || was_open && !token.is_empty()
}
