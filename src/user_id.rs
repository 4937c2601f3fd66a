//! Canonical user ids: one text per user, whatever form a token, an API call or a command line gives it.
//!
//! The forms are those that Django takes for the field's type: Python's `int()`, `uuid.UUID()`, `str()`. The
//! canonical text is what stands in Redis keys, limits, groups and logs; two forms of one user must not differ.

use crate::config::{IdType, TokenConfig};
use crate::ids::UserId;

/// Why a value names no user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserIdError {
    /// Django fails on such a value; the token is refused.
    #[error("the value cannot be read as a user id")]
    NotReadable,
    /// A proper value that no user can have: as good as an unknown user.
    #[error("no user can have this id")]
    OutOfRange,
}

/// A claim's value, as far as a user id cares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum IdClaim<'a> {
    /// `null`, which Django compares with `IS NULL`.
    Null,
    /// `true` is 1 to Python.
    Bool(bool),
    /// Decimal digits, with `-` in front of negative ones; any length.
    Int(&'a str),
    /// May be NaN or infinite.
    Float(f64),
    /// Proper Unicode text.
    Text(&'a str),
    /// Text with lone surrogates: no database takes it.
    BrokenText,
    /// An array or an object.
    Container,
}

/// How the claim is read: by `id_type`, unless another field than the primary key is compared, which is text.
pub fn id_type_of(token: &TokenConfig, id_type: IdType) -> IdType {
    match token.user_id_field.as_str() {
        "id" => id_type,
        _ => IdType::Text,
    }
}

/// The user that a token's claim names.
///
/// # Errors
/// [`UserIdError::NotReadable`] where simplejwt would fail, [`UserIdError::OutOfRange`] where it finds nobody.
pub fn from_claim(claim: IdClaim<'_>, id_type: IdType) -> Result<UserId, UserIdError> {
    if claim == IdClaim::Null {
        return Err(UserIdError::OutOfRange);
    }
    match id_type {
        IdType::Int => int_from_claim(claim),
        IdType::Uuid => uuid_from_claim(claim),
        IdType::Text => text_from_claim(claim),
    }
}

/// The user that a person or a program names in text, by the same rules.
///
/// # Errors
/// As [`from_claim`].
pub fn from_text(text: &str, id_type: IdType) -> Result<UserId, UserIdError> {
    from_claim(IdClaim::Text(text), id_type)
}

/// The first float beyond a database's 64-bit integers.
const TWO_POW_63: f64 = (1_u64 << 63) as f64;

fn int_from_claim(claim: IdClaim<'_>) -> Result<UserId, UserIdError> {
    let value = match claim {
        IdClaim::Bool(value) => i64::from(value),
        IdClaim::Int(digits) => digits.parse().map_err(|_| UserIdError::OutOfRange)?,
        IdClaim::Float(value) if !value.is_finite() => return Err(UserIdError::NotReadable),
        // int() cuts the fraction off.
        IdClaim::Float(value) if (-TWO_POW_63..TWO_POW_63).contains(&value) => value as i64,
        IdClaim::Float(_) => return Err(UserIdError::OutOfRange),
        IdClaim::Text(text) => python_int(text, 10)
            .ok_or(UserIdError::NotReadable)?
            .to_i64()
            .ok_or(UserIdError::OutOfRange)?,
        IdClaim::Null | IdClaim::BrokenText | IdClaim::Container => {
            return Err(UserIdError::NotReadable);
        }
    };
    Ok(UserId::from(value.to_string()))
}

fn uuid_from_claim(claim: IdClaim<'_>) -> Result<UserId, UserIdError> {
    let value = match claim {
        IdClaim::Bool(value) => u128::from(value),
        IdClaim::Int(digits) => digits.parse().map_err(|_| UserIdError::NotReadable)?,
        IdClaim::Text(text) => python_uuid(text).ok_or(UserIdError::NotReadable)?,
        _ => return Err(UserIdError::NotReadable),
    };
    let canonical = uuid::Uuid::from_u128(value).hyphenated().to_string();
    Ok(UserId::from(canonical))
}

fn text_from_claim(claim: IdClaim<'_>) -> Result<UserId, UserIdError> {
    let text = match claim {
        IdClaim::Bool(true) => "True".to_owned(),
        IdClaim::Bool(false) => "False".to_owned(),
        IdClaim::Int(digits) => digits.to_owned(),
        IdClaim::Float(value) => python_float(value),
        IdClaim::Text(text) => text.to_owned(),
        IdClaim::BrokenText => return Err(UserIdError::NotReadable),
        IdClaim::Null | IdClaim::Container => return Err(UserIdError::OutOfRange),
    };
    // PostgreSQL cannot be asked for a NUL. A blank field belongs to everybody who left it blank.
    match text.as_str() {
        "" => Err(UserIdError::OutOfRange),
        text if text.contains('\0') => Err(UserIdError::NotReadable),
        text => Ok(UserId::from(text)),
    }
}

/// An integer of any length, as Python reads it from text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PythonInt {
    negative: bool,
    /// ASCII digits of the base, without leading zeros.
    digits: String,
    base: u32,
}

