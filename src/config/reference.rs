//! The reference of the configuration, printed from the declared tables, and a file of the defaults.

use super::Config;
use super::key::{Inner, ReferenceKey};
use super::table::Keyed;

/// Prints every key with its type, default and meaning as Markdown.
pub fn reference() -> String {
    let mut out = format!("# Configuration\n\n{HEAD}");
    print_keys("", &Config::keys(), &mut out);
    out
}

/// Prints a configuration file with every default. Keys without a default, and those of a tenant, are comments.
pub fn defaults_toml() -> String {
    let mut out = String::new();
    print_defaults("", "", &Config::keys(), &mut out);
    out + FIRST_ROUTE
}

/// The introduction of the reference: rules that apply to all keys.
const HEAD: &str = "\
One TOML file, named by `--config` or `LOCKGATE_CONFIG`. This page is printed by `lockgate config reference`; \
`lockgate config default` prints the defaults as a file, `lockgate config check` tells what is wrong with one.

- **Durations** carry a unit: `\"250ms\"`, `\"5s\"`, `\"5m\"`, `\"1h\"`, `\"30d\"`. **Sizes** too: `\"64KiB\"`, `\"1MiB\"` (1024), `\"8MB\"` (1000).
- **Secrets** are a text, `{ file = \"…\" }` (relative to the file that names it; one newline at its end is taken off; read at \
the start and at each reload) or `{ env = \"…\" }`. They are never printed.
- **Environment**: `LOCKGATE_` and the key in capitals, with `__` between the parts and `_` for `-`, overrides the file: \
`LOCKGATE_REDIS__URL`, `LOCKGATE_TENANTS__ACME__LIMITS__CONNECTIONS`. The value is read as TOML, or else as a text; an empty \
variable counts as unset. Routes cannot be set so. A name that is no key is an error; `LOCKGATE_` names without `__` are ignored.
- **Mistakes** are reported all at once, each with file, line, column, key, what was found and what was expected; exit status 1.
";

/// The end of the file of defaults: a route to begin with. It answers a frame that it drops, so that a client's mistake
/// shows. The second mark keeps it apart from the keys.
const FIRST_ROUTE: &str = "
## A route to begin with:
## [[tenants.acme.routes]]
## path = \"ws/chat/<slug:room>/\"
## groups = [\"chat_{room}\"]
## consumer = { kind = \"broadcast\", type = \"chat.message\", stamp = [\"user_id\"], on_invalid = \"reply\" }
";

/// Prints the keys of one table, then the tables below it.
fn print_keys(path: &str, keys: &[ReferenceKey], out: &mut String) {
    let values = |key: &&ReferenceKey| matches!(key.inner, Inner::Value);
    if keys.iter().any(|key| values(&key)) {
        out.push_str("\n| key | type | default | meaning |\n| --- | --- | --- | --- |\n");
    }
    for key in keys.iter().filter(values) {
        let default = match &key.default {
            Some(default) => format!("`{}`", cell(default)),
            None => "not set".to_owned(),
        };
        let (expected, meaning) = (cell(&key.expected), cell(&joined(key.meaning)));
        push(
            out,
            format_args!("| `{}` | {expected} | {default} | {meaning} |\n", key.name),
        );
    }
    for key in keys {
        let below = below(path, key);
        if let Some((header, about, inner)) = table_of(&below, key) {
            push(out, format_args!("\n## `{header}`\n\n{}\n", joined(about)));
            let path = header.trim_matches(['[', ']']);
            print_keys(path, inner, out);
        }
    }
}

/// Prints the keys of one table as TOML, then the tables below it. `mark` precedes lines that are comments.
fn print_defaults(path: &str, mark: &str, keys: &[ReferenceKey], out: &mut String) {
    for key in keys.iter().filter(|key| matches!(key.inner, Inner::Value)) {
        match &key.default {
            Some(default) => push(out, format_args!("{mark}{} = {default}\n", key.name)),
            None => push(
                out,
                format_args!("# {} is not set: {}\n", key.name, key.expected),
            ),
        }
    }
    for key in keys {
        let below = below(path, key);
        if let Some((header, _, inner)) = table_of(&below, key) {
            let optional = !matches!(key.inner, Inner::Table(..));
            let mark = if optional { "# " } else { mark };
            push(out, format_args!("\n{mark}{header}\n"));
            print_defaults(header.trim_matches(['[', ']']), mark, inner, out);
        }
    }
}

fn below(path: &str, key: &ReferenceKey) -> String {
    if path.is_empty() {
        key.name.to_owned()
    } else {
        format!("{path}.{}", key.name)
    }
}

/// Returns the header, the documentation and the keys of the table at `path`.
fn table_of<'k>(
    path: &str,
    key: &'k ReferenceKey,
) -> Option<(String, &'k [&'static str], &'k [ReferenceKey])> {
    match &key.inner {
        Inner::Value => None,
        Inner::Table(about, keys) | Inner::Optional(about, keys) => {
            Some((format!("[{path}]"), about, keys))
        }
        Inner::List(about, keys) => Some((format!("[[{path}]]"), about, keys)),
        Inner::Named(about, keys) => Some((format!("[{path}.NAME]"), about, keys)),
    }
}

/// Joins the lines of a doc comment.
fn joined(lines: &[&str]) -> String {
    let lines: Vec<&str> = lines.iter().map(|line| line.trim()).collect();
    lines.join(" ")
}

/// Escapes a text for a cell of a Markdown table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

/// Appends to a `String`, which cannot fail.
fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.push_str(&text.to_string());
}
