//! The layer that runs each request in the session of its client.

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

/// Runs each request in the session of its client, so that a request reads what an earlier one wrote.
///
/// - The session continues from the token that the request brings. A value that is no token, or a token of another
///   cluster, is ignored.
/// - Connections that are taken from the pool while the request is handled, or while the body of the response is
///   made, belong to the session. A handler finds the [`Session`](crate::Session) itself in the extensions of the
///   request.
/// - The response brings the token of the session if it says more than the one that came. The layer asks for the
///   token when the headers are ready, and waits no longer than a read does
///   ([`ConsistencyConfig::wait`](crate::config::ConsistencyConfig::wait)). With
///   [`Consistency::Causal`](crate::Consistency::Causal) reads count too, so most responses bring one.
/// - A response that brings a token gets `Cache-Control: private`, because a shared cache would give the token to
///   other clients. If the handler has set `Cache-Control`, that one stays, and the handler has to prevent this. The
///   cookies of the response stay.
///
/// It wraps any HTTP service whose request and response are `Send`. Errors pass through. It has to be outside of all
/// layers that use the pool. If a request uses several pools, give each pool its own layer, with its own cookie or
/// header; the extensions then hold the session of the innermost layer.
///
/// See the [module](super) for an example, and for what it cannot do.
#[derive(Clone, Debug)]
pub struct SessionLayer {
    pool: ReplicatedPool,
    carrier: Carrier,
}

impl SessionLayer {
    /// A layer for this pool. It keeps the token in [`SessionCookie::default`].
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

    /// Takes the token from this header of the request, and sends it in the same header of the response. Use it for
    /// clients that keep the token themselves.
    ///
    /// A client sends the newest token that it got. After requests that ran at the same time it sends all that they
    /// brought, in any order, up to eight: in several headers, or in one header with commas between them. They count
    /// together.
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
    /// `name` is not a valid name of a header.
    pub fn header(mut self, name: &str) -> Result<Self, InvalidCarrier> {
        let name = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| InvalidCarrier::Header(name.to_owned()))?;
        self.carrier.place = TokenPlace::Header(name);
        Ok(self)
    }

    /// Seals tokens with these keys. Tokens without a valid seal are ignored.
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

/// The service that [`SessionLayer`] makes.
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
        // The clone may not be ready. `poll_ready` was called on the original.
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
            // A token whose position was lost in a failover is replaced, even if nothing was gained.
            if is_news(&token, came.as_ref()) || session.lost_write().is_some() {
                layer.carrier.write(&token, response.headers_mut());
            }
            Ok(response.map(|body| SessionBody::new(body, session)))
        })
    }
}

/// One token for all of them.
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
            // It is not known which of them count. A pending write covers all.
            let somewhere = Some(Position::somewhere(0));
            return Some(SessionToken::new(here, somewhere, None));
        }
        // Tokens of other clusters must not hide the token of this cluster.
        let of = |cluster| tokens.iter().find(|token| token.cluster() == cluster);
        start = of(here).or_else(|| of(UNKNOWN)).unwrap_or(first);
    }
    let merge = |all: SessionToken, token| all.merge(token);
    Some(tokens.iter().fold(start.clone(), merge))
}

/// Whether the client should get `token` instead of the one that it sent.
fn is_news(token: &SessionToken, came: Option<&SessionToken>) -> bool {
    let Some(came) = came else {
        return !token.is_empty();
    };
    // While a token has no position, each request has to ask for it. Send the position once it is known. Until then
    // send the token every time: a later write would look the same.
    let is_open = |position: Option<Position>| position.is_some_and(Position::is_somewhere);
    let was_open = is_open(came.written()) || is_open(came.seen());
    token.advances(came) || was_open && !token.is_empty()
}
