//! The checks of the fuzz targets, each on the seeds of its corpus; `fuzz/run` goes on from there.
//!
//! Without a harness, as two of them take in files of the crate whose own tests have no place here.

use std::error::Error;
use std::path::Path;
use std::process::Command;

// The files of the crate name these from the root.
use lockgate::{error, event, stores};

#[path = "../../fuzz/checks/resp.rs"]
mod channel_layer;
#[path = "../../fuzz/checks/config.rs"]
mod config;
#[path = "../../fuzz/checks/control.rs"]
mod control;
#[path = "../../fuzz/checks/events.rs"]
mod events;
#[path = "../../fuzz/checks/frames.rs"]
mod frames;
#[path = "../../fuzz/checks/head.rs"]
mod head;
#[path = "../../fuzz/checks/msgpack.rs"]
mod msgpack;
#[path = "../../fuzz/checks/token.rs"]
mod token;

/// A check of one input, which panics where it does not hold.
type Check = fn(&[u8]);

const CHECKS: [(&str, Check); 8] = [
    ("config", config::check),
    ("control", control::check),
    ("events", events::check),
    ("frames", frames::check),
    ("head", head::check),
    ("msgpack", msgpack::check),
    ("resp", channel_layer::check),
    ("token", token::check),
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let corpus = tempfile::tempdir()?;
    let mut seeds = Command::new("python3");
    let seeds = seeds.arg(root.join("fuzz/seeds")).arg(corpus.path());
    let written = seeds
        .output()
        .map_err(|error| format!("python3: {error}"))?;
    assert!(written.status.success(), "{written:?}");
    let targets = std::fs::read_dir(root.join("fuzz/targets"))?;
    assert_eq!(
        targets.count(),
        CHECKS.len(),
        "each target has its check here"
    );
    for (name, check) in CHECKS {
        let mut count = 0;
        for seed in std::fs::read_dir(corpus.path().join(name))? {
            check(&std::fs::read(seed?.path())?);
            count += 1;
        }
        assert!(count > 2, "{name} has {count} seeds");
        println!("fuzz check {name}: {count} seeds hold");
    }
    Ok(())
}
