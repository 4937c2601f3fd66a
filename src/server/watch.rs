//! `watch`: a changed file of the configuration starts a reload.
//!
//! The files are polled: a mounted ConfigMap changes by a replaced symbolic link, and network file systems send no
//! notifications.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use super::reload::Reloader;
use crate::config::{FileMark, FileMarks};

/// Interval at which the files are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Pause before the second look at a file that has changed: its writer may not have finished.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Applies changes of the files while `watch` is on. Never returns.
pub(super) async fn run(reloader: Arc<Reloader>) -> Infallible {
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut applied: Option<FileMarks> = None;
    loop {
        look.tick().await;
        // Without `watch` no file is looked at.
        if !reloader.state.lock().config.watch {
            applied = None;
            continue;
        }
        let now = marks(&reloader).await;
        let has_changed = match &applied {
            Some(applied) => *applied != now,
            // At the first look it is what was read that counts: a file may have changed since.
            None => differ(&reloader.state.lock().marks, &now),
        };
        if !has_changed {
            applied = Some(now);
            continue;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
        // Two equal looks in a row: the writer has finished.
        if now == marks(&reloader).await {
            tracing::info!("The configuration's files have changed");
            drop(reloader.reload().await);
            // Not the marks of now: a change during the reload is one more.
            applied = Some(now);
        }
    }
}

/// Returns the marks of all files, new ones that `include` matches among them.
async fn marks(reloader: &Arc<Reloader>) -> FileMarks {
    let reloader = reloader.clone();
    // Thousands of files are looked at beside the threads that serve sockets.
    let looked = tokio::task::spawn_blocking(move || {
        let (mut paths, include) = {
            let state = reloader.state.lock();
            (state.sources.clone(), state.config.include.clone())
        };
        if let Some(main) = paths.first().cloned() {
            paths.extend(included(&main, &include));
        }
        let mark = |path: PathBuf| {
            let mark = FileMark::of(&path);
            (path, mark)
        };
        paths.into_iter().map(mark).collect()
    });
    looked.await.unwrap_or_default()
}

/// Returns true if a file has changed since it was read, or there is one that was not.
fn differ(read: &FileMarks, now: &FileMarks) -> bool {
    if read.is_empty() {
        return false;
    }
    // A file that was read by another of its names.
    let is_known = |mark: &FileMark| {
        read.values()
            .flatten()
            .any(|known| known.is_same_file(mark))
    };
    now.iter().any(|(path, mark)| match read.get(path) {
        Some(known) => known != mark,
        None => mark.as_ref().is_some_and(|mark| !is_known(mark)),
    })
}

/// Returns the files that `include` matches now.
fn included(main: &Path, patterns: &[String]) -> Vec<PathBuf> {
    let folder = main.parent().unwrap_or(Path::new(""));
    let folder = glob::Pattern::escape(&folder.to_string_lossy());
    let found = patterns.iter().filter_map(|pattern| {
        let whole = Path::new(&folder).join(pattern);
        glob::glob(&whole.to_string_lossy()).ok()
    });
    found.flatten().filter_map(Result::ok).collect()
}
