//! The scope of each call, for the keys of `api.confined_keys`.

use axum::extract::{MatchedPath, Request};
use axum::http::Method;
use axum::response::Response;

use super::problem::ApiProblem;
use crate::config::KeyScope;
use crate::problem::document_of_scope;

/// Returns the scope of a call; `None` where there is no such call.
pub(super) fn of(request: &Request) -> Option<KeyScope> {
    let path = request.extensions().get::<MatchedPath>()?;
    of_call(request.method(), path.as_str())
}

/// Returns the scope of a method and a path as the routes have it.
pub(super) fn of_call(method: &Method, path: &str) -> Option<KeyScope> {
    let is_read = matches!(*method, Method::GET | Method::HEAD);
    let scope = match path.rsplit('/').next()? {
        "reload" => KeyScope::Reload,
        "suspend" | "resume" => KeyScope::Suspend,
        "send" => KeyScope::Send,
        "disconnect" => KeyScope::Disconnect,
        "invalidate" => KeyScope::Invalidate,
        "revocations" => KeyScope::Revoke,
        "connections" | "history" | "presence" | "count" => KeyScope::List,
        "{group}" if is_read => KeyScope::List,
        "{group}" => KeyScope::Groups,
        "tenants" | "{tenant}" if is_read => KeyScope::TenantsRead,
        "{tenant}" => KeyScope::TenantsWrite,
        _ => return None,
    };
    Some(scope)
}

/// Refuses a key without the scope of its call.
pub(super) fn refuse(scope: KeyScope) -> Response {
    let problem = ApiProblem::ScopeMissing;
    let (status, code) = (problem.status(), problem.code());
    document_of_scope(status, code, problem.detail(), scope.word())
}
