//! The document of a tenant: JSON with the keys of `[tenants.NAME]`, whose secrets are sealed where it is stored, plain
//! where it is read, and hidden where it is shown.
//!
//! | form | a secret |
//! | --- | --- |
//! | stored | `{"$sealed":"KEY:BASE64"}` |
//! | plain, and in a `PUT` | text |
//! | shown, and in a `PUT` that keeps it | `{"set":true}`, in a list `{"set":true,"id":"…"}` |

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::channel_names::hex_digest;
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

/// Returns the key of a member, or with `[INDEX]` of an element, below `key`.
fn below(key: &str, segment: &str) -> String {
    match key {
        "" => segment.to_owned(),
        key => format!("{key}.{segment}"),
    }
}

/// Replaces every sealed secret by what `change` returns for its key and its text.
fn map_sealed<E>(
    key: &str,
    value: &Value,
    change: &mut impl FnMut(&str, &str) -> Result<Value, E>,
) -> Result<Value, E> {
    if let Some(sealed) = sealed(value) {
        return change(key, sealed);
    }
    Ok(match value {
        Value::Array(items) => {
            let items = items.iter().enumerate();
            let items =
                items.map(|(at, item)| map_sealed(&below(key, &format!("[{at}]")), item, change));
            Value::Array(items.collect::<Result<_, E>>()?)
        }
        Value::Object(members) => {
            let members = members.iter().map(|(name, value)| {
                Ok((name.clone(), map_sealed(&below(key, name), value, change)?))
            });
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
    map_sealed("", stored, &mut |key, sealed| {
        keys.open((tenant, key), sealed).map(Value::String)
    })
}

/// Hides every secret of a stored document. Those of a list have an id, since their places change.
pub(super) fn hide(stored: &Value) -> Value {
    let hidden = map_sealed("", stored, &mut |key, sealed| {
        Ok::<_, std::convert::Infallible>(match key.contains(".[") {
            true => json!({"set": true, "id": id_of(sealed)}),
            false => json!({"set": true}),
        })
    });
    match hidden {
        Ok(hidden) => hidden,
        Err(never) => match never {},
    }
}

/// Returns the id of a secret in a list. It is made of the sealed text, which tells nothing of the secret.
fn id_of(sealed: &str) -> String {
    hex_digest(sealed, 6)
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
    let resealed = map_sealed("", stored, &mut |key, sealed| {
        let secret = keys.open((tenant, key), sealed)?;
        if keys.is_current(sealed) {
            return Ok(json!({SEALED: sealed}));
        }
        changed = true;
        Ok(json!({SEALED: keys.seal((tenant, key), &secret)}))
    })?;
    Ok(changed.then_some(resealed))
}

/// Returns the key of an object that looks like a sealed secret, which no caller may write.
pub(super) fn forged(key: &str, document: &Value) -> Option<String> {
    match document {
        Value::Object(members) if members.contains_key(SEALED) => Some(below(key, SEALED)),
        Value::Object(members) => {
            let mut members = members.iter();
            members.find_map(|(name, value)| forged(&below(key, name), value))
        }
        Value::Array(items) => {
            let mut items = items.iter().enumerate();
            items.find_map(|(at, item)| forged(&below(key, &format!("[{at}]")), item))
        }
        _ => None,
    }
}

/// The secrets of a stored document, by the key without the indexes and, in a list, the id.
type KeptSecrets = BTreeMap<(String, Option<String>), Value>;

/// Puts the secrets of `before`, a plain document with the secrets of a stored one, where `document` says that they are
/// set: at the same key, and within a list where the id is. A list without ids keeps its secrets if it is put as it was shown.
pub(super) fn keep(document: &mut Value, stored: &Value, before: &Value) {
    let mut secrets = KeptSecrets::new();
    collect("", stored, before, &mut secrets);
    keep_below("", document, Some((stored, before)), &secrets);
}

fn collect(key: &str, stored: &Value, before: &Value, secrets: &mut KeptSecrets) {
    if let Some(sealed) = sealed(stored) {
        let id = key.contains(".[").then(|| id_of(sealed));
        secrets.insert((key.to_owned(), id), before.clone());
        return;
    }
    match (stored, before) {
        (Value::Object(stored), Value::Object(before)) => {
            for (name, stored) in stored {
                if let Some(before) = before.get(name) {
                    collect(&below(key, name), stored, before, secrets);
                }
            }
        }
        (Value::Array(stored), Value::Array(before)) => {
            for (stored, before) in stored.iter().zip(before) {
                collect(&below(key, "[]"), stored, before, secrets);
            }
        }
        _ => {}
    }
}

fn keep_below(
    key: &str,
    document: &mut Value,
    known: Option<(&Value, &Value)>,
    secrets: &KeptSecrets,
) {
    if let Some(id) = kept(document) {
        let id = id.map(str::to_owned);
        if let Some(secret) = secrets.get(&(key.to_owned(), id)) {
            document.clone_from(secret);
            return;
        }
    }
    match document {
        Value::Object(members) => {
            for (name, value) in members {
                let known =
                    known.and_then(|(stored, before)| Some((stored.get(name)?, before.get(name)?)));
                keep_below(&below(key, name), value, known, secrets);
            }
        }
        Value::Array(_) => {
            if let Some((stored, before)) = known
                && without_ids(document) == without_ids(&hide(stored))
            {
                document.clone_from(before);
                return;
            }
            let items = document.as_array_mut().into_iter().flatten();
            items.for_each(|item| keep_below(&below(key, "[]"), item, None, secrets));
        }
        _ => {}
    }
}

/// Returns the id, if there is one, of a value that says that its secret is kept.
fn kept(value: &Value) -> Option<Option<&str>> {
    let object = value.as_object()?;
    let is_set = object.get("set") == Some(&Value::Bool(true));
    match (object.len(), object.get("id")) {
        (1, None) if is_set => Some(None),
        (2, Some(Value::String(id))) if is_set => Some(Some(id)),
        _ => None,
    }
}

fn without_ids(value: &Value) -> Value {
    if kept(value).is_some() {
        return json!({"set": true});
    }
    match value {
        Value::Array(items) => items.iter().map(without_ids).collect(),
        Value::Object(members) => {
            let members = members.iter();
            members
                .map(|(name, value)| (name.clone(), without_ids(value)))
                .collect()
        }
        other => other.clone(),
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
            *value = json!({SEALED: keys.seal((tenant, &key.join(".")), secret)});
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
                let value = |of: &Map<String, Value>| of.get(name).cloned().unwrap_or_default();
                compare(&below(key, name), &value(before), &value(after), changed);
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
        let expected = json!({"hosts": ["a.test"], "api_keys": [set, set],
            "token": {"keys": [{"kid": "1", "signing_key": set}], "claims": {"set": true}}});
        let shown = hide(&stored);
        assert_eq!(without_ids(&shown), expected);
        assert_ne!(shown["api_keys"][0]["id"], shown["api_keys"][1]["id"]);
        // What is shown can be put again, and every secret stays.
        let mut again = shown;
        keep(&mut again, &stored, &plain());
        assert_eq!(again, plain());
        assert_eq!(hosts(&stored), ["a.test"]);
        assert_eq!(hosts(&json!({"hosts": "a.test"})), [""; 0]);
    }

    /// A list kept its secrets by their places: without its first key, the others had the keys before them.
    #[test]
    fn a_secret_of_a_list_is_kept_by_its_id() {
        let (keys, acme) = (keys(&[OLD]), "acme".parse().unwrap());
        let mut stored = plain();
        seal(&mut stored, &secret_keys(), &acme, &keys);
        let (shown, set) = (hide(&stored), json!({"set": true}));
        let (first, second) = (&shown["api_keys"][0], &shown["api_keys"][1]);
        for (put, expected) in [
            (json!([second]), json!(["hunter2-2"])),
            (
                json!([second, "new", first]),
                json!(["hunter2-2", "new", "hunter2-1"]),
            ),
            (json!([set, set]), json!(["hunter2-1", "hunter2-2"])),
            // It cannot be known which one is meant, so that the reader refuses it.
            (json!([set]), json!([set])),
            (json!([set, "new"]), json!([set, "new"])),
            (json!([set, set, set]), json!([set, set, set])),
        ] {
            let mut document = json!({"api_keys": put, "other": set, "origins": [first]});
            keep(&mut document, &stored, &plain());
            let expected = json!({"api_keys": expected, "other": set, "origins": [first]});
            assert_eq!(document, expected);
        }
        let mut moved = json!({"token": {"keys": [
            {"kid": "2", "signing_key": "new"}, shown["token"]["keys"][0].clone()]}});
        keep(&mut moved, &stored, &plain());
        assert_eq!(moved["token"]["keys"][1]["signing_key"], "hunter2-3");
        let mut renamed = json!({"token": {"keys": [{"kid": "2", "signing_key": set}]}});
        keep(&mut renamed, &stored, &plain());
        assert_eq!(renamed["token"]["keys"][0]["signing_key"], set);
    }

    #[test]
    fn no_caller_writes_what_looks_sealed_and_a_moved_secret_does_not_open() {
        let (keys, acme) = (keys(&[OLD]), "acme".parse().unwrap());
        let mut stored = plain();
        seal(&mut stored, &secret_keys(), &acme, &keys);
        let found = forged("", &stored);
        assert_eq!(found.as_deref(), Some("api_keys.[0].$sealed"));
        assert_eq!(forged("", &plain()), None);
        stored["origins"] = json!([stored["token"]["keys"][0]["signing_key"]]);
        assert_eq!(open(&stored, &acme, &keys), Err(NotOpened::Damaged));
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
