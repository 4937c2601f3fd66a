//! Logs of this process: one line per event, written by a separate thread.
//!
//! No task waits for a log line. While the reader of the pipe does not read, lines are dropped and counted. When it
//! reads again, one line states the count. A closed pipe loses lines and has no other effect.
//!
//! It replaces tracing-appender, which counts lost lines and does not log the count.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::config::{LogConfig, LogFormat};
use crate::metrics;
use crate::tasks::Alarm;

/// Lines that may wait for the pipe: a burst of a few thousand, at some 300 bytes each about 1 MiB.
const WAITING_LINES: usize = 4096;

/// The longest time for which the end of the process waits for a pipe without a reader.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The stream that log lines go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogOutput {
    /// Standard output, for a service (<https://12factor.net/logs>).
    Stdout,
    /// Standard error, for commands whose output is on standard output.
    Stderr,
}

impl LogOutput {
    fn is_terminal(self) -> bool {
        match self {
            Self::Stdout => io::stdout().is_terminal(),
            Self::Stderr => io::stderr().is_terminal(),
        }
    }
}

/// Returns the form of the lines: for `auto`, text at a terminal and JSON elsewhere.
fn form_of(format: LogFormat, terminal: bool) -> LogFormat {
    match format {
        LogFormat::Auto if terminal => LogFormat::Text,
        LogFormat::Auto => LogFormat::Json,
        format => format,
    }
}

/// Returns true unless the environment asks for text without colours (<https://no-color.org>).
fn wants_colour(variable: impl Fn(&str) -> Option<OsString>) -> bool {
    let unset = variable("NO_COLOR").is_none_or(|value| value.is_empty());
    unset && variable("TERM").is_some_and(|terminal| terminal != "dumb")
}

/// A reason for which logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `log.level` is not a valid filter.
    #[error("log.level is neither a level nor a filter")]
    Level,
    /// This process already has a logger.
    #[error("logging was already set up")]
    AlreadySetUp,
    /// The writing thread could not be started.
    #[error("cannot start the log thread")]
    Thread(#[source] io::Error),
}

/// The guard of the log. Dropping it waits up to a second for the lines that are not written yet.
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
        let terminal = output.is_terminal();
        let format = form_of(config.format, terminal);
        let dropped = Arc::clone(&lines.dropped);
        let writing = move || {
            let _alarm = Alarm::of("the writer of the log");
            match output {
                LogOutput::Stdout => write_lines(&receiver, io::stdout(), &dropped, format),
                LogOutput::Stderr => write_lines(&receiver, io::stderr(), &dropped, format),
            }
        };
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(writing)
            .map_err(TelemetryError::Thread)?;
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(terminal && wants_colour(|name| std::env::var_os(name)))
            .with_writer(BoxMakeWriter::new(lines.clone()));
        match format {
            LogFormat::Json | LogFormat::Auto => subscriber
                .json()
                .flatten_event(true)
                .with_current_span(false)
                .with_span_list(false)
                .try_init(),
            LogFormat::Text => subscriber.try_init(),
        }
        .map_err(|_| TelemetryError::AlreadySetUp)?;
        // The message of a panic may contain data of a client, so the log gets the location only.
        std::panic::set_hook(Box::new(|panic| {
            metrics::panicked();
            let location = panic.location().map(ToString::to_string);
            tracing::error!(location, "A task panicked");
        }));
        Ok(Self { lines })
    }

    /// Returns the number of lines dropped since the last line that stated it.
    pub fn dropped(&self) -> u64 {
        self.lines.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        let (done, written) = sync_channel(1);
        // Fails if the queue is full. The pipe has no reader then, and waiting would not save a line.
        if self.lines.sender.try_send(Line::Flush(done)).is_ok() {
            written.recv_timeout(FLUSH_TIMEOUT).ok();
        }
    }
}

/// Parses `log.level`: a level, or directives in the syntax of [`EnvFilter`]. Returns `None` if it is neither.
pub fn filter(level: &str) -> Option<EnvFilter> {
    // EnvFilter reads a lone word as a target and would log all of it. Here a lone word is a misspelt level.
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
    /// Answered when all lines before it are written.
    Flush(SyncSender<()>),
}

/// Passes lines to the writing thread and never waits for it.
#[derive(Clone, Debug)]
struct LineSender {
    sender: SyncSender<Line>,
    dropped: Arc<AtomicU64>,
}

impl Write for LineSender {
    /// Takes a whole line, because the formatter writes each line in one call; always succeeds.
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
        // Lines that come within a millisecond are written together. A pause of a millisecond writes the buffer out.
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
                // The receiver may have given up waiting; then the answer is not needed.
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

/// Writes the buffer, and then a line with the number of lines dropped meanwhile.
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
            LogFormat::Json | LogFormat::Auto => writeln!(
                output,
                r#"{{"level":"WARN","message":"Dropped log lines because nothing read them","count":{count},"target":"lockgate::telemetry"}}"#
            ),
            LogFormat::Text => writeln!(
                output,
                "WARN Dropped log lines because nothing read them count={count}"
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
    fn lines_without_a_reader_are_dropped_counted_and_reported() {
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

    /// Before: JSON at a terminal too.
    #[test]
    fn auto_is_text_at_a_terminal_and_json_elsewhere() {
        for (format, terminal, form) in [
            (LogFormat::Auto, true, LogFormat::Text),
            (LogFormat::Auto, false, LogFormat::Json),
            (LogFormat::Text, false, LogFormat::Text),
            (LogFormat::Json, true, LogFormat::Json),
        ] {
            assert_eq!(form_of(format, terminal), form, "{format:?} {terminal}");
        }
    }

    #[test]
    fn no_color_and_a_dumb_terminal_have_no_colours() {
        let with = |no_color: Option<&'static str>, term: Option<&'static str>| {
            wants_colour(move |name| match name {
                "NO_COLOR" => no_color.map(OsString::from),
                _ => term.map(OsString::from),
            })
        };
        assert!(with(None, Some("xterm")));
        assert!(with(Some(""), Some("xterm")));
        assert!(!with(Some("1"), Some("xterm")));
        assert!(!with(None, Some("dumb")));
        assert!(!with(None, None));
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
