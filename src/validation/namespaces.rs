//! Warns of tenants in namespaces of one prefix that take each other's tokens.
//!
//! They are the schemas of one project, which signs for all of them with one key. User 1 of one schema is another person than
//! user 1 of the next, so something in the token must tell them apart.

use std::collections::BTreeMap;

use crate::config::{Config, KeyConfig, Secret, TenantConfig, TokenConfig, UsersConfig, UsersFrom};
use crate::ids::TenantId;

use super::Checker;

pub(super) fn check(config: &Config, checker: &mut Checker<'_>) {
    let mut known: BTreeMap<String, Vec<(&TenantId, &TenantConfig)>> = BTreeMap::new();
    for (id, tenant) in checker.in_order(config) {
        if tenant.layer.namespace.is_empty() {
            continue;
        }
        // A newcomer with the users of the first holder is compared with the second one, which has others.
        let compared = if Some(id) == checker.newcomer { 2 } else { 1 };
        let mut first = None;
        for accepted in accepted(&tenant.layer.prefix, &tenant.token) {
            let holders = known.entry(accepted).or_default();
            let differs = |(other, known): &(&TenantId, &TenantConfig)| {
                *other != id && !have_same_users(&known.users, &tenant.users)
            };
            let met = { holders.iter() }
                .take(compared)
                .find(|&holder| differs(holder));
            first = first.or(met.map(|(other, _)| *other));
            if holders.len() < 2 && holders.iter().all(differs) {
                holders.push((id, tenant));
            }
        }
        if let Some(first) = first {
            let text = format!(
                "it takes tokens of tenant {first}, which names other users by the same ids: both have one key and the same \
                 rules; add a claim to the tokens of the project, and a rule for it to each tenant: claims = {{ schema = \"{id}\" }}"
            );
            checker.warn(&format!("tenants.{id}.token"), text);
        }
    }
}

/// Returns a function that tells whether another tenant takes the tokens of this one and names other users by their ids.
pub(super) fn takes_tokens_of(tenant: &TenantConfig) -> impl Fn(&TenantConfig) -> bool {
    let own = accepted(&tenant.layer.prefix, &tenant.token);
    move |other| {
        let layers = [&tenant.layer, &other.layer];
        layers.iter().all(|layer| !layer.namespace.is_empty())
            && layers[0].prefix == layers[1].prefix
            && !have_same_users(&tenant.users, &other.users)
            && { accepted(&other.layer.prefix, &other.token) }
                .iter()
                .any(|accepted| own.contains(accepted))
    }
}

/// Describes the tokens that are accepted, once for each source of keys: equal texts accept the same tokens.
fn accepted(prefix: &str, token: &TokenConfig) -> Vec<String> {
    let keys = |keys: &[KeyConfig], url: Option<&String>| -> Vec<String> {
        let texts = keys
            .iter()
            .flat_map(|key| [&key.signing_key, &key.verifying_key]);
        let texts = texts.flatten().map(Secret::expose);
        texts
            .chain(url.map(String::as_str))
            .map(str::to_owned)
            .collect()
    };
    let rules = |issuer: &[String], audience: &[String]| {
        format!("{prefix:?} {issuer:?} {audience:?} {:?}", token.claims)
    };
    let single = keys(&token.keys, token.jwk_url.as_ref());
    let own = rules(&token.issuer, &token.audience);
    let mut accepted: Vec<_> = single.iter().map(|key| format!("{own} {key}")).collect();
    for issuer in &token.issuers {
        let audience = match issuer.audience.is_empty() {
            true => &token.audience,
            false => &issuer.audience,
        };
        let own = rules(std::slice::from_ref(&issuer.issuer), audience);
        let keys = keys(&issuer.keys, issuer.jwk_url.as_ref());
        accepted.extend(keys.iter().map(|key| format!("{own} {key}")));
    }
    accepted
}

/// Returns true if a user of one is the user of the other with the same id, as where they lie in a schema that all share.
fn have_same_users(one: &UsersConfig, other: &UsersConfig) -> bool {
    let place = |users: &UsersConfig| {
        let url = users.database.as_ref().map(|url| url.expose().to_owned());
        (url, users.table.clone(), users.query.clone())
    };
    one.source == UsersFrom::Database && other.source == one.source && place(one) == place(other)
}
