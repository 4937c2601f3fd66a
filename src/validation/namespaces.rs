//! Warns of tenants in namespaces of one prefix that take each other's tokens.
//!
//! They are the schemas of one project, which signs for all of them with one key. User 1 of one schema is another person than
//! user 1 of the next, so something in the token must tell them apart: a rule that both tenants have, each with a value of its
//! own. Where one of two has no such rule it takes the tokens of the other.

use std::collections::{BTreeMap, HashMap};

use crate::config::{Config, KeyConfig, Secret, TenantConfig, TokenConfig, UsersConfig, UsersFrom};
use crate::ids::TenantId;

use super::Checker;

pub(super) fn check(config: &Config, checker: &mut Checker<'_>) {
    let mut known = KnownTokens::default();
    for (id, tenant) in checker.in_order(config) {
        if tenant.layer.namespace.is_empty() {
            continue;
        }
        // A newcomer with the users of the first holder is compared with the second one, which has others.
        let compared = if Some(id) == checker.newcomer { 2 } else { 1 };
        let mut first = None;
        for accepted in accepted(&tenant.layer.prefix, &tenant.token) {
            for holders in known.holders(&accepted) {
                let mut holders = holders.iter().take(compared);
                let met = holders.find(|holder| differ(holder, &(id, tenant)));
                first = first.or(met.map(|(other, _)| *other));
            }
            known.insert(accepted, (id, tenant));
        }
        if let Some(first) = first {
            let text = format!(
                "one of it and of tenant {first} takes tokens of the other, which names other users by the same ids: both have one \
                 key, and no rule of both differs; add a claim to the tokens of the project, and a rule for it to each tenant: \
                 claims = {{ schema = \"{id}\" }}"
            );
            checker.warn(&format!("tenants.{id}.token"), text);
        }
    }
}

/// Returns a function that tells whether another tenant takes the tokens of this one, or the other way round, and names other
/// users by their ids.
pub(super) fn takes_tokens_of(tenant: &TenantConfig) -> impl Fn(&TenantConfig) -> bool {
    let own = accepted(&tenant.layer.prefix, &tenant.token);
    move |other| {
        let layers = [&tenant.layer, &other.layer];
        layers.iter().all(|layer| !layer.namespace.is_empty())
            && layers[0].prefix == layers[1].prefix
            && !have_same_users(&tenant.users, &other.users)
            && { accepted(&other.layer.prefix, &other.token) }
                .iter()
                .any(|theirs| own.iter().any(|own| own.meets(theirs)))
    }
}

/// The tokens of one source of keys that a tenant accepts.
struct AcceptedTokens {
    /// The layer's prefix and the key.
    group: String,
    /// The rules by what they are about: issuer, audience or a claim.
    rules: BTreeMap<String, String>,
}

impl AcceptedTokens {
    /// Returns false if a rule of both differs. What only one has a rule for can be in the tokens of both.
    fn meets(&self, other: &Self) -> bool {
        let same = |(about, rule): (&String, &String)| {
            other.rules.get(about).is_none_or(|theirs| theirs == rule)
        };
        self.group == other.group && self.rules.iter().all(same)
    }

    /// Returns the values of those rules that are about `names`.
    fn values(&self, names: &[String]) -> Vec<String> {
        let values = names.iter().filter_map(|name| self.rules.get(name));
        values.cloned().collect()
    }
}

/// A tenant with its name.
type Holder<'c> = (&'c TenantId, &'c TenantConfig);

/// The tokens of the tenants so far. A project may have thousands of schemas, so that a comparison of each with each would take
/// seconds.
#[derive(Default)]
struct KnownTokens<'c> {
    /// For each group, and in it for each list of what the rules are about.
    groups: HashMap<String, BTreeMap<Vec<String>, AlikeTokens<'c>>>,
}

