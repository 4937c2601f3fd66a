//! Decides from three denylist values whether a token was revoked.
//!
//! It does no IO: admission reads the values in one round. An unreadable cut-off never means "not revoked".

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::clock::is_under_cut_off;
use crate::ids::{Jti, TenantId, UserId};
use crate::stores::key_read::{KeyRead, KeyValue};
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

/// Returns the reads of a token, in the order of [`verdict`]'s arguments: `jti`, user, tenant. A token without `jti` reads
/// the tenant's key first, which keeps the order and changes no verdict.
pub fn reads(tenant: &TenantId, jti: Option<&Jti>, user: &UserId) -> [KeyRead; 3] {
    [of_token(tenant, jti), of_user(tenant, user), of_all(tenant)]
}

/// Returns the read of whether any of a token's keys is there. For most tokens none is, and no further read is needed.
pub fn any_read(tenant: &TenantId, jti: Option<&Jti>, user: &UserId) -> KeyRead {
    let mut others = Vec::with_capacity(2);
    others.push(redis_keys::deny_user(tenant, user));
    others.extend(jti.map(|jti| redis_keys::deny_jti(tenant, jti)));
    KeyRead::any_presence(redis_keys::deny_all(tenant), others)
}

/// Returns the read of a token's own key: its presence counts, whatever its value.
pub fn of_token(tenant: &TenantId, jti: Option<&Jti>) -> KeyRead {
    KeyRead::presence(match jti {
        Some(jti) => redis_keys::deny_jti(tenant, jti),
        None => redis_keys::deny_all(tenant),
    })
}

/// Returns the read of a user's cut-off.
pub fn of_user(tenant: &TenantId, user: &UserId) -> KeyRead {
    KeyRead::certain(
        redis_keys::deny_user(tenant, user),
        redis_keys::CUT_OFF_BYTES,
    )
}

/// Returns the read of a tenant's cut-off.
pub fn of_all(tenant: &TenantId) -> KeyRead {
    KeyRead::certain(redis_keys::deny_all(tenant), redis_keys::CUT_OFF_BYTES)
}

/// Decides over the values of [`reads`]; `None` is an absent key. `issued_at` is in Unix seconds.
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

/// Decides over the answers of a store, in which a value may be unreadable: of another type than a string, or too long.
/// One unreadable cut-off does not hide another.
pub fn verdict_of_answers<'a>(
    issued_at: Option<f64>,
    jti: Option<&'a KeyValue>,
    user: &'a KeyValue,
    all: &'a KeyValue,
) -> DenyVerdict {
    // An empty text is no number, so an unreadable value reads like a malformed one.
    let text = |value: &'a KeyValue| value.as_ref().map_or(Some(&b""[..]), Option::as_deref);
    verdict(issued_at, jti.and_then(text), text(user), text(all))
}

/// Remembers that an operator was told of a tenant's unreadable cut-off. Handshakes and rechecks tell of it once until a
/// recheck finds all readable again.
#[derive(Debug)]
pub struct UnreadableNotice {
    tenant: TenantId,
    told: AtomicBool,
}

impl UnreadableNotice {
    /// Makes the notice of a tenant that was told nothing yet.
    pub fn new(tenant: &TenantId) -> Arc<Self> {
        Arc::new(Self {
            tenant: tenant.clone(),
            told: AtomicBool::new(false),
        })
    }

    /// Tells of an unreadable cut-off; `fault` says what is wrong with it.
    pub fn tell(&self, fault: &str) {
        if !self.told.swap(true, Ordering::Relaxed) {
            tracing::error!(
                tenant.id = %self.tenant, error = fault,
                "A cut-off in the denylist cannot be read: new connections are refused, open ones stay; set or delete deny:all and deny:user:ID"
            );
        }
    }

    /// Tells that all cut-offs are readable again.
    pub fn over(&self) {
        if self.told.swap(false, Ordering::Relaxed) {
            tracing::info!(
                tenant.id = %self.tenant, "The cut-offs in the denylist can be read again"
            );
        }
    }
}

/// Returns the fault of unreadable cut-offs.
pub fn fault(user: &KeyValue, all: &KeyValue) -> String {
    let fault = |name: &str, value: &KeyValue| {
        let error = value.as_ref().err()?;
        Some(format!("{name}: {error}"))
    };
    let faults = [fault("deny:user", user), fault("deny:all", all)];
    let faults: Vec<String> = faults.into_iter().flatten().collect();
    match faults.is_empty() {
        true => "it is no number".to_owned(),
        false => faults.join("; "),
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
    use crate::stores::key_read::Unreadable;

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

    /// An unreadable cut-off of the tenant used to hide that of the user, so a recheck left the socket open.
    #[test]
    fn an_unreadable_answer_does_not_hide_a_cut_off() {
        let (revoking, long) = (Ok(Some(b"9".to_vec())), Err(Unreadable::TooLong));
        for (user, all, expected) in [
            (&revoking, &long, DenyVerdict::Revoked),
            (&long, &revoking, DenyVerdict::Revoked),
            (&Ok(None), &long, DenyVerdict::Unreadable),
            (&long, &Ok(None), DenyVerdict::Unreadable),
        ] {
            assert_eq!(verdict_of_answers(Some(5.0), None, user, all), expected);
        }
        let jti = Ok(Some(Vec::new()));
        let verdict = verdict_of_answers(Some(5.0), Some(&jti), &long, &long);
        assert_eq!(verdict, DenyVerdict::Revoked);
    }

    #[test]
    fn keys_are_those_of_the_contract() {
        let [jti, user, all] = reads(
            &"acme".parse().unwrap(),
            Some(&Jti::from("a:b*{c}\r\n")),
            &"7".into(),
        );
        let keys = |read: &KeyRead| read.keys().map(String::from).collect::<Vec<_>>();
        assert_eq!(keys(&jti), ["lockgate:acme:deny:jti:a:b*{c}\r\n"]);
        assert_eq!(keys(&user), ["lockgate:acme:deny:user:7"]);
        assert_eq!(keys(&all), ["lockgate:acme:deny:all"]);
    }
}
