//! The printed report: one table of ratios, one of costs, and the circumstances under which both were measured.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::process::Command;

/// Values of one quantity, one per run.
#[derive(Clone, Default)]
pub(crate) struct Series(pub Vec<f64>);

impl Series {
    /// The middle value; of an even count the mean of the two in the middle.
    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[n / 2],
            n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
        }
    }

    fn spread(&self) -> String {
        let low = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        let high = self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        format!("{low:.2}–{high:.2}")
    }

    /// Run by run, this over `floor`.
    pub(crate) fn over(&self, floor: &Self) -> Self {
        Self(self.0.iter().zip(&floor.0).map(|(a, b)| a / b).collect())
    }
}

/// The bound of a row.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    /// A multiple of the floor.
    Ratio(f64),
    /// A value in the row's unit.
    Value(f64),
    /// A value in the row's unit that is to be reached or exceeded.
    AtLeast(f64),
    /// None; the row is only shown.
    None,
}

/// One measured quantity beside its floor.
pub(crate) struct Row {
    pub(crate) what: Cow<'static, str>,
    pub(crate) unit: &'static str,
    pub(crate) target: Target,
    pub(crate) gateway: Series,
    /// Values of the floor; empty if the target is absolute.
    pub(crate) floor: Series,
    pub(crate) note: String,
}

impl Row {
    /// Creates a row without values.
    pub(crate) fn new(
        what: impl Into<Cow<'static, str>>,
        unit: &'static str,
        target: Target,
    ) -> Self {
        Self {
            what: what.into(),
            unit,
            target,
            gateway: Series::default(),
            floor: Series::default(),
            note: String::new(),
        }
    }

    /// Adds the values of one run.
    pub(crate) fn push(&mut self, gateway: f64, floor: f64) {
        self.gateway.0.push(gateway);
        self.floor.0.push(floor);
    }

    fn ratio(&self) -> Series {
        self.gateway.over(&self.floor)
    }

    fn cells(&self) -> [String; 7] {
        let ratio = self.ratio();
        let (judged, target, met) = match self.target {
            Target::Ratio(limit) => (&ratio, format!("≤ {limit:.2} ×"), ratio.median() <= limit),
            Target::Value(limit) => (
                &self.gateway,
                format!("≤ {limit} {}", self.unit),
                self.gateway.median() <= limit,
            ),
            Target::AtLeast(limit) => (
                &self.gateway,
                format!("≥ {limit} {}", self.unit),
                self.gateway.median() >= limit,
            ),
            Target::None if self.floor.0.is_empty() => (&self.gateway, "–".into(), true),
            Target::None => (&ratio, "–".into(), true),
        };
        let is_alone = self.floor.0.is_empty();
        let times = if is_alone || matches!(self.target, Target::Value(_) | Target::AtLeast(_)) {
            ""
        } else {
            " ×"
        };
        let floor = match self.floor.0.is_empty() {
            true => "–".into(),
            false => format!("{:.2} {}", self.floor.median(), self.unit),
        };
        [
            self.what.to_string(),
            target,
            format!("{:.2}{times}", judged.median()),
            judged.spread(),
            format!("{:.2} {}", self.gateway.median(), self.unit),
            floor,
            if met { "yes" } else { "no" }.into(),
        ]
    }
}

/// Returns the load average of the last minute.
pub(crate) fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("?").to_owned()
}

/// The cost of one thing at two sizes; equal figures mean linear growth.
pub(crate) struct Cost {
    pub(crate) what: String,
    pub(crate) first: Each,
    pub(crate) second: Each,
}

/// The cost of one of `count` things.
pub(crate) struct Each {
    pub(crate) count: u64,
    pub(crate) bytes: f64,
    /// Redis commands by name.
    pub(crate) commands: BTreeMap<String, f64>,
}

impl Cost {
    fn cells(&self) -> [String; 4] {
        let bytes = |each: &Each| format!("{:.0} ({})", each.bytes, each.count);
        let commands = |each: &Each| {
            let named = each.commands.iter().filter(|(_, calls)| **calls >= 0.005);
            let named: Vec<_> = named.map(|(name, n)| format!("{n:.2} {name}")).collect();
            match named.is_empty() {
                true => "none".into(),
                false => named.join(", "),
            }
        };
        let (first, second) = (commands(&self.first), commands(&self.second));
        let commands = match first == second {
            true => first,
            false => format!("{first}; then {second}"),
        };
        [
            self.what.clone(),
            bytes(&self.first),
            bytes(&self.second),
            commands,
        ]
    }
}

