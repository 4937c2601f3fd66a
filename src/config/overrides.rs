//! Environment variables such as `LOCKGATE_REDIS__URL`, which override keys of the file.
//!
//! A variable only inserts its value into the document, marked with its name. Unknown keys and wrong values are then
//! found as in a file.

use super::document::{self, Node, Table, TomlValue};
use super::problem::Source;
use super::read::{Reader, nearest};

const PREFIX: &str = "LOCKGATE_";
/// The key of the mistake that a variable's tenant is unknown. That of every other one is longer.
const UNKNOWN: &str = "tenants";

/// Inserts every `LOCKGATE_*` variable that contains `__` into the document. One of an unknown tenant is a mistake if the document
/// is complete: else the tenant may be that of a file which cannot be read.
pub(super) fn apply(root: &mut Table, reader: &mut Reader<'_>, is_complete: bool) {
    let environment = reader.environment;
    for (name, value) in environment.iter() {
        if let Some(rest) = name.strip_prefix(PREFIX)
            && rest.contains("__")
        {
            let source = reader.report.add_source(Source::Variable(name.to_owned()));
            let node = document::parse_variable(value, source);
            if let Err(mistake) = put(root, rest, node)
                && (is_complete || mistake.key != UNKNOWN)
            {
                reader.report.mistake(
                    mistake.place,
                    &mistake.key,
                    mistake.found,
                    mistake.expected,
                    mistake.advice,
                );
            }
        }
    }
}

/// The reason why a variable names no key.
struct BadName {
    place: document::Place,
    key: String,
    found: String,
    expected: &'static str,
    advice: String,
}

fn put(root: &mut Table, rest: &str, node: Node) -> Result<(), BadName> {
    let bad = |key: &str, found: String, expected, advice: String| BadName {
        place: node.place,
        key: key.to_owned(),
        found,
        expected,
        advice,
    };
    let mut path: Vec<String> = Vec::new();
    let mut keys = rest;
    if let Some(named) = rest.strip_prefix("TENANTS__") {
        let Some((tenant, below)) = split_tenant(root, named) else {
            let meant = named.split("__").next().unwrap_or(named);
            let advice = nearest_tenant(root, meant);
            let found = format!("the unknown tenant {:?}", meant.to_ascii_lowercase());
            return Err(bad(UNKNOWN, found, "a tenant that a file declares", advice));
        };
        path = vec!["tenants".to_owned(), tenant];
        keys = below;
    }
    if !keys.is_empty() {
        path.extend(keys.split("__").map(str::to_ascii_lowercase));
    }
    let key = path.join(".");
    if path.iter().any(String::is_empty) {
        let expected = "LOCKGATE_TABLE__KEY";
        return Err(bad(
            &key,
            "an empty part of the name".to_owned(),
            expected,
            String::new(),
        ));
    }
    if path[0] == "tenants" && (path.len() < 3 || path[2] == "routes") {
        let found = if path.len() < 3 {
            "a whole tenant"
        } else {
            "routes"
        };
        let expected = "one key of a tenant, and not its routes";
        return Err(bad(
            &key,
            found.to_owned(),
            expected,
            "write it into the file".to_owned(),
        ));
    }
    insert(root, &path, node);
    Ok(())
}

/// Inserts a node at a path and makes the tables on the way. A text on the way is replaced by a table.
fn insert(table: &mut Table, path: &[String], node: Node) {
    match path {
        [] => {}
        [last] => {
            table.insert(last.clone(), node);
        }
        [first, rest @ ..] => {
            let place = node.place;
            let next = table
                .entry(first.clone())
                .or_insert_with(|| Node::empty_table(place));
            if next.as_table().is_none() {
                *next = Node::empty_table(place);
            }
            if let TomlValue::Table(inner) = &mut next.value {
                insert(inner, rest, node);
            }
        }
    }
}

/// Returns a tenant's name as it is written in a variable.
fn upper(tenant: &str) -> String {
    tenant.replace('-', "_").to_ascii_uppercase()
}

fn tenants(root: &Table) -> impl Iterator<Item = &String> {
    root.get("tenants")
        .and_then(Node::as_table)
        .into_iter()
        .flat_map(Table::keys)
}

/// Splits `named` into a declared tenant and the rest. The longest name wins, since `a--b` also begins with `a`.
fn split_tenant<'n>(root: &Table, named: &'n str) -> Option<(String, &'n str)> {
    tenants(root)
        .filter_map(|tenant| {
            let rest = named.strip_prefix(&upper(tenant))?;
            let below = rest.strip_prefix("__");
            Some((tenant.clone(), below.or(rest.is_empty().then_some(""))?))
        })
        .max_by_key(|(tenant, _)| tenant.len())
}

fn nearest_tenant(root: &Table, meant: &str) -> String {
    let names: Vec<&str> = tenants(root).map(String::as_str).collect();
    match nearest(&meant.to_ascii_lowercase().replace('_', "-"), &names) {
        Some(near) => format!("did you mean {}?", upper(near)),
        None => String::new(),
    }
}
