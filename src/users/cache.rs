//! Writes and reads the record of a user in Redis.
//!
//! `{"v":1,"tenant","id","fetched_at","gen","user"}`; `user` is null for an absent user. A record is accepted only if
//! it names its tenant and user, and if its `gen` equals the user's generation key. Any other value counts as no record,
//! because other programs and other versions of the gateway may write to this Redis.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::record::{MAX_FIELDS, UserRecord, digits_of, from_hex, is_active};
use crate::clock::UnixTime;
use crate::ids::{TenantId, UserId};
use crate::packed_json::PackedObject;
use crate::python::json::write_text;
use crate::stores::key_read::{KeyValue, Unreadable};

/// The most bytes of a record: the fields, and 4 KiB for the other members.
pub(super) const MAX_RECORD: usize = MAX_FIELDS + 4096;

/// The values of a user's two Redis keys, read in one round by [`crate::stores::redis::RedisStore::get_each`].
#[derive(Clone, Debug)]
pub struct CachedPair {
    /// `user:USER_ID`
    pub record: KeyValue,
    /// `usergen:USER_ID`
    pub generation: KeyValue,
}

impl CachedPair {
    /// Returns the generation in the form that records hold: empty if the key is absent.
    pub(super) fn generation(&self) -> Result<Cow<'_, str>, Unreadable> {
        generation_text(&self.generation)
    }
}

/// Returns a generation in the form that records hold: empty if the key is absent.
pub(super) fn generation_text(value: &KeyValue) -> Result<Cow<'_, str>, Unreadable> {
    let generation = value.as_ref().map_err(|error| *error)?.as_deref();
    Ok(generation.map_or(Cow::Borrowed(""), String::from_utf8_lossy))
}

/// The use that a cached record still has.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cached {
    /// It is the answer; `None` for an absent user.
    Fresh(Option<UserRecord>),
    /// It is the answer while the database is down.
    Stale(UserRecord),
    /// It has none: it is absent, too old, or of another generation.
    Nothing,
}

/// The reason why a value is not accepted as a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotBelieved {
    #[error("its key, or that of its generation: {0}")]
    Unreadable(#[from] Unreadable),
    #[error("it is no record of this version")]
    NotReadable,
    #[error("it is of another tenant")]
    OtherTenant,
    #[error("it is of another user")]
    OtherUser,
}

/// The tenant of the records, the times for which they are used, and the checks for which they must hold values.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    pub(super) tenant: TenantId,
    pub(super) cache_ttl: Duration,
    pub(super) stale_ttl: Duration,
    pub(super) negative_ttl: Duration,
    pub(super) check_active: bool,
    pub(super) check_password: bool,
}

#[derive(Deserialize)]
struct WireRecord<'a> {
    v: u32,
    #[serde(borrow)]
    tenant: Cow<'a, str>,
    #[serde(borrow)]
    id: Cow<'a, str>,
    fetched_at: f64,
    #[serde(borrow, rename = "gen")]
    generation: Cow<'a, str>,
    #[serde(borrow)]
    user: &'a RawValue,
}

impl Policy {
    /// Returns the record of `user` as text for Redis; `None` is an absent user.
    pub(super) fn write(
        &self,
        id: &UserId,
        user: Option<&UserRecord>,
        generation: &str,
        now: UnixTime,
    ) -> String {
        // A record of Django's `auth_user` takes 350 bytes.
        let mut out = String::with_capacity(512);
        out.push_str("{\"v\":1,\"tenant\":");
        write_text(self.tenant.as_str(), &mut out, false);
        out.push_str(",\"id\":");
        write_text(id.as_str(), &mut out, false);
        out.push_str(&format!(",\"fetched_at\":{:.3},\"gen\":", now.0));
        write_text(generation, &mut out, false);
        out.push_str(",\"user\":");
        match user {
            None => out.push_str("null"),
            Some(user) => {
                user.fields.write(&mut out);
                if self.check_password {
                    write_password(user.password_digest, &mut out);
                }
            }
        }
        out.push('}');
        out
    }