impl PythonInt {
    fn to_i64(&self) -> Option<i64> {
        let text = match self.negative {
            true => format!("-{}", self.digits),
            false => self.digits.clone(),
        };
        i64::from_str_radix(&text, self.base).ok()
    }

    /// The nearest float; infinite past its range, which still compares as Python's integer would.
    pub fn to_f64(&self) -> f64 {
        let magnitude = self.digits.parse().unwrap_or(f64::INFINITY);
        if self.negative { -magnitude } else { magnitude }
    }
}

/// `int(text, base)` of Python, for base 10 and 16: blanks around, a sign, `_` between digits, any script's digits.
pub fn python_int(text: &str, base: u32) -> Option<PythonInt> {
    let text = text.trim_matches(is_python_space);
    let (negative, text) = match text.strip_prefix(['-', '+']) {
        Some(rest) => (text.starts_with('-'), rest),
        None => (false, text),
    };
    let has_prefix = base == 16 && (text.starts_with("0x") || text.starts_with("0X"));
    let text = if has_prefix { &text[2..] } else { text };
    let mut digits = String::with_capacity(text.len());
    let mut after_digit = has_prefix;
    for c in text.chars() {
        if c == '_' && after_digit {
            after_digit = false;
            continue;
        }
        let value = c.to_digit(base).or_else(|| decimal_digit(c))?;
        digits.push(char::from_digit(value, base)?);
        after_digit = true;
    }
    // Python refuses to convert more (`sys.int_info.default_max_str_digits`).
    if !after_digit || digits.is_empty() || digits.len() > 4300 {
        return None;
    }
    let significant = digits.trim_start_matches('0');
    Some(PythonInt {
        negative,
        digits: if significant.is_empty() {
            "0"
        } else {
            significant
        }
        .to_owned(),
        base,
    })
}

/// `str.isspace()` of Python, which counts the four separators U+001C to U+001F too.
fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1C}'..='\u{1F}').contains(&c)
}

/// The value of a decimal digit outside ASCII (`unicodedata.decimal`, Unicode 14 as in Python 3.11).
fn decimal_digit(c: char) -> Option<u32> {
    let point = u32::from(c);
    let block = DIGIT_ZEROS
        .partition_point(|zero| *zero <= point)
        .checked_sub(1)?;
    let value = point - DIGIT_ZEROS[block];
    (value < 10).then_some(value)
}

/// The zeros of every script's decimal digits; the other nine follow each.
const DIGIT_ZEROS: [u32; 65] = [
    0x660, 0x6F0, 0x7C0, 0x966, 0x9E6, 0xA66, 0xAE6, 0xB66, 0xBE6, 0xC66, 0xCE6, 0xD66, 0xDE6,
    0xE50, 0xED0, 0xF20, 0x1040, 0x1090, 0x17E0, 0x1810, 0x1946, 0x19D0, 0x1A80, 0x1A90, 0x1B50,
    0x1BB0, 0x1C40, 0x1C50, 0xA620, 0xA8D0, 0xA900, 0xA9D0, 0xA9F0, 0xAA50, 0xABF0, 0xFF10,
    0x104A0, 0x10D30, 0x11066, 0x110F0, 0x11136, 0x111D0, 0x112F0, 0x11450, 0x114D0, 0x11650,
    0x116C0, 0x11730, 0x118E0, 0x11950, 0x11C50, 0x11D50, 0x11DA0, 0x16A60, 0x16AC0, 0x16B50,
    0x1D7CE, 0x1D7D8, 0x1D7E2, 0x1D7EC, 0x1D7F6, 0x1E140, 0x1E2F0, 0x1E950, 0x1FBF0,
];

/// `uuid.UUID(text).int`.
fn python_uuid(text: &str) -> Option<u128> {
    let text = text.replace("urn:", "").replace("uuid:", "");
    let text = text.trim_matches(['{', '}']).replace('-', "");
    if text.chars().count() != 32 {
        return None;
    }
    let int = python_int(&text, 16)?;
    match int.negative && int.digits != "0" {
        true => None,
        false => u128::from_str_radix(&int.digits, 16).ok(),
    }
}

