//! The last words of `fuzz/run`: what each target did and found, from the logs of libFuzzer.

use std::fs;
use std::path::Path;
use std::process::Command;

/// A run to its end.
const WHOLE: &str = "\
#2	INITED cov: 120 ft: 130 corp: 2/20b exec/s: 0 rss: 40Mb
#4096	NEW    cov: 150 ft: 160 corp: 3/40b lim: 4096 exec/s: 0 rss: 40Mb L: 5/5 MS: 1 ChangeBit-
#400000	DONE   cov: 155 ft: 170 corp: 9/90b lim: 4096 exec/s: 6557 rss: 90Mb
Done 400000 runs in 3601 second(s)
stat::number_of_executed_units: 400000
stat::average_exec_per_sec:     111
stat::new_units_added:          7
";

/// A run that ended with a finding.
const CRASHED: &str = "\
#2	INITED cov: 12 ft: 13 corp: 2/20b exec/s: 0 rss: 40Mb
#77	NEW    cov: 15 ft: 16 corp: 3/40b lim: 4096 exec/s: 0 rss: 40Mb L: 5/5 MS: 1 ChangeBit-
SUMMARY: libFuzzer: deadly signal
artifact_prefix='artifacts/token/'; Test unit written to artifacts/token/crash-da39a3
stat::number_of_executed_units: 1000
stat::average_exec_per_sec:     200
stat::new_units_added:          1
";

/// The log scrolled by, and only the exit status told of a finding: whether a target had run at all was left to the reader.
#[test]
fn a_summary_tells_executions_new_coverage_and_findings_of_each_target() {
    let logs = tempfile::tempdir().unwrap();
    let log = |name: &str, text: &str| {
        let path = logs.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let summary = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/summary");
    let output = Command::new(summary)
        .arg(log("head", WHOLE))
        .arg(log("token", CRASHED))
        .arg(log("resp", "error: no such binary\n"))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<Vec<&str>> = text
        .lines()
        .map(|l| {
            l.split("  ")
                .map(str::trim)
                .filter(|c| !c.is_empty())
                .collect()
        })
        .collect();
    assert_eq!(
        rows,
        [
            vec![
                "target",
                "executions",
                "seconds",
                "coverage",
                "new inputs",
                "found"
            ],
            vec!["head", "400000", "3601", "120 to 155", "7", "nothing"],
            vec![
                "token",
                "1000",
                "5",
                "12 to 15",
                "1",
                "artifacts/token/crash-da39a3"
            ],
            vec!["resp", "did not run", "-", "-", "-", "-"],
        ]
    );
}