    /// Returns the time to live of the record in Redis.
    pub(super) fn keep_for(&self, user: Option<&UserRecord>) -> Duration {
        match user {
            Some(_) => self.stale_ttl,
            None => self.negative_ttl,
        }
    }

    /// Parses the record of `id` and returns the use that it has at `now`.
    pub(super) fn read(
        &self,
        id: &UserId,
        pair: &CachedPair,
        now: UnixTime,
    ) -> Result<Cached, NotBelieved> {
        let generation = pair.generation()?;
        let bytes = match &pair.record {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(Cached::Nothing),
            Err(unreadable) => return Err((*unreadable).into()),
        };
        let wire: WireRecord<'_> =
            serde_json::from_slice(bytes).map_err(|_| NotBelieved::NotReadable)?;
        if wire.v != 1 {
            return Err(NotBelieved::NotReadable);
        }
        if wire.tenant != self.tenant.as_str() {
            return Err(NotBelieved::OtherTenant);
        }
        if wire.id != id.as_str() {
            return Err(NotBelieved::OtherUser);
        }
        let user = match wire.user.get() {
            "null" => None,
            object => Some(self.user(id, object).ok_or(NotBelieved::NotReadable)?),
        };
        if wire.generation != generation {
            return Ok(Cached::Nothing);
        }
        // A writer's clock may be ahead of ours: the age is then 0, and the key's expiry in Redis bounds it.
        let age = Duration::try_from_secs_f64((now.0 - wire.fetched_at).max(0.0))
            .unwrap_or(Duration::MAX);
        Ok(match user {
            None if age < self.negative_ttl => Cached::Fresh(None),
            Some(user) if age < self.cache_ttl => Cached::Fresh(Some(user)),
            Some(user) if age < self.stale_ttl => Cached::Stale(user),
            None | Some(_) => Cached::Nothing,
        })
    }

    /// Returns the user of a record; `None` if a value is missing that this tenant checks.
    fn user(&self, id: &UserId, object: &str) -> Option<UserRecord> {
        let parts = UserParts::read(object)?;
        let active = match (self.check_active, parts.is_active) {
            (false, _) => true,
            (true, json) => is_active(json?),
        };
        let password_digest = match (self.check_password, parts.password) {
            (false, _) => None,
            (true, None) => return None,
            (true, Some("null")) => None,
            (true, Some(json)) => Some(from_hex(&serde_json::from_str::<String>(json).ok()?)?),
        };
        let fields = match parts.password {
            None => PackedObject::new(object),
            Some(_) => PackedObject::new(&without_password(object)?),
        };
        Some(UserRecord {
            id: id.clone(),
            is_active: active,
            fields,
            password_digest,
        })
    }
}

/// The members of a user's JSON object that the checks need, as JSON text.
#[derive(Default)]
struct UserParts<'a> {
    is_active: Option<&'a str>,
    password: Option<&'a str>,
}

impl<'a> UserParts<'a> {
    fn read(object: &'a str) -> Option<Self> {
        let mut parts = UserParts::default();
        each_member(object, |name, value| match name {
            "is_active" => parts.is_active = Some(value),
            "password" => parts.password = Some(value),
            _ => {}
        })?;
        Some(parts)
    }
}

/// Adds the digest to the object at the end of `out`, under `password`: a name that `UserRow::fields` never holds.
fn write_password(digest: Option<[u8; 16]>, out: &mut String) {
    out.pop();
    if !out.ends_with('{') {
        out.push(',');
    }
    out.push_str("\"password\":");
    match digest {
        None => out.push_str("null"),
        Some(digest) => write_text(&digits_of(digest), out, false),
    }
    out.push('}');
}

/// Returns the object without `password`, which only records of tenants with `check_revoke_token` have.
fn without_password(object: &str) -> Option<String> {
    let mut out = String::from("{");
    each_member(object, |name, value| {
        if name != "password" {
            if out.len() > 1 {
                out.push(',');
            }
            write_text(name, &mut out, false);
            out.push(':');
            out.push_str(value);
        }
    })?;
    out.push('}');
    Some(out)
}