/// `repr(value)` of a Python float.
fn python_float(value: f64) -> String {
    if value.is_nan() {
        return "nan".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.into();
    }
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    match exponent {
        -4..16 => {
            let plain = format!("{value}");
            if plain.contains('.') {
                plain
            } else {
                plain + ".0"
            }
        }
        _ => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{mantissa}e{sign}{:02}", exponent.abs())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn int(claim: IdClaim<'_>) -> Result<String, UserIdError> {
        from_claim(claim, IdType::Int).map(|id| id.to_string())
    }

    #[test]
    fn integers_follow_python() {
        let good = [
            ("1", "1"),
            (" 1 ", "1"),
            ("+1", "1"),
            ("0001", "1"),
            ("1_0", "10"),
            ("１", "1"),
            ("٣٤", "34"),
            ("-0", "0"),
            ("-5", "-5"),
            ("\u{1F}1\u{A0}", "1"),
            ("9223372036854775807", "9223372036854775807"),
        ];
        for (text, id) in good {
            assert_eq!(int(IdClaim::Text(text)), Ok(id.to_owned()), "{text:?}");
        }
        let bad = [
            "", " ", "abc", "1.0", "1e0", "_1", "1_", "1__0", "+ 1", "0x1", "1;2", "1\0", "²",
            "- 1",
        ];
        for text in bad {
            assert_eq!(
                int(IdClaim::Text(text)),
                Err(UserIdError::NotReadable),
                "{text:?}"
            );
        }
        assert_eq!(
            int(IdClaim::Text("99999999999999999999")),
            Err(UserIdError::OutOfRange)
        );
        assert_eq!(
            int(IdClaim::Int("9223372036854775808")),
            Err(UserIdError::OutOfRange)
        );
        assert_eq!(int(IdClaim::Float(1.9)), Ok("1".into()));
        assert_eq!(int(IdClaim::Float(-0.5)), Ok("0".into()));
        assert_eq!(int(IdClaim::Float(1e308)), Err(UserIdError::OutOfRange));
        assert_eq!(int(IdClaim::Float(f64::NAN)), Err(UserIdError::NotReadable));
        assert_eq!(int(IdClaim::Bool(true)), Ok("1".into()));
        assert_eq!(int(IdClaim::Null), Err(UserIdError::OutOfRange));
        assert_eq!(int(IdClaim::Container), Err(UserIdError::NotReadable));
    }

    #[test]
    fn uuids_follow_python() {
        let canonical = "6f1c2d3e-4a5b-4c6d-8e7f-0123456789ab";
        let good = [
            canonical,
            "6F1C2D3E-4A5B-4C6D-8E7F-0123456789AB",
            "6f1c2d3e4a5b4c6d8e7f0123456789ab",
            "{6f1c2d3e-4a5b-4c6d-8e7f-0123456789ab}",
            "urn:uuid:6f1c2d3e-4a5b-4c6d-8e7f-0123456789ab",
        ];
        for text in good {
            assert_eq!(
                from_text(text, IdType::Uuid).unwrap().as_str(),
                canonical,
                "{text}"
            );
        }
        let number = IdClaim::Int("147690609487755141172659641408706546091");
        assert_eq!(
            from_claim(number, IdType::Uuid).unwrap().as_str(),
            canonical
        );
        for text in [
            "",
            "1",
            "6f1c2d3e-4a5b-4c6d-8e7f-0123456789a",
            "g".repeat(32).as_str(),
        ] {
            assert_eq!(
                from_text(text, IdType::Uuid),
                Err(UserIdError::NotReadable),
                "{text}"
            );
        }
    }

    #[test]
    fn text_is_taken_as_it_is() {
        for text in ["alice", "alice ", "ALICE", "é", "42", "'; --"] {
            assert_eq!(from_text(text, IdType::Text).unwrap().as_str(), text);
        }
        let floats = [
            (1.0, "1.0"),
            (1.5, "1.5"),
            (1e16, "1e+16"),
            (1e-5, "1e-05"),
            (123456.789, "123456.789"),
        ];
        for (value, text) in floats {
            assert_eq!(
                from_claim(IdClaim::Float(value), IdType::Text)
                    .unwrap()
                    .as_str(),
                text
            );
        }
        assert_eq!(from_text("", IdType::Text), Err(UserIdError::OutOfRange));
        assert_eq!(
            from_text("a\0", IdType::Text),
            Err(UserIdError::NotReadable)
        );
        assert_eq!(
            from_claim(IdClaim::Bool(true), IdType::Text)
                .unwrap()
                .as_str(),
            "True"
        );
    }
}
