//! The properties of a socket that consumers can read. Only a refresh of the token changes them: its user record and claims.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use serde_json::value::RawValue;

use crate::channel_layer::SocketChannel;
use crate::hub::Member;
use crate::ids::{ChannelName, TenantId, UserId};
use crate::packed_json::PackedObject;
use crate::routes::{PathParams, Routes};
use crate::templates::{Template, TemplateError, TemplateValues};
use crate::users::UserRecord;

/// Tenant, user, claims, path and address of one socket.
///
/// Every open socket has one, so it is small: claims and user fields stay JSON text, and path parameters are parsed
/// again at each call.
pub struct Scope {
    pub(crate) of_tenant: Arc<TenantScope>,
    /// `None` for an anonymous socket.
    pub(crate) user: Option<Arc<UserRecord>>,
    /// Those of the token; `None` where the route does not need them. Few routes do, so they are boxed.
    pub(crate) claims: Option<Box<PackedObject>>,
    /// An IPv4 address is mapped into IPv6; an [`IpAddr`] would take eight bytes more of each socket.
    pub(crate) client: Ipv6Addr,
    /// The socket in its hub, which holds its path and channel.
    pub(crate) member: Arc<Member>,
}

/// The part of a [`Scope`] that the sockets of one tenant share.
#[derive(Debug)]
pub struct TenantScope {
    /// The tenant.
    pub tenant: TenantId,
    /// The tenant's routes.
    pub routes: Arc<Routes>,
    /// The beginning of channel names on the tenant's layer; 32 hexadecimal digits follow.
    pub channel_prefix: Box<str>,
}

/// Returns the user's id for a line of the log, which leaves it out for an anonymous socket.
pub(crate) fn shown_user(scope: &Scope) -> Option<tracing::field::DisplayValue<&UserId>> {
    scope.user_id().map(tracing::field::display)
}

/// Returns the channel of a socket in the form that layers use.
pub(crate) fn member_channel(member: &Member) -> SocketChannel {
    SocketChannel(member.channel())
}

impl TenantScope {
    /// Returns the channel name of a socket.
    pub fn channel_name(&self, member: &Member) -> ChannelName {
        ChannelName::from(member_channel(member).name(&self.channel_prefix))
    }
}

impl Scope {
    /// Returns the tenant that the socket belongs to.
    pub fn tenant(&self) -> &TenantId {
        &self.of_tenant.tenant
    }

    /// Returns the canonical id of the user; `None` for a socket without a token, on a route with `anonymous`.
    pub fn user_id(&self) -> Option<&UserId> {
        self.user().map(|user| &user.id)
    }

    /// Returns the user record as it was at the handshake, or at the last refresh of the token. `None` for a socket without a
    /// token, on a route with `anonymous`.
    pub fn user(&self) -> Option<&UserRecord> {
        self.user.as_deref()
    }

    /// Returns a field of the user record; `None` if the database returns no such column, or if there is no user.
    pub fn user_field(&self, name: &str) -> Option<serde_json::Value> {
        self.user()?.field(name)
    }

    /// Returns a claim of the token, that of the last refresh if there was one; `None` if the token does not have it.
    pub fn claim(&self, name: &str) -> Option<serde_json::Value> {
        let claims = self.claims_json();
        let claims: std::collections::HashMap<&str, &RawValue> =
            serde_json::from_str(&claims).ok()?;
        serde_json::from_str(claims.get(name)?.get()).ok()
    }

    /// Returns the claims as the token's JSON text; an empty object for a socket without a token.
    pub fn claims_json(&self) -> Cow<'_, str> {
        match &self.claims {
            Some(claims) => claims.text(),
            None => Cow::Borrowed("{}"),
        }
    }

    /// Returns the path of the request, percent-decoded, with its leading slash.
    pub fn path(&self) -> Cow<'_, str> {
        percent_encoding::percent_decode_str(self.member.path()).decode_utf8_lossy()
    }

    /// Returns the converted value of a path parameter in the form of Python's `str()`.
    pub fn path_parameter(&self, name: &str) -> Option<String> {
        Some(self.path_parameters().get(name)?.as_str().to_owned())
    }

    /// Returns all path parameters.
    pub fn path_parameters(&self) -> PathParams {
        let found = self.of_tenant.routes.find(self.member.path());
        found.map(|(_, params)| params).unwrap_or_default()
    }

    /// Returns the client's address, taken as `server.client_address` says.
    pub fn client(&self) -> IpAddr {
        self.client.to_canonical()
    }

    /// Returns the channel name of this socket, which is unique and cannot be guessed.
    pub fn channel_name(&self) -> ChannelName {
        self.of_tenant.channel_name(&self.member)
    }

    /// Renders a group template with this socket's values; `params` are its path parameters.
    ///
    /// # Errors
    /// Fails if a value is absent or has no text form.
    pub(crate) fn fill(
        &self,
        template: &Template,
        params: &PathParams,
    ) -> Result<String, TemplateError> {
        let (mut user, mut claims) = (Cow::default(), Cow::default());
        if template.has_user_values() {
            user = self
                .user()
                .map_or_else(Cow::default, |user| user.fields.text());
            claims = self.claims_json();
        }
        template.render(&TemplateValues {
            tenant: self.tenant(),
            params,
            user: &user,
            claims: &claims,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::hub::Profile;

    /// The claims of an anonymous socket used to be an empty text, which no reader of JSON takes.
    #[test]
    fn the_claims_of_a_socket_without_a_token_are_an_empty_object() {
        let scope = |claims: Option<&str>| Scope {
            of_tenant: Arc::new(TenantScope {
                tenant: "acme".parse().unwrap(),
                routes: Arc::new(Routes::parse(&[]).unwrap()),
                channel_prefix: "".into(),
            }),
            user: None,
            claims: claims.map(|text| Box::new(PackedObject::new(text))),
            client: Ipv4Addr::LOCALHOST.to_ipv6_mapped(),
            member: Member::new(Profile::default()),
        };
        assert_eq!(scope(None).claims_json(), "{}");
        assert_eq!(scope(None).claim("sub"), None);
        let with = scope(Some(r#"{"sub":1}"#));
        assert_eq!(with.claims_json(), r#"{"sub":1}"#);
        assert_eq!(with.claim("sub"), Some(1.into()));
    }
}
