//! Walks through the steps of a handshake in the server's order. The first refusal ends it.

use anyhow::Context;
use axum::http::header::ORIGIN;
use axum::http::request::Parts;
use serde_json::{Value, json};

use super::super::counted;
use super::report::{HandshakeReport, Stopped};
use crate::admission::Identity;
use crate::auth::query_token::{TokenPresence, find_token};
use crate::auth::{RawToken, Verdict};
use crate::channel_names::{allowed_group_name, fault_of_group_name};
use crate::clock::UnixTime;
use crate::config::{Accept, RouteConfig, TenantConfig};
use crate::error::{Check, Refusal};
use crate::hosts::HostTable;
use crate::ids::TenantId;
use crate::origin::OriginPolicy;
use crate::registry::AllTenants;
use crate::routes::PathParams;
use crate::socket::refusal_log::advice::{Refuser, advice};
use crate::socket::upgrade::request_host;
use crate::stores::key_store::KeyStore;
use crate::templates::{Template, TemplateValues};
use crate::tenant::build::{HandshakeParts, handshake_parts};
use crate::tenant::stored_suspension;

/// A handshake to explain.
pub(super) struct AskedHandshake {
    /// The head of the request, with host and origin.
    pub(super) head: Parts,
    /// The token, if it is not in the query.
    pub(super) token: Option<String>,
}

/// Explains a handshake.
///
/// # Errors
/// If the parts of its tenant cannot be made.
pub(super) async fn walk(
    all: &AllTenants,
    asked: &AskedHandshake,
) -> anyhow::Result<HandshakeReport> {
    let config = &all.config;
    let mut report = HandshakeReport::default();
    let Some(id) = tenant_of(all, &asked.head, &mut report) else {
        return Ok(report.finish(Err(Stopped)));
    };
    let tenant = config.tenants.get(id).context("the tenant is there")?;
    let walk = TenantWalk {
        id,
        config: tenant,
        namespace: config.effective(tenant).namespace(),
        parts: handshake_parts(config, id)?,
        asked,
    };
    let walked = walk.steps(&mut report).await;
    Ok(report.finish(walked))
}

/// Finds the tenant by host.
fn tenant_of<'c>(
    all: &'c AllTenants,
    head: &Parts,
    report: &mut HandshakeReport,
) -> Option<&'c TenantId> {
    let config = &all.config;
    let mut degraded = None;
    let found = request_host(head).and_then(|host| {
        report.pass("host", host.as_str(), "");
        let mut table = HostTable::new(&config.tenants).map_err(|_| Refusal::TenantNotFound)?;
        for tenant in &all.degraded {
            table.reserve(&tenant.id, &tenant.hosts);
        }
        let id = table.find(host.as_str()).ok_or(Refusal::TenantNotFound)?;
        let known = config.tenants.get_key_value(id);
        degraded = all.degraded.iter().find(|tenant| tenant.id == *id);
        known.map(|(id, _)| id).ok_or(Refusal::Unavailable)
    });
    match found {
        Ok(id) => {
            report.pass("tenant", id.as_str(), "");
            Some(id)
        }
        Err(refusal) => {
            let name = match refusal {
                Refusal::TenantNotFound | Refusal::Unavailable => "tenant",
                _ => "host",
            };
            let advice = match degraded {
                Some(tenant) => {
                    let (id, why) = (&tenant.id, &tenant.why);
                    let detail = format!("{id} cannot be served as it is stored: {why}");
                    report.step("tenant", Verdict::Unknown, id.as_str(), detail);
                    "a replica that has served it goes on with its last good configuration; put a right one".to_owned()
                }
                None => {
                    report.step(name, Verdict::Fail, Value::Null, refusal.detail());
                    advice(refusal, None, Some(head))
                }
            };
            report.refuse(refusal, None, advice);
            None
        }
    }
}

/// The steps of a handshake whose tenant is known.
struct TenantWalk<'a> {
    id: &'a TenantId,
    config: &'a TenantConfig,
    /// The beginning of its groups' names on the wire.
    namespace: &'a str,
    parts: HandshakeParts,
    asked: &'a AskedHandshake,
}

