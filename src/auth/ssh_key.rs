//! Reads public keys in the form of OpenSSH, as PyJWT takes them: `ssh-rsa`, `ecdsa-sha2-…` and `ssh-ed25519` (RFC 4253 §6.6,
//! RFC 5656 §3.1, RFC 8709 §4).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// The numbers of a public key.
pub(crate) enum SshKey {
    Rsa {
        modulus: Vec<u8>,
        exponent: Vec<u8>,
    },
    /// The name of a curve, `nistp256` or another, and a point in the form of SEC 1.
    Ec {
        curve: String,
        point: Vec<u8>,
    },
    Ed25519(Vec<u8>),
}

/// Returns true if a text begins as such a key does.
pub(crate) fn is_ssh(text: &str) -> bool {
    text.starts_with("ssh-") || text.starts_with("ecdsa-sha2-")
}

/// Reads `TYPE BASE64 COMMENT`. `None`: it is another kind of key, or cannot be read.
pub(crate) fn read(text: &str) -> Option<SshKey> {
    let mut words = text.split_ascii_whitespace();
    let (kind, blob) = (words.next()?, words.next()?);
    let blob = STANDARD.decode(blob).ok()?;
    let mut rest = blob.as_slice();
    if field(&mut rest)? != kind.as_bytes() {
        return None;
    }
    let key = match kind {
        "ssh-rsa" => {
            let exponent = field(&mut rest)?.to_vec();
            let modulus = field(&mut rest)?.to_vec();
            SshKey::Rsa { modulus, exponent }
        }
        "ssh-ed25519" => SshKey::Ed25519(field(&mut rest)?.to_vec()),
        _ => {
            let curve = kind.strip_prefix("ecdsa-sha2-")?.to_owned();
            if field(&mut rest)? != curve.as_bytes() {
                return None;
            }
            let point = field(&mut rest)?.to_vec();
            SshKey::Ec { curve, point }
        }
    };
    rest.is_empty().then_some(key)
}

/// Takes a field behind its length in four bytes.
fn field<'b>(rest: &mut &'b [u8]) -> Option<&'b [u8]> {
    let (length, after) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (field, after) = after.split_at_checked(length)?;
    *rest = after;
    Some(field)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED25519: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl you@host";

    #[test]
    fn a_key_is_read_whole_or_not_at_all() {
        assert!(matches!(read(ED25519), Some(SshKey::Ed25519(key)) if key.len() == 32));
        let (kind, blob) = ED25519.split_once(' ').unwrap();
        let blob = STANDARD.decode(blob.split(' ').next().unwrap()).unwrap();
        for bytes in [
            &blob[..blob.len() - 1],
            &[blob.as_slice(), b"\0"].concat(),
            &blob[..3],
            b"",
            &[255; 8],
        ] {
            let text = format!("{kind} {}", STANDARD.encode(bytes));
            assert!(read(&text).is_none(), "{text}");
        }
        for text in [
            "",
            "ssh-rsa",
            "ssh-ed25519 %",
            &ED25519.replacen("ssh-ed25519", "ssh-rsa", 1),
            "ssh-dss AAAAB3NzaC1kc3M=",
        ] {
            assert!(read(text).is_none(), "{text}");
        }
    }
}
