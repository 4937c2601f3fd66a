//! Child processes that end with us, whose output is kept and can be waited for.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, LazyLock, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::watch;

use super::{PATIENCE, eventually, within};

/// The longest wait for output after the end of its process.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A command that runs as `user` (where we are root) and is killed when this process ends.
pub(crate) struct Program {
    name: String,
    command: Command,
}

impl Program {
    /// `name` is what panics call it.
    pub(crate) fn new(name: &str, program: impl AsRef<OsStr>) -> Self {
        Self::as_user(name, program, None)
    }

    /// As `new`; with a user, which must exist, its privileges are taken on.
    pub(crate) fn as_user(name: &str, program: impl AsRef<OsStr>, user: Option<&str>) -> Self {
        let mut command = Command::new("setpriv");
        command.arg("--pdeathsig=KILL");
        if let Some(user) = user {
            command.args([
                format!("--reuid={user}"),
                format!("--regid={user}"),
                "--init-groups".into(),
            ]);
        }
        command.arg("--").arg(program.as_ref());
        Self {
            name: name.to_owned(),
            command,
        }
    }

    /// Adds arguments.
    pub(crate) fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable of its environment.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Sets its working directory.
    pub(crate) fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Runs it to its end; panics with its output if it fails.
    pub(crate) fn run(mut self) {
        let output = self
            .command
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|e| panic!("{}: {e}", self.name));
        assert!(
            output.status.success(),
            "{}: {}\n{}{}",
            self.name,
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Starts it.
    pub(crate) fn start(mut self) -> Process {
        self.command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child =
            spawn(self.command).unwrap_or_else(|e| panic!("{} cannot start: {e}", self.name));
        let output = Output::default();
        for pipe in [
            child
                .stdout
                .take()
                .map(|p| Box::new(p) as Box<dyn Read + Send>),
            child
                .stderr
                .take()
                .map(|p| Box::new(p) as Box<dyn Read + Send>),
        ]
        .into_iter()
        .flatten()
        {
            let output = output.clone();
            output.pipes.send_modify(|pipes| *pipes += 1);
            std::thread::spawn(move || output.read(pipe));
        }
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let stdin = child.stdin.take();
        let (ended, exit) = watch::channel(None);
        let waiter = std::thread::spawn(move || {
            let status = child.wait().ok();
            ended.send_replace(status);
        });
        Process {
            name: self.name,
            pid: pid.expect("a process id is a positive number"),
            exit,
            waiter: Some(waiter),
            stdin: Mutex::new(stdin),
            output,
        }
    }
}

/// The death of a parent is the death of the *thread* that started the child, so one thread that never ends starts all.
fn spawn(command: Command) -> std::io::Result<Child> {
    type Job = (Command, mpsc::Sender<std::io::Result<Child>>);
    static SPAWNER: LazyLock<mpsc::Sender<Job>> = LazyLock::new(|| {
        let (jobs, queue) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, answer) in queue {
                drop(answer.send(command.spawn()));
            }
        });
        jobs
    });
    let (answer, child) = mpsc::channel();
    SPAWNER
        .send((command, answer))
        .expect("the spawner never ends");
    child.recv().expect("the spawner always answers")
}

/// A running child; it is killed when this goes.
pub(crate) struct Process {
    name: String,
    /// Its id.
    pub(crate) pid: Pid,
    exit: watch::Receiver<Option<ExitStatus>>,
    waiter: Option<JoinHandle<()>>,
    stdin: Mutex<Option<ChildStdin>>,
    /// All that it printed, on either stream.
    pub(crate) output: Output,
}

