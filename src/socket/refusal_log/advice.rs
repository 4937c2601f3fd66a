//! Advice about each refusal, for a person. The texts go to the log and to `lockgate explain`, never to a client.

use axum::http::header::ORIGIN;
use axum::http::request::Parts;

use super::shown::shown;
use crate::auth::{TokenPresence, find_token, listed_issuer};
use crate::config::{TenantConfig, TokenSource};
use crate::error::{Check, Refusal};
use crate::ids::TenantId;
use crate::routes::Routes;

/// The most routes that an advice lists.
const MOST_PATHS: usize = 5;

/// The tenant that refused.
#[derive(Clone, Copy)]
pub(crate) struct Refuser<'a> {
    pub(crate) id: &'a TenantId,
    pub(crate) config: &'a TenantConfig,
    pub(crate) routes: &'a Routes,
}

/// Returns what to do about a refusal by `tenant` of the request `head`, as far as the two are known.
pub(crate) fn advice(
    refusal: Refusal,
    tenant: Option<Refuser<'_>>,
    head: Option<&Parts>,
) -> String {
    let Some(tenant) = tenant else {
        return before_the_tenant(refusal).to_owned();
    };
    let id = tenant.id;
    match refusal {
        Refusal::TenantSuspended => {
            format!("an operator has suspended the tenant; POST /v1/tenants/{id}/resume ends that")
        }
        Refusal::RouteNotFound => unknown_path(tenant, head),
        Refusal::OriginNotAllowed => origin(tenant, head),
        Refusal::TokenMissing => missing_token(tenant),
        Refusal::TokenNotValid(_) | Refusal::TokenExpired => token(tenant, refusal.check(), head),
        Refusal::TokenRevoked => "the token was revoked: its user logs in again".to_owned(),
        Refusal::UserNotFound => format!(
            "the database of tenants.{id}.users has no such user; token.user_id_claim and token.user_id_field say how one is found"
        ),
        Refusal::UserInactive => {
            "the user's is_active is false, or token.check_user_is_active should be".to_owned()
        }
        Refusal::PasswordChanged => {
            "the user has changed the password since the token was made: a new login makes a new token"
                .to_owned()
        }
        Refusal::RateLimited => format!(
            "raise tenants.{id}.limits.connects_per_second{}, or let clients reconnect with backoff",
            for_strangers(tenant, ", for sockets without a token anonymous_connects_per_second"),
        ),
        Refusal::TooManyConnections => format!(
            "raise tenants.{id}.limits.connections{}; `lockgate connections --tenant {id}` lists the sockets",
            for_strangers(tenant, ", or anonymous_connections for sockets without a token"),
        ),
        Refusal::TooManyUserConnections => format!(
            "raise tenants.{id}.limits.connections_per_user, or set its on_excess = \"replace\""
        ),
        Refusal::GroupNameNotValid => {
            "names have 1 to 99 of ASCII letters, digits, \"-\", \"_\" and \".\": use a slug, an int or a uuid in the path, or layer.group_names = \"any\" on a pubsub layer"
                .to_owned()
        }
        Refusal::GroupForbidden => format!(
            "the authorize of the route returned no row for this user, or tenants.{id}.limits.groups_per_socket is less than the route has groups"
        ),
        Refusal::Refused => "the application refused it: look at its own log".to_owned(),
        Refusal::Unavailable => {
            "`lockgate doctor` checks every dependency, and /readyz names it to an operator's key"
                .to_owned()
        }
        other => before_the_tenant(other).to_owned(),
    }
}

/// Returns `words` about sockets without a token if the tenant lets them in.
fn for_strangers(tenant: Refuser<'_>, words: &'static str) -> &'static str {
    match tenant.config.routes.iter().any(|route| route.anonymous) {
        true => words,
        false => "",
    }
}

/// Returns the advice of the checks that need no tenant.
fn before_the_tenant(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::RequestNotValid => {
            "a proxy must pass Host, Connection, Upgrade and the Sec-WebSocket headers over HTTP/1.1, and no body"
        }
        Refusal::HandshakeTimeout => {
            "the client sent no whole request within server.handshake_timeout"
        }
        Refusal::RequestLineTooLarge | Refusal::HeadTooLarge => {
            "the client sends a long URL, long cookies or many headers"
        }
        Refusal::Draining => "this replica stops; the client comes back to another one",
        Refusal::Overloaded => {
            "raise server.max_connections and the descriptor limit, or add replicas"
        }
        Refusal::RateLimited | Refusal::TooManyConnections => {
            "server.per_address bounds each client address; behind a proxy, server.client_address tells the clients apart"
        }
        Refusal::TenantNotFound => {
            "no tenant has this host: add it to the hosts of [tenants.NAME], or let the proxy pass the client's Host header"
        }
        Refusal::MethodNotAllowed => "only GET opens a WebSocket",
        Refusal::UpgradeRequired => {
            "the request asks for no WebSocket: a proxy must pass Upgrade and Connection; probes belong on admin.listen"
        }
        _ => "",
    }
}

