//! Checks a tenant's `token` table: constructs its keys and checks the settings beside them. No report shows a key.

use crate::auth::key_source::{KeySource, passes_over_set};
use crate::auth::keys;
use crate::config::{Fault, TenantConfig, TokenConfig};
use crate::ids::TenantId;

use super::Checker;

pub(super) fn check(id: &TenantId, tenant: &TenantConfig, checker: &mut Checker<'_>) {
    let token = &tenant.token;
    let table = format!("tenants.{id}.token");
    let listed = checker.has(&format!("{table}.keys"));
    if let Err(faults) = KeySource::read(token) {
        for fault in faults.0 {
            checker.fault(&table, as_written(fault, listed));
        }
    }
    for (index, key) in token.keys.iter().enumerate() {
        for (name, text) in keys::remarks(key) {
            let fault = Fault::new(name, "", "").below(&format!("keys[{index}]"));
            let key = as_written(fault, listed).key;
            checker.warn(&format!("{table}.{key}"), text);
        }
    }
    if passes_over_set(token) {
        let text = "not used: the algorithm verifies with signing_key, as in simplejwt";
        checker.warn(&format!("{table}.jwk_url"), text);
    }
    let single = ["signing_key", "verifying_key"].map(|name| format!("{table}.{name}"));
    let single = single.iter().any(|key| checker.has(key));
    if listed && !single && token.algorithm.is_some() && token.jwk_url.is_none() {
        let path = format!("{table}.algorithm");
        let expected = "the algorithm of each key in the list";
        checker.mistake(&path, "algorithm beside keys", expected, "");
    }
    check_claims(&table, token, checker);
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
