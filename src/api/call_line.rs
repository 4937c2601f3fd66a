//! One line in the log for each call that changes something: which key asked for what, and the status of the answer.
//!
//! A line has nothing of a body, and so no token and no `jti`. Reads have no line, and calls that were refused before they
//! were looked at (a key that is not known, a scope or a rate) have none either. `authenticate` opens a line; it is written
//! when it is dropped, so that a caller who leaves does not take it along.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::http::StatusCode;
use percent_encoding::percent_decode_str;

use crate::config::KeyScope;
use crate::ids::RevocationTarget;

/// The most characters of a name in the path that a line has. A path may have thousands.
const LONGEST_NAME: usize = 200;

/// The tokens that a revocation takes back. They stand in the body, so the handler tells the line of its call.
#[derive(Clone, Default)]
pub(super) struct RevokedPart(Arc<OnceLock<Revoked>>);

enum Revoked {
    Token,
    User(String),
    Tenant,
}

impl RevokedPart {
    /// Notes the target of a revocation.
    pub(super) fn is(&self, target: &RevocationTarget) {
        self.0.get_or_init(|| match target {
            RevocationTarget::Token(_) => Revoked::Token,
            RevocationTarget::User(user, _) => Revoked::User(user.to_string()),
            RevocationTarget::All(_) => Revoked::Tenant,
        });
    }

    /// Returns the word of the target.
    fn word(&self) -> Option<&'static str> {
        self.0.get().map(|revoked| match revoked {
            Revoked::Token => "token",
            Revoked::User(_) => "user",
            Revoked::Tenant => "tenant",
        })
    }

    fn user(&self) -> Option<String> {
        match self.0.get()? {
            Revoked::User(user) => Some(user.clone()),
            Revoked::Token | Revoked::Tenant => None,
        }
    }
}

/// The line of a call that is being carried out.
pub(super) struct CallLine {
    scope: KeyScope,
    /// The key's name: [`super::keys::Caller::actor`].
    actor: String,
    /// The last part of the path, or the method where the path ends with a name.
    call: String,
    tenant: Option<String>,
    user: Option<String>,
    group: Option<String>,
    channel: Option<String>,
    revoked: RevokedPart,
    began: Instant,
    /// `None` until the call is answered.
    status: Option<StatusCode>,
}

impl CallLine {
    /// Opens the line of a call; `None` if the call changes nothing.
    pub(super) fn of(request: &Request, scope: Option<KeyScope>, actor: String) -> Option<Self> {
        let scope =
            scope.filter(|scope| !matches!(scope, KeyScope::List | KeyScope::TenantsRead))?;
        let template = request.extensions().get::<MatchedPath>()?.as_str();
        let path = request.uri().path();
        let named = |name: &str| named(template, path, name);
        let last = template.rsplit('/').next().unwrap_or_default();
        Some(Self {
            scope,
            actor,
            call: match last.starts_with('{') {
                true => request.method().to_string(),
                false => last.to_owned(),
            },
            tenant: named("{tenant}"),
            user: named("{user}"),
            group: named("{group}"),
            channel: named("{channel}"),
            revoked: RevokedPart::default(),
            began: Instant::now(),
            status: None,
        })
    }

    /// Returns the place in which the handler of a revocation notes its target.
    pub(super) fn revoked(&self) -> RevokedPart {
        self.revoked.clone()
    }

    /// Notes the status of the answer.
    pub(super) fn answered(&mut self, status: StatusCode) {
        self.status = Some(status);
    }
}

/// Returns the value that `path` has for a name of its template, shortened to [`LONGEST_NAME`].
fn named(template: &str, path: &str, name: &str) -> Option<String> {
    let mut parts = template.split('/').zip(path.split('/'));
    let (_, value) = parts.find(|(part, _)| *part == name)?;
    let value: Cow<'_, str> = percent_decode_str(value).decode_utf8_lossy();
    Some(value.chars().take(LONGEST_NAME).collect())
}

/// Writes one line; the level is a part of its place in the code.
macro_rules! write_line {
    ($level:ident, $line:expr) => {{
        let line = $line;
        let user = line.user.clone().or_else(|| line.revoked.user());
        // The names are recorded as texts, which the log quotes: they are what the caller wrote.
        tracing::$level!(
            tenant.id = line.tenant.as_deref(),
            actor = line.actor,
            scope = line.scope.word(),
            call = line.call,
            revoked = line.revoked.word(),
            user.id = user.as_deref(),
            group.name = line.group.as_deref(),
            channel = line.channel.as_deref(),
            status = line.status.map(|status| status.as_u16()),
            duration_ms = line.began.elapsed().as_millis() as u64,
            "A call of the API"
        );
    }};
}

impl Drop for CallLine {
    fn drop(&mut self) {
        match self.scope {
            // A back end may make a thousand of them in a second.
            KeyScope::Send | KeyScope::Groups => write_line!(debug, &*self),
            _ => write_line!(info, &*self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_from_the_path_and_shortened() {
        let template = "/v1/tenants/{tenant}/users/{user}/groups/{group}";
        let path = format!("/v1/tenants/acme/users/a%2Fb%0a/groups/{}", "g".repeat(999));
        let found = |name| named(template, &path, name);
        assert_eq!(found("{tenant}").as_deref(), Some("acme"));
        assert_eq!(found("{user}").as_deref(), Some("a/b\n"));
        assert_eq!(found("{group}"), Some("g".repeat(LONGEST_NAME)));
        assert_eq!(found("{channel}"), None);
    }
}
