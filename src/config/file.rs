//! Reads the files of a configuration: the main one, included ones and those of secrets.
//!
//! A named pipe without a writer, a terminal or a device would never come to an end, so only regular files are read.

use std::collections::BTreeMap;
use std::fs::{self, File, FileType, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::OFlags;

/// The paths of open descriptors. Their owner knows what they are, so `--config /dev/stdin` and `--config <(…)` work.
const HANDED_OVER: [&str; 3] = ["/dev/stdin", "/dev/fd", "/proc/self/fd"];

/// The metadata by which a change of a file is detected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileMark {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

/// The marks of files by path; `None` where there is no file.
pub type FileMarks = BTreeMap<PathBuf, Option<FileMark>>;

impl FileMark {
    /// Reads the mark of a file, following links. `None`: there is no such file.
    pub fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            modified: metadata.modified().ok(),
            length: metadata.len(),
            inode: metadata.ino(),
        })
    }

    /// Returns true if both are of one file, changed or not.
    pub fn is_same_file(&self, other: &Self) -> bool {
        self.inode == other.inode
    }
}

/// Reads a file of at most `largest` bytes.
///
/// # Errors
/// If there is no such file, it cannot be read, it is larger, or it is no regular file; the text says which.
pub(crate) fn read(path: &Path, largest: u64) -> io::Result<(Metadata, Vec<u8>)> {
    let handed_over = HANDED_OVER.iter().any(|open| path.starts_with(open));
    let is_readable = |metadata: &Metadata| match wrong_type(metadata.file_type()) {
        Some(_) if handed_over => Ok(()),
        Some(wrong) => Err(io::Error::other(wrong)),
        None => Ok(()),
    };
    // Looked at before it is opened, because opening a device can have effects.
    is_readable(&fs::metadata(path)?)?;
    let mut options = OpenOptions::new();
    options.read(true);
    if !handed_over {
        // The path may lead to a pipe by now. Without a writer, opening one would wait.
        options.custom_flags(OFlags::NONBLOCK.bits().cast_signed());
    }
    let file = options.open(path)?;
    let metadata = file.metadata()?;
    is_readable(&metadata)?;
    let bytes = read_bounded(&file, largest)?;
    Ok((metadata, bytes))
}

/// The file may grow, and a pipe reports no length, so the limit is enforced while reading.
fn read_bounded(file: &File, largest: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = file.take(largest + 1).read_to_end(&mut bytes)?;
    match read as u64 > largest {
        true => Err(ErrorKind::FileTooLarge.into()),
        false => Ok(bytes),
    }
}

/// Returns the reason why something at a path cannot be read as a file.
fn wrong_type(file_type: FileType) -> Option<&'static str> {
    if file_type.is_file() {
        None
    } else if file_type.is_dir() {
        Some("it is a directory")
    } else if file_type.is_fifo() {
        Some("it is a pipe, which may never end")
    } else if file_type.is_socket() {
        Some("it is a socket")
    } else {
        Some("it is a device")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::process::Command;

    fn error(path: &Path) -> String {
        read(path, 100).unwrap_err().to_string()
    }

    /// Before: the read of the pipe never ended.
    #[test]
    fn only_a_regular_file_is_read_and_nothing_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let made = Command::new("mkfifo").arg(path("fifo")).status();
        assert!(made.unwrap().success());
        let _socket = UnixListener::bind(path("socket")).unwrap();
        std::os::unix::fs::symlink(path("fifo"), path("link")).unwrap();
        std::fs::write(path("good"), [b'x'; 100]).unwrap();
        std::fs::write(path("large"), [b'x'; 101]).unwrap();
        assert!(error(&path("fifo")).contains("a pipe"));
        assert!(error(&path("link")).contains("a pipe"));
        assert!(error(&path("socket")).contains("a socket"));
        assert!(error(dir.path()).contains("a directory"));
        assert!(error(Path::new("/dev/zero")).contains("a device"));
        assert!(error(&path("large")).contains("too large"));
        assert!(error(&path("none")).contains("No such file"));
        assert_eq!(read(&path("good"), 100).unwrap().1.len(), 100);
    }
}
