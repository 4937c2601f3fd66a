//! The ids of users in calls: taken as the tenant's tokens may have them, and made canonical.

use super::problem::ApiProblem;
use crate::ids::{UserId, WrittenUserId};
use crate::python::Scalar;
use crate::tenant::Tenant;
use crate::user_id;

/// Reads the user id of a call by the rules for the tenant's tokens: `07` is `7`, and a UUID may be in upper case.
///
/// # Errors
/// [`ApiProblem::UserIdNotValid`] if no user of the tenant can have this id.
pub(super) fn canonical(tenant: &Tenant, text: &str) -> Result<UserId, ApiProblem> {
    as_claim(tenant, Scalar::Text(text))
}

/// Reads the user id in the body of a call, by the same rules.
///
/// # Errors
/// [`ApiProblem::UserIdNotValid`] if no user of the tenant can have this id.
pub(super) fn written(tenant: &Tenant, id: &WrittenUserId) -> Result<UserId, ApiProblem> {
    match id {
        WrittenUserId::Text(text) => canonical(tenant, text),
        WrittenUserId::Number(number) => as_claim(tenant, Scalar::Int(&number.to_string())),
    }
}

fn as_claim(tenant: &Tenant, claim: Scalar<'_>) -> Result<UserId, ApiProblem> {
    let id_type = user_id::id_type_of(&tenant.config.token, tenant.config.users.id_type);
    user_id::from_claim(claim, id_type).map_err(|_| ApiProblem::UserIdNotValid)
}
