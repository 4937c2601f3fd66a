//! Checks the rules for claims, and the claims in group templates, against what every accepted token has.
//!
//! A rule that no accepted token can satisfy is a mistake, because it would refuse everybody. A path below a claim that is
//! never an object is a warning, since a claim may have dots in its own name.

use crate::config::{ClaimRule, ClaimValue, ExpectedClaim, TenantConfig, TokenConfig};
use crate::ids::TenantId;
use crate::templates::Template;

use super::Checker;

pub(super) fn check(id: &TenantId, tenant: &TenantConfig, checker: &mut Checker<'_>) {
    let token = &tenant.token;
    for expected in &token.claims {
        let key = format!("tenants.{id}.token.claims.{}", expected.key());
        if let Some(wanted) = contradiction(expected, token) {
            let advice = "no token that is accepted otherwise satisfies this rule";
            checker.mistake(&key, expected.rule.to_string(), wanted, advice);
        } else if let Some(parent) = parent_without_members(&expected.name, token) {
            checker.warn(&key, never_below(parent));
        }
    }
    for (route, config) in tenant.routes.iter().enumerate() {
        for (index, text) in config.groups.iter().enumerate() {
            let key = format!("tenants.{id}.routes[{route}].groups[{index}]");
            // A template that cannot be read is reported with its route.
            let template = Template::parse(text);
            for path in template.iter().flat_map(Template::claims) {
                if let Some(text) = never_filled(path, token) {
                    checker.warn(&key, format!("{{claims.{path}}}: {text}"));
                }
            }
        }
    }
}

/// Returns what the claim of a rule is in every accepted token, if that contradicts the rule.
fn contradiction(expected: &ExpectedClaim, token: &TokenConfig) -> Option<String> {
    let ExpectedClaim { name, rule } = expected;
    let longest = usize::try_from(token.max_size).unwrap_or(usize::MAX);
    let is_too_long =
        |value: &ClaimValue| matches!(value, ClaimValue::Text(text) if text.len() > longest);
    if rule.values().iter().all(is_too_long) {
        return Some("a value that is shorter than token.max_size".to_owned());
    }
    let texts = rule.values().iter().filter_map(|value| match value {
        ClaimValue::Text(text) => Some(text),
        _ => None,
    });
    let texts: Vec<_> = texts.collect();
    let name = name.as_str();
    let is_number =
        |value: &ClaimValue| matches!(value, ClaimValue::Integer(_) | ClaimValue::Number(_));
    match name {
        "exp" if matches!(rule, ClaimRule::Contains(_)) || !rule.values().iter().any(is_number) => {
            return Some("a number, which exp is in every token".to_owned());
        }
        "sub" | "jti" if texts.is_empty() => {
            return Some(format!("text, which {name} is in every token"));
        }
        _ => {}
    }
    if matches!(rule, ClaimRule::Contains(_)) {
        return None;
    }
    let accepted = accepted_values(name, token)?;
    let meets = texts
        .iter()
        .any(|text| accepted.iter().any(|known| known == text));
    (!meets).then(|| format!("one of {accepted:?}, as another setting has it"))
}

/// Returns the texts that another setting accepts for a claim. `None`: no other setting checks it.
fn accepted_values<'t>(name: &str, token: &'t TokenConfig) -> Option<Vec<&'t String>> {
    let accepted: Vec<&String> = match name {
        "iss" => {
            let listed = token.issuers.iter().map(|entry| &entry.issuer);
            let own_are_free =
                token.issuer.is_empty() && (token.issuers.is_empty() || token.has_own_keys());
            match own_are_free {
                true => return None,
                false => listed.chain(&token.issuer).collect(),
            }
        }
        "aud" if token.issuers.iter().all(|entry| entry.audience.is_empty()) => {
            token.audience.iter().collect()
        }
        name if token.token_type_claim.as_deref() == Some(name) => {
            token.token_types.iter().collect()
        }
        _ => return None,
    };
    Some(accepted).filter(|accepted| !accepted.is_empty())
}

/// Returns the reason why no token can fill `{claims.PATH}`, as far as the configuration tells.
fn never_filled(path: &str, token: &TokenConfig) -> Option<String> {
    if path.split('.').any(str::is_empty) {
        return Some("a part of the path is empty".to_owned());
    }
    if let Some(parent) = parent_without_members(path, token) {
        return Some(never_below(parent));
    }
    let rule = token.claims.iter().find(|expected| expected.name == path);
    match rule.map(|expected| &expected.rule) {
        Some(ClaimRule::Contains(value)) if !matches!(value, ClaimValue::Text(_)) => {
            Some("the rule in token.claims takes a list alone, and a list is no name".to_owned())
        }
        _ => None,
    }
}

fn never_below(parent: &str) -> String {
    format!("no accepted token has anything below {parent}, which is text or a number in each")
}

/// Returns the claim above a path that is no object in any accepted token.
fn parent_without_members<'p>(path: &'p str, token: &TokenConfig) -> Option<&'p str> {
    let parents = path.match_indices('.').map(|(at, _)| &path[..at]);
    let is_plain = |name: &&str| {
        let by_rule = |expected: &ExpectedClaim| {
            expected.name == **name && !matches!(expected.rule, ClaimRule::Contains(_))
        };
        ["exp", "iat", "nbf", "sub", "jti"].contains(name)
            || token.user_id_claim == **name
            || token.token_type_claim.as_deref() == Some(*name)
            || token.claims.iter().any(by_rule)
            || accepted_values(name, token).is_some()
    };
    parents.into_iter().find(is_plain)
}
