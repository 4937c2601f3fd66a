//! `uuid.UUID()`.

use super::Int;

/// `uuid.UUID(text).int`: 32 digits, hyphens, braces and the prefixes `urn:` and `uuid:` wherever Python takes them.
///
/// Not `uuid::Uuid::parse_str`, which knows four forms: Python drops every hyphen and takes what `int(text, 16)` takes.
pub fn parse(text: &str) -> Option<u128> {
    let text = text.replace("urn:", "").replace("uuid:", "");
    let text = text.trim_matches(['{', '}']).replace('-', "");
    if text.chars().count() != 32 {
        return None;
    }
    Int::parse(&text, 16)?.to_u128()
}
