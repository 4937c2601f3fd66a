//! What a tenant needs beside its keys and routes: hosts, origins, users, limits.

use crate::config::{Config, TenantConfig, UsersConfig};
use crate::hosts::{HostTable, host_name};
use crate::ids::TenantId;

use super::{Checker, deployment};

pub(super) fn check(config: &Config, checker: &mut Checker<'_>) {
    if config.tenants.is_empty() {
        let expected = "at least one [tenants.NAME] table";
        let advice = "each needs token, users and routes; see `lockgate config reference`";
        checker.mistake("tenants", "no tenant", expected, advice);
    }
    hosts(config, checker);
    for (id, tenant) in &config.tenants {
        origins(id, tenant, checker);
        let own = tenant.redis.as_ref().and_then(|redis| redis.url.as_ref());
        deployment::redis(&format!("tenants.{id}.redis.url"), own, checker);
        users(id, &tenant.users, checker);
        if tenant.users.query.is_none() && tenant.token.user_id_field != "id" {
            field_of_table(id, &tenant.token.user_id_field, checker);
        }
    }
}

fn hosts(config: &Config, checker: &mut Checker<'_>) {
    let Err(problems) = HostTable::new(&config.tenants) else {
        return;
    };
    for problem in problems {
        let hosts = format!("tenants.{}.hosts", problem.tenant);
        let Some(index) = problem.index else {
            let expected = "hosts for every tenant where there are several";
            checker.mistake(&hosts, "no hosts", expected, "");
            continue;
        };
        let host = &config.tenants[&problem.tenant].hosts[index];
        let key = format!("{hosts}[{index}]");
        match problem.taken_by {
            Some(other) => {
                let place = checker.place_of(&format!("tenants.{other}.hosts"));
                let found = format!("{host:?}, which tenant {other} has too, at {place}");
                checker.mistake(&key, found, "hosts that no other tenant has", "");
            }
            None => {
                let expected = "a name, \"*.name\" (one label) or \"*\", without scheme and port";
                checker.mistake(&key, format!("{host:?}"), expected, "");
            }
        }
    }
}

fn origins(id: &TenantId, tenant: &TenantConfig, checker: &mut Checker<'_>) {
    for (index, origin) in tenant.origins.iter().enumerate() {
        if !is_origin(origin) {
            let key = format!("tenants.{id}.origins[{index}]");
            let expected = "\"https://name\", \"https://*.name\", with a port if it is not the scheme's, \"null\" or \"*\"";
            let path = origin
                .split_once("://")
                .is_some_and(|(_, rest)| rest.contains('/'));
            let advice = if path { "an origin has no path" } else { "" };
            checker.mistake(&key, format!("{origin:?}"), expected, advice);
        }
    }
}

/// Scheme, host and port, as RFC 6454 §6.2 writes them.
fn is_origin(text: &str) -> bool {
    if matches!(text, "*" | "null") {
        return true;
    }
    let Some((scheme, host)) = text.split_once("://") else {
        return false;
    };
    // Apps have schemes of their own: capacitor://localhost.
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
    is_scheme && host_name(host.strip_prefix("*.").unwrap_or(host)).is_some()
}

fn users(id: &TenantId, users: &UsersConfig, checker: &mut Checker<'_>) {
    let key = |name: &str| format!("tenants.{id}.users.{name}");
    match &users.database {
        None => {
            let expected = "the database that holds its users";
            let advice =
                "postgres://…, mysql://… or sqlite://…; users from claims alone are not supported";
            checker.mistake(&key("database"), "no database", expected, advice);
        }
        Some(url) => {
            let schemes = ["postgres://", "postgresql://", "mysql://", "sqlite:"];
            if !schemes
                .iter()
                .any(|scheme| url.expose().starts_with(scheme))
            {
                let expected = "a URL that begins with postgres://, mysql:// or sqlite://";
                checker.mistake(&key("database"), "another text", expected, "");
            }
        }
    }
    if let Some(query) = &users.query {
        if !query.contains(":user_ids") {
            let expected = "a statement with :user_ids, such as … WHERE id IN (:user_ids)";
            checker.mistake(&key("query"), "a statement without it", expected, "");
        }
        if checker.has(&key("table")) {
            let found = "both table and query";
            checker.mistake(
                &key("table"),
                found,
                "one of the two",
                "the query replaces the table",
            );
        }
    }
    let is_name = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'$')
    };
    if !users.table.split('.').all(is_name) {
        let expected = "the name of a table, such as \"auth_user\" or \"public.auth_user\"";
        checker.mistake(&key("table"), format!("{:?}", users.table), expected, "");
    }
    if users.stale_ttl < users.cache_ttl {
        let expected = "stale_ttl to be at least cache_ttl";
        checker.mistake(&key("stale_ttl"), "a shorter time", expected, "");
    }
}

/// With a table the columns are Django's; another field than these needs a query.
fn field_of_table(id: &TenantId, field: &str, checker: &mut Checker<'_>) {
    let columns = [
        "id",
        "username",
        "email",
        "first_name",
        "last_name",
        "is_active",
        "is_staff",
        "is_superuser",
        "date_joined",
        "last_login",
    ];
    if !columns.contains(&field) {
        let key = format!("tenants.{id}.token.user_id_field");
        let expected = "a column of auth_user, or users.query that returns the field";
        checker.mistake(&key, format!("{field:?}"), expected, "");
    }
}

#[cfg(test)]
mod tests {
    use super::is_origin;

    #[test]
    fn origins_have_no_path() {
        for good in [
            "*",
            "null",
            "https://a.example",
            "https://*.a.example",
            "http://localhost:3000",
            "http://[::1]:3000",
            "capacitor://localhost",
        ] {
            assert!(is_origin(good), "{good}");
        }
        for bad in [
            "",
            "a.example",
            "https://",
            "https://a.example/",
            "https://a.example/x",
            "https://a*.b",
            "https://a.example:x",
            "://a",
            "https://*",
            "https://a.example?x",
        ] {
            assert!(!is_origin(bad), "{bad}");
        }
    }
}