impl Process {
    /// Sends a signal, if it still runs.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.exit.borrow().is_none() {
            kill_process(self.pid, signal)
                .unwrap_or_else(|e| panic!("{}: {signal:?}: {e}", self.name));
        }
    }

    /// Stops it (SIGSTOP), and returns when the kernel has stopped every thread: on a busy machine some run on for a while.
    pub(crate) async fn freeze(&self) {
        self.signal(Signal::STOP);
        let tasks = format!("/proc/{}/task", self.pid.as_raw_nonzero());
        eventually(PATIENCE, "every thread is stopped", async || {
            let threads = std::fs::read_dir(&tasks).expect("it runs").flatten();
            let states = threads.filter_map(|thread| {
                let status = std::fs::read_to_string(thread.path().join("status")).ok()?;
                let state = status.lines().find(|line| line.starts_with("State:"))?;
                Some(state.to_owned())
            });
            let awake: Vec<_> = states.filter(|state| !state.contains('T')).collect();
            match awake.is_empty() {
                true => Ok(()),
                false => Err(awake),
            }
        })
        .await;
    }

    /// Kills it, and returns when it is gone.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
        if let Some(waiter) = self.waiter.take() {
            drop(waiter.join());
        }
    }

    /// The most memory in bytes that it ever had (`VmHWM`).
    pub(crate) fn peak_memory(&self) -> u64 {
        let path = format!("/proc/{}/status", self.pid.as_raw_nonzero());
        let status = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|rest| rest.trim().strip_suffix(" kB"));
        let kib: u64 = peak.and_then(|text| text.parse().ok()).expect("a number");
        kib * 1024
    }

    /// Returns true until it has ended.
    pub(crate) fn is_running(&self) -> bool {
        self.exit.borrow().is_none()
    }

    /// Waits for its end.
    pub(crate) async fn exited(&self, deadline: Duration) -> ExitStatus {
        let mut exit = self.exit.clone();
        let what = format!("the end of {}", self.name);
        let status = within(deadline, &what, exit.wait_for(Option::is_some))
            .await
            .map(|status| *status);
        let printed = self.output.finished();
        tokio::time::timeout(LAST_WORDS, printed).await.ok();
        match status {
            Ok(status) => status.expect("waited for it"),
            Err(_) => panic!("{}: its waiting task is gone", self.name),
        }
    }

    /// Waits for a line of its output that `find` takes; panics with the output if it ends without one.
    pub(crate) async fn line<T>(
        &self,
        what: &str,
        deadline: Duration,
        find: impl FnMut(&str) -> Option<T>,
    ) -> T {
        let mut exit = self.exit.clone();
        let found = async {
            let mut line = std::pin::pin!(self.output.line(find));
            tokio::select! {
                found = &mut line => return found,
                _ = exit.wait_for(Option::is_some) => {}
            }
            // The last lines may still be in the pipe.
            tokio::time::timeout(LAST_WORDS, line).await.ok().flatten()
        };
        match tokio::time::timeout(deadline, found).await {
            Ok(Some(found)) => found,
            ended => panic!(
                "{}: {what}: {}; it printed:\n{}",
                self.name,
                if ended.is_ok() {
                    "it ended"
                } else {
                    "nothing in time"
                },
                self.output.text()
            ),
        }
    }

    /// Writes one line to its standard input.
    pub(crate) fn write_line(&self, line: &str) {
        let mut stdin = self.stdin.lock().expect("no test holds it and panics");
        let stdin = stdin.as_mut().expect("open as long as the process");
        writeln!(stdin, "{line}")
            .and_then(|()| stdin.flush())
            .unwrap_or_else(|e| panic!("{}: {e}; it printed:\n{}", self.name, self.output.text()));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What reads the output of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    /// It reads.
    Reading,
    /// It leaves the pipes to fill.
    Paused,
    /// It has closed its ends of the pipes.
    Gone,
}

/// The lines that a process printed.
#[derive(Clone)]
pub(crate) struct Output {
    lines: Arc<Mutex<Vec<String>>>,
    count: Arc<watch::Sender<usize>>,
    pipes: Arc<watch::Sender<usize>>,
    reader: Arc<(Mutex<Reader>, Condvar)>,
}

impl Default for Output {
    fn default() -> Self {
        Self {
            lines: Arc::default(),
            count: Arc::new(watch::Sender::new(0)),
            pipes: Arc::new(watch::Sender::new(0)),
            reader: Arc::new((Mutex::new(Reader::Reading), Condvar::new())),
        }
    }
}

impl Output {
    fn read(&self, pipe: impl Read) {
        let mut reader = BufReader::new(pipe);
        let mut line = Vec::new();
        while self.wants_more() && reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            let mut lines = self.lines.lock().expect("no reader panics");
            lines.push(text);
            self.count.send_replace(lines.len());
            drop(lines);
            line.clear();
        }
        self.pipes.send_modify(|pipes| *pipes -= 1);
    }

    /// Reads on, stops to read, or closes the pipes; each takes effect with the next line.
    pub(crate) fn set_reader(&self, reader: Reader) {
        let (now, changed) = &*self.reader;
        *now.lock().expect("no reader panics") = reader;
        changed.notify_all();
    }

    /// Waits while the reader is paused; false if it is gone.
    fn wants_more(&self) -> bool {
        let (now, changed) = &*self.reader;
        let now = now.lock().expect("no reader panics");
        let now = changed.wait_while(now, |now| *now == Reader::Paused);
        *now.expect("no reader panics") == Reader::Reading
    }

    /// Waits until no process can print any more.
    async fn finished(&self) {
        let mut pipes = self.pipes.subscribe();
        drop(pipes.wait_for(|pipes| *pipes == 0).await);
    }

    /// Waits for a line, from the first on, that `find` takes.
    pub(crate) async fn line<T>(&self, mut find: impl FnMut(&str) -> Option<T>) -> Option<T> {
        let mut grown = self.count.subscribe();
        let mut seen = 0;
        loop {
            let count = *grown.borrow_and_update();
            let found = {
                let lines = self.lines.lock().expect("no reader panics");
                lines[seen..count].iter().find_map(|line| find(line))
            };
            if found.is_some() {
                return found;
            }
            seen = count;
            grown.changed().await.ok()?;
        }
    }

    /// Everything so far.
    pub(crate) fn text(&self) -> String {
        self.lines.lock().expect("no reader panics").join("\n")
    }
}

/// Returns the path of a program, on the `PATH` or among the system's own.
pub(crate) fn find_program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("missing: {name} - `tests/run deps` installs it"))
}
