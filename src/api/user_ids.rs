//! The ids of users in calls: taken as the tenant's tokens may have them, and made canonical.

use super::problem::ApiProblem;
use crate::ids::UserId;
use crate::tenant::Tenant;
use crate::user_id;

/// The user that a call names, by the rules for the tenant's tokens: `07` is `7`, a UUID in capitals is the UUID.
///
/// # Errors
/// [`ApiProblem::UserIdNotValid`] for what no user of the tenant can have as an id.
pub(super) fn canonical(tenant: &Tenant, text: &str) -> Result<UserId, ApiProblem> {
    let id_type = user_id::id_type_of(&tenant.config.token, tenant.config.users.id_type);
    user_id::from_text(text, id_type).map_err(|_| ApiProblem::UserIdNotValid)
}
