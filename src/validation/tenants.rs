//! Checks the hosts, origins, users and limits of tenants.

use crate::channel_names::{fault_of_group_name, valid_in_namespace};
use crate::config::{Config, GroupNames, TenantConfig, UsersFrom};
use crate::group_rules::{GroupRules, MOST_RULES};
use crate::hosts::HostTable;
use crate::ids::TenantId;
use crate::origin::OriginPolicy;
use crate::routes::Route;
use crate::stores::database::{DatabaseUrl, UserQuery};

use super::{Checker, deployment};

/// Checks which tenants there are, and their hosts. With `has_others` more can come from elsewhere.
pub(super) fn check(config: &Config, has_others: bool, checker: &mut Checker<'_>) {
    if config.tenants.is_empty() && !has_others {
        let expected = "at least one [tenants.NAME] table";
        let advice = "each needs token, users and routes; see `lockgate config reference`";
        checker.mistake("tenants", "no tenant", expected, advice);
    }
    hosts(config, checker);
    // Without others a sole tenant has every host; of several, `hosts` reports each that has none.
    if let (true, Some((id, tenant)), 1) = (
        has_others,
        config.tenants.first_key_value(),
        config.tenants.len(),
    ) {
        check_registered(id, tenant, checker);
    }
}

/// Reports a tenant without hosts where there can be others.
pub(super) fn check_registered(id: &TenantId, tenant: &TenantConfig, checker: &mut Checker<'_>) {
    if tenant.hosts.is_empty() {
        let expected = "hosts for every tenant where there are several, or a registry";
        checker.mistake(&format!("tenants.{id}.hosts"), "no hosts", expected, "");
    }
}

/// Reports the URL of a database that names files, in a tenant of the registry: they are those of whatever machine serves it.
pub(super) fn files_of_machine(id: &TenantId, tenant: &TenantConfig, checker: &mut Checker<'_>) {
    if tenant
        .users
        .database
        .as_ref()
        .is_some_and(DatabaseUrl::names_files)
    {
        let found = "a URL that names a file: SQLite, a certificate, a key or a socket";
        let expected = "the URL of a database server, with an address";
        let advice = "files differ between machines, and are the gateway's; users.ca takes certificates as text";
        let key = format!("tenants.{id}.users.database");
        checker.mistake(&key, found, expected, advice);
    }
}

pub(super) fn check_each(config: &Config, checker: &mut Checker<'_>) {
    for (id, tenant) in &config.tenants {
        let origins = OriginPolicy::new(&tenant.origins, tenant.require_origin);
        checker.faults(&format!("tenants.{id}"), origins);
        checker.faults(&format!("tenants.{id}"), GroupRules::new(&tenant.groups));
        group_names(id, tenant, checker);
        let own = tenant.redis.as_ref().and_then(|redis| redis.url.as_ref());
        anonymous(id, (tenant, config), checker);
        deployment::redis(&format!("tenants.{id}.redis.url"), own, checker);
        if tenant.users.source == UsersFrom::Claims {
            claimed_users(id, tenant, checker);
            continue;
        }
        users(id, tenant, checker);
        // Only the columns of Django's own table are known; `serve` reads those of another one.
        let users = &tenant.users;
        if users.query.is_none() && users.table == "auth_user" {
            field_of_table(id, &tenant.token.user_id_field, checker);
        }
    }
}

/// Reports rules for groups that can match no group: even the shortest name that they stand for is none.
fn group_names(id: &TenantId, tenant: &TenantConfig, checker: &mut Checker<'_>) {
    if tenant.layer.group_names == GroupNames::Any {
        return;
    }
    let namespace = &tenant.layer.namespace;
    for (index, rule) in tenant.groups.iter().enumerate().take(MOST_RULES) {
        // What cannot be read is reported with its reason.
        let Ok(name) = Route::of_name(&rule.name) else {
            continue;
        };
        let shortest = name.shortest();
        if valid_in_namespace(&shortest, namespace) {
            continue;
        }
        let key = format!("tenants.{id}.groups[{index}].name");
        let why = fault_of_group_name(&shortest, namespace);
        let found = format!("a name that no group can have: {why}");
        let expected = "1 to 99 of ASCII letters, digits, \"-\", \"_\" and \".\", with those of layer.namespace";
        let advice = "layer.group_names = \"any\" on a pubsub layer allows other names";
        checker.mistake(&key, found, expected, advice);
    }
}

