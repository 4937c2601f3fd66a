//! A module imports only from lower floors, and the modules of a room form no circle.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use super::circles::circles;
use super::sources::Sources;

/// The house from the ground up. Within a floor nothing imports anything but what stands in `BESIDE`.
const FLOORS: [&[&str]; 8] = [
    &[
        "ages",
        "budget",
        "clock",
        "close_code",
        "config",
        "error",
        "heavy",
        "ids",
        "labels",
        "metrics",
        "packed_json",
        "python",
        "rate",
        "tasks",
        "telemetry",
        "user_id",
    ],
    &[
        "channel_names",
        "event",
        "frame",
        "group_rules",
        "hosts",
        "origin",
        "position",
        "problem",
        "routes",
        "sealing",
        "stores",
        "templates",
    ],
    &["auth", "channel_layer", "hub", "presence", "users"],
    &[
        "admission",
        "coherence",
        "relay",
        "render",
        "revocation",
        "token_auth",
    ],
    &["consumer", "fleet", "replica", "tenant"],
    &["api", "socket", "validation"],
    &["registry", "server"],
    &["cli"],
];

/// The permitted imports on the same floor, which are the arrows of the drawing.
const BESIDE: &[(&str, &str)] = &[
    ("error", "close_code"),
    ("metrics", "close_code"),
    ("metrics", "error"),
    ("metrics", "ids"),
    ("metrics", "labels"),
    ("error", "labels"),
    ("budget", "labels"),
    ("metrics", "budget"),
    ("config", "ids"),
    ("telemetry", "config"),
    ("telemetry", "metrics"),
    ("telemetry", "tasks"),
    ("user_id", "config"),
    ("user_id", "ids"),
    ("python", "heavy"),
    ("user_id", "python"),
    ("origin", "hosts"),
    ("templates", "routes"),
    ("templates", "channel_names"),
    ("group_rules", "routes"),
    // Floor 3: what asks admission, and how an event becomes a frame.
    ("token_auth", "admission"),
    ("relay", "render"),
    ("tenant", "consumer"),
    ("tenant", "fleet"),
    // Floor 6: the server follows the registry.
    ("server", "registry"),
];

fn floor_of(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The sources of Lockgate, read once for all tests.
fn house() -> &'static Sources {
    static HOUSE: LazyLock<Sources> = LazyLock::new(|| Sources::below(&src()));
    &HOUSE
}

/// The imports that the drawing does not allow, and the arrows of `beside` that no import follows.
fn wrong(sources: &Sources, beside: &[(&str, &str)]) -> BTreeSet<String> {
    let mut wrong = BTreeSet::new();
    let mut unused: BTreeSet<_> = beside.iter().copied().collect();
    for source in &sources.files {
        let Some(room) = source.module.first() else {
            continue;
        };
        let Some(floor) = floor_of(room) else {
            wrong.insert(format!("{room} is on no floor"));
            continue;
        };
        for mention in &source.mentions {
            let Some(named) = sources.room_of(mention).filter(|named| named != room) else {
                continue;
            };
            let place = format!("{}:{}", source.file, mention.line);
            match floor_of(&named) {
                None => drop(wrong.insert(format!("{place}: {named} is on no floor"))),
                Some(lower) if lower < floor => {}
                Some(same) if same == floor && beside.contains(&(room, &named)) => {
                    unused.retain(|arrow| *arrow != (room, &named));
                }
                Some(other) => {
                    wrong.insert(format!(
                        "{place}: {room} (floor {floor}) imports {named} (floor {other})"
                    ));
                }
            }
        }
    }
    let unused = unused
        .iter()
        .map(|(from, to)| format!("no longer needed: {from} beside {to}"));
    wrong.extend(unused);
    wrong
}

