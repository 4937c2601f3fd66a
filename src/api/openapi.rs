//! `/openapi.json`: the description of the API, generated from the types of the handlers.

use std::sync::LazyLock;

use axum::body::Bytes;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Method};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use utoipa::OpenApi;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder};

use super::{
    connections, groups, history, presence, registered, revocations, scopes, sends, tenants, users,
};

/// The form of every error (RFC 9457).
#[derive(utoipa::ToSchema)]
#[schema(as = Problem)]
#[allow(dead_code, reason = "read by the generator alone")]
pub(super) struct ProblemSchema {
    /// `urn:lockgate:problem:CODE`
    r#type: String,
    title: String,
    status: u16,
    /// A stable word for the error.
    code: String,
    detail: String,
}

/// An event: an object with a non-empty `type`, at most 64 levels deep.
#[derive(utoipa::ToSchema)]
#[schema(as = Event, example = json!({"type": "chat.message", "message": "hi"}))]
#[allow(dead_code, reason = "read by the generator alone")]
pub(super) struct EventSchema {
    /// The type of the event.
    #[schema(min_length = 1)]
    r#type: String,
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Lockgate management API",
        description = "Acts on every replica that serves a tenant, and names those that did not answer in time."
    ),
    paths(
        sends::to_group, sends::batch, users::send, users::disconnect, users::disconnect_connection, users::invalidate,
        revocations::revoke, connections::of_tenant, connections::of_group, connections::of_user,
        groups::add_user, groups::discard_user, groups::add_connection, groups::discard_connection,
        history::list, presence::list, presence::count,
        registered::show, registered::put, registered::delete,
        tenants::list, tenants::suspend, tenants::resume, tenants::reload,
    ),
    components(schemas(ProblemSchema)),
    security(("api_key" = [])),
)]
struct Calls;

/// Returns the refusals of a call that its handler does not list itself.
fn refusals(operation: &Operation, of_tenant: bool, posts: bool) -> Vec<(u16, &'static str)> {
    let mut refusals = vec![
        (401, "No API key, or one that is not known"),
        (403, "The API key is not valid for this call"),
        (429, "The key makes more calls per second than it may"),
        (503, "A dependency does not confirm; try again"),
    ];
    if of_tenant {
        refusals.push((404, "There is no tenant of this name"));
    }
    if operation.request_body.is_some() {
        refusals.push((400, "The body does not have the form of this call"));
        refusals.push((
            413,
            "The body is larger than 1 MiB, or the event larger than what replicas read",
        ));
        refusals.push((415, "The body is not plain application/json"));
    } else if posts {
        refusals.push((400, "The call takes no body"));
        refusals.push((
            413,
            "The body, which the call does not take, is larger than 1 MiB",
        ));
    }
    refusals
}

/// Returns the document.
fn document() -> Value {
    let mut document = Calls::openapi();
    for (path, item) in &mut document.paths.paths {
        let of_tenant = path.contains("{tenant}");
        let operations = [
            (&mut item.get, Method::GET),
            (&mut item.post, Method::POST),
            (&mut item.put, Method::PUT),
            (&mut item.delete, Method::DELETE),
        ];
        for (operation, method) in operations {
            let posts = method != Method::GET;
            let Some(operation) = operation else { continue };
            if let Some(scope) = scopes::of_call(&method, path) {
                let scope = SecurityRequirement::new("api_key", [scope.word()]);
                operation.security = Some(vec![scope]);
            }
            for (status, text) in refusals(operation, of_tenant, posts) {
                let problem = Ref::from_schema_name("Problem");
                let content = ContentBuilder::new().schema(Some(problem)).build();
                let response = ResponseBuilder::new()
                    .description(text)
                    .content("application/problem+json", content)
                    .build();
                let responses = &mut operation.responses.responses;
                let status = status.to_string();
                responses.entry(status).or_insert(RefOr::T(response));
            }
        }
    }
    if let Some(components) = &mut document.components {
        let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        components.add_security_scheme("api_key", bearer);
    }
    serde_json::to_value(&document).unwrap_or_else(|_| json!({}))
}

/// The text of the document. It takes milliseconds to make, and anyone may ask for it.
static TEXT: LazyLock<Bytes> = LazyLock::new(|| document().to_string().into());

/// Serves the document. It needs no key, because it contains nothing about this deployment.
pub(super) async fn serve() -> Response {
    let json = HeaderValue::from_static("application/json");
    ([(CONTENT_TYPE, json)], TEXT.clone()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_is_described_with_its_refusals() {
        let document = document();
        assert_eq!(document["openapi"], "3.1.0");
        let paths = document["paths"].as_object().unwrap();
        assert_eq!(paths.len(), 20);
        for (path, item) in paths {
            for operation in item.as_object().unwrap().values() {
                // A call without a scope would be open to every confined key.
                let scopes = operation["security"][0]["api_key"].as_array().unwrap();
                assert_eq!(scopes.len(), 1, "{path}: {scopes:?}");
                let responses = operation["responses"].as_object().unwrap();
                for status in ["200", "401", "403", "429", "503"] {
                    assert!(responses.contains_key(status), "{path}: {status}");
                }
            }
        }
        let send = &paths["/v1/tenants/{tenant}/groups/{group}/send"]["post"];
        for status in ["400", "404", "409", "413", "415", "429"] {
            assert!(send["responses"][status].is_object(), "{status}");
        }
    }
}
