//! User and password in a URL: finds characters that an operator forgot to percent-encode.

use crate::config::Fault;

/// The advice for a URL that cannot be read and may hold a password.
pub(super) const ADVICE: &str =
    "user and password are percent-encoded: / as %2F, ? as %3F, # as %23, @ as %40, % as %25";

/// Finds a raw `/`, `?` or `#` in the login of a URL, which ends the address too early; `rest` is the text behind `://`.
/// Drivers read such a URL as another host, or not at all.
pub(super) fn raw_separator(rest: &str) -> Option<char> {
    let first = rest.find(['/', '?', '#'])?;
    let separator = rest[first..].chars().next()?;
    let after = &rest[first + 1..];
    let between = &after[..after.find('@')?];
    // The value of an option may hold an @: ?user=a@b.
    let in_option = match separator {
        '?' => between.contains('='),
        _ => between
            .split_once('?')
            .is_some_and(|(_, option)| option.contains('=')),
    };
    (!in_option).then_some(separator)
}

/// Returns the fault of a URL with such a character; it shows nothing else of the URL.
pub(super) fn raw_fault(raw: char, expected: &str) -> Fault {
    let encoded = format!("%{:02X}", u32::from(raw));
    Fault::new("", format!("a URL with a raw {raw} before its @"), expected).advice(format!(
        "in user and password write {raw} as {encoded}; {ADVICE}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_separators_are_found_before_the_last_at() {
        for (rest, raw) in [
            ("u:p/w@h/db", Some('/')),
            ("u:12/34@h:5432/db", Some('/')),
            (":p?w@h/0", Some('?')),
            ("u:p#w@h", Some('#')),
            ("u:p@a/b@h/db", Some('/')),
            ("u:p@h/db", None),
            ("u:p@w@h/db", None),
            ("h/db?user=a@b", None),
            ("h?user=a@b", None),
            ("/db?host=/run&user=a@b", None),
            ("h:1,h:2/m?sentinel_password=p@q", None),
            ("h", None),
        ] {
            assert_eq!(raw_separator(rest), raw, "{rest}");
        }
    }
}
