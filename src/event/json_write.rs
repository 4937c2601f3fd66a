//! Writes JSON twice: as Python's `json.dumps` does on a layer, and compact for clients.
//!
//! Python puts blanks after `,` and `:`, escapes what is not ASCII and writes `NaN` bare; clients get UTF-8 as it is and
//! nothing that RFC 8259 does not know.

use std::fmt::{self, Write as _};

use super::{EncodeError, Key, MAX_DEPTH, NotRenderable, Value};

/// How the two writers differ.
trait Style {
    type Error;
    const SEPARATORS: [&'static str; 2];
    fn string(text: &str, out: &mut String);
    fn float(number: f64, out: &mut String) -> Result<(), Self::Error>;
    fn bytes() -> Self::Error;
    fn extension() -> Self::Error;
    fn too_deep() -> Self::Error;
}

/// `json.dumps` with its defaults.
struct Python;

impl Style for Python {
    type Error = EncodeError;
    const SEPARATORS: [&'static str; 2] = [", ", ": "];

    fn string(text: &str, out: &mut String) {
        write_string(text, out, true);
    }

    fn float(number: f64, out: &mut String) -> Result<(), EncodeError> {
        match number {
            f64::INFINITY => out.push_str("Infinity"),
            f64::NEG_INFINITY => out.push_str("-Infinity"),
            number if number.is_nan() => out.push_str("NaN"),
            number => write_float(number, out),
        }
        Ok(())
    }

    fn bytes() -> EncodeError {
        EncodeError::BytesInJson
    }

    fn extension() -> EncodeError {
        EncodeError::BytesInJson
    }

    fn too_deep() -> EncodeError {
        EncodeError::TooDeep
    }
}

/// Compact and UTF-8.
struct Client;

impl Style for Client {
    type Error = NotRenderable;
    const SEPARATORS: [&'static str; 2] = [",", ":"];

    fn string(text: &str, out: &mut String) {
        write_string(text, out, false);
    }

    fn float(number: f64, out: &mut String) -> Result<(), NotRenderable> {
        if !number.is_finite() {
            return Err(NotRenderable::NotFinite);
        }
        write_float(number, out);
        Ok(())
    }

    fn bytes() -> NotRenderable {
        NotRenderable::Bytes
    }

    fn extension() -> NotRenderable {
        NotRenderable::Extension
    }

    fn too_deep() -> NotRenderable {
        NotRenderable::TooDeep
    }
}

/// Writes a map as `json.dumps(dict)` does.
pub(crate) fn write_event(fields: &[(Key, Value)], out: &mut String) -> Result<(), EncodeError> {
    write_fields::<Python>(fields.iter(), out, 0)
}

/// Writes one value for a client.
pub(crate) fn write_for_client(value: &Value, out: &mut String) -> Result<(), NotRenderable> {
    write::<Client>(value, out, 0)
}

/// Writes an object for a client.
pub(crate) fn write_fields_for_client<'a>(
    fields: impl Iterator<Item = &'a (Key, Value)>,
    out: &mut String,
) -> Result<(), NotRenderable> {
    write_fields::<Client>(fields, out, 0)
}

fn write<S: Style>(value: &Value, out: &mut String, depth: usize) -> Result<(), S::Error> {
    match value {
        Value::Nil => out.push_str("null"),
        Value::Bool(truth) => out.push_str(if *truth { "true" } else { "false" }),
        Value::Int(number) => append(out, format_args!("{number}")),
        Value::UInt(number) => append(out, format_args!("{number}")),
        Value::BigInt(text) => out.push_str(text),
        Value::Float(number) => S::float(*number, out)?,
        Value::Str(text) => S::string(text, out),
        Value::Bin(_) => return Err(S::bytes()),
        Value::Ext(..) => return Err(S::extension()),
        Value::Array(items) => {
            if depth >= MAX_DEPTH {
                return Err(S::too_deep());
            }
            out.push('[');
            for (position, item) in items.iter().enumerate() {
                if position > 0 {
                    out.push_str(S::SEPARATORS[0]);
                }
                write::<S>(item, out, depth + 1)?;
            }
            out.push(']');
        }
        Value::Map(fields) => write_fields::<S>(fields.iter(), out, depth)?,
    }
    Ok(())
}

fn write_fields<'a, S: Style>(
    fields: impl Iterator<Item = &'a (Key, Value)>,
    out: &mut String,
    depth: usize,
) -> Result<(), S::Error> {
    if depth >= MAX_DEPTH {
        return Err(S::too_deep());
    }
    out.push('{');
    for (position, (key, value)) in fields.enumerate() {
        if position > 0 {
            out.push_str(S::SEPARATORS[0]);
        }
        S::string(key.as_str().ok_or_else(S::bytes)?, out);
        out.push_str(S::SEPARATORS[1]);
        write::<S>(value, out, depth + 1)?;
    }
    out.push('}');
    Ok(())
}

fn append(out: &mut String, text: fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a String takes everything");
}

fn write_string(text: &str, out: &mut String, ascii: bool) {
    out.push('"');
    let mut plain = 0;
    for (at, char) in text.char_indices() {
        let escape = match char {
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
        plain = at + char.len_utf8();
        if escape.is_empty() {
            for unit in char.encode_utf16(&mut [0; 2]) {
                append(out, format_args!("\\u{unit:04x}"));
            }
        } else {
            out.push_str(escape);
        }
    }
    out.push_str(&text[plain..]);
    out.push('"');
}

/// Python's `repr(float)`: the shortest digits that read back equal, an exponent below 1e-4 and from 1e16 on.
fn write_float(number: f64, out: &mut String) {
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{number}");
        out.push_str(&plain);
        if !plain.contains('.') {
            out.push_str(".0");
        }
        return;
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    append(
        out,
        format_args!("{digits}e{sign}{:02}", exponent.unsigned_abs()),
    );
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
            (0.1, "0.1"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (123456789012345.6, "123456789012345.6"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.2345678901234567e19, "1.2345678901234567e+19"),
            (1e22, "1e+22"),
            (1e300, "1e+300"),
            (5e-324, "5e-324"),
        ] {
            let mut out = String::new();
            write_float(number, &mut out);
            assert_eq!(out, text);
            assert_eq!(text.parse(), Ok(number));
        }
    }
}
