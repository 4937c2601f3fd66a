//! Decides from three denylist values whether a token was revoked.
//!
//! It does no IO: admission reads the values in one round. An unreadable cut-off never means "not revoked".

use crate::clock::is_under_cut_off;
use crate::ids::{Jti, TenantId, UserId};
use crate::stores::redis::KeyValue;
use crate::stores::redis_keys;

/// The meaning of a token's denylist values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenyVerdict {
    /// Nothing revokes the token.
    Clear,
    /// Its `jti`, its user or its tenant was revoked.
    Revoked,
    /// A cut-off exists but is malformed. Treat the denylist as unavailable.
    Unreadable,
}

/// Returns the keys to read, in the order of [`verdict`]'s arguments: `jti`, user, tenant.
///
/// The first is `None` for a token without `jti`.
pub fn keys(
    tenant: &TenantId,
    jti: Option<&Jti>,
    user: &UserId,
) -> (Option<String>, String, String) {
    (
        jti.map(|jti| redis_keys::deny_jti(tenant, jti)),
        redis_keys::deny_user(tenant, user),
        redis_keys::deny_all(tenant),
    )
}

/// Decides over the values of [`keys`]; `None` is an absent key. `issued_at` is in Unix seconds.
///
/// A denied `jti` counts with any value. A cut-off revokes tokens that were issued at or before it, including its whole
/// second, and tokens without a time of issue.
pub fn verdict(
    issued_at: Option<f64>,
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
            Some(cut_off) if is_under_cut_off(issued_at, cut_off) => {
                return DenyVerdict::Revoked;
            }
            Some(_) => {}
        }
    }
    verdict
}

/// Decides over the answers of a store, in which a key may hold another type than a string. A token's own key denies
/// it with any type; a cut-off of another type is unreadable.
pub fn verdict_of_answers(
    issued_at: Option<f64>,
    jti: Option<&KeyValue>,
    user: &KeyValue,
    all: &KeyValue,
) -> DenyVerdict {
    let jti = jti.and_then(|jti| {
        jti.as_ref()
            .map_or(Some(&b""[..]), |value| value.as_deref())
    });
    match (user, all) {
        (Ok(user), Ok(all)) => verdict(issued_at, jti, user.as_deref(), all.as_deref()),
        _ if jti.is_some() => DenyVerdict::Revoked,
        _ => DenyVerdict::Unreadable,
    }
}

/// Parses Unix seconds. `None`: the value is malformed.
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
            assert_eq!(
                verdict(issued_at, None, Some(value.as_bytes()), None),
                expected,
                "{value}"
            );
            assert_eq!(
                verdict(issued_at, None, None, Some(value.as_bytes())),
                expected,
                "{value}"
            );
        }
    }

    #[test]
    fn a_denied_jti_counts_whatever_its_value() {
        assert_eq!(verdict(None, Some(b""), None, None), DenyVerdict::Revoked);
        assert_eq!(verdict(Some(5.0), None, None, None), DenyVerdict::Clear);
    }

    #[test]
    fn one_unreadable_cut_off_does_not_hide_another() {
        assert_eq!(
            verdict(Some(5.0), None, Some(b"junk"), Some(b"9")),
            DenyVerdict::Revoked
        );
        assert_eq!(
            verdict(Some(5.0), None, Some(b"1"), Some(b"junk")),
            DenyVerdict::Unreadable
        );
    }

    #[test]
    fn keys_are_those_of_the_contract() {
        let (jti, user, all) = keys(
            &"acme".parse().unwrap(),
            Some(&Jti::from("a:b*{c}\r\n")),
            &"7".into(),
        );
        assert_eq!(jti.unwrap(), "lockgate:acme:deny:jti:a:b*{c}\r\n");
        assert_eq!(user, "lockgate:acme:deny:user:7");
        assert_eq!(all, "lockgate:acme:deny:all");
    }
}
