//! Child processes: each is started on one core, ended by its id, and measured by the kernel's counters.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Resource, Rlimit, Signal};
use rustix::thread::CpuSet;
use thread_priority::ThreadPriority;
use thread_priority::unix::{
    NormalThreadSchedulePolicy, ThreadSchedulePolicy, set_thread_priority_and_policy,
    thread_native_id,
};

/// The core of the measured server: gateway or floor, one at a time.
pub(crate) const SERVER_CORE: usize = 0;
/// The core of this program and Redis.
pub(crate) const LOAD_CORE: usize = 1;

/// The first argument of this program when it only pins itself to a core and becomes another program.
pub(crate) const PIN: &str = "__pin";

/// Ticks of `/proc/PID/stat` per second: fixed by the Linux ABI.
const TICKS_PER_SECOND: u64 = 100;

/// A child process. It ends when this is dropped, or when the load program dies.
pub(crate) struct Process {
    child: Child,
}

impl Process {
    /// Starts `program` on `core`; `set_up` adds arguments, environment and pipes.
    pub(crate) fn spawn(
        core: usize,
        program: &Path,
        set_up: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(PIN).arg(core.to_string()).arg(program);
        command.stdin(Stdio::null());
        set_up(&mut command);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self { child })
    }

    /// Returns the pipes that `set_up` asked for.
    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Fails if the process has ended.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("the process ended early: {status}"),
            None => Ok(()),
        }
    }

    /// Sends the process a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let id = Pid::from_raw(self.child.id().cast_signed()).context("no process has the id 0")?;
        Ok(rustix::process::kill_process(id, signal)?)
    }

    /// Returns the CPU time used so far.
    pub(crate) fn cpu(&self) -> Result<CpuReading> {
        CpuReading::of(self.child.id())
    }

    /// Returns the proportional set size in bytes (`Pss` of `/proc/PID/smaps_rollup`).
    pub(crate) fn pss(&self) -> Result<u64> {
        self.memory("Pss:")
    }

    /// Returns the resident set size in bytes: the memory of a process that shares its pages with no other.
    pub(crate) fn rss(&self) -> Result<u64> {
        self.memory("Rss:")
    }

    /// Returns a line of `/proc/PID/smaps_rollup` in bytes.
    fn memory(&self, name: &str) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|rest| rest.split_whitespace().next());
        let kib: u64 = kib
            .with_context(|| format!("smaps_rollup has no {name}"))?
            .parse()?;
        Ok(kib * 1024)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.child.kill().is_ok() {
            self.child.wait().ok();
        }
    }
}

/// A reading of a process's CPU time: nanoseconds per thread, and the coarse total that also holds ended threads.
pub(crate) struct CpuReading {
    threads: BTreeMap<u32, u64>,
    ticks: u64,
    /// Nanoseconds in which threads were ready and had no core.
    waited: u64,
}

impl CpuReading {
    /// Reads the times of the process with this id.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let mut threads = BTreeMap::new();
        let mut waited = 0;
        for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
            let entry = entry?;
            // A thread may end between the listing and the reading.
            let Ok(text) = fs::read_to_string(entry.path().join("schedstat")) else {
                continue;
            };
            let id = entry.file_name().to_string_lossy().parse()?;
            let mut numbers = text.split_whitespace().map(str::parse);
            let mut next = || numbers.next().unwrap_or(Ok(0));
            threads.insert(id, next()?);
            waited += next()?;
        }
        Ok(Self {
            threads,
            ticks: ticks_of(pid)?,
            waited,
        })
    }

    /// Returns the time since an earlier reading in which threads were ready and had no core, because others on it ran or
    /// the process' own threads did. The time of threads that ended meanwhile is missing.
    pub(crate) fn waited_since(&self, earlier: &Self) -> Duration {
        Duration::from_nanos(self.waited.saturating_sub(earlier.waited))
    }

    /// Returns the CPU time between an earlier reading and this one.
    ///
    /// It is the sum of the threads' nanoseconds. If a thread ended meanwhile and more than two ticks are missing, it is
    /// the coarse total of the process.
    pub(crate) fn since(&self, earlier: &Self) -> Duration {
        let before = |id: &u32| earlier.threads.get(id).copied().unwrap_or(0);
        let nanos: u64 = self
            .threads
            .iter()
            .map(|(id, now)| now.saturating_sub(before(id)))
            .sum();
        let fine = Duration::from_nanos(nanos);
        let tick = Duration::from_secs(1) / TICKS_PER_SECOND as u32;
        let coarse = tick * (self.ticks.saturating_sub(earlier.ticks)) as u32;
        if coarse > fine + 3 * tick {
            coarse
        } else {
            fine
        }
    }
}

/// Returns `utime + stime` of `/proc/PID/stat`. Fields are counted after the program's name, which may hold blanks.
fn ticks_of(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = text.rsplit_once(')').context("stat has no name")?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u64 = fields.next().context("stat has no utime")?.parse()?;
    let system: u64 = fields.next().context("stat has no stime")?.parse()?;
    Ok(user + system)
}

/// Pins this process to `core`.
pub(crate) fn pin_self(core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core);
    rustix::thread::sched_setaffinity(None, &cores)
        .with_context(|| format!("cannot run on core {core}: two cores are needed"))
}

/// Gives this process and its children precedence over everything else on the machine; the kernel allows it to root.
///
/// Returns a text about the extent. If the kernel groups processes by session, it is this session only.
pub(crate) fn take_precedence() -> &'static str {
    let grouped = fs::read_to_string("/proc/sys/kernel/sched_autogroup_enabled");
    match rustix::process::setpriority_process(None, -20) {
        Ok(()) if grouped.is_ok_and(|text| text.trim() == "1") => "nice -20 within the session, ",
        Ok(()) => "nice -20, ",
        Err(_) => "",
    }
}

/// Gives this thread, and those that it starts, the time that no other process of its core wants. A lower nice value is not
/// enough: the kernel lets what has begun use its slice of a millisecond or more, and the program that takes the times
/// would wait for it.
pub(crate) fn give_precedence() -> Result<()> {
    set_thread_priority_and_policy(
        thread_native_id(),
        ThreadPriority::Min,
        ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle),
    )
    .map_err(|error| anyhow!("cannot take the policy SCHED_IDLE: {error:?}"))
}

/// Raises the limit of descriptors to the hard limit and returns it. Children inherit it.
pub(crate) fn raise_descriptor_limit() -> Result<u64> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    rustix::process::setrlimit(Resource::Nofile, raised)?;
    Ok(limit.maximum.unwrap_or(u64::MAX))
}

/// Pins this process to a core and becomes the program of [`Process::spawn`]: `CORE PROGRAM ARGS…`. It returns only on an
/// error.
pub(crate) fn become_pinned(arguments: &[impl AsRef<OsStr>]) -> Result<()> {
    let [core, program, rest @ ..] = arguments else {
        bail!("{PIN} needs a core and a program");
    };
    pin_self(core.as_ref().to_string_lossy().parse()?)?;
    // The kernel ends this child if the load program is killed.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    Err(Command::new(program).args(rest).exec().into())
}