/// Tokens whose rules are about the same.
#[derive(Default)]
struct AlikeTokens<'c> {
    all: Vec<(AcceptedTokens, Holder<'c>)>,
    /// The holders by the values of those of the rules that another list of rules is about, too.
    by_values: HashMap<Vec<String>, HashMap<Vec<String>, Vec<Holder<'c>>>>,
}

impl<'c> KnownTokens<'c> {
    /// Returns the tenants whose tokens meet these, in lists of at most two that have other users.
    fn holders(&mut self, tokens: &AcceptedTokens) -> Vec<&[Holder<'c>]> {
        let alike = { self.groups.get_mut(&tokens.group) }.into_iter().flatten();
        let met = alike.filter_map(|(about, alike)| {
            let common = about.iter().filter(|name| tokens.rules.contains_key(*name));
            let common: Vec<String> = common.cloned().collect();
            let values = tokens.values(&common);
            let AlikeTokens { all, by_values } = alike;
            let by_values = by_values.entry(common).or_insert_with_key(|common| {
                let mut holders = HashMap::new();
                for (tokens, holder) in &*all {
                    keep(holders.entry(tokens.values(common)).or_default(), *holder);
                }
                holders
            });
            by_values.get(&values).map(Vec::as_slice)
        });
        met.collect()
    }

    fn insert(&mut self, tokens: AcceptedTokens, holder: Holder<'c>) {
        let about = tokens.rules.keys().cloned().collect();
        let group = self.groups.entry(tokens.group.clone()).or_default();
        let alike = group.entry(about).or_default();
        for (common, holders) in &mut alike.by_values {
            keep(holders.entry(tokens.values(common)).or_default(), holder);
        }
        alike.all.push((tokens, holder));
    }
}

/// Adds a holder to a list, if that has fewer than two and none with the same users.
fn keep<'c>(holders: &mut Vec<Holder<'c>>, holder: Holder<'c>) {
    if holders.len() < 2 && holders.iter().all(|known| differ(known, &holder)) {
        holders.push(holder);
    }
}

fn differ((one, known): &Holder<'_>, (other, tenant): &Holder<'_>) -> bool {
    one != other && !have_same_users(&known.users, &tenant.users)
}

/// Returns the tokens that are accepted, for each source of keys.
fn accepted(prefix: &str, token: &TokenConfig) -> Vec<AcceptedTokens> {
    let keys = |keys: &[KeyConfig], url: Option<&String>| -> Vec<String> {
        let texts = keys
            .iter()
            .flat_map(|key| [&key.signing_key, &key.verifying_key]);
        let texts = texts.flatten().map(Secret::expose);
        texts
            .chain(url.map(String::as_str))
            .map(|key| format!("{prefix:?} {key}"))
            .collect()
    };
    let rules = |issuer: &[String], audience: &[String]| {
        let mut rules = BTreeMap::new();
        for (about, values) in [("iss", issuer), ("aud", audience)] {
            if !values.is_empty() {
                rules.insert(about.to_owned(), format!("{values:?}"));
            }
        }
        for claim in &token.claims {
            *rules.entry(format!("claim {}", claim.name)).or_default() +=
                &format!("{:?}", claim.rule);
        }
        rules
    };
    let of_each = |groups: Vec<String>, rules: BTreeMap<String, String>| {
        groups.into_iter().map(move |group| AcceptedTokens {
            group,
            rules: rules.clone(),
        })
    };
    let single = keys(&token.keys, token.jwk_url.as_ref());
    let own = rules(&token.issuer, &token.audience);
    let mut accepted: Vec<_> = of_each(single, own).collect();
    for issuer in &token.issuers {
        let audience = match issuer.audience.is_empty() {
            true => &token.audience,
            false => &issuer.audience,
        };
        let own = rules(std::slice::from_ref(&issuer.issuer), audience);
        let keys = keys(&issuer.keys, issuer.jwk_url.as_ref());
        accepted.extend(of_each(keys, own));
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
