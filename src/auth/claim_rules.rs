//! Checks the claims that `[tenants.NAME.token.claims]` names against their rules.
//!
//! The check itself allocates nothing. The reasons of failed rules are written for a report alone, and show the rule and the
//! type of the claim, never its value.

use crate::config::{ClaimRule, ClaimValue, ExpectedClaim};

use super::json::Json;
use super::segments::Claims;

/// Returns true if every rule holds.
pub(crate) fn all_hold(rules: &[ExpectedClaim], claims: &Claims) -> bool {
    rules
        .iter()
        .all(|expected| holds(&expected.rule, claims.find(&expected.name)))
}

/// Describes each rule that does not hold, with the reason. Empty if all hold.
pub(crate) fn failures(rules: &[ExpectedClaim], claims: &Claims) -> String {
    let failed = rules.iter().filter_map(|expected| {
        let claim = claims.find(&expected.name);
        let reason = (!holds(&expected.rule, claim)).then(|| reason(&expected.rule, claim))?;
        Some(format!("the rule {expected} does not hold: {reason}"))
    });
    failed.collect::<Vec<_>>().join("; ")
}

fn holds(rule: &ClaimRule, claim: Option<&Json>) -> bool {
    let Some(claim) = claim else { return false };
    match rule {
        ClaimRule::Equals(value) => equals(value, claim),
        ClaimRule::OneOf(values) => values.iter().any(|value| equals(value, claim)),
        ClaimRule::Contains(value) => match (claim, value) {
            (Json::Array(items), value) => items.iter().any(|item| equals(value, item)),
            (Json::Text(text), ClaimValue::Text(word)) => {
                // RFC 6749 §3.3: a space alone separates the words of a scope.
                !word.is_empty() && text.split(' ').any(|part| part == word)
            }
            _ => false,
        },
    }
}

fn equals(value: &ClaimValue, claim: &Json) -> bool {
    match (value, claim) {
        (ClaimValue::Text(value), Json::Text(claim)) => **value == **claim,
        (ClaimValue::Flag(value), Json::Bool(claim)) => value == claim,
        (ClaimValue::Integer(value), Json::Int(digits)) => digits.parse() == Ok(*value),
        (ClaimValue::Integer(value), Json::Float(claim)) => is_same_number(*value, *claim),
        (ClaimValue::Number(value), Json::Float(claim)) => value == claim,
        (ClaimValue::Number(value), Json::Int(digits)) => digits
            .parse()
            .is_ok_and(|claim: i64| is_same_number(claim, *value)),
        _ => false,
    }
}

/// Compares exactly: a float beyond 2^53 stands for several integers and equals none of them.
fn is_same_number(integer: i64, float: f64) -> bool {
    const EXACT: u64 = 1 << 53;
    integer.unsigned_abs() <= EXACT && integer as f64 == float
}

