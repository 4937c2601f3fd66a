//! The sealing of secrets at rest: AES-256-GCM by aws-lc-rs, under one of several keys.
//!
//! A sealed secret is `KEY:BASE64`: the id of its key, and the nonce with the ciphertext. It is bound to the name of its
//! tenant and to its key in the document: copied into another row, or to a key that is shown, it does not open.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::config::{Fault, Faults, Secret};
use crate::ids::TenantId;

/// Most keys. Each is tried by its id, so more would cost nothing, but a rotation needs two.
const MOST_KEYS: usize = 8;
/// The bytes of a key.
const KEY_BYTES: usize = 32;
/// The bytes of a nonce: GCM's own length.
const NONCE_BYTES: usize = 12;

/// The keys of `registry.key`: the first one seals, all of them open.
pub struct SealingKeys(Vec<SealingKey>);

struct SealingKey {
    id: String,
    key: RandomizedNonceKey,
}

/// The reason why a sealed secret does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotOpened {
    /// It has not the form of a sealed secret.
    #[error("it is no sealed secret")]
    Form,
    /// None of the configured keys has sealed it.
    #[error("it is sealed with a key that registry.key does not list")]
    UnknownKey,
    /// Its key does not open it at this place.
    #[error("its key does not open it: it was changed, or copied from another tenant or key")]
    Damaged,
}

impl fmt::Debug for SealingKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealingKeys({} keys)", self.0.len())
    }
}

impl SealingKeys {
    /// Reads the keys, each 32 bytes as base64.
    ///
    /// # Errors
    /// The fault of each key that is none, at its index; no fault shows a key.
    pub fn new(keys: &[Secret]) -> Result<Self, Faults> {
        if keys.is_empty() || keys.len() > MOST_KEYS {
            let found = format!("{} keys", keys.len());
            return Err(Fault::new("", found, format!("1 to {MOST_KEYS} keys")).into());
        }
        let read = |(index, key): (usize, &Secret)| {
            SealingKey::new(key).map_err(|fault| match keys.len() {
                1 => fault,
                _ => fault.below(&format!("[{index}]")),
            })
        };
        Faults::collect(keys.iter().enumerate().map(read)).map(Self)
    }

    /// Seals a secret of `place`, a tenant and the key of its document, with the first key.
    pub fn seal(&self, place: (&TenantId, &str), secret: &str) -> String {
        let SealingKey { id, key } = &self.0[0];
        let mut sealed = Zeroizing::new(secret.as_bytes().to_vec());
        let bound = bound_to(place);
        let nonce = key.seal_in_place_append_tag(bound, &mut *sealed);
        let nonce = nonce.expect("a text is shorter than what AES-GCM can seal");
        let mut whole = nonce.as_ref().to_vec();
        whole.extend_from_slice(&sealed);
        format!("{id}:{}", STANDARD.encode(whole))
    }

    /// Opens what [`SealingKeys::seal`] has sealed for `place`, with whichever key.
    ///
    /// # Errors
    /// [`NotOpened`]
    pub fn open(&self, place: (&TenantId, &str), sealed: &str) -> Result<String, NotOpened> {
        let (id, text) = sealed.split_once(':').ok_or(NotOpened::Form)?;
        let whole = STANDARD.decode(text).map_err(|_| NotOpened::Form)?;
        let known = self.0.iter().find(|known| known.id == id);
        let SealingKey { key, .. } = known.ok_or(NotOpened::UnknownKey)?;
        let (nonce, text) = whole.split_at_checked(NONCE_BYTES).ok_or(NotOpened::Form)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| NotOpened::Form)?;
        let bound = bound_to(place);
        let mut text = Zeroizing::new(text.to_vec());
        let opened = key.open_in_place(nonce, bound, &mut text);
        let opened = opened.map_err(|_| NotOpened::Damaged)?;
        String::from_utf8(opened.to_vec()).map_err(|_| NotOpened::Damaged)
    }

    /// Returns true if the first key has sealed it.
    pub fn is_current(&self, sealed: &str) -> bool {
        let id = sealed.split_once(':').map(|(id, _)| id);
        id == self.0.first().map(|first| first.id.as_str())
    }
}

/// Returns the text that a sealed secret is bound to. No name of a tenant has a NUL.
fn bound_to((tenant, key): (&TenantId, &str)) -> Aad<String> {
    Aad::from(format!("{tenant}\0{key}"))
}

