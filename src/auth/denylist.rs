//! Whether a token was revoked: the verdict over three values that admission reads in one round.
//!
//! Pure: reading Redis is the caller's. A value that cannot be read as a cut-off is never "not revoked".

use crate::ids::TenantId;
use crate::stores::redis_keys;

use super::VerifiedToken;

/// The verdict over a token's denylist values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenyVerdict {
    /// Nothing revokes the token.
    Clear,
    /// Its `jti`, its user or its tenant was revoked.
    Revoked,
    /// A cut-off is there but cannot be read: treat the denylist as unavailable.
    Unreadable,
}

/// The keys to read, in the order that [`verdict`] takes their values: `jti`, user, tenant.
///
/// A token without `jti` has no key of its own; the first is `None` then.
pub fn keys(tenant: &TenantId, token: &VerifiedToken) -> (Option<String>, String, String) {
    (
        token
            .jti
            .as_ref()
            .map(|jti| redis_keys::deny_jti(tenant, jti)),
        redis_keys::deny_user(tenant, &token.user_id),
        redis_keys::deny_all(tenant),
    )
}

/// The verdict over the values of [`keys`]; `None` where the key is absent.
///
/// A denied `jti` counts whatever its value. A cut-off revokes what was issued at or before it, that whole second
/// included, and every token that does not say when it was issued.
pub fn verdict(
    token: &VerifiedToken,
    jti: Option<&[u8]>,
    user: Option<&[u8]>,
    all: Option<&[u8]>,
) -> DenyVerdict {
    if jti.is_some() {
        return DenyVerdict::Revoked;
    }
    let cut_offs = [user, all];
    let mut verdict = DenyVerdict::Clear;
    for value in cut_offs.into_iter().flatten() {
        match cut_off(value) {
            None => verdict = DenyVerdict::Unreadable,
            Some(cut_off) if is_at_or_before(token.issued_at, cut_off) => {
                return DenyVerdict::Revoked;
            }
            Some(_) => {}
        }
    }
    verdict
}

/// Whether a token issued at `issued_at` falls under `cut_off`, both in Unix seconds.
pub fn is_at_or_before(issued_at: Option<f64>, cut_off: f64) -> bool {
    issued_at.is_none_or(|issued_at| issued_at.floor() <= cut_off)
}

/// Unix seconds as text; `None` for anything else.
pub fn cut_off(value: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(value).ok()?;
    let is_number = text
        .bytes()
        .all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'-'));
    let number: f64 = text.parse().ok()?;
    (is_number && number.is_finite()).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Jti, UserId};

    fn token(issued_at: Option<f64>) -> VerifiedToken {
        VerifiedToken {
            user_id: UserId::from("7"),
            jti: Some(Jti::from("a:b*{c}\r\n")),
            issued_at,
            expires_at: Some(2e9),
            claims: "{}".into(),
            revoke_digest: None,
        }
    }

    #[test]
    fn cut_offs_include_their_second() {
        let cases = [
            (Some(100.0), "100", DenyVerdict::Revoked),
            (Some(100.9), "100", DenyVerdict::Revoked),
            (Some(101.0), "100", DenyVerdict::Clear),
            (Some(101.0), "100.5", DenyVerdict::Clear),
            (None, "100", DenyVerdict::Revoked),
            (Some(1.0), "", DenyVerdict::Unreadable),
            (Some(1.0), "soon", DenyVerdict::Unreadable),
            (Some(1.0), "inf", DenyVerdict::Unreadable),
            (Some(1.0), "1e9", DenyVerdict::Unreadable),
        ];
        for (issued_at, value, expected) in cases {
            let token = token(issued_at);
            assert_eq!(
                verdict(&token, None, Some(value.as_bytes()), None),
                expected,
                "{value}"
            );
            assert_eq!(
                verdict(&token, None, None, Some(value.as_bytes())),
                expected,
                "{value}"
            );
        }
    }

    #[test]
    fn a_denied_jti_counts_whatever_its_value() {
        assert_eq!(
            verdict(&token(None), Some(b""), None, None),
            DenyVerdict::Revoked
        );
        assert_eq!(
            verdict(&token(Some(5.0)), None, None, None),
            DenyVerdict::Clear
        );
    }

    #[test]
    fn one_unreadable_cut_off_does_not_hide_another() {
        let token = token(Some(5.0));
        assert_eq!(
            verdict(&token, None, Some(b"junk"), Some(b"9")),
            DenyVerdict::Revoked
        );
        assert_eq!(
            verdict(&token, None, Some(b"1"), Some(b"junk")),
            DenyVerdict::Unreadable
        );
    }

    #[test]
    fn keys_are_those_of_the_contract() {
        let (jti, user, all) = keys(&"acme".parse().unwrap(), &token(None));
        assert_eq!(jti.unwrap(), "lockgate:acme:deny:jti:a:b*{c}\r\n");
        assert_eq!(user, "lockgate:acme:deny:user:7");
        assert_eq!(all, "lockgate:acme:deny:all");
    }
}
