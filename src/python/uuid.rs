//! `uuid.UUID()`.

use super::Int;

/// Returns `uuid.UUID(text).int`: 32 digits, with hyphens, braces and the prefixes `urn:` and `uuid:` where Python allows
/// them.
///
/// It replaces `uuid::Uuid::parse_str`, which knows four forms: Python drops every hyphen and accepts whatever
/// `int(text, 16)` accepts.
pub fn parse(text: &str) -> Option<u128> {
    let text = text.replace("urn:", "").replace("uuid:", "");
    let text = text.trim_matches(['{', '}']).replace('-', "");
    if text.chars().count() != 32 {
        return None;
    }
    Int::parse(&text, 16)?.to_u128()
}
