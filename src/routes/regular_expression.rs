//! Recognizes the regular expression of a Django `re_path()` that was pasted as a path, and writes it as one.

/// Returns true if `text` is such an expression. As text of a `path()`, Django's own check `2_0.W001` warns of these three.
pub(super) fn is_regular_expression(text: &str) -> bool {
    text.starts_with('^') || text.ends_with('$') || text.contains("(?P<")
}

/// Returns the path that stands for the expression; `None` if it has more than literal text and named groups.
pub(super) fn as_path(expression: &str) -> Option<String> {
    let text = expression.strip_prefix('^').unwrap_or(expression);
    let text = text.strip_suffix('$').unwrap_or(text);
    let (mut path, mut rest) = (String::new(), text);
    while let Some((literal, group)) = rest.split_once("(?P<") {
        path += &literal_of(literal)?;
        let (name, after) = group.split_once('>')?;
        let end = end_of_group(after)?;
        let (pattern, after) = (&after[..end], &after[end + 1..]);
        path += &format!("<{}:{name}>", converter_of(pattern));
        rest = after;
    }
    Some(path + &literal_of(rest)?)
}

/// Returns literal text without the marks of an expression; `None` if it is more than that.
fn literal_of(text: &str) -> Option<String> {
    let text = text
        .replace("/?", "/")
        .replace("\\.", ".")
        .replace("\\-", "-");
    let is_plain = !text.contains(['\\', '(', ')', '[', ']', '|', '*', '+', '?', '^', '$']);
    is_plain.then_some(text)
}

/// Returns the position of the parenthesis that ends a group.
fn end_of_group(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' if depth == 0 => return Some(at),
            ')' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// Returns the converter that is nearest to a pattern.
fn converter_of(pattern: &str) -> &'static str {
    match pattern {
        r"\d+" | "[0-9]+" => "int",
        r"\w+" | r"[\w-]+" | r"[-\w]+" | "[-a-zA-Z0-9_]+" | "[a-zA-Z0-9_-]+" => "slug",
        ".+" | ".*" => "path",
        _ if pattern.contains("8}-") => "uuid",
        _ => "str",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_of_the_channels_tutorial_becomes_a_path() {
        for (expression, path) in [
            (
                r"ws/chat/(?P<room_name>\w+)/$",
                Some("ws/chat/<slug:room_name>/"),
            ),
            (
                r"^ws/(?P<n>[0-9]+)/(?P<rest>.+)$",
                Some("ws/<int:n>/<path:rest>"),
            ),
            (r"^ws/(?P<kind>(a|b))/?$", Some("ws/<str:kind>/")),
            (r"^ws/a\.b$", Some("ws/a.b")),
            ("^ws/(a|b)/$", None),
            ("^ws/(?P<broken", None),
        ] {
            assert!(is_regular_expression(expression), "{expression}");
            assert_eq!(as_path(expression).as_deref(), path, "{expression}");
        }
        for path in ["ws/<slug:room>/", "ws/a^b/", "a$/", ""] {
            assert!(!is_regular_expression(path), "{path}");
        }
    }
}