/// Returns the reason why a rule does not hold, without the claim's value.
fn reason(rule: &ClaimRule, claim: Option<&Json>) -> &'static str {
    let contains = matches!(rule, ClaimRule::Contains(_));
    let takes_text = matches!(rule.values(), [ClaimValue::Text(_), ..]);
    match claim {
        None => "the token has no such claim",
        Some(Json::Null) => "the claim is null",
        Some(Json::Object(_)) => "the claim is an object; a path a.b leads into one",
        Some(Json::Array(_)) if contains => "the claim is a list without it",
        Some(Json::Array(_)) => "the claim is a list; { contains = … } looks into one",
        Some(Json::Text(_) | Json::BrokenText(_)) if contains && takes_text => {
            "the claim is a text without that word"
        }
        Some(Json::Text(_) | Json::BrokenText(_)) if takes_text => "the claim has another value",
        Some(Json::Text(_) | Json::BrokenText(_)) => "the claim is a text, the rule's value is not",
        Some(Json::Bool(_)) if contains => "the claim is true or false, which contains nothing",
        Some(Json::Int(_) | Json::Float(_)) if contains => {
            "the claim is a number, which contains nothing"
        }
        Some(Json::Bool(_) | Json::Int(_) | Json::Float(_)) if takes_text => {
            "the claim is no text, the rule's value is one"
        }
        Some(_) => "the claim has another value",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rule: ClaimRule, name: &str, claims: &str) -> Result<(), String> {
        let (Json::Object(members), _) = Json::parse(claims.as_bytes()).unwrap() else {
            panic!("no object: {claims}");
        };
        let claims = Claims::new(members);
        let name = name.to_owned();
        let rules = [ExpectedClaim { name, rule }];
        let failures = failures(&rules, &claims);
        assert_eq!(all_hold(&rules, &claims), failures.is_empty());
        match failures.split_once("does not hold: ") {
            Some((_, reason)) => Err(reason.to_owned()),
            None => Ok(()),
        }
    }

    fn text(text: &str) -> ClaimValue {
        ClaimValue::Text(text.to_owned())
    }

    #[test]
    fn a_value_equals_claims_of_its_own_type() {
        use ClaimValue::{Flag, Integer, Number};
        for (value, claim, expected) in [
            (text("web"), r#""web""#, true),
            (text("web"), r#""Web""#, false),
            (text("web"), r#""web ""#, false),
            (text("é"), r#""\u00e9""#, true),
            (text("\u{fffd}"), r#""\ud800""#, false),
            (text("7"), "7", false),
            (text("true"), "true", false),
            (text("None"), "null", false),
            (text("web"), r#"["web"]"#, false),
            (Integer(7), "7", true),
            (Integer(7), "7.0", true),
            (Integer(7), r#""7""#, false),
            (Integer(0), "-0", true),
            (Integer(1), "true", false),
            (Integer(i64::MAX), "9223372036854775807", true),
            (Integer(i64::MAX), "9223372036854775808", false),
            (Integer(i64::MAX), "9.223372036854775807e18", false),
            (Number(1.5), "1.5", true),
            (Number(2.0), "2", true),
            (Number(1.5), "NaN", false),
            (Flag(true), "true", true),
            (Flag(true), "1", false),
            (Flag(false), "null", false),
            (Flag(false), "{}", false),
        ] {
            let claims = format!(r#"{{"c":{claim}}}"#);
            let checked = check(ClaimRule::Equals(value.clone()), "c", &claims);
            assert_eq!(checked.is_ok(), expected, "{value} {claim}: {checked:?}");
            let list = ClaimRule::OneOf(vec![text("other"), value.clone()]);
            assert_eq!(
                check(list, "c", &claims).is_ok(),
                expected,
                "{value} {claim}"
            );
        }
        let digits = "1".repeat(4300);
        assert!(
            check(
                ClaimRule::Equals(Integer(1)),
                "c",
                &format!(r#"{{"c":{digits}}}"#)
            )
            .is_err()
        );
    }

    #[test]
    fn contains_looks_into_lists_and_between_spaces() {
        use ClaimValue::{Flag, Integer};
        for (value, claim, expected) in [
            (text("chat"), r#""read chat write""#, true),
            (text("chat"), r#""chat""#, true),
            (text("chat"), r#""  chat  ""#, true),
            (text("chat"), r#""chats""#, false),
            (text("chat"), r#""read,chat""#, false),
            (text("chat"), r#""read\tchat""#, false),
            (text("chat"), r#""chat\n""#, false),
            (text("chat"), r#""read\fchat\r""#, false),
            (text("read\tchat"), r#""read\tchat write""#, true),
            (text(""), r#""a  b""#, false),
            (text("chat"), r#""Chat""#, false),
            (text("read chat"), r#""read chat""#, false),
            (text("read chat"), r#"["read chat"]"#, true),
            (text("chat"), r#"["read","chat"]"#, true),
            (text("chat"), r#"["read chat"]"#, false),
            (text("chat"), r#"[["chat"]]"#, false),
            (text("chat"), r#"{"chat":true}"#, false),
            (text("5"), "5", false),
            (Integer(5), "5", false),
            (Integer(5), "[4,5]", true),
            (Integer(5), r#"["5"]"#, false),
            (Integer(5), r#""4 5""#, false),
            (Flag(true), "[true]", true),
            (text("chat"), "null", false),
            (text("chat"), "[]", false),
        ] {
            let claims = format!(r#"{{"c":{claim}}}"#);
            let checked = check(ClaimRule::Contains(value.clone()), "c", &claims);
            assert_eq!(checked.is_ok(), expected, "{value} {claim}: {checked:?}");
        }
    }

    #[test]
    fn a_name_is_a_claim_and_else_a_path() {
        for (name, claims, expected) in [
            ("a.b", r#"{"a.b":"x"}"#, true),
            ("a.b", r#"{"a":{"b":"x"}}"#, true),
            // The whole name comes first, whatever its value.
            ("a.b", r#"{"a":{"b":"x"},"a.b":null}"#, false),
            ("a.b", r#"{"a":"x"}"#, false),
            ("a.b", r#"{"a":["x"]}"#, false),
            ("a.b.c", r#"{"a":{"b":{"c":"x"}}}"#, true),
            // A part may have dots itself: the client of a Keycloak, a name that is a URL.
            ("a.b.c", r#"{"a":{"b.c":"x"}}"#, true),
            (
                "https://x.example/app.role",
                r#"{"https://x.example/app":{"role":"x"}}"#,
                true,
            ),
            (
                "https://x.example/app.role",
                r#"{"https://x":{"example/app":1}}"#,
                false,
            ),
            ("a", r#"{"a":"y","a":"x"}"#, true),
            ("a", r#"{"a":"x","a":"y"}"#, false),
        ] {
            let checked = check(ClaimRule::Equals(text("x")), name, claims);
            assert_eq!(checked.is_ok(), expected, "{name} {claims}: {checked:?}");
        }
    }

    #[test]
    fn a_reason_shows_the_type_and_no_value() {
        let equals = || ClaimRule::Equals(text("web"));
        let contains = || ClaimRule::Contains(text("web"));
        for (rule, claim, expected) in [
            (equals(), "null", "the claim is null"),
            (equals(), r#""hunter2""#, "the claim has another value"),
            (
                equals(),
                "7",
                "the claim is no text, the rule's value is one",
            ),
            (
                ClaimRule::Equals(ClaimValue::Integer(7)),
                r#""7""#,
                "the claim is a text, the rule's value is not",
            ),
            (
                equals(),
                r#"["web"]"#,
                "the claim is a list; { contains = … } looks into one",
            ),
            (
                equals(),
                "{}",
                "the claim is an object; a path a.b leads into one",
            ),
            (
                contains(),
                r#""hunter2""#,
                "the claim is a text without that word",
            ),
            (
                contains(),
                r#"["hunter2"]"#,
                "the claim is a list without it",
            ),
            (
                contains(),
                "7",
                "the claim is a number, which contains nothing",
            ),
        ] {
            let told = check(rule, "c", &format!(r#"{{"c":{claim}}}"#));
            assert_eq!(told, Err(expected.to_owned()), "{claim}");
        }
        assert_eq!(
            check(equals(), "other", "{}"),
            Err("the token has no such claim".to_owned())
        );
    }
}
