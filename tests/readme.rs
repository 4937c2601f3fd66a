//! The documentation against the code: every test that the README names is there, and the metrics that
//! `docs/metrics.md` describes are those of the gateway.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use lockgate::metrics::families;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// What stands in backquotes, line by line: a span of code does not cross a line in these files.
fn code_spans(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2))
}

#[test]
fn every_test_that_the_readme_names_exists() {
    let readme = read("README.md");
    let named: Vec<_> = code_spans(&readme)
        .filter_map(|span| span.split_once("::"))
        .filter(|(file, _)| file.starts_with("tests/"))
        .collect();
    assert!(named.len() > 30, "only {} tests are named", named.len());
    for (file, name) in named {
        let source = read(file);
        let place = source
            .find(&format!("fn {name}("))
            .unwrap_or_else(|| panic!("{file} has no test {name}"));
        let before = source[..place].rsplit("\n\n").next().unwrap_or_default();
        // Inside `proptest!` and plain tests alike, the attribute stands between the last empty line and the function.
        assert!(
            before.contains("#[test]") || before.contains("#[tokio::test"),
            "{file}: {name} is no test"
        );
    }
}

#[test]
fn every_guarantee_names_a_test() {
    let readme = read("README.md");
    let section = readme
        .split("\n## Guarantees\n")
        .nth(1)
        .and_then(|rest| rest.split("\n## ").next())
        .expect("the README has guarantees");
    let rows: Vec<_> = section
        .lines()
        .filter(|line| line.starts_with("| "))
        .skip(1)
        .filter(|line| !line.starts_with("| ---"))
        .collect();
    assert!(rows.len() > 10, "only {} guarantees", rows.len());
    for row in rows {
        assert!(row.contains("`tests/"), "no test proves: {row}");
    }
}

#[test]
fn the_metrics_page_has_every_family_and_no_other() {
    let described: BTreeSet<_> = families().iter().map(|family| family.name).collect();
    let page = read("docs/metrics.md");
    let documented: BTreeSet<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .collect();
    assert!(!described.is_empty());
    assert_eq!(documented, described);
}

#[test]
fn the_metrics_page_has_type_and_labels_of_every_family() {
    let page = read("docs/metrics.md");
    for family in families() {
        let start = format!("| `{}` | ", family.name);
        let row = page.lines().find_map(|line| line.strip_prefix(&start));
        let cell = row.and_then(|row| row.split(" | ").next());
        let cell = cell.unwrap_or_else(|| panic!("{} has no row", family.name));
        let labels: Vec<_> = cell.split('`').skip(1).step_by(2).collect();
        assert!(cell.starts_with(family.kind), "{family:?}: {cell}");
        assert_eq!(labels, family.labels, "{family:?}: {cell}");
    }
}

#[test]
fn metrics_that_the_readme_names_are_described() {
    let readme = read("README.md");
    let named = code_spans(&readme).filter(|span| span.starts_with("lockgate_"));
    for name in named {
        assert!(
            families().iter().any(|family| family.name == name),
            "{name}"
        );
    }
}

#[test]
fn every_link_of_the_documentation_leads_somewhere() {
    let pages = [
        "README.md",
        "docs/metrics.md",
        "docs/deploy.md",
        "docs/groups-and-events.md",
        "docs/moving-from-channels.md",
        "docs/operations.md",
    ];
    for page in pages {
        let text = read(page);
        let folder = root().join(page);
        let folder = folder.parent().unwrap_or(Path::new("."));
        for link in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            match link.strip_prefix('#') {
                Some(anchor) => assert!(
                    headings(&text).contains(anchor),
                    "{page}: no heading for #{anchor}"
                ),
                None if link.starts_with("https://") => {}
                None => assert!(folder.join(link).exists(), "{page}: {link}"),
            }
        }
    }
}

/// The contents of the page's blocks of `language`.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let start = format!("\n```{language}\n");
    let rest = text.split(start.as_str()).skip(1);
    rest.filter_map(|rest| rest.split("```").next()).collect()
}

#[test]
fn the_configuration_that_the_readme_shows_is_valid() {
    let readme = read("README.md");
    let toml = blocks(&readme, "toml");
    let [whole, query, routes] = toml[..] else {
        panic!("{} blocks of TOML", toml.len());
    };
    let folder = std::env::temp_dir().join(format!("lockgate-readme-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a temporary folder");
    for name in ["signing-key", "operator-key"] {
        fs::write(folder.join(name), "0123456789abcdef".repeat(4)).expect("a key");
    }
    let with_query = whole.replace(
        "[tenants.acme.users]\n",
        &format!("[tenants.acme.users]\n{query}"),
    );
    let mut outputs = Vec::new();
    for text in [whole.to_owned(), format!("{with_query}\n{routes}")] {
        let file = folder.join("lockgate.toml");
        fs::write(&file, &text).expect("a configuration");
        let check = Command::new(env!("CARGO_BIN_EXE_lockgate"))
            .args(["config", "check", "--config"])
            .arg(&file)
            .output()
            .expect("the binary runs");
        outputs.push((text, check));
    }
    fs::remove_dir_all(&folder).expect("the folder goes");
    for (text, check) in outputs {
        let told = String::from_utf8_lossy(&check.stderr).into_owned();
        assert!(check.status.success(), "{told}\n{text}");
        assert!(
            !told.contains("error:") && !told.contains("not enforced"),
            "{told}"
        );
    }
}

/// The anchors of a page's headings.
fn headings(text: &str) -> BTreeSet<String> {
    let titles = text.lines().filter_map(|line| line.strip_prefix("## "));
    titles
        .map(|title| title.to_lowercase().replace(',', "").replace(' ', "-"))
        .collect()
}
