//! Checks `token.issuers`: that each entry can be meant, and that no setting beside the list contradicts it.

use std::collections::HashMap;

use crate::auth::issuers::MOST_ISSUERS;
use crate::config::TokenConfig;

use super::Checker;

pub(super) fn check(table: &str, token: &TokenConfig, checker: &mut Checker<'_>) {
    let list = format!("{table}.issuers");
    if token.issuers.len() > MOST_ISSUERS {
        let found = format!("{} issuers", token.issuers.len());
        checker.mistake(&list, found, format!("at most {MOST_ISSUERS}"), "");
    }
    let mut known: HashMap<&str, usize> = HashMap::new();
    for (index, entry) in token.issuers.iter().enumerate() {
        let key = format!("{list}[{index}].issuer");
        if entry.issuer.is_empty() {
            let advice = "the iss of its tokens, to the last character";
            checker.mistake(&key, "no issuer", "the issuer of these keys", advice);
            continue;
        }
        let written = format!("{:?}", entry.issuer);
        if let Some(first) = known.get(entry.issuer.as_str()) {
            let found = format!("{written}, as in issuers[{first}]");
            checker.mistake(
                &key,
                found,
                "each issuer once",
                "an entry takes several keys",
            );
            continue;
        }
        let is_like = |(name, _): &(&&str, &usize)| {
            name.trim_end_matches('/') == entry.issuer.trim_end_matches('/')
        };
        if let Some((_, first)) = known.iter().find(is_like) {
            let text = format!(
                "differs from issuers[{first}] by a slash at its end; a token's iss matches one of them to the last character"
            );
            checker.warn(&key, text);
        }
        if token.issuer.contains(&entry.issuer) {
            let found = format!("{written} beside issuers[{index}]");
            let advice = "tokens of a listed issuer never come to the keys beside the list";
            checker.mistake(&format!("{table}.issuer"), found, "one of the two", advice);
        }
        known.insert(&entry.issuer, index);
    }
    if !token.issuers.is_empty() && !token.has_own_keys() {
        unused(table, token, checker);
    }
}

/// Reports settings of keys beside the list where there are none.
fn unused(table: &str, token: &TokenConfig, checker: &mut Checker<'_>) {
    let named = [
        ("issuer", !token.issuer.is_empty()),
        ("algorithm", token.algorithm.is_some()),
    ];
    for (name, _) in named.iter().filter(|(_, is_set)| *is_set) {
        let found = format!("{name} beside issuers, without a key that it is for");
        let advice = "each entry of issuers has its own; beside the list it needs signing_key, verifying_key, keys or jwk_url";
        checker.mistake(
            &format!("{table}.{name}"),
            found,
            format!("no {name}"),
            advice,
        );
    }
}