/// Calls `visit` with the name and the JSON text of each member of an object.
fn each_member<'a>(object: &'a str, visit: impl FnMut(&str, &'a str)) -> Option<()> {
    struct MemberVisitor<F>(F);

    impl<'de, F: FnMut(&str, &'de str)> Visitor<'de> for MemberVisitor<F> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
            while let Some((MemberName(name), value)) =
                map.next_entry::<MemberName<'de>, &'de RawValue>()?
            {
                self.0(&name, value.get());
            }
            Ok(())
        }
    }

    serde_json::Deserializer::from_str(object)
        .deserialize_map(MemberVisitor(visit))
        .ok()
}

/// A name that borrows from the input unless it holds escapes.
#[derive(Deserialize)]
struct MemberName<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime(1_000_000.0);

    fn policy() -> Policy {
        Policy {
            tenant: "acme".parse().unwrap(),
            cache_ttl: Duration::from_secs(300),
            stale_ttl: Duration::from_secs(3600),
            negative_ttl: Duration::from_secs(10),
            check_active: true,
            check_password: false,
        }
    }

    fn user() -> UserRecord {
        UserRecord {
            id: "7".into(),
            is_active: true,
            fields: r#"{"id":7,"username":"a\"b","is_active":true,"more":{"x":{}}}"#.into(),
            password_digest: None,
        }
    }

    fn read(
        policy: &Policy,
        record: &str,
        generation: Option<&str>,
    ) -> Result<Cached, NotBelieved> {
        let pair = CachedPair {
            record: Ok(Some(record.into())),
            generation: Ok(generation.map(Into::into)),
        };
        policy.read(&"7".into(), &pair, NOW)
    }

    fn aged(seconds: f64) -> UnixTime {
        UnixTime(NOW.0 - seconds)
    }

    #[test]
    fn a_record_is_fresh_then_stale_then_nothing() {
        let policy = policy();
        let at = |user: Option<&UserRecord>, age| {
            let record = policy.write(&"7".into(), user, "", aged(age));
            read(&policy, &record, None).unwrap()
        };
        let user = user();
        assert_eq!(at(Some(&user), 0.0), Cached::Fresh(Some(user.clone())));
        assert_eq!(at(Some(&user), 299.9), Cached::Fresh(Some(user.clone())));
        assert_eq!(at(Some(&user), 300.1), Cached::Stale(user.clone()));
        assert_eq!(at(Some(&user), 3600.1), Cached::Nothing);
        assert_eq!(at(None, 9.9), Cached::Fresh(None));
        assert_eq!(at(None, 10.1), Cached::Nothing);
        // The writer's clock is ahead.
        assert_eq!(at(Some(&user), -1000.0), Cached::Fresh(Some(user)));
    }

    #[test]
    fn a_record_of_another_generation_is_not_believed() {
        let policy = policy();
        let user = user();
        let record = policy.write(&"7".into(), Some(&user), "g1", NOW);
        assert_eq!(
            read(&policy, &record, Some("g1")),
            Ok(Cached::Fresh(Some(user)))
        );
        assert_eq!(read(&policy, &record, Some("g2")), Ok(Cached::Nothing));
        assert_eq!(read(&policy, &record, None), Ok(Cached::Nothing));
    }

    #[test]
    fn anything_but_a_record_of_this_user_is_not_believed() {
        use NotBelieved::{NotReadable, OtherTenant, OtherUser};
        let good = policy().write(&"7".into(), Some(&user()), "", NOW);
        assert!(good.starts_with(
            r#"{"v":1,"tenant":"acme","id":"7","fetched_at":1000000.000,"gen":"","user":{"id":7,"#
        ));
        let more = good
            .replace("\"v\":1", "\"v\":1,\"new\":[1]")
            .replace("\"id\":7", "\"id\":7,\"new\":{}");
        let pickle = "\u{80}\u{4}}q";
        for (name, record, expected) in [
            ("not JSON", "nonsense", NotReadable),
            ("truncated", &good[..good.len() - 1], NotReadable),
            ("empty", "", NotReadable),
            ("a list", "[]", NotReadable),
            ("a pickle", pickle, NotReadable),
            ("no gen", &good.replace("\"gen\":\"\",", ""), NotReadable),
            (
                "no user",
                &good.replace("\"user\"", "\"other\""),
                NotReadable,
            ),
            (
                "no is_active",
                &good.replace(",\"is_active\":true", ""),
                NotReadable,
            ),
            (
                "another version",
                &good.replace("\"v\":1", "\"v\":2"),
                NotReadable,
            ),
            (
                "no number",
                &good.replace("1000000.000", "\"now\""),
                NotReadable,
            ),
            (
                "the user is no object",
                &good.replace("{\"id\":7", "[{\"id\":7").replace("}}", "}]}"),
                NotReadable,
            ),
            (
                "another user",
                &good.replace("\"id\":\"7\"", "\"id\":\"8\""),
                OtherUser,
            ),
            (
                "a byte off",
                &good.replace("\"id\":\"7\"", "\"id\":\"07\""),
                OtherUser,
            ),
            (
                "another tenant",
                &good.replace("acme", "acme2"),
                OtherTenant,
            ),
        ] {
            assert_eq!(read(&policy(), record, None), Err(expected), "{name}");
        }
        let accepted = read(&policy(), &more, None).unwrap();
        assert!(
            matches!(accepted, Cached::Fresh(Some(user)) if user.fields.text().contains("new")),
            "unknown members are kept"
        );
    }

    #[test]
    fn unreadable_keys_hold_no_record() {
        let record = policy().write(&"7".into(), Some(&user()), "", NOW);
        for (record, generation) in [
            (Err(Unreadable::TooLong), Ok(None)),
            (Ok(Some(record.into_bytes())), Err(Unreadable::TooLong)),
        ] {
            let pair = CachedPair { record, generation };
            let read = policy().read(&"7".into(), &pair, NOW);
            assert_eq!(read, Err(NotBelieved::Unreadable(Unreadable::TooLong)));
        }
    }

    #[test]
    fn the_digest_travels_in_place_of_the_password() {
        let with = Policy {
            check_password: true,
            ..policy()
        };
        for digest in [from_hex("5EBE2294ECD0E0F08EAB7690D2A6EE69"), None] {
            let user = UserRecord {
                password_digest: digest,
                ..user()
            };
            let record = with.write(&"7".into(), Some(&user), "", NOW);
            assert_eq!(
                read(&with, &record, None),
                Ok(Cached::Fresh(Some(user.clone())))
            );
            // The tenant has switched the check off since.
            let plain = UserRecord {
                password_digest: None,
                ..user
            };
            assert_eq!(
                read(&policy(), &record, None),
                Ok(Cached::Fresh(Some(plain)))
            );
        }
        // The record was written before the tenant switched the check on.
        let record = policy().write(&"7".into(), Some(&user()), "", NOW);
        assert_eq!(read(&with, &record, None), Err(NotBelieved::NotReadable));
        let empty = UserRecord {
            fields: "{}".into(),
            ..user()
        };
        assert!(
            with.write(&"7".into(), Some(&empty), "", NOW)
                .ends_with(r#""user":{"password":null}}"#)
        );
    }

    #[test]
    fn an_inactive_user_stays_inactive() {
        for (value, active) in [
            ("false", false),
            ("0", false),
            ("null", false),
            ("\"f\"", false),
            ("1", true),
            ("\"t\"", true),
        ] {
            let record = policy().write(&"7".into(), Some(&user()), "", NOW);
            let record = record.replace("\"is_active\":true", &format!("\"is_active\":{value}"));
            let Ok(Cached::Fresh(Some(read))) = read(&policy(), &record, None) else {
                panic!("{value}");
            };
            assert_eq!(read.is_active, active, "{value}");
        }
    }
}