#[test]
fn a_module_imports_only_from_lower_floors() {
    let wrong = wrong(house(), BESIDE);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_modules_of_a_room_form_no_circle() {
    let circles = circles(house());
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn a_type_name_stands_for_one_thing() {
    let twice = house().types_declared_twice();
    assert!(twice.is_empty(), "{twice:#?}");
}

#[test]
fn the_front_page_shows_every_module() {
    let front_page = std::fs::read_to_string(src().join("lib.rs")).unwrap();
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
    for source in &house().files {
        if source.module.first().is_some_and(|room| room == "metrics") {
            continue;
        }
        let text = std::fs::read_to_string(src().join(&source.file)).unwrap();
        for name in ["counter!(", "gauge!(", "histogram!("] {
            assert!(!text.contains(name), "{}: {name}", source.file);
        }
    }
}

/// A task that something depends on is started by `tasks`, so that its panic does not go unnoticed. Sets of tasks with an
/// owner (`JoinSet`, `TaskTracker`) are free.
#[test]
fn only_tasks_starts_tasks_without_an_owner() {
    for source in &house().files {
        if source.file == "tasks.rs" {
            continue;
        }
        let text = std::fs::read_to_string(src().join(&source.file)).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        for start in ["tokio::spawn(", "task::spawn(", "Handle::current().spawn("] {
            assert!(!code.contains(start), "{}: {start}", source.file);
        }
    }
}

/// A doc comment is read beside a name or alone in a list, so it begins with the thing, as "The subject of a mistake", and not as the
/// answer to a question, as "What a mistake is about".
#[test]
fn no_doc_comment_begins_as_a_question() {
    let mut found = Vec::new();
    for source in &house().files {
        let text = std::fs::read_to_string(src().join(&source.file)).unwrap();
        let lines = questions(&text).into_iter();
        found.extend(lines.map(|line| format!("{}:{line}", source.file)));
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// Returns the lines on which a doc comment begins with a word of a question.
fn questions(text: &str) -> Vec<usize> {
    let words = [
        "What", "Who", "Whoever", "Whose", "Whether", "How", "Where", "Which",
    ];
    let doc = |line: &str| {
        let line = line.trim_start();
        let text = line.strip_prefix("///").or(line.strip_prefix("//!"));
        text.map(|text| text.trim_start().to_owned())
    };
    let docs: Vec<_> = text.lines().map(doc).collect();
    let begins = |at: &usize| *at == 0 || docs[at - 1].is_none();
    let asks = |at: &usize| {
        let first = docs[*at].as_ref().and_then(|text| text.split(' ').next());
        first.is_some_and(|first| words.contains(&first))
    };
    let found = (0..docs.len()).filter(|at| begins(at) && asks(at));
    found.map(|at| at + 1).collect()
}

/// The checks themselves, on small houses.
mod of_small_houses {
    use super::*;

    /// Returns the refused imports and the circles of a house of these files.
    fn judged(files: &[(&str, &str)]) -> (BTreeSet<String>, BTreeSet<String>) {
        let files: Vec<_> = files
            .iter()
            .map(|(file, text)| ((*file).to_owned(), (*text).to_owned()))
            .collect();
        let sources = Sources::parse(&files);
        (
            wrong(&sources, &[("error", "close_code")]),
            circles(&sources),
        )
    }

    /// `text` in `hub/mod.rs` (floor 2) names something of `relay` (floor 3).
    fn is_caught(text: &str) {
        let (wrong, _) = judged(&[
            (
                "lib.rs",
                "pub mod hub; pub mod relay; pub use relay::Relay; pub use error::E;",
            ),
            ("hub/mod.rs", text),
            ("relay.rs", "pub struct Relay; pub fn run() {}"),
            ("error.rs", "use crate::close_code::C; pub struct E;"),
            ("close_code.rs", "pub struct C;"),
        ]);
        let expected = "imports relay (floor 3)";
        assert!(
            wrong.len() == 1 && wrong.iter().all(|wrong| wrong.contains(expected)),
            "{text}: {wrong:?}"
        );
    }

    #[test]
    fn an_import_from_above_is_caught_however_it_is_written() {
        for text in [
            "use crate::relay::Relay;",
            "use crate::{error::E, relay::{self, Relay as R}};",
            "use crate::relay;",
            "use crate::relay::*;",
            "pub use crate::{relay as r};",
            "use crate::Relay;",
            "use super::relay::Relay;",
            "fn f() { crate::relay::run() }",
            "fn f(_: &crate::relay::Relay) {}",
            "fn f() -> Option<crate::Relay> { None }",
            "fn f() { assert!(true, \"{:?}\", (crate::relay::run(), 1)); }",
            "use crate as house; fn f() { house::relay::run() }",
            "#[serde(with = \"crate::relay\")] struct S;",
            "mod inner { use super::super::relay::Relay; }",
            "mod inner { fn f() { crate::relay::run() } }",
            "impl From<crate::relay::Relay> for u8 {}",
        ] {
            is_caught(text);
        }
    }

    #[test]
    fn what_is_no_import_is_not_caught() {
        for text in [
            "use crate::error::E; use std::fmt;",
            "// use crate::relay::Relay;\n/// See [`crate::relay`].\nfn f() {}",
            "#[cfg(test)] mod tests { use crate::relay::Relay; }",
            "#[cfg(test)] fn f() { crate::relay::run() }",
            "fn f() -> &'static str { \"crate::relay\" }",
            "pub(in crate::hub) fn f() {}",
        ] {
            let (wrong, circles) = judged(&[
                ("lib.rs", "pub mod hub; pub mod relay;"),
                ("hub/mod.rs", text),
                ("relay.rs", "pub struct Relay; pub fn run() {}"),
                ("error.rs", "use crate::close_code::C; pub struct E;"),
                ("close_code.rs", "pub struct C;"),
            ]);
            assert_eq!((wrong, circles), Default::default(), "{text}");
        }
    }

    #[test]
    fn an_arrow_that_no_import_follows_is_told() {
        let (wrong, _) = judged(&[("error.rs", "pub struct E;"), ("attic.rs", "")]);
        let told = [
            "attic is on no floor",
            "no longer needed: error beside close_code",
        ];
        assert_eq!(wrong, told.map(str::to_owned).into());
    }

    /// The circles of a room of three files beside its own.
    fn circles_of(own: &str, a: &str, b: &str, c: &str) -> Vec<String> {
        let (_, circles) = judged(&[
            ("lib.rs", "pub mod hub;"),
            ("hub/mod.rs", &format!("mod a; mod b; mod c; {own}")),
            ("hub/a.rs", &format!("pub struct A; {a}")),
            ("hub/b.rs", &format!("pub struct B; pub fn make() {{}} {b}")),
            ("hub/c/mod.rs", "mod deep;"),
            ("hub/c/deep.rs", &format!("pub struct C; {c}")),
        ]);
        circles.into_iter().collect()
    }

    #[test]
    fn a_type_name_that_stands_for_two_things_is_caught() {
        let files = [
            ("hub.rs", "pub struct Place; const MOST: u8 = 1; fn f() {}"),
            ("relay.rs", "enum Place {} const MOST: u8 = 2; fn f() {}"),
            ("tests.rs", "#[cfg(test)] mod tests { struct Place; }"),
        ];
        let texts = files.map(|(file, text)| (file.to_owned(), text.to_owned()));
        let sources = Sources::parse(&texts);
        let twice = sources.types_declared_twice();
        let expected = ["hub".to_owned(), "relay".to_owned()];
        assert_eq!(
            twice.into_iter().collect::<Vec<_>>(),
            [("Place", expected.to_vec())]
        );
    }

    #[test]
    fn a_circle_is_caught_and_named() {
        for (own, a, b) in [
            ("", "use super::b::B;", "use super::a::A;"),
            (
                "",
                "use crate::hub::{b::B, c};",
                "fn f(_: crate::hub::a::A) {}",
            ),
            ("pub use b::B;", "use super::B;", "use crate::{hub::a::A};"),
            (
                "pub use b::*;",
                "fn f(_: super::B) {}",
                "use super::a::*; fn f(_: A) {}",
            ),
            (
                "use b::make;",
                "fn f() { super::make() }",
                "fn f() { vec![super::a::A]; }",
            ),
            ("", "use super::b; fn f() { b::make() }", "use super::a::A;"),
        ] {
            assert_eq!(
                circles_of(own, a, b, ""),
                ["hub/a.rs:1 needs hub::b, hub/b.rs:1 needs hub::a"],
                "{own} | {a} | {b}"
            );
        }
        let three = circles_of(
            "",
            "use super::b::B;",
            "use super::c::deep::C;",
            "\nuse super::super::a::A;",
        );
        assert_eq!(
            three,
            ["hub/a.rs:1 needs hub::b, hub/b.rs:1 needs hub::c, hub/c/deep.rs:2 needs hub::a"]
        );
    }

    #[test]
    fn a_folders_own_file_may_share_with_its_files_and_tie_them_together() {
        let own = "pub struct Shared; fn f(_: a::A) { b::make() }";
        let none: [&str; 0] = [];
        assert_eq!(
            circles_of(own, "use super::Shared;", "use super::{Shared, a::A};", ""),
            none
        );
        assert_eq!(
            circles_of("pub use a::A; pub use b::B;", "use super::B;", "", ""),
            none
        );
    }

    #[test]
    fn a_doc_comment_that_begins_as_a_question_is_caught() {
        let text = "//! How it goes.\n\n/// A thing.\n/// Which is fine.\nstruct A;\n\n    /// What it is.\n    b: u8,\n// Why: here.\n/// Whatever comes.";
        assert_eq!(questions(text), [1, 7]);
    }
}
