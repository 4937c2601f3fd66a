//! Writes the parts of a document in the form of `json.dumps`, and in that of RFC 8259.

use std::fmt::Write as _;

use super::super::float;

/// Appends a text in quotes. With `ascii` it escapes every character outside ASCII, as `json.dumps` does by default.
pub fn write_text(text: &str, out: &mut String, ascii: bool) {
    out.push('"');
    let mut plain = 0;
    for (at, c) in text.char_indices() {
        let escape = match c {
            '"' => "\\\"",
            '\\' => "\\\\",
            '\n' => "\\n",
            '\r' => "\\r",
            '\t' => "\\t",
            '\u{8}' => "\\b",
            '\u{c}' => "\\f",
            ..' ' => "",
            '\u{7f}'.. if ascii => "",
            _ => continue,
        };
        out.push_str(&text[plain..at]);
        plain = at + c.len_utf8();
        if escape.is_empty() {
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(out, "\\u{unit:04x}").expect("a String takes everything");
            }
        } else {
            out.push_str(escape);
        }
    }
    out.push_str(&text[plain..]);
    out.push('"');
}

/// Appends a float as `json.dumps` does, with bare `NaN` and `Infinity`.
pub fn write_number(number: f64, out: &mut String) {
    match number {
        f64::INFINITY => out.push_str("Infinity"),
        f64::NEG_INFINITY => out.push_str("-Infinity"),
        number if number.is_nan() => out.push_str("NaN"),
        number => float::write_repr(number, out),
    }
}

/// Appends a float, if it is finite. Returns false for NaN and the infinities, which RFC 8259 has no form for.
#[must_use]
pub fn write_finite(number: f64, out: &mut String) -> bool {
    if number.is_finite() {
        float::write_repr(number, out);
    }
    number.is_finite()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str, ascii: bool) -> String {
        let mut out = String::new();
        write_text(text, &mut out, ascii);
        out
    }

    #[test]
    fn text_is_escaped_as_python_escapes_it() {
        assert_eq!(
            written("a\"\\\n\u{1}é😀\u{7f}", false),
            "\"a\\\"\\\\\\n\\u0001é😀\u{7f}\""
        );
        assert_eq!(
            written("\u{7f}é😀", true),
            "\"\\u007f\\u00e9\\ud83d\\ude00\""
        );
    }
}
