//! The folders of demos that were killed: the next start removes them.
//!
//! A demo holds a lock on a file in its folder, which the system takes from it however it ends. So a folder whose lock is free has no
//! demo. One without a lock file is left alone: it is being made, or an earlier version made it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// The beginning of the names of folders.
pub(super) const PREFIX: &str = "lockgate-dev-";
/// The name of the locked file.
const LOCK: &str = "lock";
/// Its name until it is locked, so that no start finds it free.
const NEW_LOCK: &str = "lock.new";

/// Locks a new folder. The lock lasts as long as the file is open.
///
/// # Errors
/// If the file cannot be made or locked.
pub(super) fn lock(folder: &Path) -> io::Result<File> {
    let new = folder.join(NEW_LOCK);
    let mut options = OpenOptions::new();
    let file = { options.write(true).create_new(true).mode(0o600) }.open(&new)?;
    file.lock()?;
    fs::rename(new, folder.join(LOCK))?;
    Ok(file)
}

/// Removes the folders among `temporary` that demos of this user have left. What cannot be removed stays.
pub(super) fn remove_from(temporary: &Path) {
    let Ok(entries) = fs::read_dir(temporary) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            remove_unless_locked(&entry.path()).ok();
        }
    }
}

fn remove_unless_locked(folder: &Path) -> io::Result<()> {
    let found = fs::symlink_metadata(folder)?;
    // Others can put a folder here too, and links into it.
    let is_own = found.is_dir() && found.uid() == rustix::process::geteuid().as_raw();
    if !is_own || found.mode() & 0o077 != 0 {
        return Ok(());
    }
    let lock = File::open(folder.join(LOCK))?;
    lock.try_lock()?;
    remove(folder)
}

/// Removes a folder with the files in it; it has no further folders.
///
/// # Errors
/// If something in it cannot be removed. The lock goes last, so that the next start finds the rest.
pub(super) fn remove(folder: &Path) -> io::Result<()> {
    for file in fs::read_dir(folder)? {
        let file = file?;
        if file.file_name() != LOCK {
            fs::remove_file(file.path())?;
        }
    }
    fs::remove_file(folder.join(LOCK))?;
    fs::remove_dir(folder)
}

#[cfg(test)]
mod tests {
    use std::fs::DirBuilder;
    use std::os::unix::fs::{DirBuilderExt, symlink};
    use std::path::PathBuf;

    use super::*;

    fn folder(parent: &Path, name: &str) -> PathBuf {
        let path = parent.join(name);
        DirBuilder::new().mode(0o700).create(&path).unwrap();
        path
    }

    /// Before: each demo that was killed left its folder, with its keys.
    #[test]
    fn folders_of_demos_that_are_gone_are_removed_and_no_others() {
        let temporary = tempfile::tempdir().unwrap();
        let temporary = temporary.path();
        let made = |name: &str| {
            let path = folder(temporary, name);
            fs::write(path.join("api-key"), "x").unwrap();
            path
        };
        let (gone, runs) = (made("lockgate-dev-1"), made("lockgate-dev-2"));
        drop(lock(&gone).unwrap());
        let _held = lock(&runs).unwrap();
        let new = made("lockgate-dev-3");
        let other = made("lockgate-other");
        drop(lock(&other).unwrap());
        let elsewhere = made("elsewhere");
        drop(lock(&elsewhere).unwrap());
        let link = temporary.join("lockgate-dev-4");
        symlink(&elsewhere, &link).unwrap();
        remove_from(temporary);
        assert!(!gone.exists());
        for stays in [&runs, &new, &other, &elsewhere] {
            assert!(stays.join("api-key").exists(), "{}", stays.display());
        }
    }
}
