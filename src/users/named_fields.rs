//! The fields of the user record that a tenant's configuration names: `{user.FIELD}` in templates, `stamp`, and the
//! `fields` of presence.
//!
//! A field that the database does not return is no failure of the database, so handshakes and events would go wrong in
//! silence. `config check` compares the names with `users.query`, `serve` and `doctor` with the columns themselves.

use std::fmt;

use crate::config::{TenantConfig, nearest};
use crate::templates::Template;

/// A field that the configuration names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedField {
    /// The name of the field, which is that of a column.
    pub field: String,
    /// The key that names it, below `[tenants.NAME]`: `routes[0].groups[1]`.
    pub key: String,
}

/// Returns the fields that the configuration of a tenant names, in its order. Templates that cannot be parsed are left out.
pub fn wanted_fields(tenant: &TenantConfig) -> Vec<WantedField> {
    let mut wanted = Vec::new();
    for (route, config) in tenant.routes.iter().enumerate() {
        for (index, text) in config.groups.iter().enumerate() {
            let Ok(template) = Template::parse(text) else {
                continue;
            };
            wanted.extend(template.user_fields().map(|field| WantedField {
                field: field.to_owned(),
                key: format!("routes[{route}].groups[{index}]"),
            }));
        }
        let stamp = config.consumer.stamp.iter().enumerate();
        // `user_id` is the canonical id, and no column.
        let stamp = stamp.filter(|(_, field)| *field != "user_id");
        wanted.extend(stamp.map(|(index, field)| WantedField {
            field: field.clone(),
            key: format!("routes[{route}].consumer.stamp[{index}]"),
        }));
    }
    for (group, config) in tenant.groups.iter().enumerate() {
        let fields = config.presence.iter().flat_map(|presence| &presence.fields);
        wanted.extend(fields.enumerate().map(|(index, field)| WantedField {
            field: field.clone(),
            key: format!("groups[{group}].presence.fields[{index}]"),
        }));
    }
    wanted
}

/// A field that the configuration names and the database does not return.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingField {
    wanted: WantedField,
    nearest: Option<String>,
}

/// Returns the fields that `tenant` names and that are not among the `fields` of its user records.
pub fn missing_fields(tenant: &TenantConfig, fields: &[String]) -> Vec<MissingField> {
    let known: Vec<&str> = fields.iter().map(String::as_str).collect();
    let mut wanted = wanted_fields(tenant);
    wanted.retain(|wanted| !known.contains(&wanted.field.as_str()));
    let missing = wanted.into_iter().map(|wanted| MissingField {
        nearest: nearest(&wanted.field, &known).map(str::to_owned),
        wanted,
    });
    missing.collect()
}

impl fmt::Display for MissingField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WantedField { field, key } = &self.wanted;
        write!(
            f,
            "{key} names the user's {field}, and the database returns no such column"
        )?;
        match &self.nearest {
            Some(nearest) => write!(f, "; the nearest is {nearest}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ConsumerConfig, GroupConfig, PresenceConfig, RouteConfig};

    fn tenant() -> TenantConfig {
        TenantConfig {
            routes: vec![
                RouteConfig::default(),
                RouteConfig {
                    groups: vec!["all".into(), "team_{user.team}_{claims.org}".into()],
                    consumer: ConsumerConfig {
                        stamp: vec!["user_id".into(), "usernam".into()],
                        ..ConsumerConfig::default()
                    },
                    ..RouteConfig::default()
                },
            ],
            groups: vec![GroupConfig {
                presence: Some(PresenceConfig {
                    fields: vec!["id".into(), "email".into()],
                    ..PresenceConfig::default()
                }),
                ..GroupConfig::default()
            }],
            ..TenantConfig::default()
        }
    }

    #[test]
    fn a_field_that_no_column_has_is_named_with_its_key_and_the_nearest() {
        let fields = ["id", "username", "team"].map(str::to_owned);
        let missing = missing_fields(&tenant(), &fields);
        let texts: Vec<_> = missing.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "routes[1].consumer.stamp[1] names the user's usernam, and the database returns no such column; the nearest is username",
                "groups[0].presence.fields[1] names the user's email, and the database returns no such column",
            ]
        );
    }
}
