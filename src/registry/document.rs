//! The document of a tenant: JSON with the keys of `[tenants.NAME]`, whose secrets are sealed where it is stored, plain
//! where it is read, and hidden where it is shown.
//!
//! | form | a secret |
//! | --- | --- |
//! | stored | `{"$sealed":"KEY:BASE64"}` |
//! | plain, and in a `PUT` | text |
//! | shown, and in a `PUT` that keeps it | `{"set":true}` |

use serde_json::{Map, Value, json};

use crate::ids::TenantId;
use crate::sealing::{NotOpened, SealingKeys};

/// The only member of the object that stands for a sealed secret.
const SEALED: &str = "$sealed";
/// The most changed keys that an entry of the audit names.
const MOST_CHANGED: usize = 50;

/// Returns the text of a sealed secret, if the value is one.
fn sealed(value: &Value) -> Option<&str> {
    match value.as_object() {
        Some(object) if object.len() == 1 => object.get(SEALED)?.as_str(),
        _ => None,
    }
}

/// Replaces every sealed secret by what `change` returns.
fn map_sealed<E>(
    value: &Value,
    change: &mut impl FnMut(&str) -> Result<Value, E>,
) -> Result<Value, E> {
    if let Some(sealed) = sealed(value) {
        return change(sealed);
    }
    Ok(match value {
        Value::Array(items) => {
            let items = items.iter().map(|item| map_sealed(item, change));
            Value::Array(items.collect::<Result<_, E>>()?)
        }
        Value::Object(members) => {
            let members = members.iter();
            let members =
                members.map(|(name, value)| Ok((name.clone(), map_sealed(value, change)?)));
            Value::Object(members.collect::<Result<Map<_, _>, E>>()?)
        }
        other => other.clone(),
    })
}

/// Opens every secret of a stored document.
///
/// # Errors
/// [`NotOpened`] of the first one that does not open.
pub(super) fn open(
    stored: &Value,
    tenant: &TenantId,
    keys: &SealingKeys,
) -> Result<Value, NotOpened> {
    map_sealed(stored, &mut |sealed| {
        keys.open(tenant, sealed).map(Value::String)
    })
}

/// Hides every secret of a stored document.
pub(super) fn hide(stored: &Value) -> Value {
    let hidden = map_sealed(stored, &mut |_| {
        Ok::<_, std::convert::Infallible>(json!({"set": true}))
    });
    match hidden {
        Ok(hidden) => hidden,
        Err(never) => match never {},
    }
}

/// Seals every secret of a stored document with the first key. `None`: each of them is.
///
/// # Errors
/// [`NotOpened`] of the first one that does not open.
pub(super) fn reseal(
    stored: &Value,
    tenant: &TenantId,
    keys: &SealingKeys,
) -> Result<Option<Value>, NotOpened> {
    let mut changed = false;
    let resealed = map_sealed(stored, &mut |sealed| {
        let secret = keys.open(tenant, sealed)?;
        if keys.is_current(sealed) {
            return Ok(json!({SEALED: sealed}));
        }
        changed = true;
        Ok(json!({SEALED: keys.seal(tenant, &secret)}))
    })?;
    Ok(changed.then_some(resealed))
}

/// Puts the secrets of `before`, a plain document with the secrets of a stored one, where `document` says that they are
/// set: at the same place.
pub(super) fn keep(document: &mut Value, stored: &Value, before: &Value) {
    if sealed(stored).is_some() {
        if *document == json!({"set": true}) {
            document.clone_from(before);
        }
        return;
    }
    match (document, stored, before) {
        (Value::Object(document), Value::Object(stored), Value::Object(before)) => {
            for (name, value) in document {
                if let (Some(stored), Some(before)) = (stored.get(name), before.get(name)) {
                    keep(value, stored, before);
                }
            }
        }
        (Value::Array(document), Value::Array(stored), Value::Array(before)) => {
            for ((value, stored), before) in document.iter_mut().zip(stored).zip(before) {
                keep(value, stored, before);
            }
        }
        _ => {}
    }
}

/// Seals the secrets at `keys` of a plain document, whose segments are names or `[INDEX]`.
pub(super) fn seal(
    plain: &mut Value,
    secret_keys: &[Vec<String>],
    tenant: &TenantId,
    keys: &SealingKeys,
) {
    for key in secret_keys {
        let mut at = Some(&mut *plain);
        for segment in key {
            let index = segment.strip_prefix('[').and_then(|s| s.strip_suffix(']'));
            at = at.and_then(|value| match index {
                Some(index) => value.get_mut(index.parse::<usize>().ok()?),
                None => value.get_mut(segment.as_str()),
            });
        }
        if let Some(value) = at
            && let Value::String(secret) = value
        {
            *value = json!({SEALED: keys.seal(tenant, secret)});
        }
    }
}

