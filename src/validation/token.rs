//! Checks a tenant's `token` table: constructs its keys and checks the settings beside them. No report shows a key.

use crate::auth::key_source::{KeySettings, KeySource};
use crate::auth::keys;
use crate::config::{Fault, KeyConfig, TenantConfig, TokenConfig, TokenSource};
use crate::ids::TenantId;

use super::{Checker, claims, issuers};

pub(super) fn check(id: &TenantId, tenant: &TenantConfig, checker: &mut Checker<'_>) {
    let token = &tenant.token;
    let table = format!("tenants.{id}.token");
    if token.issuers.is_empty() || token.has_own_keys() {
        check_keys(&table, KeySettings::own(token), &token.keys, checker);
    }
    for (index, entry) in token.issuers.iter().enumerate() {
        let table = format!("{table}.issuers[{index}]");
        let settings = KeySettings::of_issuer(entry, token);
        check_keys(&table, settings, &entry.keys, checker);
    }
    issuers::check(&table, token, checker);
    check_claims(&table, token, checker);
    check_cookie(id, tenant, checker);
    claims::check(id, tenant, checker);
}

/// Checks the keys of a tenant, or of one of its issuers.
fn check_keys(
    table: &str,
    settings: KeySettings<'_>,
    keys: &[KeyConfig],
    checker: &mut Checker<'_>,
) {
    let listed = checker.has(&format!("{table}.keys"));
    if let Err(faults) = KeySource::read(settings) {
        for fault in faults.0 {
            checker.fault(table, as_written(fault, listed));
        }
    }
    for (index, key) in keys.iter().enumerate() {
        for (name, text) in keys::remarks(key) {
            let fault = Fault::new(name, "", "").below(&format!("keys[{index}]"));
            let key = as_written(fault, listed).key;
            checker.warn(&format!("{table}.{key}"), text);
        }
    }
    if settings.passes_over_set() {
        let text = "not used: the algorithm verifies with signing_key, as in simplejwt";
        checker.warn(&format!("{table}.jwk_url"), text);
    }
    if settings.is_insecure() {
        let text = "keys over http: whoever can change what comes from there can sign tokens for every user";
        checker.warn(&format!("{table}.jwk_url"), text);
    }
    let single = ["signing_key", "verifying_key"].map(|name| format!("{table}.{name}"));
    let single = single.iter().any(|key| checker.has(key));
    let algorithm = format!("{table}.algorithm");
    if listed && !single && checker.has(&algorithm) && !settings.has_set() {
        let expected = "the algorithm of each key in the list";
        checker.mistake(&algorithm, "algorithm beside keys", expected, "");
    }
}

/// Checks that a token in a cookie is taken from known pages alone.
fn check_cookie(id: &TenantId, tenant: &TenantConfig, checker: &mut Checker<'_>) {
    let key = format!("tenants.{id}.token.cookie");
    if !tenant.token.sources.contains(&TokenSource::Cookie) {
        if checker.has(&key) {
            checker.warn(&key, "not used: sources has no \"cookie\"");
        }
        return;
    }
    for (index, origin) in tenant.origins.iter().enumerate() {
        if origin == "*" || origin == "null" {
            let found = format!("{origin:?} beside a cookie in token.sources");
            let expected = "the pages that may use the cookie";
            let advice = "a browser sends the cookie for any page, so that every site could open sockets as its visitors";
            let key = format!("tenants.{id}.origins[{index}]");
            checker.mistake(&key, found, expected, advice);
        }
    }
}

/// Renames the key of a fault: a single key is read as a list of one, but is written without the list.
fn as_written(fault: Fault, listed: bool) -> Fault {
    match fault.key.strip_prefix("keys[0].") {
        Some(key) if !listed => Fault {
            key: key.to_owned(),
            ..fault
        },
        _ => fault,
    }
}

fn check_claims(table: &str, token: &TokenConfig, checker: &mut Checker<'_>) {
    if token.sources.is_empty() {
        let expected = "at least one place for tokens";
        checker.mistake(&format!("{table}.sources"), "an empty list", expected, "");
    }
    if token.token_type_claim.is_some() && token.token_types.is_empty() {
        let advice = "token_type_claim = false switches the check off";
        let key = format!("{table}.token_types");
        checker.mistake(&key, "an empty list", "at least one type", advice);
    }
}