impl TenantWalk<'_> {
    async fn steps(&self, report: &mut HandshakeReport) -> Result<(), Stopped> {
        self.suspension(report).await?;
        let (route, params) = self.route(report)?;
        self.origin(report)?;
        let route_config = &self.config.routes[route];
        let identity = self.identity(report, route_config.anonymous).await?;
        self.budgets(report, identity.is_some());
        self.groups(report, route_config, &params, identity.as_ref())?;
        self.authorize(report, route, &params, identity.as_ref())
            .await?;
        consumer(report, route_config);
        Ok(())
    }

    /// Adds a failed step, and ends the handshake.
    fn refuse(
        &self,
        report: &mut HandshakeReport,
        name: &'static str,
        refusal: Refusal,
        detail: impl Into<String>,
    ) -> Stopped {
        let verdict = match refusal {
            Refusal::Unavailable => Verdict::Unknown,
            _ => Verdict::Fail,
        };
        report.step(name, verdict, Value::Null, detail);
        self.end(report, refusal)
    }

    fn end(&self, report: &mut HandshakeReport, refusal: Refusal) -> Stopped {
        let refuser = Refuser {
            id: self.id,
            config: self.config,
            routes: &self.parts.routes,
        };
        let advice = advice(refusal, Some(refuser), Some(&self.asked.head));
        report.refuse(refusal, Some(self.config.refusal), advice)
    }

    /// Reads whether an operator has suspended the tenant. Without a Redis the running replica alone knows it.
    async fn suspension(&self, report: &mut HandshakeReport) -> Result<(), Stopped> {
        let Some(redis) = &self.parts.authenticator.redis else {
            return Ok(());
        };
        let stored = stored_suspension(self.id, &KeyStore::Redis(redis.clone())).await;
        match stored {
            Ok(Some(true)) => {
                let refusal = Refusal::TenantSuspended;
                Err(self.refuse(report, "suspension", refusal, refusal.detail()))
            }
            _ => Ok(()),
        }
    }

    fn route(&self, report: &mut HandshakeReport) -> Result<(usize, PathParams), Stopped> {
        let Some((route, params)) = self.parts.routes.find(self.asked.head.uri.path()) else {
            let refusal = Refusal::RouteNotFound;
            return Err(self.refuse(report, "route", refusal, refusal.detail()));
        };
        let values = params.iter();
        let values: Vec<_> = values
            .map(|(name, value)| format!("{name}={}", value.as_str()))
            .collect();
        let path = self.config.routes[route].path.as_str();
        report.pass("route", path, values.join(" "));
        Ok((route, params))
    }

    fn origin(&self, report: &mut HandshakeReport) -> Result<(), Stopped> {
        let head = &self.asked.head;
        let policy = OriginPolicy::new(&self.config.origins, self.config.require_origin);
        // `config check` has made the same policy, and the host is the one that found the tenant.
        let (Ok(policy), Ok(host)) = (policy, request_host(head)) else {
            return Ok(());
        };
        let sent = head.headers.get(ORIGIN).and_then(|sent| sent.to_str().ok());
        match policy.check(&head.headers, &host) {
            Ok(()) => {
                let detail = match sent {
                    Some(_) => "",
                    None => "none, as from a client that is no browser; --origin checks a page",
                };
                report.pass("origin", sent, detail);
                Ok(())
            }
            Err(refusal) => Err(self.refuse(report, "origin", refusal, refusal.detail())),
        }
    }

    /// Finds and checks the token, and finds its user; `None` without a token, if the route is `anonymous`.
    async fn identity(
        &self,
        report: &mut HandshakeReport,
        anonymous: bool,
    ) -> Result<Option<Identity>, Stopped> {
        let head = &self.asked.head;
        let found = match &self.asked.token {
            Some(token) => TokenPresence::Found {
                token: RawToken::new(token.clone()),
                by_cookie: false,
            },
            None => find_token(head.uri.query(), &head.headers, &self.config.token),
        };
        let token = match found {
            found if found.lacks_origin(&head.headers) => {
                let detail =
                    "a token in a cookie counts beside an Origin alone; --origin gives one";
                return Err(self.refuse(report, "token", Refusal::OriginNotAllowed, detail));
            }
            TokenPresence::Found { token, .. } => token,
            TokenPresence::Missing if anonymous => {
                let detail = "none: the route is anonymous, and the socket has no user";
                report.pass("token", Value::Null, detail);
                return Ok(None);
            }
            TokenPresence::Missing => {
                let refusal = Refusal::TokenMissing;
                return Err(self.refuse(report, "token", refusal, refusal.detail()));
            }
            TokenPresence::NotValid => {
                let refusal = Refusal::TokenNotValid(Check::Format);
                let detail = "two different tokens, or one that cannot be read";
                return Err(self.refuse(report, "token", refusal, detail));
            }
        };
        report.pass("token", Value::Null, "there is one");
        let authenticator = &self.parts.authenticator;
        let explained = authenticator.explain(&token, UnixTime::now(), false).await;
        explained
            .checks
            .iter()
            .for_each(|check| report.check(check));
        match authenticator.authenticate(&token).await {
            Ok(identity) => Ok(Some(identity)),
            Err(refusal) => Err(self.end(report, refusal)),
        }
    }

    /// Names the budgets, which the running replicas count.
    fn budgets(&self, report: &mut HandshakeReport, has_user: bool) {
        let limits = &self.config.limits;
        let strangers = limits.of_strangers();
        let of_kind: &[_] = match has_user {
            true => &[("connections_per_user", limits.connections_per_user)],
            false => &[
                ("anonymous_connections", strangers.connections),
                (
                    "anonymous_connects_per_second",
                    strangers.connects_per_second,
                ),
            ],
        };
        let of_all = [
            ("connections", limits.connections),
            ("connects_per_second", limits.connects_per_second),
        ];
        let budgets = of_all.iter().chain(of_kind);
        let set: Vec<_> = budgets.filter(|(_, most)| *most != 0).collect();
        if set.is_empty() {
            return report.pass("budgets", Value::Null, "the tenant has no limit for it");
        }
        let value: serde_json::Map<_, _> = set
            .iter()
            .map(|(name, most)| ((*name).to_owned(), json!(most)))
            .collect();
        let detail = "counted by the running replicas, each its own";
        report.step("budgets", Verdict::Unknown, value, detail);
    }

    /// Names the groups, as the server does.
    fn groups(
        &self,
        report: &mut HandshakeReport,
        route: &RouteConfig,
        params: &PathParams,
        identity: Option<&Identity>,
    ) -> Result<(), Stopped> {
        let limits = &self.config.limits;
        if !limits.allow_groups(route.groups.len()) {
            let (groups, most) = (
                counted(route.groups.len(), "group"),
                limits.groups_per_socket,
            );
            let detail = format!("{groups}, at most {most}");
            return Err(self.refuse(report, "groups", Refusal::GroupForbidden, detail));
        }
        let user = identity.map(|identity| identity.user.fields.text());
        let values = TemplateValues {
            tenant: self.id,
            params,
            user: user.as_deref().unwrap_or_default(),
            claims: identity.map_or("", |identity| &identity.token.claims),
        };
        let mut names = Vec::new();
        for text in &route.groups {
            let filled = Template::parse(text).and_then(|template| template.render(&values));
            let filled = filled.map_err(|error| error.to_string());
            let named = filled.and_then(|name| match self.allows(&name) {
                true => Ok(name),
                false => Err(fault_of_group_name(&name, self.namespace)),
            });
            match named {
                Ok(name) => names.push(name),
                Err(why) => {
                    let detail = format!("the template {text:?} makes no name: {why}");
                    return Err(self.refuse(report, "groups", Refusal::GroupNameNotValid, detail));
                }
            }
        }
        let detail = match names.is_empty() || self.namespace.is_empty() {
            true => String::new(),
            false => {
                let sent = names.iter().map(|name| format!("{}{name}", self.namespace));
                format!("Django sends to {}", sent.collect::<Vec<_>>().join(", "))
            }
        };
        report.pass("groups", names.clone(), detail);
        names.into_iter().for_each(|name| report.join(name));
        Ok(())
    }

    fn allows(&self, name: &str) -> bool {
        allowed_group_name(name, self.config.layer.group_names, self.namespace)
    }

    async fn authorize(
        &self,
        report: &mut HandshakeReport,
        route: usize,
        params: &PathParams,
        identity: Option<&Identity>,
    ) -> Result<(), Stopped> {
        let Some(statement) = &self.config.routes[route].authorize else {
            report.pass("authorize", Value::Null, "the route has none");
            return Ok(());
        };
        let permissions = &self.parts.permissions;
        let user = identity.map(|identity| &identity.user.id);
        let asked = permissions.may_join(route, user, params).await;
        match asked {
            Ok(true) => {
                report.pass("authorize", statement.as_str(), "a row");
                Ok(())
            }
            Ok(false) => {
                let detail = format!("no row: {statement}");
                Err(self.refuse(report, "authorize", Refusal::GroupForbidden, detail))
            }
            Err(error) => {
                let detail = error.to_string();
                Err(self.refuse(report, "authorize", Refusal::Unavailable, detail))
            }
        }
    }
}

/// Names the consumer. A worker that decides is not asked.
fn consumer(report: &mut HandshakeReport, route: &RouteConfig) {
    let consumer = &route.consumer;
    let decides = consumer.kind == "worker" && consumer.accept == Accept::Worker;
    let (verdict, detail) = match decides {
        true => (
            Verdict::Unknown,
            format!(
                "the worker on the channel {:?} decides; it is not asked",
                consumer.channel.as_deref().unwrap_or_default()
            ),
        ),
        false => (Verdict::Pass, String::new()),
    };
    report.step("consumer", verdict, consumer.kind.as_str(), detail);
}
