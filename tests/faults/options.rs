//! The command line of the suite.

use std::path::PathBuf;
use std::time::Duration;

use crate::accounting;
use crate::field::Size;

/// What the command line asks for.
pub(crate) struct Options {
    pub(crate) list: bool,
    /// Numbers of faults, or of runs of the account; empty: all.
    pub(crate) rows: Vec<u8>,
    pub(crate) size: Size,
    /// Rows at a time.
    pub(crate) jobs: usize,
    pub(crate) write: bool,
    pub(crate) soak: Option<Soak>,
    /// The account of clients that come back, in place of the faults.
    pub(crate) accounting: Option<accounting::Size>,
    /// The binary that replicas of rows and of the soak run; else the one that was built with the suite.
    pub(crate) gateway: Option<PathBuf>,
}

/// A soak.
pub(crate) struct Soak {
    pub(crate) lasts: Duration,
    pub(crate) seed: u64,
}

impl Options {
    /// Reads the arguments.
    pub(crate) fn parse(arguments: &[String]) -> Result<Self, String> {
        let mut options = Self {
            list: false,
            rows: Vec::new(),
            size: Size::SHORT,
            jobs: 3,
            write: false,
            soak: None,
            accounting: None,
            gateway: None,
        };
        let mut seed = u64::from(std::process::id());
        let mut clients = None;
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let mut value = || rest.next().ok_or(format!("{argument} needs a value"));
            match argument.as_str() {
                "--short" => {}
                "--list" => options.list = true,
                "--write" => options.write = true,
                "--long" => {
                    (options.size, options.jobs) = (Size::LONG, 1);
                    options.accounting = options.accounting.map(|_| accounting::Size::LONG);
                }
                "--accounting" if options.size.long => {
                    options.accounting = Some(accounting::Size::LONG);
                }
                "--accounting" => options.accounting = Some(accounting::Size::SHORT),
                "--clients" => clients = Some(number(argument, value()?)?),
                "--jobs" => options.jobs = number(argument, value()?)?,
                "--gateway" => options.gateway = Some(value()?.into()),
                "--seed" => seed = number(argument, value()?)?,
                "--rows" => {
                    let numbers = value()?.split(',').map(|n| number(argument, n));
                    options.rows = numbers.collect::<Result<_, _>>()?;
                }
                "--soak" => {
                    let lasts = duration(value()?)?;
                    options.soak = Some(Soak { lasts, seed });
                }
                other => return Err(format!("no such option: {other}")),
            }
        }
        if let Some(soak) = &mut options.soak {
            soak.seed = seed;
        }
        if options.accounting.is_some() && options.gateway.is_some() {
            return Err("--gateway is for rows and the soak, not for --accounting".to_owned());
        }
        if let (Some(size), Some(clients)) = (&mut options.accounting, clients) {
            *size = size.with_clients(clients);
        }
        Ok(options)
    }

    /// How the table came about.
    pub(crate) fn circumstances(&self) -> String {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load: Vec<&str> = load.split(' ').take(3).collect();
        let Size {
            clients, groups, ..
        } = self.size;
        let build = if cfg!(debug_assertions) {
            "debug"
        } else {
            "release"
        };
        let gateway = match &self.gateway {
            Some(_) => "the gateway a binary of its own, ",
            None => "",
        };
        let form = if self.size.long {
            "--long --write"
        } else {
            "--write"
        };
        format!(
            "Commit {}, `tests/faults/run {form}`, {}: {} clients of two tenants on two replicas, {groups} groups a tenant; {gateway}a \
             {build} build on {cores} cores that clients, servers and databases share; {} at a time; load average {}.",
            commit(),
            processor(),
            2 * clients,
            match self.jobs {
                1 => "one row".to_owned(),
                jobs => format!("{jobs} rows"),
            },
            load.join(" ")
        )
    }
}

/// The model of the machine's processor.
fn processor() -> String {
    let known = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut values = known.lines().filter_map(|line| line.split_once(": "));
    let model = values.find(|(key, _)| key.starts_with("model name"));
    model
        .map_or("a processor without a name", |(_, name)| name)
        .to_owned()
}

/// The commit that is played; `unknown` outside of a clone.
pub(crate) fn commit() -> String {
    let id = || {
        let git = std::process::Command::new("git")
            .args(["rev-parse", "--short=12", "HEAD"])
            .output()
            .ok()?;
        let id = String::from_utf8(git.stdout).ok()?;
        git.status.success().then(|| id.trim().to_owned())
    };
    id().unwrap_or_else(|| "unknown".to_owned())
}

fn number<T: std::str::FromStr>(option: &str, text: &str) -> Result<T, String> {
    text.parse()
        .map_err(|_| format!("{option}: found {text}, expected a number"))
}

/// `90s`, `10m`, `2h`.
fn duration(text: &str) -> Result<Duration, String> {
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3_600,
        _ => {
            return Err(format!(
                "--soak: found {text}, expected a length such as 10m"
            ));
        }
    };
    let count: u64 = number("--soak", &text[..text.len() - 1])?;
    Ok(Duration::from_secs(count * unit))
}