/// Returns the advice for a path that no route has: the slash that is missing or too much, or the routes there are.
fn unknown_path(tenant: Refuser<'_>, head: Option<&Parts>) -> String {
    let routes = tenant.routes;
    let path = head.map_or("", |head| head.uri.path());
    if routes.find(&format!("{path}/")).is_some() {
        return "the route ends with a slash, and the path does not".to_owned();
    }
    let without = path.strip_suffix('/');
    if without.is_some_and(|path| routes.find(path).is_some()) {
        return "the path ends with a slash, and the route does not".to_owned();
    }
    let configured = &tenant.config.routes;
    let known = configured.iter().take(MOST_PATHS);
    let known: Vec<_> = known.map(|route| format!("{:?}", route.path)).collect();
    let more = if configured.len() > MOST_PATHS {
        ", …"
    } else {
        ""
    };
    match known.is_empty() {
        true => format!("tenant {} has no routes", tenant.id),
        false => format!("the routes are {}{more}", known.join(", ")),
    }
}

fn origin(tenant: Refuser<'_>, head: Option<&Parts>) -> String {
    let id = tenant.id;
    let sent = head.and_then(|head| head.headers.get(ORIGIN));
    match sent {
        None if tenant.config.require_origin => {
            format!("the client sends no Origin, and tenants.{id}.require_origin is true")
        }
        None => {
            "the token comes in a cookie, which counts beside an Origin alone; a client that is no browser sends its token in the query or a header"
                .to_owned()
        }
        Some(origin) => {
            let origin = shown(&String::from_utf8_lossy(origin.as_bytes()));
            let now = match tenant.config.origins.is_empty() {
                true => "; without origins only the page's own host may connect",
                false => "",
            };
            format!("if that page may connect, add {origin:?} to tenants.{id}.origins{now}")
        }
    }
}

fn missing_token(tenant: Refuser<'_>) -> String {
    let token = &tenant.config.token;
    let places: Vec<_> = token
        .sources
        .iter()
        .map(|source| match source {
            TokenSource::Query => format!("?{}=…", token.query_parameter),
            TokenSource::Header => "Authorization: Bearer …".to_owned(),
            TokenSource::Subprotocol => "the subprotocols bearer and the token".to_owned(),
            TokenSource::Cookie => format!("the cookie {}", token.cookie),
        })
        .collect();
    format!("the client sends its token as {}", places.join(", or as "))
}

/// Returns the advice for a token that no key of its issuer has signed.
fn signature(tenant: Refuser<'_>, head: Option<&Parts>) -> String {
    let id = tenant.id;
    let config = &tenant.config.token;
    let sent = head.map(|head| find_token(head.uri.query(), &head.headers, config));
    let listed = match &sent {
        Some(TokenPresence::Found { token, .. }) => listed_issuer(token, config),
        _ => None,
    };
    match listed {
        Some(index) => format!(
            "the token's iss is the one of tenants.{id}.token.issuers[{index}]: for this iss the keys of that entry are the only ones that count, and the token was signed with another key or algorithm"
        ),
        None => format!(
            "the token was signed with another key or algorithm than those of tenants.{id}.token (Django: SIMPLE_JWT's SIGNING_KEY, or SECRET_KEY)"
        ),
    }
}

/// Returns the advice for a token that fails a check.
fn token(tenant: Refuser<'_>, check: Option<Check>, head: Option<&Parts>) -> String {
    let id = tenant.id;
    match check {
        Some(Check::Exp) => {
            "the client fetches a new token before it connects again; a token without exp is refused too"
                .to_owned()
        }
        Some(Check::Signature | Check::Key | Check::Algorithm) => signature(tenant, head),
        Some(Check::TokenType) => {
            "the client sends another kind of token than token.token_types, such as the refresh token"
                .to_owned()
        }
        Some(Check::Claims) => format!(
            "a rule of tenants.{id}.token.claims does not hold: `lockgate token explain --tenant {id} -` names it"
        ),
        Some(Check::Iat | Check::Nbf) => {
            "the token is for later: compare the clocks of the two machines".to_owned()
        }
        _ => format!("`lockgate token explain --tenant {id} -` names the value that fails"),
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;
    use crate::config::IssuerConfig;

    /// Before, a token of a listed issuer was said to need the tenant's own keys, which it was signed with.
    #[test]
    fn a_token_of_a_listed_issuer_is_told_whose_keys_count() {
        let mut config = TenantConfig::default();
        config.token.issuers = ["https://one.example", "https://two.example"]
            .map(|issuer| IssuerConfig {
                issuer: issuer.to_owned(),
                ..IssuerConfig::default()
            })
            .to_vec();
        let id = "acme".parse().unwrap();
        let tenant = Refuser {
            id: &id,
            config: &config,
            routes: &Routes::parse(&[]).unwrap(),
        };
        let told = |claims: &str| {
            let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
            let token = [part(r#"{"alg":"HS256"}"#), part(claims), part("x")].join(".");
            let request = axum::http::Request::get(format!("/ws/?token={token}"));
            let (head, ()) = request.body(()).unwrap().into_parts();
            let refusal = Refusal::TokenNotValid(Check::Signature);
            advice(refusal, Some(tenant), Some(&head))
        };
        let listed = told(r#"{"iss":"https://two.example"}"#);
        assert!(listed.contains("tenants.acme.token.issuers[1]"), "{listed}");
        assert!(listed.contains("the only ones that count"), "{listed}");
        for claims in [r#"{"iss":"https://three.example"}"#, "{}"] {
            let own = told(claims);
            assert!(own.contains("those of tenants.acme.token "), "{own}");
        }
    }
}
