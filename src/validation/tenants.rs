//! Checks the hosts, origins, users and limits of tenants.

use crate::config::{Config, TenantConfig};
use crate::group_rules::GroupRules;
use crate::hosts::HostTable;
use crate::ids::TenantId;
use crate::origin::OriginPolicy;
use crate::stores::database::UserQuery;

use super::{Checker, deployment};

pub(super) fn check(config: &Config, checker: &mut Checker<'_>) {
    if config.tenants.is_empty() {
        let expected = "at least one [tenants.NAME] table";
        let advice = "each needs token, users and routes; see `lockgate config reference`";
        checker.mistake("tenants", "no tenant", expected, advice);
    }
    hosts(config, checker);
    for (id, tenant) in &config.tenants {
        let origins = OriginPolicy::new(&tenant.origins, tenant.require_origin);
        checker.faults(&format!("tenants.{id}"), origins);
        checker.faults(&format!("tenants.{id}"), GroupRules::new(&tenant.groups));
        let own = tenant.redis.as_ref().and_then(|redis| redis.url.as_ref());
        deployment::redis(&format!("tenants.{id}.redis.url"), own, checker);
        users(id, tenant, checker);
        // Only the columns of Django's own table are known; `serve` reads those of another one.
        let users = &tenant.users;
        if users.query.is_none() && users.table == "auth_user" {
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
