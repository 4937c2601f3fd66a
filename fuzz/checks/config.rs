//! Configuration files. Each ends with a configuration or with mistakes that have a place, and none shows a secret.

use std::path::PathBuf;
use std::sync::LazyLock;

use lockgate::config::Environment;
use lockgate::{Config, LoadOptions};

/// In memory, if the system has such a folder.
static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() {
        memory
    } else {
        std::env::temp_dir()
    };
    folder.join(format!("lockgate-fuzz-{}.toml", std::process::id()))
});

/// Checks one input.
pub(crate) fn check(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    // Other files are no part of this: a pattern could have the whole file system searched.
    if text.contains("include") || text.contains("file") {
        return;
    }
    std::fs::write(&*FILE, bytes).expect("a file can be written");
    let none: [(&str, &str); 0] = [];
    let options = LoadOptions {
        environment: Environment::from_iter(none),
        ..LoadOptions::default()
    };
    let loaded = Config::load(Some(&FILE), &options);
    // The last input would stay in memory after the process.
    std::fs::remove_file(&*FILE).expect("the file is there");
    match loaded {
        Ok(_) => {}
        Err(errors) => {
            assert!(!errors.mistakes().is_empty());
            assert!(!errors.to_string().contains("hunter2"), "{errors}");
        }
    }
}
