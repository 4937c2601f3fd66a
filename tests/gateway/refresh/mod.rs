//! An open socket gets a new token in the place of its own.

use serde_json::{Value, json};

use crate::support::database::ALICE;
use crate::support::gateway::Builder;
use crate::support::socket::Socket;
use crate::support::{Gateway, Tenant, gateway, token};

mod frames;
mod meanwhile;
mod outages;
mod revoked;
mod tokens;

const CHAT: &str = "/ws/chat/lobby/";
const ECHO: &str = "/ws/echo/";

const ECHO_ROUTE: &str = "path = 'ws/echo/'\nconsumer = { kind = 'echo' }";
const CHAT_ROUTE: &str = "path = 'ws/chat/<slug:room>/'\ngroups = ['chat_{room}']";

/// A tenant that refreshes tokens, with the usual route and one that echoes.
fn refreshing() -> Builder {
    gateway()
        .tenant("acme")
        .with("token.refresh", true)
        .route(CHAT_ROUTE)
        .route(ECHO_ROUTE)
}

/// The request of a client.
fn request(token: &str) -> String {
    json!({"type": "lockgate.refresh", "token": token}).to_string()
}

/// Sends a token and returns the answer, which must be the next message.
async fn refresh(socket: &mut Socket, token: &str) -> Value {
    socket.send_text(&request(token)).await;
    socket.next_json().await
}

/// Refreshes, and must succeed.
async fn refreshed(socket: &mut Socket, tenant: &Tenant, claims: &Value) {
    let answer = refresh(socket, &tenant.sign(claims)).await;
    let expected = json!({"type": "lockgate.refreshed", "expires_at": claims["exp"]});
    assert_eq!(answer, expected);
}

/// Claims of alice with this `jti` and `iat`.
fn claims(jti: &str, issued_at: i64) -> Value {
    let mut claims = token::access(ALICE);
    claims["jti"] = jti.into();
    claims["iat"] = issued_at.into();
    claims
}

/// Opens a socket on the first replica by these claims.
async fn open(gateway: &Gateway, path: &str, claims: &Value) -> Socket {
    let tenant = gateway.tenant();
    let dial = gateway.replica().dial(tenant, path);
    dial.token(&tenant.sign(claims)).open().await
}

/// An error of a refresh, with what stands beside its code.
fn error(code: &str, more: Value) -> Value {
    let mut error = json!({"type": "lockgate.error", "code": code, "of": "lockgate.refresh"});
    let more = more.as_object().cloned().unwrap_or_default();
    error.as_object_mut().expect("made above").extend(more);
    error
}

/// Counts of the outcomes of refreshes.
async fn counted(gateway: &Gateway, result: &str) -> f64 {
    let labels = [
        ("tenant", gateway.tenant().name.as_str()),
        ("result", result),
    ];
    let metrics = gateway.replica().metrics().await;
    metrics.value("lockgate_token_refreshes_total", &labels)
}

/// The answer to a revocation of the first tenant.
async fn revoke(gateway: &Gateway, body: Value) -> Value {
    let path = format!("/v1/tenants/{}/revocations", gateway.tenant().name);
    let replica = gateway.replica();
    let answer = replica
        .api(&gateway.api_key, "POST", &path, &body.to_string())
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}