impl SealingKey {
    fn new(key: &Secret) -> Result<Self, Fault> {
        let fault = |found: String| {
            let expected = format!("{KEY_BYTES} bytes as base64");
            Fault::new("", found, expected).advice("make one: openssl rand -base64 32")
        };
        let bytes = STANDARD.decode(key.expose().trim());
        let bytes = bytes.map_err(|_| fault("a text that is not base64".to_owned()))?;
        let bytes = Zeroizing::new(bytes);
        if bytes.len() != KEY_BYTES {
            return Err(fault(format!("{} bytes", bytes.len())));
        }
        // The id names the key without telling anything of it.
        let mut digest = Sha256::new();
        digest.update(b"lockgate sealing key");
        digest.update(&bytes);
        let digest = digest.finalize();
        let id = hex::encode(&digest[..4]);
        let key = RandomizedNonceKey::new(&AES_256_GCM, &bytes);
        let key = key.map_err(|_| fault("a key that AES-256-GCM does not take".to_owned()))?;
        Ok(Self { id, key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> Secret {
        Secret::new(STANDARD.encode([byte; KEY_BYTES]))
    }

    const KEY: &str = "token.signing_key";

    fn tenant(name: &str) -> TenantId {
        name.parse().unwrap()
    }

    #[test]
    fn the_first_key_seals_and_all_keys_open() {
        let old = SealingKeys::new(&[key(1)]).unwrap();
        let both = SealingKeys::new(&[key(2), key(1)]).unwrap();
        let acme = tenant("acme");
        let sealed = old.seal((&acme, KEY), "hunter2 \u{e9}");
        assert!(!sealed.contains("hunter2"));
        assert_eq!(both.open((&acme, KEY), &sealed).unwrap(), "hunter2 \u{e9}");
        assert!(old.is_current(&sealed) && !both.is_current(&sealed));
        let again = both.seal((&acme, KEY), "hunter2");
        assert!(both.is_current(&again));
        assert_eq!(old.open((&acme, KEY), &again), Err(NotOpened::UnknownKey));
        // A nonce is used once.
        assert_ne!(both.seal((&acme, KEY), "hunter2"), again);
    }

    #[test]
    fn a_changed_or_copied_secret_does_not_open() {
        let keys = SealingKeys::new(&[key(1)]).unwrap();
        let acme = tenant("acme");
        let sealed = keys.seal((&acme, KEY), "hunter2");
        assert_eq!(
            keys.open((&tenant("other"), KEY), &sealed),
            Err(NotOpened::Damaged)
        );
        // A key that is shown, such as an origin, would show it.
        let shown = keys.open((&acme, "origins.[0]"), &sealed);
        assert_eq!(shown, Err(NotOpened::Damaged));
        let (id, text) = sealed.split_once(':').unwrap();
        let mut bytes = STANDARD.decode(text).unwrap();
        for at in 0..bytes.len() {
            bytes[at] ^= 1;
            let changed = format!("{id}:{}", STANDARD.encode(&bytes));
            assert_eq!(
                keys.open((&acme, KEY), &changed),
                Err(NotOpened::Damaged),
                "{at}"
            );
            bytes[at] ^= 1;
        }
        for (text, why) in [
            ("", NotOpened::Form),
            ("hunter2", NotOpened::Form),
            (&format!("{id}:AAAA"), NotOpened::Form),
            (&format!("{id}:!"), NotOpened::Form),
            (&sealed.replace(id, "00000000"), NotOpened::UnknownKey),
        ] {
            assert_eq!(keys.open((&acme, KEY), text), Err(why), "{text}");
        }
    }

    #[test]
    fn a_key_is_32_bytes_and_no_fault_shows_it() {
        let short = Secret::new(STANDARD.encode(b"hunter2"));
        for (keys, found) in [
            (vec![], "found 0 keys"),
            (vec![key(1); 9], "found 9 keys"),
            (vec![short.clone()], "found 7 bytes"),
            (vec![key(1), short], "[1]: found 7 bytes"),
            (vec!["hunter2!".into()], "found a text that is not base64"),
        ] {
            let faults = SealingKeys::new(&keys).unwrap_err().to_string();
            assert!(faults.starts_with(found), "{faults}");
            assert!(!faults.contains("hunter2") && !faults.contains("aHVudGVyMg"));
        }
        assert_eq!(
            format!("{:?}", SealingKeys::new(&[key(1)])),
            "Ok(SealingKeys(1 keys))"
        );
    }
}
