//! The documentation against the code: the tests, paths, links, metrics, commands and settings that the pages name
//! are there, and the configurations that they show are valid.
//!
//! `docs/configuration.md` is held by `tests/parts/configuration/mod.rs`, which prints it again.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use lockgate::close_code::CloseReason;
use lockgate::metrics::families;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(root().join(path))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every Markdown page of the repository, relative to its root, with its text.
fn pages() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder can be read") {
            let entry = entry.expect("an entry can be read");
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = entry.path();
            if entry.file_type().expect("an entry has a type").is_dir() {
                if !name.starts_with('.') && !["target", "node_modules"].contains(&name.as_str()) {
                    folders.push(path);
                }
            } else if name.ends_with(".md") {
                let page = path.strip_prefix(root()).expect("below the root");
                found.push((page.to_owned(), read(page)));
            }
        }
    }
    assert!(found.len() > 20, "only {} pages", found.len());
    found.sort();
    found
}

/// The page without its fenced blocks.
fn prose(text: &str) -> String {
    let mut inside = false;
    let kept = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        inside ^= fence;
        !inside && !fence
    });
    kept.collect::<Vec<_>>().join("\n")
}

/// The texts in backquotes, line by line: a span of code does not cross a line in these files.
fn code_spans(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// The contents of the page's blocks of `language`, without the indentation of a list.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let indentation = line.len() - line.trim_start().len();
        if line.trim_start().strip_prefix("```") == Some(language) {
            let block: Vec<_> = lines
                .by_ref()
                .take_while(|line| line.trim() != "```")
                .map(|line| line.get(indentation..).unwrap_or_default())
                .collect();
            found.push(block.join("\n"));
        }
    }
    found
}

#[test]
fn the_front_page_fits_on_two_hundred_lines() {
    let lines = read("README.md").lines().count();
    assert!(lines <= 200, "README.md has {lines} lines");
}

#[test]
fn the_index_lists_every_page_of_its_folder() {
    let index = read("docs/README.md");
    for (page, _) in pages() {
        let Ok(name) = page.strip_prefix("docs") else {
            continue;
        };
        let link = format!("]({})", name.display());
        assert!(
            name == Path::new("README.md") || index.contains(&link),
            "docs/README.md does not link {}",
            page.display()
        );
    }
}

/// True if a list of the file makes two tests of the function.
fn runs_on_each_server(source: &str, name: &str) -> bool {
    let lists = source.split("on_each_server!(").skip(1);
    let mut lists = lists.filter_map(|list| list.split(')').next());
    lists.any(|list| list.split(',').any(|listed| listed.trim() == name))
}

#[test]
fn every_test_that_a_page_names_exists() {
    let mut named = 0;
    for (page, text) in pages() {
        let spans = code_spans(&text).filter_map(|span| span.split_once("::"));
        for (file, name) in spans.filter(|(file, _)| file.starts_with("tests/")) {
            named += 1;
            let source = read(file);
            let place = source
                .find(&format!("fn {name}("))
                .unwrap_or_else(|| panic!("{}: {file} has no test {name}", page.display()));
            let before = source[..place].rsplit("\n\n").next().unwrap_or_default();
            // Inside `proptest!` and plain tests alike, the attribute stands between the last empty line and the function.
            let is_test = before.contains("#[test]") || before.contains("#[tokio::test");
            assert!(
                is_test || runs_on_each_server(&source, name),
                "{}: {file}: {name} is no test",
                page.display()
            );
        }
    }
    assert!(named > 30, "only {named} tests are named");
}

