//! Logs of this process: one line per event, written by a thread of its own.
//!
//! Nothing waits for a log line. While the reader of the pipe does not read, lines are dropped and counted; once it
//! reads again, one line tells how many. A closed pipe loses lines, and nothing else.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::config::{LogConfig, LogFormat};

/// Lines that may wait for the pipe: a burst of a few thousand, at some 300 bytes each about 1 MiB.
const WAITING_LINES: usize = 4096;

/// How long the end of the process waits for a pipe that nobody reads.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Where log lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogOutput {
    /// Standard output, for a service (<https://12factor.net/logs>).
    Stdout,
    /// Standard error, for commands whose output is on standard output.
    Stderr,
}

/// Why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The level is no filter.
    #[error("log.level is neither a level nor a filter")]
    Level,
    /// Something else in this process logs already.
    #[error("logging was already set up")]
    AlreadySetUp,
    /// The writing thread could not be started.
    #[error("cannot start the log thread")]
    Thread(#[source] io::Error),
}

/// Keeps the logs going; when dropped, waits up to a second for lines that still have to be written.
#[derive(Debug)]
pub struct Telemetry {
    lines: LineSender,
}

impl Telemetry {
    /// Starts logging for the whole process.
    ///
    /// # Errors
    /// [`TelemetryError`]; nothing is logged then.
    pub fn start(config: &LogConfig, output: LogOutput) -> Result<Self, TelemetryError> {
        let filter = filter(&config.level).ok_or(TelemetryError::Level)?;
        let (sender, receiver) = sync_channel(WAITING_LINES);
        let lines = LineSender {
            sender,
            dropped: Arc::new(AtomicU64::new(0)),
        };
        let (dropped, format) = (Arc::clone(&lines.dropped), config.format);
        let writing = move || match output {
            LogOutput::Stdout => write_lines(&receiver, io::stdout(), &dropped, format),
            LogOutput::Stderr => write_lines(&receiver, io::stderr(), &dropped, format),
        };
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(writing)
            .map_err(TelemetryError::Thread)?;
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(false)
            .with_writer(BoxMakeWriter::new(lines.clone()));
        match config.format {
            LogFormat::Json => subscriber
                .json()
                .flatten_event(true)
                .with_current_span(false)
                .with_span_list(false)
                .try_init(),
            LogFormat::Text => subscriber.try_init(),
        }
        .map_err(|_| TelemetryError::AlreadySetUp)?;
        // What a panic says may hold what a client sent: only its place is told.
        std::panic::set_hook(Box::new(|panic| {
            let location = panic.location().map(ToString::to_string);
            tracing::error!(location, "A task panicked");
        }));
        Ok(Self { lines })
    }

    /// How many lines were dropped since the last line that told so.
    pub fn dropped(&self) -> u64 {
        self.lines.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        let (done, written) = sync_channel(1);
        // Fails where lines wait already, and then the pipe does not move: nothing is lost by not waiting.
        if self.lines.sender.try_send(Line::Flush(done)).is_ok() {
            written.recv_timeout(FLUSH_TIMEOUT).ok();
        }
    }
}

/// The filter that `log.level` names: a level, or directives as [`EnvFilter`] reads them. `None`: it is neither.
pub fn filter(level: &str) -> Option<EnvFilter> {
    // EnvFilter takes a lone word for a target and would log everything of it; here it is a misspelt level.
    let words = ["off", "error", "warn", "info", "debug", "trace"];
    let known = |word: &str| words.iter().any(|level| level.eq_ignore_ascii_case(word));
    if level
        .split(',')
        .any(|part| !part.contains(['=', '[', ':']) && !known(part.trim()))
    {
        return None;
    }
    EnvFilter::builder().parse(level).ok()
}

enum Line {
    Text(Box<[u8]>),
    /// Answered once everything before it was written.
    Flush(SyncSender<()>),
}

/// Hands lines to the writing thread, and never waits for it.
#[derive(Clone, Debug)]
struct LineSender {
    sender: SyncSender<Line>,
    dropped: Arc<AtomicU64>,
}

