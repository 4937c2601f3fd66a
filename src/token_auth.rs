//! The query-string JWT middleware: a tower layer in front of anything that axum routes.
//!
//! It finds the token, asks [`crate::admission`], and puts the [`Identity`] into the request's extensions, or
//! answers with the problem document of the refusal. The gateway's own socket route stands behind it too.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::extract::Request;
use axum::response::Response;
use futures_util::future::BoxFuture;
use tower::{Layer, Service};

use crate::admission::{Authenticator, Identity};
use crate::auth::query_token::{TokenPresence, find_token};
use crate::error::{Check, Refusal};
use crate::problem::Problem;

/// Lets requests with a valid token of an active user through.
///
/// Handlers behind it take the user as `Extension<Identity>`.
#[derive(Clone)]
pub struct TokenAuth {
    /// `None`: whoever routed the request put the tenant's authenticator into its extensions.
    authenticator: Option<Arc<Authenticator>>,
}

impl TokenAuth {
    /// Authenticates every request for one tenant.
    pub fn new(authenticator: Arc<Authenticator>) -> Self {
        Self {
            authenticator: Some(authenticator),
        }
    }

    /// Authenticates each request for the tenant whose `Arc<Authenticator>` is among its extensions.
    pub fn for_routed_tenant() -> Self {
        Self {
            authenticator: None,
        }
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
        // The clone is the one that was not polled ready; the ready one goes into the future.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let routed = self.auth.authenticator.clone();
        Box::pin(async move {
            let Some(authenticator) = routed.or_else(|| request.extensions().get().cloned()) else {
                return Ok(Problem {
                    refusal: Refusal::TenantNotFound,
                    tenant: None,
                }
                .response());
            };
            let found = find_token(
                request.uri().query(),
                request.headers(),
                &authenticator.config,
            );
            match identify(&authenticator, found).await {
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

/// Steps 7 to 10 of a socket's life.
async fn identify(
    authenticator: &Authenticator,
    found: TokenPresence,
) -> Result<Identity, Refusal> {
    match found {
        TokenPresence::Missing => Err(Refusal::TokenMissing),
        TokenPresence::NotValid => Err(Refusal::TokenNotValid(Check::Format)),
        TokenPresence::Found { token } => authenticator.authenticate(&token).await,
    }
}
