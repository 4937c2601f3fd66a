//! Splits a token as strictly as PyJWT 2.15: three segments of canonical base64url, two JSON objects.
//!
//! It verifies nothing. It reads only `alg`, `kid`, `crit` and `b64` of the header; keys and URLs in a header (`jwk`,
//! `jku`, `x5u`, `x5c`) are never used.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::json::Json;

/// A token's parts, decoded and unverified.
pub(crate) struct Segments<'a> {
    /// The bytes under the signature: header and payload unchanged, with the dot.
    pub(crate) signing_input: &'a str,
    pub(crate) signature: Vec<u8>,
    /// The header's `alg`, if it is text.
    pub(crate) alg: Option<Box<str>>,
    pub(crate) kid: Option<Box<str>>,
    pub(crate) claims: Claims,
    /// The payload as JSON that every reader accepts.
    pub(crate) claims_text: Box<str>,
}

/// The members of the payload. Of equal names the last counts.
pub(crate) struct Claims(Vec<(Box<str>, Json)>);

impl Claims {
    #[cfg(test)]
    pub(crate) fn new(members: Vec<(Box<str>, Json)>) -> Self {
        Self(members)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Json> {
        let member = self.0.iter().find(|(key, _)| **key == *name);
        member.map(|(_, value)| value)
    }

    /// Finds a claim by its whole name, or else by a path of objects with dots between the names.
    pub(crate) fn find(&self, path: &str) -> Option<&Json> {
        find(&self.0, path)
    }
}

/// Finds a value below `members`. The first part of a path may have dots itself; the shortest one that leads to a value counts.
fn find<'j>(members: &'j [(Box<str>, Json)], path: &str) -> Option<&'j Json> {
    let member = |name: &str| members.iter().find(|(key, _)| **key == *name);
    if let Some((_, value)) = member(path) {
        return Some(value);
    }
    let mut dots = path.match_indices('.');
    dots.find_map(|(at, _)| match member(&path[..at]) {
        Some((_, Json::Object(inner))) => find(inner, &path[at + 1..]),
        _ => None,
    })
}

impl<'a> Segments<'a> {
    /// Splits `token`. The error is a fixed text with the reason.
    pub(crate) fn read(token: &'a str) -> Result<Self, &'static str> {
        let parts = token
            .rsplit_once('.')
            .and_then(|(signing_input, signature)| {
                let (header, payload) = signing_input.split_once('.')?;
                Some((signing_input, header, payload, signature))
            });
        let (signing_input, header, payload, signature) =
            parts.ok_or("not three segments with dots between them")?;
        let header = decode_segment(header).ok_or("the header is not strict base64url")?;
        let payload = decode_segment(payload).ok_or("the payload is not strict base64url")?;
        let signature = decode_segment(signature).ok_or("the signature is not strict base64url")?;

        let Ok((Json::Object(header), _)) = Json::parse(&header) else {
            return Err("the header is not a JSON object");
        };
        let header = Claims(header);
        let kid = check_header(&header)?;
        let alg = header.get("alg").and_then(Json::as_text).map(Box::from);

        let (claims, claims_text) = match Json::parse(&payload) {
            Ok((json @ Json::Object(_), plain)) => {
                let text = claims_text(&json, plain, payload);
                let Json::Object(members) = json else {
                    return Err("the payload is not a JSON object");
                };
                (Claims(members), text)
            }
            _ => return Err("the payload is not a JSON object"),
        };
        Ok(Self {
            signing_input,
            signature,
            alg,
            kid,
            claims,
            claims_text,
        })
    }
}

/// Returns the `kid`. Refuses a header with unsupported extensions (RFC 7515 §4.1.11, RFC 7797).
fn check_header(header: &Claims) -> Result<Option<Box<str>>, &'static str> {
    if header.get("b64") == Some(&Json::Bool(false)) {
        return Err("the header asks for a detached payload (b64)");
    }
    match header.get("crit") {
        None => {}
        Some(Json::Array(names)) if !names.is_empty() => {
            let known = |name: &Json| name.as_text() == Some("b64") && header.get("b64").is_some();
            if !names.iter().all(known) {
                return Err("the header has a critical extension that is not known (crit)");
            }
        }
        Some(_) => return Err("the header's crit is not a list of names"),
    }
    match header.get("kid") {
        None => Ok(None),
        Some(Json::Text(kid) | Json::BrokenText(kid)) => Ok(Some(kid.clone())),
        Some(_) => Err("the header's kid is not text"),
    }
}

fn claims_text(json: &Json, plain: bool, payload: Vec<u8>) -> Box<str> {
    if plain {
        // A plain payload is UTF-8. A leading byte order mark is not part of the text.
        if let Ok(text) = String::from_utf8(payload) {
            return match text.strip_prefix('\u{FEFF}') {
                Some(rest) => rest.into(),
                None => text.into(),
            };
        }
    }
    let mut text = String::new();
    json.write(&mut text);
    text.into()
}

/// Decodes canonical base64url, with or without correct padding, like PyJWT.
fn decode_segment(segment: &str) -> Option<Vec<u8>> {
    let stripped = segment.trim_end_matches('=');
    let padding = segment.len() - stripped.len();
    if padding > 2 || (padding > 0 && !segment.len().is_multiple_of(4)) {
        return None;
    }
    // This engine refuses `+`, `/`, blanks, a single last character and unused bits that are not zero.
    URL_SAFE_NO_PAD.decode(stripped).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_strict_base64url() {
        for good in ["", "QQ", "QQ==", "QUE", "QUE=", "QUFB", "_-8"] {
            assert!(decode_segment(good).is_some(), "{good}");
        }
        for bad in [
            "Q", "QQ=", "QUE==", "QUFB====", "QUFB=", "QR", "+w", "/w", "Q Q", "QQ\n", "=", "==",
            "é",
        ] {
            assert!(decode_segment(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn claims_text_is_json_for_everybody() {
        let payloads: [(&[u8], &str); 4] = [
            (b"{ \"a\": 1 }", "{ \"a\": 1 }"),
            (b"\xEF\xBB\xBF{\"a\":1}", "{\"a\":1}"),
            (b"{\"a\":1,\"a\":2}", "{\"a\":2}"),
            (b"{\"a\":NaN}", "{\"a\":null}"),
        ];
        for (payload, expected) in payloads {
            let token = format!(
                "{}.{}.",
                URL_SAFE_NO_PAD.encode(b"{}"),
                URL_SAFE_NO_PAD.encode(payload)
            );
            assert_eq!(&*Segments::read(&token).unwrap().claims_text, expected);
        }
    }
}