/// Names the keys whose values differ between two plain documents, for the audit. It names no value.
pub(super) fn changed_keys(before: &Value, after: &Value) -> Vec<String> {
    let mut changed = Vec::new();
    compare("", before, after, &mut changed);
    changed.truncate(MOST_CHANGED);
    changed
}

fn compare(key: &str, before: &Value, after: &Value, changed: &mut Vec<String>) {
    match (before, after) {
        (before, after) if before == after => {}
        (Value::Object(before), Value::Object(after)) => {
            let added = after.keys().filter(|name| !before.contains_key(*name));
            for name in before.keys().chain(added) {
                let dot = if key.is_empty() { "" } else { "." };
                let value = |of: &Map<String, Value>| of.get(name).cloned().unwrap_or_default();
                compare(
                    &format!("{key}{dot}{name}"),
                    &value(before),
                    &value(after),
                    changed,
                );
            }
        }
        _ => changed.push(key.to_owned()),
    }
}

/// Returns the hosts that a document names, whatever else may be wrong with it.
pub(super) fn hosts(document: &Value) -> Vec<String> {
    let hosts = document.get("hosts").and_then(Value::as_array);
    let hosts = hosts.into_iter().flatten().filter_map(Value::as_str);
    hosts.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    fn keys(bytes: &[&str]) -> SealingKeys {
        let keys: Vec<Secret> = bytes.iter().map(|key| Secret::from(*key)).collect();
        SealingKeys::new(&keys).unwrap()
    }

    const OLD: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    const NEW: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

    fn plain() -> Value {
        json!({"hosts": ["a.test"], "api_keys": ["hunter2-1", "hunter2-2"],
            "token": {"keys": [{"kid": "1", "signing_key": "hunter2-3"}], "claims": {"set": true}}})
    }

    fn secret_keys() -> Vec<Vec<String>> {
        [
            vec!["api_keys", "[0]"],
            vec!["api_keys", "[1]"],
            vec!["token", "keys", "[0]", "signing_key"],
        ]
        .map(|key| key.into_iter().map(str::to_owned).collect())
        .into()
    }

    #[test]
    fn a_document_is_sealed_opened_and_shown_without_its_secrets() {
        let (keys, acme) = (keys(&[OLD]), "acme".parse().unwrap());
        let mut stored = plain();
        seal(&mut stored, &secret_keys(), &acme, &keys);
        assert!(!stored.to_string().contains("hunter2"), "{stored}");
        assert_eq!(open(&stored, &acme, &keys).unwrap(), plain());
        let set = json!({"set": true});
        let shown = json!({"hosts": ["a.test"], "api_keys": [set, set],
            "token": {"keys": [{"kid": "1", "signing_key": set}], "claims": {"set": true}}});
        assert_eq!(hide(&stored), shown);
        // What is shown can be put again, and every secret stays.
        let mut again = shown;
        keep(&mut again, &stored, &plain());
        assert_eq!(again, plain());
        assert_eq!(hosts(&stored), ["a.test"]);
        assert_eq!(hosts(&json!({"hosts": "a.test"})), [""; 0]);
    }

    #[test]
    fn a_secret_is_kept_at_its_own_place_only() {
        let (keys, acme) = (keys(&[OLD]), "acme".parse().unwrap());
        let mut stored = plain();
        seal(&mut stored, &secret_keys(), &acme, &keys);
        let set = json!({"set": true});
        let mut moved = json!({"api_keys": [set, "new", set], "other": set});
        keep(&mut moved, &stored, &plain());
        let expected = json!({"api_keys": ["hunter2-1", "new", set], "other": set});
        assert_eq!(moved, expected);
    }

    #[test]
    fn a_document_is_resealed_with_the_first_key() {
        let acme = "acme".parse().unwrap();
        let mut stored = plain();
        seal(&mut stored, &secret_keys(), &acme, &keys(&[OLD]));
        let both = keys(&[NEW, OLD]);
        let resealed = reseal(&stored, &acme, &both).unwrap().unwrap();
        assert_eq!(open(&resealed, &acme, &keys(&[NEW])).unwrap(), plain());
        assert_eq!(reseal(&resealed, &acme, &both).unwrap(), None);
        let lost = reseal(&stored, &acme, &keys(&[NEW]));
        assert_eq!(lost, Err(NotOpened::UnknownKey));
    }

    #[test]
    fn the_audit_names_keys_and_no_values() {
        let mut after = plain();
        after["api_keys"][0] = "hunter2-9".into();
        after["token"]["keys"][0]["kid"] = "2".into();
        after["limits"] = json!({"connections": 1});
        let changed = changed_keys(&plain(), &after);
        assert_eq!(changed, ["api_keys", "token.keys", "limits"]);
        assert_eq!(changed_keys(&plain(), &plain()), [""; 0]);
    }
}
