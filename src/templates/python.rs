//! JSON values as Python's `str()` prints what `json.loads` makes of them.

/// `str(json.loads(json))`; `None` for lists and objects, which no group name should hold.
pub(super) fn str(json: &str) -> Option<String> {
    Some(match json.as_bytes().first()? {
        b'"' => serde_json::from_str(json).ok()?,
        b't' => "True".to_owned(),
        b'f' => "False".to_owned(),
        b'n' => "None".to_owned(),
        b'[' | b'{' => return None,
        _ if json == "-0" => "0".to_owned(),
        _ if json.contains(['.', 'e', 'E']) => float(json.parse().ok()?),
        _ => json.to_owned(),
    })
}

/// `repr(float)`: the shortest digits that read back as the same number, with an exponent from 1e16 on and below 1e-4.
fn float(number: f64) -> String {
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    // "{:e}" has the shortest digits, too: "1.2345e-7".
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) || number == 0.0 {
        let plain = format!("{number}");
        return match plain.contains('.') {
            true => plain,
            false => plain + ".0",
        };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
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
            assert_eq!(str(json).as_deref(), Some(python), "{json}");
        }
        assert_eq!(str("[1]"), None);
        assert_eq!(str("{}"), None);
    }
}
