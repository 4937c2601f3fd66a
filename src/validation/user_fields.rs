//! Checks the fields of the user that routes name against `users.query`, or the columns that are read of `users.table`.

use crate::config::{TenantConfig, UsersFrom, nearest};
use crate::ids::TenantId;
use crate::stores::database::UserQuery;
use crate::users::{WantedField, wanted_fields};

use super::Checker;

pub(super) fn check(id: &TenantId, tenant: &TenantConfig, checker: &mut Checker<'_>) {
    // Any claim may be a field.
    if tenant.users.source == UsersFrom::Claims {
        return;
    }
    // A query that cannot be read is reported already.
    let Ok(query) = UserQuery::new(&tenant.users, &tenant.token) else {
        return;
    };
    for WantedField { field, key } in wanted_fields(tenant) {
        if query.may_return(&field) {
            continue;
        }
        let words = query.words();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let meant = nearest(&field, &words);
        let meant = meant.map(|word| format!("; perhaps {word} is meant"));
        let (expected, advice) = match tenant.users.query {
            Some(_) => (
                "a column that users.query returns",
                "let users.query return it".to_owned(),
            ),
            None => (
                "a column that is read of users.table",
                format!(
                    "these are {}; write users.query to read others",
                    words.join(", ")
                ),
            ),
        };
        let key = format!("tenants.{id}.{key}");
        let found = format!("the user's field {field:?}");
        checker.mistake(&key, found, expected, advice + &meant.unwrap_or_default());
    }
}