pub(super) fn hosts(config: &Config, checker: &mut Checker<'_>) {
    let Err(problems) = HostTable::new(checker.in_order(config)) else {
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

fn users(id: &TenantId, tenant: &TenantConfig, checker: &mut Checker<'_>) {
    let users = &tenant.users;
    let key = |name: &str| format!("tenants.{id}.users.{name}");
    let query = UserQuery::new(users, &tenant.token);
    let query = checker.faults(&format!("tenants.{id}"), query);
    if let Some(remark) = query.as_ref().and_then(UserQuery::remark) {
        checker.warn(&key("database"), remark);
    }
    if users.query.is_some() && checker.has(&key("table")) {
        let advice = "the query replaces the table";
        let found = "both table and query";
        checker.mistake(&key("table"), found, "one of the two", advice);
    }
    if users.stale_ttl < users.cache_ttl {
        let expected = "stale_ttl to be at least cache_ttl";
        checker.mistake(&key("stale_ttl"), "a shorter time", expected, "");
    }
}

/// Warns where strangers could take all that users need.
fn anonymous(id: &TenantId, (tenant, config): (&TenantConfig, &Config), checker: &mut Checker<'_>) {
    let Some(index) = tenant.routes.iter().position(|route| route.anonymous) else {
        return;
    };
    let limits = &tenant.limits;
    let strangers = limits.of_strangers();
    if strangers.connections == 0 && config.server.per_address.connections == 0 {
        let key = format!("tenants.{id}.routes[{index}].anonymous");
        let text = "anyone may open sockets here, and one client can take every place: set limits.anonymous_connections of the tenant, or server.per_address.connections";
        checker.warn(&key, text);
    }
    for (name, share, all, what) in [
        (
            "connections",
            strangers.connections,
            limits.connections,
            "place",
        ),
        (
            "connects_per_second",
            strangers.connects_per_second,
            limits.connects_per_second,
            "connect",
        ),
        (
            "publishes_per_second",
            strangers.publishes_per_second,
            limits.publishes_per_second,
            "event",
        ),
    ] {
        if all != 0 && share >= all {
            let key = format!("tenants.{id}.limits.anonymous_{name}");
            let text =
                format!("{share} is not below {name} = {all}: it leaves no {what} for users");
            checker.warn(&key, text);
        }
    }
}

/// Checks a tenant whose users are the claims of their tokens: what is about records of users has no meaning there.
fn claimed_users(id: &TenantId, tenant: &TenantConfig, checker: &mut Checker<'_>) {
    let source = checker.place_of(&format!("tenants.{id}.users.source"));
    let asks = tenant.routes.iter().any(|route| route.authorize.is_some());
    if let Some(url) = tenant.users.database.as_ref().filter(|_| asks) {
        let url = DatabaseUrl::parse(url).map_err(|fault| fault.below("users.database"));
        let url = url.map_err(Into::into);
        checker.faults(&format!("tenants.{id}"), url);
    }
    let of_records = ["table", "query", "stale_ttl", "negative_ttl", "local_ttl"];
    let of_rights = ["database", "pool", "cache_ttl", "authorize_ttl"];
    let of_rights = of_rights.iter().filter(|_| !asks);
    for name in of_records.iter().chain(of_rights) {
        let key = format!("tenants.{id}.users.{name}");
        if checker.has(&key) {
            let found = format!("{name} beside users.source = \"claims\" at {source}");
            let (expected, advice) = match of_records.contains(name) {
                true => (
                    "no setting of user records",
                    "the claims are the user: no record is read",
                ),
                false => (
                    "no setting of a database",
                    "only the authorize of a route would ask it, and no route has one",
                ),
            };
            checker.mistake(&key, found, expected, advice);
        }
    }
    let token = &tenant.token;
    for (name, is_set, advice) in [
        (
            "check_revoke_token",
            token.check_revoke_token,
            "no password is known: revoke the user's tokens",
        ),
        (
            "check_user_is_active",
            token.check_user_is_active,
            "is_active is not known: revoke the user's tokens",
        ),
        (
            "user_id_field",
            token.user_id_field != "id",
            "users.id_type = \"text\" takes any id",
        ),
    ] {
        let key = format!("tenants.{id}.token.{name}");
        if is_set && checker.has(&key) {
            let found = format!("{name} beside users.source = \"claims\" at {source}");
            checker.mistake(&key, found, "no check against a record of the user", advice);
        }
    }
}

/// Reports a field that Django's table does not have. Other fields need a query.
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
        let expected = "a column of auth_user, or users.table or users.query with the field";
        checker.mistake(&key, format!("{field:?}"), expected, "");
    }
}
