//! The query-string JWT middleware: a tower layer for axum routes.
//!
//! It makes the same checks as a socket's handshake ([`Authenticator::identify`]). It puts the [`Identity`] into the
//! request's extensions, or answers with the problem document of the refusal.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::extract::Request;
use axum::response::Response;
use futures_util::future::BoxFuture;
use tower::{Layer, Service};

use crate::admission::Authenticator;
#[cfg(doc)]
use crate::admission::Identity;
use crate::problem::Problem;

/// Passes requests with a valid token of an active user on to the inner service.
///
/// Handlers behind it take the user as `Extension<Identity>`.
#[derive(Clone)]
pub struct TokenAuth {
    authenticator: Arc<Authenticator>,
}

impl TokenAuth {
    /// Creates the layer for one tenant.
    pub fn new(authenticator: Arc<Authenticator>) -> Self {
        Self { authenticator }
    }
}

impl<S> Layer<S> for TokenAuth {
    type Service = TokenAuthService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        TokenAuthService {
            auth: self.clone(),
            inner,
        }
    }
}

/// The service that [`TokenAuth`] makes.
#[derive(Clone)]
pub struct TokenAuthService<S> {
    auth: TokenAuth,
    inner: S,
}

impl<S> Service<Request> for TokenAuthService<S>
where
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        // Only `self.inner` was polled ready, so it goes into the future and its clone stays here.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let authenticator = self.auth.authenticator.clone();
        Box::pin(async move {
            let (query, headers) = (request.uri().query(), request.headers());
            match authenticator.identify(query, headers).await {
                Ok(identity) => {
                    request.extensions_mut().insert(identity);
                    inner.call(request).await
                }
                Err(refusal) => Ok(Problem {
                    refusal,
                    tenant: Some(&authenticator.tenant),
                }
                .response()),
            }
        })
    }
}