impl Write for LineSender {
    /// Takes a whole line, as the formatter hands it over; always succeeds.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.sender.try_send(Line::Text(line.into())) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LineSender {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Writes lines until no sender is left.
fn write_lines(
    lines: &Receiver<Line>,
    mut output: impl Write,
    dropped: &AtomicU64,
    format: LogFormat,
) {
    let mut buffer = Vec::new();
    loop {
        // What came together leaves together; a quiet moment flushes.
        match lines.recv_timeout(Duration::from_millis(if buffer.is_empty() {
            60_000
        } else {
            1
        })) {
            Ok(Line::Text(line)) => {
                buffer.extend_from_slice(&line);
                if buffer.len() < 64 * 1024 {
                    continue;
                }
            }
            Ok(Line::Flush(done)) => {
                write_out(&mut output, &mut buffer, dropped, format);
                // Whoever asked may have stopped waiting.
                done.try_send(()).ok();
                continue;
            }
            Err(RecvTimeoutError::Timeout) if buffer.is_empty() => continue,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                write_out(&mut output, &mut buffer, dropped, format);
                return;
            }
        }
        write_out(&mut output, &mut buffer, dropped, format);
    }
}

/// Writes what is buffered, then tells of lines that were dropped meanwhile.
fn write_out(
    output: &mut impl Write,
    buffer: &mut Vec<u8>,
    dropped: &AtomicU64,
    format: LogFormat,
) {
    let lines = buffer.iter().filter(|byte| **byte == b'\n').count();
    let written = output.write_all(buffer).and_then(|()| output.flush());
    buffer.clear();
    if written.is_err() {
        dropped.fetch_add(lines as u64, Ordering::Relaxed);
        return;
    }
    let count = dropped.swap(0, Ordering::Relaxed);
    if count > 0 {
        let told = match format {
            LogFormat::Json => writeln!(
                output,
                r#"{{"level":"WARN","message":"Dropped log lines that nobody read","count":{count},"target":"lockgate::telemetry"}}"#
            ),
            LogFormat::Text => writeln!(
                output,
                "WARN Dropped log lines that nobody read count={count}"
            ),
        };
        if told.is_err() {
            dropped.fetch_add(count, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Pipe {
        written: Arc<Mutex<Vec<u8>>>,
        broken: bool,
    }

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.broken {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn sender(capacity: usize) -> (LineSender, Receiver<Line>) {
        let (sender, receiver) = sync_channel(capacity);
        let dropped = Arc::new(AtomicU64::new(0));
        (LineSender { sender, dropped }, receiver)
    }

    #[test]
    fn lines_that_nobody_takes_are_dropped_counted_and_told() {
        let (mut lines, receiver) = sender(2);
        for _ in 0..5 {
            lines.write_all(b"line\n").unwrap();
        }
        assert_eq!(lines.dropped.load(Ordering::Relaxed), 3);
        let dropped = Arc::clone(&lines.dropped);
        drop(lines);
        let pipe = Pipe::default();
        write_lines(&receiver, pipe.clone(), &dropped, LogFormat::Text);
        let written = String::from_utf8(pipe.written.lock().unwrap().clone()).unwrap();
        assert_eq!(written.matches("line\n").count(), 2);
        assert!(written.ends_with("count=3\n"), "{written}");
    }

    #[test]
    fn a_closed_pipe_loses_lines_and_nothing_else() {
        let (mut lines, receiver) = sender(8);
        lines.write_all(b"line\n").unwrap();
        let dropped = Arc::clone(&lines.dropped);
        drop(lines);
        let pipe = Pipe {
            broken: true,
            ..Pipe::default()
        };
        write_lines(&receiver, pipe, &dropped, LogFormat::Json);
        assert_eq!(dropped.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_misspelt_level_is_no_filter() {
        for good in [
            "info",
            "WARN",
            "off",
            "info,lockgate::users=debug",
            "lockgate=trace",
        ] {
            assert!(filter(good).is_some(), "{good}");
        }
        for bad in ["inof", "", "info,dbug", "lockgate=loud"] {
            assert!(filter(bad).is_none(), "{bad}");
        }
    }
}
