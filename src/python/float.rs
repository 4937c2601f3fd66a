//! `repr(float)`, which `str()` and `json` print too.

use std::fmt::Write as _;

/// Appends `repr(number)`: the shortest digits that read back equal, with an exponent below 1e-4 and from 1e16 on.
///
/// The crates `ryu` and `zmij` are not needed: std prints the same digits, and only the layout is Python's.
pub fn write_repr(number: f64, out: &mut String) {
    if number.is_nan() {
        return out.push_str("nan");
    }
    if number.is_infinite() {
        return out.push_str(if number > 0.0 { "inf" } else { "-inf" });
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let start = out.len();
    let written = if (-4..16).contains(&exponent) {
        write!(out, "{number}")
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        write!(out, "{digits}e{sign}{:02}", exponent.unsigned_abs())
    };
    written.expect("a String takes everything");
    if !out[start..].contains(['.', 'e']) {
        out.push_str(".0");
    }
}

/// Returns `repr(number)`.
pub fn repr(number: f64) -> String {
    let mut out = String::new();
    write_repr(number, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_print_as_python_prints_them() {
        for (number, text) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (-1.5, "-1.5"),
            (0.1, "0.1"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (123456.789, "123456.789"),
            (123456789012345.6, "123456789012345.6"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.2345678901234567e19, "1.2345678901234567e+19"),
            (1e22, "1e+22"),
            (1e300, "1e+300"),
            (5e-324, "5e-324"),
        ] {
            assert_eq!(repr(number), text);
            assert_eq!(text.parse(), Ok(number));
        }
        let special = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY].map(repr);
        assert_eq!(special, ["nan", "inf", "-inf"]);
    }

    #[test]
    fn a_float_is_appended_to_what_is_there() {
        let mut out = String::from("1.5e");
        write_repr(2.0, &mut out);
        assert_eq!(out, "1.5e2.0");
    }
}
