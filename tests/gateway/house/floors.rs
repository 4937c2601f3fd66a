//! A module imports only from lower floors: reads the `crate::` paths of the sources and holds them against the drawing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The house from the ground up. Within a floor nothing imports anything but what stands in `BESIDE`.
const FLOORS: [&[&str]; 8] = [
    &[
        "clock",
        "close_code",
        "config",
        "error",
        "ids",
        "labels",
        "metrics",
        "python",
        "rate",
        "telemetry",
        "user_id",
    ],
    &[
        "channel_names",
        "event",
        "frame",
        "hosts",
        "origin",
        "problem",
        "routes",
        "stores",
        "templates",
    ],
    &["auth", "channel_layer", "hub", "users", "validation"],
    &[
        "admission",
        "coherence",
        "relay",
        "render",
        "revocation",
        "token_auth",
    ],
    &["consumer", "fleet", "replica", "tenant"],
    &["api", "socket"],
    &["server"],
    &["cli"],
];

/// Who may import whom on the same floor: the drawing's own arrows.
const BESIDE: &[(&str, &str)] = &[
    ("error", "close_code"),
    ("metrics", "close_code"),
    ("metrics", "error"),
    ("metrics", "ids"),
    ("metrics", "labels"),
    ("error", "labels"),
    ("config", "ids"),
    ("telemetry", "config"),
    ("user_id", "config"),
    ("user_id", "ids"),
    ("user_id", "python"),
    ("templates", "routes"),
    // Floor 3: what asks admission, and how an event becomes a frame.
    ("token_auth", "admission"),
    ("relay", "render"),
    ("tenant", "consumer"),
    ("tenant", "fleet"),
];

fn floor_of(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The modules that a source names as `crate::MODULE`, its tests and comments apart, with the line.
fn imports(source: &str) -> Vec<(usize, String)> {
    let code = source
        .lines()
        .take_while(|line| line.trim() != "#[cfg(test)]");
    code.enumerate()
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .flat_map(|(n, line)| {
            line.match_indices("crate::")
                .map(move |(at, _)| (n + 1, line[at + 7..].to_owned()))
        })
        .map(|(n, rest)| {
            let end = rest
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(rest.len());
            (n, rest[..end].to_owned())
        })
        .filter(|(_, module)| module.chars().next().is_some_and(char::is_lowercase))
        .collect()
}

#[test]
fn a_module_imports_only_from_lower_floors() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut wrong = BTreeMap::new();
    let mut arrows = BESIDE.to_vec();
    for file in files {
        let relative = file.strip_prefix(&src).unwrap();
        let first = relative
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_string_lossy();
        let module = first.trim_end_matches(".rs");
        if matches!(module, "lib" | "main") {
            continue;
        }
        let source = std::fs::read_to_string(&file).unwrap();
        let Some(floor) = floor_of(module) else {
            wrong.insert(format!("{module} is on no floor"), ());
            continue;
        };
        for (line, imported) in imports(&source) {
            let place = format!("{}:{line}", relative.display());
            match floor_of(&imported) {
                _ if imported == module => {}
                None => drop(wrong.insert(format!("{place}: {imported} is on no floor"), ())),
                Some(lower) if lower < floor => {}
                Some(same) if same == floor && BESIDE.contains(&(module, &imported)) => {
                    arrows.retain(|arrow| *arrow != (module, imported.as_str()));
                }
                Some(other) => {
                    let complaint = format!(
                        "{place}: {module} (floor {floor}) imports {imported} (floor {other})"
                    );
                    wrong.insert(complaint, ());
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{:#?}", wrong.keys().collect::<Vec<_>>());
    assert!(arrows.is_empty(), "no longer needed: {arrows:?}");
}

#[test]
fn the_front_page_shows_every_module() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let front_page = std::fs::read_to_string(src.join("lib.rs")).unwrap();
    let declared: Vec<_> = front_page
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'))
        .collect();
    for module in &declared {
        assert!(floor_of(module).is_some(), "{module} is on no floor");
    }
    // In the order of the floors, so that the page reads as the house is built.
    let floors: Vec<_> = declared
        .iter()
        .map(|module| floor_of(module).unwrap())
        .collect();
    assert!(floors.is_sorted(), "{declared:?}");
}

#[test]
fn only_metrics_names_the_macros_of_metrics() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    for file in files
        .iter()
        .filter(|file| !file.starts_with(src.join("metrics")))
    {
        let source = std::fs::read_to_string(file).unwrap();
        for name in ["counter!(", "gauge!(", "histogram!("] {
            assert!(!source.contains(name), "{}: {name}", file.display());
        }
    }
}
