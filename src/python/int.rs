//! `int()`: integers of any length, from text in any script.

use std::borrow::Cow;

/// The longest digit string that Python converts (`sys.int_info.default_max_str_digits`); a sign is not counted.
pub const MAX_STR_DIGITS: usize = 4300;

/// An integer of any length.
#[derive(Clone, Debug)]
pub struct Int<'a> {
    negative: bool,
    /// ASCII digits of the base; leading zeros do not change the value.
    digits: Cow<'a, str>,
    base: u32,
}

impl<'a> Int<'a> {
    /// Reads decimal digits, with `-` before a negative integer.
    pub(super) fn of_digits(text: &'a str) -> Self {
        let (negative, digits) = match text.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, text),
        };
        Self {
            negative,
            digits: digits.into(),
            base: 10,
        }
    }

    /// Returns `int(number)`, which drops the fraction; `None` for NaN and the infinities.
    pub(super) fn of_float(number: f64) -> Option<Int<'static>> {
        let digits = number
            .is_finite()
            .then(|| format!("{:.0}", number.trunc().abs()))?;
        Some(Int {
            negative: number < 0.0,
            digits: digits.into(),
            base: 10,
        })
    }

    /// Returns `int(text, base)` for base 10 and 16. The text may have blanks around, a sign, `_` between digits, and digits
    /// of any script.
    pub fn parse(text: &str, base: u32) -> Option<Int<'static>> {
        let text = text.trim_matches(is_space);
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
        // Python has no such bound for bases that are powers of two. Texts in base 16 are short here, so it does no harm.
        if !after_digit || digits.is_empty() || digits.len() > MAX_STR_DIGITS {
            return None;
        }
        Some(Int {
            negative,
            digits: digits.into(),
            base,
        })
    }

    /// Returns the value, if it fits into an `i64`.
    pub fn to_i64(&self) -> Option<i64> {
        let magnitude = i128::try_from(self.magnitude()?).ok()?;
        i64::try_from(if self.negative { -magnitude } else { magnitude }).ok()
    }

    /// Returns the value, if it is not negative and fits into a `u128`.
    pub fn to_u128(&self) -> Option<u128> {
        let magnitude = self.magnitude()?;
        (!self.negative || magnitude == 0).then_some(magnitude)
    }

    /// Returns the nearest float, for decimal digits. An integer beyond the range of floats becomes infinite, which compares
    /// with floats as Python's integer does.
    pub fn to_f64(&self) -> f64 {
        let magnitude = self.digits.parse().unwrap_or(f64::INFINITY);
        if self.negative { -magnitude } else { magnitude }
    }

    fn magnitude(&self) -> Option<u128> {
        u128::from_str_radix(&self.digits, self.base).ok()
    }
}

/// Does `str.isspace()`, which counts the four separators U+001C to U+001F, too.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1C}'..='\u{1F}').contains(&c)
}

/// Returns the value of a decimal digit outside ASCII (`unicodedata.decimal`, Unicode 14 as in Python 3.11).
fn decimal_digit(c: char) -> Option<u32> {
    let point = u32::from(c);
    let block = DIGIT_ZEROS
        .partition_point(|zero| *zero <= point)
        .checked_sub(1)?;
    let value = point - DIGIT_ZEROS[block];
    (value < 10).then_some(value)
}

/// The zero of every script's decimal digits; the other nine digits follow it.
const DIGIT_ZEROS: [u32; 65] = [
    0x660, 0x6F0, 0x7C0, 0x966, 0x9E6, 0xA66, 0xAE6, 0xB66, 0xBE6, 0xC66, 0xCE6, 0xD66, 0xDE6,
    0xE50, 0xED0, 0xF20, 0x1040, 0x1090, 0x17E0, 0x1810, 0x1946, 0x19D0, 0x1A80, 0x1A90, 0x1B50,
    0x1BB0, 0x1C40, 0x1C50, 0xA620, 0xA8D0, 0xA900, 0xA9D0, 0xA9F0, 0xAA50, 0xABF0, 0xFF10,
    0x104A0, 0x10D30, 0x11066, 0x110F0, 0x11136, 0x111D0, 0x112F0, 0x11450, 0x114D0, 0x11650,
    0x116C0, 0x11730, 0x118E0, 0x11950, 0x11C50, 0x11D50, 0x11DA0, 0x16A60, 0x16AC0, 0x16B50,
    0x1D7CE, 0x1D7D8, 0x1D7E2, 0x1D7EC, 0x1D7F6, 0x1E140, 0x1E2F0, 0x1E950, 0x1FBF0,
];

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Option<i64> {
        Int::parse(text, 10)?.to_i64()
    }

    #[test]
    fn text_is_read_as_python_reads_it() {
        for (text, value) in [
            ("1", 1),
            (" 1 ", 1),
            ("+1", 1),
            ("0001", 1),
            ("1_0", 10),
            ("１", 1),
            ("٣٤", 34),
            ("-0", 0),
            ("-5", -5),
            ("\u{1F}1\u{A0}", 1),
            ("9223372036854775807", i64::MAX),
            ("-9223372036854775808", i64::MIN),
        ] {
            assert_eq!(parsed(text), Some(value), "{text:?}");
        }
        for text in [
            "", " ", "abc", "1.0", "1e0", "_1", "1_", "1__0", "+ 1", "0x1", "1;2", "1\0", "²",
            "- 1",
        ] {
            assert!(Int::parse(text, 10).is_none(), "{text:?}");
        }
        let hex = |text| Int::parse(text, 16)?.to_u128();
        assert_eq!(
            [hex("0x_ff"), hex("-0"), hex("-1"), hex("fg")],
            [Some(255), Some(0), None, None]
        );
    }

    #[test]
    fn the_bound_of_digits_leaves_the_sign_out() {
        let longest = "9".repeat(MAX_STR_DIGITS);
        assert!(Int::parse(&longest, 10).is_some());
        assert!(Int::parse(&format!("-{longest}"), 10).is_some());
        assert!(Int::parse(&format!("{longest}9"), 10).is_none());
    }

    #[test]
    fn a_float_loses_its_fraction_and_nothing_else() {
        for (float, value) in [
            (1.9, Some(1)),
            (-1.9, Some(-1)),
            (-0.5, Some(0)),
            (1e18, Some(10_i64.pow(18))),
            (1e19, None),
        ] {
            assert_eq!(Int::of_float(float).unwrap().to_i64(), value, "{float}");
        }
        assert_eq!(Int::of_float(1e308).unwrap().to_f64(), 1e308);
        assert!(Int::of_float(f64::NAN).is_none());
    }

    #[test]
    fn what_no_float_holds_compares_as_infinite() {
        let beyond = "9".repeat(400);
        assert_eq!(Int::of_digits(&beyond).to_f64(), f64::INFINITY);
        assert_eq!(
            Int::of_digits(&format!("-{beyond}")).to_f64(),
            f64::NEG_INFINITY
        );
        assert_eq!(Int::of_digits("170").to_f64(), 170.0);
    }
}
