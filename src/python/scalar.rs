//! Values that are not containers, with `str()` and `int()`.

use std::borrow::Cow;

use super::{Int, float};

/// A Python value that was read from JSON.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scalar<'a> {
    /// `None`.
    None,
    /// `True` or `False`; `int()` makes them 1 and 0.
    Bool(bool),
    /// An integer of any length: decimal digits, with `-` before negative ones.
    Int(&'a str),
    /// A float, NaN and the infinities included.
    Float(f64),
    /// Valid Unicode text.
    Text(&'a str),
    /// Text with lone surrogates, which cannot be encoded.
    BrokenText,
    /// A list or a dict.
    Container,
}

impl<'a> Scalar<'a> {
    /// Returns `str(value)`; `None` for containers and for text that cannot be encoded.
    pub fn str(self) -> Option<Cow<'a, str>> {
        Some(match self {
            Scalar::None => "None".into(),
            Scalar::Bool(true) => "True".into(),
            Scalar::Bool(false) => "False".into(),
            Scalar::Int(digits) => digits.into(),
            Scalar::Float(number) => float::repr(number).into(),
            Scalar::Text(text) => text.into(),
            Scalar::BrokenText | Scalar::Container => return None,
        })
    }

    /// Returns `int(value)`; `None` if Python raises an error.
    pub fn int(self) -> Option<Int<'a>> {
        match self {
            Scalar::Bool(truth) => Some(Int::of_digits(if truth { "1" } else { "0" })),
            Scalar::Int(digits) => Some(Int::of_digits(digits)),
            Scalar::Float(number) => Int::of_float(number),
            Scalar::Text(text) => Int::parse(text, 10),
            Scalar::None | Scalar::BrokenText | Scalar::Container => None,
        }
    }
}

/// Returns `str(json.loads(json))` for one JSON value; `None` for containers.
pub fn str_of_json(json: &str) -> Option<String> {
    let text: Cow<'_, str>;
    let scalar = match json.as_bytes().first()? {
        b'"' => {
            text = serde_json::from_str(json).ok()?;
            Scalar::Text(&text)
        }
        b't' => Scalar::Bool(true),
        b'f' => Scalar::Bool(false),
        b'n' => Scalar::None,
        b'[' | b'{' => Scalar::Container,
        // Python's int has no negative zero.
        _ if json == "-0" => Scalar::Int("0"),
        _ if json.contains(['.', 'e', 'E']) => Scalar::Float(json.parse().ok()?),
        _ => Scalar::Int(json),
    };
    scalar.str().map(Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_print_as_in_python() {
        // Right column: str(json.loads(left)) of CPython 3.11.
        for (json, python) in [
            ("7", "7"),
            ("-12", "-12"),
            ("-0", "0"),
            ("18446744073709551616", "18446744073709551616"),
            ("1.0", "1.0"),
            ("1.50", "1.5"),
            ("-0.0", "-0.0"),
            ("0e5", "0.0"),
            ("1e3", "1000.0"),
            ("1e15", "1000000000000000.0"),
            ("9999999999999998.0", "9999999999999998.0"),
            ("1e16", "1e+16"),
            ("1.5E+16", "1.5e+16"),
            ("123456789012345680.0", "1.2345678901234568e+17"),
            ("0.0001", "0.0001"),
            ("0.00001", "1e-05"),
            ("1.25e-7", "1.25e-07"),
            ("1e-300", "1e-300"),
            ("5e-324", "5e-324"),
            ("1e400", "inf"),
            ("-1e400", "-inf"),
            ("0.1", "0.1"),
            ("true", "True"),
            ("false", "False"),
            ("null", "None"),
            (r#""a\u00e9""#, "aé"),
        ] {
            assert_eq!(str_of_json(json).as_deref(), Some(python), "{json}");
        }
        assert_eq!(str_of_json("[1]"), None);
        assert_eq!(str_of_json("{}"), None);
    }
}
