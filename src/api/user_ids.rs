//! The ids of users in calls: taken as the tenant's tokens may have them, and made canonical.

use super::problem::ApiProblem;
use crate::ids::UserId;
use crate::tenant::Tenant;
use crate::user_id;

/// Reads the user id of a call by the rules for the tenant's tokens: `07` is `7`, and a UUID may be in upper case.
///
/// # Errors
/// [`ApiProblem::UserIdNotValid`] if no user of the tenant can have this id.
pub(super) fn canonical(tenant: &Tenant, text: &str) -> Result<UserId, ApiProblem> {
    let id_type = user_id::id_type_of(&tenant.config.token, tenant.config.users.id_type);
    user_id::from_text(text, id_type).map_err(|_| ApiProblem::UserIdNotValid)
}
