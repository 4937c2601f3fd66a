//! The findings of the doctor, each a verdict with reason and advice, as text and as JSON.

use std::fmt;

use anstyle::{AnsiColor, Style};
use serde_json::json;

use super::super::bold;
use crate::error::StoreError;
use crate::labels::labels;
use crate::stores::inspection::CLOCK_MAY_DIFFER;

labels! {
    /// The severity of a finding, from good to bad.
    #[derive(PartialOrd, Ord)]
    pub(super) enum Severity {
        /// Nothing to do.
        Ok = "ok",
        /// Worth knowing; no action is needed.
        Note = "note",
        /// Works now, but may fail later.
        Warn = "warn",
        /// Does not work, or loses revocations.
        Fail = "fail",
    }
}

impl Severity {
    fn style(self) -> Style {
        match self {
            Self::Ok => AnsiColor::Green.on_default(),
            Self::Note => AnsiColor::Cyan.on_default(),
            Self::Warn => bold(AnsiColor::Yellow),
            Self::Fail => bold(AnsiColor::Red),
        }
    }
}

/// The result of one check.
#[derive(Clone, Debug)]
pub(super) struct Finding {
    pub(super) verdict: Severity,
    /// The server, database, tenant or machine that was checked.
    pub(super) subject: String,
    /// The fixed name of the check.
    pub(super) check: &'static str,
    /// The observation.
    pub(super) detail: String,
    /// The advice; empty if there is nothing to do.
    pub(super) advice: String,
}

/// All findings, in order.
#[derive(Debug, Default)]
pub(super) struct Findings(Vec<Finding>);

impl Findings {
    /// Adds a finding about `subject`.
    pub(super) fn add(
        &mut self,
        (subject, check): (&str, &'static str),
        verdict: Severity,
        detail: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.0.push(Finding {
            verdict,
            subject: subject.to_owned(),
            check,
            detail: detail.into(),
            advice: advice.into(),
        });
    }

    /// Appends the findings of another check.
    pub(super) fn append(&mut self, mut others: Findings) {
        self.0.append(&mut others.0);
    }

    /// Returns true if nothing fails.
    pub(super) fn ok(&self) -> bool {
        self.0
            .iter()
            .all(|finding| finding.verdict < Severity::Fail)
    }

    /// Returns `{"ok":…,"findings":[…]}`.
    pub(super) fn json(&self) -> serde_json::Value {
        let findings: Vec<_> = self
            .0
            .iter()
            .map(|f| {
                json!({
                    "verdict": f.verdict.label(), "subject": f.subject, "check": f.check,
                    "detail": f.detail, "advice": f.advice,
                })
            })
            .collect();
        json!({ "ok": self.ok(), "findings": findings })
    }

    fn count(&self, verdict: Severity) -> usize {
        let findings = self.0.iter();
        findings
            .filter(|finding| finding.verdict == verdict)
            .count()
    }
}

impl fmt::Display for Findings {
    /// Writes a block for each subject, with a line for each check and the advice below it; with `{:#}` verdicts have
    /// colours.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut subject = None;
        for finding in &self.0 {
            if subject != Some(&finding.subject) {
                let gap = if subject.is_some() { "\n" } else { "" };
                writeln!(f, "{gap}{}", finding.subject)?;
                subject = Some(&finding.subject);
            }
            let style = match f.alternate() {
                true => finding.verdict.style(),
                false => Style::new(),
            };
            let (verdict, check) = (finding.verdict.label(), finding.check);
            writeln!(
                f,
                "  {style}{verdict:<5}{style:#} {check:<12} {}",
                finding.detail
            )?;
            if !finding.advice.is_empty() {
                writeln!(f, "  {:<18} → {}", "", finding.advice)?;
            }
        }
        writeln!(
            f,
            "\n{} ok, {} note, {} warn, {} fail",
            self.count(Severity::Ok),
            self.count(Severity::Note),
            self.count(Severity::Warn),
            self.count(Severity::Fail)
        )
    }
}

/// The advice for a server whose certificate is refused.
pub(super) const CERTIFICATE_ADVICE: &str = "its certificate is refused: name its authority in ca; where the certificate has another name than the URL, \
     verify = \"ca\" checks the authority alone";

/// Returns true if a link failed because the certificate of the server is refused.
pub(super) fn certificate_fails(error: &StoreError) -> bool {
    error
        .source
        .to_string()
        .contains("invalid peer certificate")
}

/// Returns the text of a store's failure with its kind.
pub(super) fn with_kind(error: &StoreError) -> String {
    format!("{} ({})", error.source, error.kind.label())
}

/// Returns verdict, text and advice for a clock that is `offset` seconds ahead of this machine's clock.
pub(super) fn clock(offset: f64) -> (Severity, String, &'static str) {
    let verdict = match offset.abs() {
        seconds if seconds > 5.0 => Severity::Fail,
        seconds if seconds > CLOCK_MAY_DIFFER => Severity::Warn,
        _ => Severity::Ok,
    };
    let advice = match verdict {
        Severity::Ok => "",
        _ => {
            "the expiry of tokens depends on the clock: run a time service such as chrony on both machines"
        }
    };
    (
        verdict,
        format!("{offset:+.3} s against this machine"),
        advice,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_off_by_a_second_warns_and_by_five_fails() {
        for (offset, verdict) in [
            (0.0, Severity::Ok),
            (-1.0, Severity::Ok),
            (1.1, Severity::Warn),
            (-5.0, Severity::Warn),
            (5.1, Severity::Fail),
            (-3600.0, Severity::Fail),
        ] {
            assert_eq!(clock(offset).0, verdict, "{offset}");
        }
    }

    #[test]
    fn only_a_failure_is_not_ok() {
        let mut findings = Findings::default();
        findings.add(("a", "x"), Severity::Warn, "tight", "widen it");
        assert!(findings.ok());
        findings.add(("a", "y"), Severity::Fail, "broken", "mend it");
        findings.add(("b", "x"), Severity::Ok, "good", "");
        assert!(!findings.ok());
        let text = findings.to_string();
        assert!(
            text.starts_with("a\n  warn  x            tight\n"),
            "{text}"
        );
        assert!(text.contains("\n\nb\n  ok"), "{text}");
        assert!(text.ends_with("\n1 ok, 0 note, 1 warn, 1 fail\n"), "{text}");
        assert_eq!(findings.json()["findings"][1]["advice"], "mend it");
    }
}