#[test]
fn every_guarantee_names_a_test() {
    let page = read("docs/guarantees.md");
    // The suite of faults has measured what follows its mark, and the account in the middle.
    let (promised, _) = page.split_once("<!-- faults: begin -->").expect("a mark");
    let account = promised.split_once("<!-- accounting: begin -->");
    let (before, account) = account.expect("a mark");
    let (_, after) = account
        .split_once("<!-- accounting: end -->")
        .expect("a mark");
    let rows: Vec<_> = { before.lines().chain(after.lines()) }
        .filter(|line| line.starts_with("| "))
        .filter(|line| !line.starts_with("| ---") && !line.starts_with("| guarantee"))
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
    let all = page
        .split("\n## All families\n")
        .nth(1)
        .and_then(|rest| rest.split("\n## ").next())
        .expect("the page lists all families");
    let documented: BTreeSet<_> = all
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
fn metrics_that_a_page_names_are_described() {
    for (page, text) in pages() {
        for span in code_spans(&text).filter(|span| span.starts_with("lockgate_")) {
            let name = span.split(['{', ' ', '<']).next().unwrap_or_default();
            // `lockgate_config` is a management command of Django, and the registry has tables.
            let is_table = read("src/stores/database/tenant_table/schema.rs")
                .contains(&format!("NOT EXISTS {name} "));
            if name != "lockgate_config" && !name.ends_with('_') && !is_table {
                let described = families().iter().any(|family| family.name == name);
                assert!(described, "{}: {name}", page.display());
            }
        }
    }
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let prose = prose(text);
    let titles = prose.lines().filter_map(|line| {
        let title = line.trim_start_matches('#');
        (title.len() < line.len())
            .then(|| title.strip_prefix(' '))
            .flatten()
    });
    titles
        .map(|title| {
            let kept = title
                .trim()
                .chars()
                .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            kept.collect::<String>().to_lowercase().replace(' ', "-")
        })
        .collect()
}

#[test]
fn anchors_are_made_as_on_github() {
    let text = "# A, b: `c_d`\n```sh\n# no heading\n```\n## It's 1.2 – here\n#none";
    let expected = ["a-b-c_d", "its-12--here"];
    assert_eq!(anchors(text), expected.map(String::from).into());
}

#[test]
fn every_link_of_every_page_leads_somewhere() {
    let mut broken = Vec::new();
    for (page, text) in pages() {
        let folder = page.parent().unwrap_or(Path::new(""));
        let text = prose(&text);
        let links = text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.starts_with("https://")) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => page.clone(),
                path => folder.join(path),
            };
            let known = root().join(&target).exists()
                && (anchor.is_empty() || anchors(&read(&target)).contains(anchor));
            if !known {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_file_that_a_page_names_exists() {
    let tops = [
        "src/",
        "tests/",
        "docs/",
        "deploy/",
        "k8s/",
        "benches/",
        "examples/",
        ".ci/",
    ];
    let mut missing = Vec::new();
    for (page, text) in pages() {
        for span in code_spans(&prose(&text)) {
            // `tests/run deps`, `tests/x.rs::name`, `deploy/grafana/*.json`
            let path = span.split([' ', ':']).next().unwrap_or_default();
            let path = path.split('*').next().unwrap_or_default();
            if tops.iter().any(|top| path.starts_with(top)) && !root().join(path).exists() {
                missing.push(format!("{}: {span}", page.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn every_module_that_the_front_page_of_the_library_names_exists() {
    let source = read("src/lib.rs");
    let head: Vec<_> = source
        .lines()
        .filter_map(|line| line.strip_prefix("//! "))
        .collect();
    let head = head.join("\n");
    let mut named = 0;
    for span in code_spans(&head).filter(|span| !span.contains(['[', ' ', ':'])) {
        // A path without `src/`: `socket/upgrade`, `fleet`.
        let path = span.trim_end_matches('/');
        if path.chars().any(|c| c.is_uppercase() || c == '.')
            || ["examples", "lockgate"].contains(&path)
        {
            continue;
        }
        named += 1;
        let place = root().join("src").join(path);
        assert!(
            place.is_dir() || place.with_extension("rs").exists(),
            "src/lib.rs names {span}"
        );
    }
    assert!(named > 15, "only {named} modules are named");
}

/// The rows of the page's section, each with its cells.
fn rows(page: &str, section: &str) -> Vec<Vec<String>> {
    let text = read(page);
    let section = text
        .split(&format!("\n## {section}\n"))
        .nth(1)
        .and_then(|rest| rest.split("\n## ").next())
        .unwrap_or_else(|| panic!("{page} has no section {section}"));
    let lines = section.lines().filter(|line| line.starts_with("| "));
    let cells = lines.map(|line| line.trim_matches('|').split(" | "));
    let rows: Vec<Vec<_>> = cells
        .map(|cells| cells.map(|cell| cell.trim().to_owned()).collect())
        .collect();
    rows.into_iter().skip(2).collect()
}

#[test]
fn the_page_of_refusals_has_every_code_and_no_other() {
    let source = read("src/error.rs");
    let codes = source
        .split("pub const fn code(self)")
        .nth(1)
        .and_then(|rest| rest.split("\n    }\n").next())
        .expect("refusals have codes");
    let codes: BTreeSet<_> = codes.split('"').skip(1).step_by(2).collect();
    assert!(codes.len() > 15, "{codes:?}");
    let rows = rows("docs/refusals.md", "Refusals");
    let documented: BTreeSet<_> = rows.iter().flat_map(|row| code_spans(&row[1])).collect();
    assert_eq!(documented, codes);
}

#[test]
fn the_page_of_the_api_has_every_error_and_no_other() {
    let source = read("src/api/problem.rs");
    let table = source
        .split("\nproblems! {\n")
        .nth(1)
        .and_then(|rest| rest.split("\n}\n").next())
        .expect("problems are one table");
    // The detail is the other text of each row; no code has a blank.
    let codes: BTreeSet<_> = table
        .split('"')
        .skip(1)
        .step_by(2)
        .filter(|text| !text.contains(' '))
        .collect();
    assert!(codes.len() > 15, "{codes:?}");
    let rows = rows("docs/api.md", "Errors");
    let documented: BTreeSet<_> = rows.iter().flat_map(|row| code_spans(&row[1])).collect();
    assert_eq!(documented, codes);
}

#[test]
fn the_page_of_close_codes_has_every_reason_and_no_other() {
    let rows = rows("docs/refusals.md", "Close codes");
    let documented: BTreeSet<_> = rows
        .iter()
        .flat_map(|row| {
            let reasons: Vec<_> = code_spans(&row[1]).map(str::to_owned).collect();
            let codes: Vec<u16> = row[0]
                .split(", ")
                .map(|code| code.parse().expect("a code"))
                .collect();
            // Either each code of the row has its reason, or one code has them all.
            let one = (codes.len() == 1).then(|| codes[0]);
            let pairs = reasons.into_iter().enumerate();
            pairs
                .map(|(at, reason)| (one.unwrap_or_else(|| codes[at]), reason))
                .collect::<Vec<_>>()
        })
        .collect();
    let reasons: BTreeSet<_> = CloseReason::ALL
        .iter()
        .map(|reason| (reason.code(), reason.label().to_owned()))
        .collect();
    assert_eq!(documented, reasons);
}

#[test]
fn the_floors_of_the_architecture_are_those_of_the_library() {
    let modules = |page: &str, prefix: &str| -> Vec<(String, BTreeSet<String>)> {
        let text = read(page);
        let rows = text.lines().filter_map(|line| line.strip_prefix(prefix));
        let rows = rows.skip_while(|row| !row.starts_with("floor |")).skip(2);
        let rows = rows.map(|row| row.split(" | ").map(str::to_owned).collect::<Vec<_>>());
        rows.take_while(|row| row.len() == 3)
            .map(|row| {
                let names = code_spans(&row[1]).map(|name| {
                    let name = name.trim_start_matches("src/");
                    name.trim_end_matches(".rs").to_owned()
                });
                (row[0].clone(), names.collect())
            })
            .collect()
    };
    let drawn = modules("docs/architecture.md", "| ");
    assert_eq!(drawn.len(), 8, "{drawn:?}");
    assert_eq!(drawn, modules("src/lib.rs", "//! | "));
}

fn lockgate(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_lockgate"))
        .args(arguments)
        .env_remove("LOCKGATE_CONFIG")
        .output()
        .expect("the binary runs");
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

/// The words of a command up to where a shell would end it.
fn words(line: &str) -> Vec<&str> {
    line.split_whitespace()
        .take_while(|word| !["|", "#", "&&", ">", ";"].contains(word))
        .collect()
}

#[test]
fn every_command_that_a_page_shows_is_known_with_its_options() {
    let mut shown = 0;
    for (page, text) in pages() {
        let shell = blocks(&text, "sh").join("\n");
        let prose = prose(&text);
        let lines = shell.lines().map(str::trim);
        let commands = lines
            .chain(code_spans(&prose))
            .filter(|line| line.starts_with("lockgate ") && !line.contains(['{', '…']));
        for command in commands {
            let words = words(command);
            let verbs: Vec<_> = words[1..]
                .iter()
                .copied()
                .take_while(|word| word.chars().all(|c| c.is_ascii_lowercase()))
                .take(2)
                .collect();
            let Some((verb, rest)) = verbs.split_first() else {
                continue;
            };
            let nested =
                ["config", "token", "tenant", "registry"].contains(verb) && !rest.is_empty();
            let mut path = vec![*verb];
            path.extend(rest.iter().filter(|_| nested));
            path.push("--help");
            let (known, help) = lockgate(&path);
            assert!(known, "{}: {command}", page.display());
            // A second command inside the first, as in "$(lockgate token mint …)", has options of its own.
            let own = words.iter().skip(1).take_while(|word| !word.contains("$("));
            for option in own.filter(|word| word.starts_with("--")) {
                let option = option
                    .trim_end_matches([',', ')'])
                    .split('=')
                    .next()
                    .unwrap_or_default();
                let known =
                    help.contains(&format!("{option} ")) || help.contains(&format!("{option}\n"));
                assert!(known, "{}: {command}: {option}", page.display());
            }
            shown += 1;
        }
    }
    assert!(shown > 20, "only {shown} commands are shown");
}

#[test]
fn every_verb_has_its_row_on_the_command_line_page() {
    let page = read("docs/command-line.md");
    let (_, help) = lockgate(&["--help"]);
    let verbs = help
        .split("Commands:\n")
        .nth(1)
        .and_then(|rest| rest.split("\n\n").next())
        .expect("the help lists commands");
    let verbs = verbs
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next());
    for verb in verbs.filter(|verb| *verb != "help") {
        assert!(page.contains(&format!("| `{verb}")), "{verb}");
    }
}

#[test]
fn the_speed_that_the_front_page_tells_was_measured() {
    let readme = read("README.md");
    let costs = read("docs/costs.md");
    let section = readme
        .split("\n## Speed\n")
        .nth(1)
        .and_then(|rest| rest.split("\n## ").next())
        .expect("the front page tells the speed");
    let figures: Vec<_> = section
        .split([' ', '\n', '/'])
        .filter(|word| word.len() > 3 && word.starts_with(|c: char| c.is_ascii_digit()))
        .collect();
    assert!(figures.len() >= 3, "{figures:?}");
    for figure in figures {
        assert!(costs.contains(figure), "docs/costs.md has no {figure}");
    }
}

/// A tenant for the fragments that pages show.
const BASE: &str = r#"
[redis]
url = "redis://127.0.0.1:6379/0"

[tenants.acme.token]
algorithm   = "HS256"
signing_key = { file = "signing-key" }

[tenants.acme.users]
database = "sqlite://db.sqlite3?mode=ro"
"#;

/// A whole configuration around what a page shows: the block itself, or one that has the fragment in its place.
fn whole(block: &str) -> String {
    let key = block.trim_start();
    let own = ["[tenants.acme.token]", "[tenants.acme.users]"];
    if let Some(own) = own.into_iter().find(|own| key.starts_with(own)) {
        let tables = BASE.split("\n\n").filter(|table| !table.contains(own));
        return format!("{}\n{block}\n", tables.collect::<Vec<_>>().join("\n\n"));
    }
    if block.contains("[tenants.acme.token]") || key.starts_with("[registry]") {
        return block.to_owned();
    }
    let route = "\n[[tenants.acme.routes]]\npath = \"ws/<slug:room>/<int:org>/\"\ngroups = [\"chat_{room}\"]\n";
    if key.starts_with("authorize") || key.starts_with("consumer") {
        return format!("{BASE}{route}{block}\n");
    }
    if key.starts_with("query") {
        return format!("{BASE}{block}\n");
    }
    if key.starts_with("origins") {
        return format!("{BASE}\n[tenants.acme]\n{block}\n");
    }
    if key.starts_with("include") {
        return format!("{block}\n{BASE}");
    }
    match block.contains("[redis]") {
        true => format!(
            "{}\n{block}\n",
            BASE.split("\n\n").skip(1).collect::<Vec<_>>().join("\n\n")
        ),
        false => format!("{BASE}\n{block}\n"),
    }
}

#[test]
fn every_configuration_that_a_page_shows_is_valid() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for name in [
        "signing-key",
        "signing-key-new",
        "operator-key",
        "signup-key",
    ] {
        fs::write(folder.path().join(name), "0123456789abcdef".repeat(4)).expect("a key");
    }
    let sealing = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    fs::write(folder.path().join("registry-key"), sealing).expect("a key");
    fs::create_dir(folder.path().join("tenants.d")).expect("a folder");
    let file = folder.path().join("lockgate.toml");
    let mut shown = 0;
    for (page, text) in pages() {
        for block in blocks(&text, "toml") {
            if block.starts_with("[dependencies]") {
                // Those of a program: the test below.
                continue;
            }
            let configuration = whole(&block);
            fs::write(&file, &configuration).expect("a configuration");
            let (valid, told) = lockgate(&["config", "check", "--config", &file.to_string_lossy()]);
            let page = page.display();
            assert!(valid, "{page}: {told}\n{configuration}");
            assert!(!told.contains("error:"), "{page}: {told}");
            shown += 1;
        }
    }
    assert!(shown >= 8, "only {shown} configurations are shown");
}

#[test]
fn the_dependencies_that_the_library_page_names_are_those_of_the_crate() {
    let blocks = blocks(&read("docs/library.md"), "toml");
    let shown: toml::Table = blocks[0].parse().expect("TOML");
    let own: toml::Table = read("Cargo.toml").parse().expect("TOML");
    let shown = shown["dependencies"].as_table().expect("a table");
    assert!(
        shown.contains_key("lockgate") && shown.len() > 2,
        "{shown:?}"
    );
    let version = |dependency: &toml::Value| {
        let version = dependency.get("version").unwrap_or(dependency);
        version.as_str().expect("a version").to_owned()
    };
    for (name, dependency) in shown.iter().filter(|(name, _)| *name != "lockgate") {
        let used = version(&own["dependencies"][name]);
        assert!(used.starts_with(&version(dependency)), "{name}: {used}");
    }
}

#[test]
fn the_figures_of_the_sizing_page_were_measured() {
    let costs = read("docs/costs.md");
    let rows = rows("docs/sizing.md", "Figures");
    assert!(rows.len() > 8, "{rows:?}");
    for row in rows {
        let figure = row[1].split(' ').next().unwrap_or_default();
        let commit = row[2].rsplit(' ').next().unwrap_or_default();
        for fact in [figure, commit] {
            assert!(costs.contains(fact), "docs/costs.md has no {fact}: {row:?}");
        }
    }
}

/// Times of a machine that no one knows stood there.
#[test]
fn the_times_that_pages_for_planning_tell_were_measured() {
    let measured = read("docs/costs.md") + &read("docs/scale.md");
    for page in ["docs/sizing.md", "docs/groups-and-events.md"] {
        let text = read(page);
        for (before, _) in text.match_indices(" µs") {
            let mut words = text[..before].rsplit([' ', '(', '\n']);
            let figure = words.next().unwrap_or_default();
            assert!(
                measured.contains(&format!(" {figure} ")),
                "{page}: no page of measurements has {figure} µs"
            );
        }
    }
}

/// The account of clients that come back told no commit by itself.
#[test]
fn the_generated_tables_of_guarantees_begin_with_their_commit() {
    let page = read("docs/guarantees.md");
    for name in ["faults", "accounting"] {
        let begin = format!("<!-- {name}: begin -->\n");
        let (_, table) = page.split_once(&begin).expect(name);
        assert!(table.starts_with("Commit "), "{name}");
    }
}

/// The texts of all sources, without their tests' folders.
fn sources() -> String {
    let (mut all, mut folders) = (String::new(), vec![root().join("src")]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder can be read") {
            let path = entry.expect("an entry can be read").path();
            match path.is_dir() {
                true => folders.push(path),
                false => all += &fs::read_to_string(&path).expect("a source is text"),
            }
        }
    }
    all
}

/// The metrics and commands that the rows name are held by the tests of all pages.
#[test]
fn every_symptom_names_a_line_of_the_log_a_metric_and_a_command() {
    let (page, sources) = ("docs/troubleshooting.md", sources());
    let sections = [
        "Sockets that do not open",
        "Sockets that do not stay",
        "Events that do not arrive",
        "The process",
    ];
    for row in sections.iter().flat_map(|section| rows(page, section)) {
        let [symptom, log, metric, command, action] = row.as_slice() else {
            panic!("not five cells: {row:?}");
        };
        let is_line = |span: &&str| span.starts_with(|c: char| c.is_uppercase());
        let lines: Vec<_> = code_spans(log).filter(is_line).collect();
        for line in &lines {
            let text = line.trim_end_matches('…').trim_end();
            assert!(sources.contains(text), "{symptom}: {text}");
        }
        let says_none = ["no line", "on standard error"]
            .iter()
            .any(|none| log.starts_with(none));
        assert!(!lines.is_empty() || says_none, "{symptom}: {log}");
        let has_metric = code_spans(metric).any(|span| span.starts_with("lockgate_"));
        assert!(
            has_metric || metric.starts_with("none"),
            "{symptom}: {metric}"
        );
        let asks = ["lockgate ", "redis-cli "];
        let has_command =
            code_spans(command).any(|span| asks.iter().any(|ask| span.starts_with(ask)));
        assert!(has_command && !action.is_empty(), "{symptom}: {command}");
    }
}