/// The results of one run of the program.
#[derive(Default)]
pub(crate) struct Report {
    pub(crate) rows: Vec<Row>,
    pub(crate) costs: Vec<Cost>,
    /// As a rule, and of the rows that take long.
    pub(crate) runs: [usize; 2],
    /// The load average at the start: what else the machine was doing.
    pub(crate) load_before: String,
    /// Says in words if the run had precedence over all other work on the machine.
    pub(crate) precedence: &'static str,
}

impl Report {
    /// The report as a terminal or (`markdown`) a README shows it.
    pub(crate) fn render(&self, markdown: bool) -> String {
        let mut out = circumstances(self);
        let head = [
            "what", "target", "measured", "spread", "gateway", "floor", "met",
        ];
        table(&mut out, &head, self.rows.iter().map(Row::cells), markdown);
        for row in self.rows.iter().filter(|row| !row.note.is_empty()) {
            // Writing into a String cannot fail.
            writeln!(out, "- {}: {}", row.what, row.note).ok();
        }
        if !self.costs.is_empty() {
            out.push('\n');
            let head = [
                "one more",
                "bytes (of so many)",
                "and beyond these",
                "Redis commands",
            ];
            table(
                &mut out,
                &head,
                self.costs.iter().map(Cost::cells),
                markdown,
            );
        }
        out
    }
}

/// Writes a table as a terminal or (`markdown`) a page shows it.
pub(crate) fn table<const N: usize>(
    out: &mut String,
    head: &[&str; N],
    rows: impl Iterator<Item = [String; N]>,
    markdown: bool,
) {
    // Redis names a subcommand `CLIENT|SETNAME`, and a bare `|` ends a cell.
    let bar = if markdown { "\\|" } else { "|" };
    let rows: Vec<[String; N]> = rows
        .map(|cells| cells.map(|cell| cell.replace('|', bar)))
        .collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0).max(head[column].chars().count())
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let (edge, between) = if markdown { ("|", " | ") } else { ("", "  ") };
    let mut line = |cells: &[&str; N]| {
        let padded = cells
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        let text = padded.collect::<Vec<_>>().join(between);
        match markdown {
            true => writeln!(out, "{edge} {text} {edge}").ok(),
            false => writeln!(out, "{}", text.trim_end()).ok(),
        }
    };
    line(head);
    let rules = widths.map(|width| "-".repeat(width));
    line(&std::array::from_fn(|i| rules[i].as_str()));
    for row in &rows {
        line(&std::array::from_fn(|i| row[i].as_str()));
    }
}

/// Returns processor, cores and kernel.
pub(crate) fn machine() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("unknown CPU", |rest| {
        rest.trim_start_matches([' ', '\t', ':'])
    });
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let cores = cpu
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count()
        .max(cores);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{model}, {cores} cores, Linux {}", kernel.trim())
}

/// Machine, commit, command.
fn circumstances(report: &Report) -> String {
    let mut command = vec!["cargo bench --bench load".to_owned()];
    let arguments: Vec<_> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    if !arguments.is_empty() {
        command.push("--".into());
        command.extend(arguments);
    }
    format!(
        "Machine: {}; servers on one core, load, Redis and PostgreSQL on the other ({nice}load average before {load}).\n\
         Commit: {}. Command: `{}`. Median and spread (lowest–highest) of {} runs, of {} for memory and whole deployments.\n\n",
        machine(),
        commit(),
        command.join(" "),
        report.runs[0],
        report.runs[1],
        nice = report.precedence,
        load = report.load_before,
    )
}

/// Returns the commit of the sources, and says if they differ from it.
pub(crate) fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let Some(id) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".into();
    };
    match git(&["status", "--porcelain", "--untracked-files=no"]) {
        Some(changes) if changes.is_empty() => id,
        _ => format!("{id} with changes"),
    }
}
