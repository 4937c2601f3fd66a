//! Parts of a request in the form in which the log may show them: short, printable, and without a token.

/// The most characters of a value.
const LONGEST: usize = 200;
/// The most characters of one segment of a path. The shortest signed token is twice as long, so none is shown whole.
const LONGEST_SEGMENT: usize = 64;
/// From this length on, a segment that looks like a token is taken for one. A host such as `eye.example.com` is shorter.
const TOKEN: usize = 40;

/// Returns a path for the log. A token that a client put there by mistake is left out.
pub(super) fn shown_path(path: &str) -> String {
    shown(&path[..query_in(path)])
}

/// Returns the position of a query that is part of the path because its `?` is percent-encoded, or the end.
fn query_in(path: &str) -> usize {
    let encoded = ["%3F", "%3f", "%23"];
    let found = encoded.iter().filter_map(|mark| path.find(mark));
    found.min().unwrap_or(path.len())
}

/// Returns a header's value for the log.
pub(super) fn shown(text: &str) -> String {
    let text = &text[..text.find(['?', '#']).unwrap_or(text.len())];
    let mut shown = String::new();
    for (index, segment) in text.split('/').enumerate() {
        if index > 0 {
            shown.push('/');
        }
        if is_like_token(segment) {
            shown.push('…');
            continue;
        }
        let mut characters = segment.chars();
        for character in characters.by_ref().take(LONGEST_SEGMENT) {
            shown.extend(character.escape_debug());
        }
        if characters.next().is_some() {
            shown.push('…');
        }
        if shown.len() > LONGEST {
            let end = shown.floor_char_boundary(LONGEST);
            shown.truncate(end);
            shown.push('…');
            break;
        }
    }
    shown
}

/// Returns true for the base64 of a JSON object, which begins a token.
fn is_like_token(segment: &str) -> bool {
    segment.contains("eyJ")
        || (segment.len() >= TOKEN && segment.starts_with("ey") && segment.contains('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_shown_without_query_and_token() {
        for (path, expected) in [
            ("/ws/chat/lobby/", "/ws/chat/lobby/"),
            ("/ws/eyJhbGciOi.eyJ1c2Vy.c2ln/", "/ws/…/"),
            ("/ws/x%3Ftoken=abc", "/ws/x"),
            ("/ws/x%3ftoken=abc/", "/ws/x"),
            ("/ws/token=eyJh", "/ws/…"),
            ("/caf\u{e9}\u{1b}[31m", "/caf\u{e9}\\u{1b}[31m"),
            ("", ""),
        ] {
            assert_eq!(shown_path(path), expected, "{path:?}");
        }
        let long = shown_path(&format!("/{}", "a/".repeat(5000)));
        assert!(long.len() < 210 && long.ends_with('…'), "{long}");
        let signature = "s".repeat(86);
        assert!(!shown_path(&format!("/{signature}")).contains(&signature));
    }

    #[test]
    fn an_origin_is_shown_as_sent() {
        for (origin, expected) in [
            (
                "https://app.example.com:8443",
                "https://app.example.com:8443",
            ),
            ("https://eye.example.com", "https://eye.example.com"),
            ("null", "null"),
            ("https://a.test/?token=abc", "https://a.test/"),
        ] {
            assert_eq!(shown(origin), expected);
        }
    }
}
