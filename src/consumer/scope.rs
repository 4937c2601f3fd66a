//! What a consumer knows of its socket; it does not change while the socket lives.

use std::net::IpAddr;
use std::sync::Arc;

use serde_json::value::RawValue;

use crate::ids::{ChannelName, TenantId, UserId};
use crate::routes::PathParams;
use crate::templates::{Template, TemplateError, TemplateValues};
use crate::users::UserRecord;

/// Tenant, user, claims, path and address of one socket.
///
/// Kept small, because every open socket has one: claims and user fields stay JSON text until they are asked for.
pub struct Scope {
    pub(crate) tenant: TenantId,
    pub(crate) user: Arc<UserRecord>,
    pub(crate) claims: Box<str>,
    pub(crate) path: Box<str>,
    pub(crate) params: PathParams,
    pub(crate) client: IpAddr,
    pub(crate) channel: ChannelSeed,
}

/// A socket's channel name before it is written out: the layer's prefix and 128 random bits.
#[derive(Clone, Debug)]
pub(crate) struct ChannelSeed {
    pub(crate) prefix: Arc<str>,
    pub(crate) random: u128,
}

impl Scope {
    /// The tenant that the socket belongs to.
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// The canonical id of the user.
    pub fn user_id(&self) -> &UserId {
        &self.user.id
    }

    /// The user record as it was at the handshake.
    pub fn user(&self) -> &UserRecord {
        &self.user
    }

    /// One field of the user record; `None` if the database returns no such column.
    pub fn user_field(&self, name: &str) -> Option<serde_json::Value> {
        self.user.field(name)
    }

    /// One claim of the token; `None` if it has no such claim.
    pub fn claim(&self, name: &str) -> Option<serde_json::Value> {
        let claims: std::collections::HashMap<&str, &RawValue> =
            serde_json::from_str(&self.claims).ok()?;
        serde_json::from_str(claims.get(name)?.get()).ok()
    }

    /// The claims as the token's JSON text.
    pub fn claims_json(&self) -> &str {
        &self.claims
    }

    /// The path of the request, percent-decoded, with its leading slash.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The converted value of a path parameter, as Python's `str()` prints it.
    pub fn path_parameter(&self, name: &str) -> Option<&str> {
        self.params.get(name).map(crate::routes::PathValue::as_str)
    }

    /// All path parameters.
    pub fn path_parameters(&self) -> &PathParams {
        &self.params
    }

    /// The client's address, taken as `server.client_address` says.
    pub fn client(&self) -> IpAddr {
        self.client
    }

    /// The channel name of this socket, unique and not to be guessed.
    pub fn channel_name(&self) -> ChannelName {
        ChannelName::from(format!(
            "{}specific.{:032x}",
            self.channel.prefix, self.channel.random
        ))
    }

    /// Fills a group template with this socket's values.
    ///
    /// # Errors
    /// If a value is absent or has no text form.
    pub(crate) fn fill(&self, template: &Template) -> Result<String, TemplateError> {
        template.render(&TemplateValues {
            tenant: &self.tenant,
            params: &self.params,
            user: &self.user.fields,
            claims: &self.claims,
        })
    }
}
