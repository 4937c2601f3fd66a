//! The report of `explain`: the result of each step of a handshake.

use std::fmt;

use anstyle::{AnsiColor, Style};
use serde::Serialize;
use serde_json::Value;

use super::super::bold;
use crate::auth::{CheckReport, Verdict};
use crate::config::RefusalMode;
use crate::error::Refusal;

/// One step of a report.
#[derive(Debug, Serialize)]
pub(super) struct HandshakeStep {
    name: &'static str,
    verdict: Verdict,
    value: Value,
    detail: String,
}

/// The whole report. `explain --json` prints it as JSON.
#[derive(Debug, Default, Serialize)]
pub(super) struct HandshakeReport {
    /// `None`: no step refused the handshake, but a dependency did not answer.
    accepted: Option<bool>,
    code: Option<&'static str>,
    steps: Vec<HandshakeStep>,
    /// The groups that the socket joins, as far as they are known.
    groups: Vec<String>,
    /// The code of the close frame, if the tenant answers refusals so.
    close_code: Option<u16>,
    /// The advice about the refusal.
    advice: Option<String>,
    #[serde(skip)]
    status: Option<u16>,
}

/// A handshake that a step has ended; the report says how.
pub(super) struct Stopped;

/// The steps after the token's, in order. A handshake that ends earlier does not reach them.
const LAST_STEPS: [&str; 4] = ["budgets", "groups", "authorize", "consumer"];
/// The steps before the token's checks, in order.
const FIRST_STEPS: [&str; 5] = ["host", "tenant", "route", "origin", "token"];

impl HandshakeReport {
    /// Adds a step.
    pub(super) fn step(
        &mut self,
        name: &'static str,
        verdict: Verdict,
        value: impl Into<Value>,
        detail: impl Into<String>,
    ) {
        self.steps.push(HandshakeStep {
            name,
            verdict,
            value: value.into(),
            detail: detail.into(),
        });
    }

    /// Adds a step that holds.
    pub(super) fn pass(
        &mut self,
        name: &'static str,
        value: impl Into<Value>,
        detail: impl Into<String>,
    ) {
        self.step(name, Verdict::Pass, value, detail);
    }

    /// Adds a check of the token.
    pub(super) fn check(&mut self, check: &CheckReport) {
        self.step(
            check.name,
            check.verdict,
            check.value.clone(),
            &*check.detail,
        );
    }

    /// Notes the group that the socket joins.
    pub(super) fn join(&mut self, group: String) {
        self.groups.push(group);
    }

    /// Ends the handshake with a refusal. A dependency that cannot be asked leaves it open whether a token is good.
    pub(super) fn refuse(
        &mut self,
        refusal: Refusal,
        mode: Option<RefusalMode>,
        advice: String,
    ) -> Stopped {
        self.accepted = (refusal != Refusal::Unavailable).then_some(false);
        self.code = Some(refusal.code());
        self.status = Some(refusal.status());
        let frame = refusal.close_frame();
        let closes = mode == Some(RefusalMode::Close);
        self.close_code = frame.filter(|_| closes).map(|frame| frame.code);
        self.advice = Some(advice).filter(|advice| !advice.is_empty());
        Stopped
    }

    /// Adds the steps that were not reached, and what the walk came to.
    pub(super) fn finish(mut self, walked: Result<(), Stopped>) -> Self {
        if walked.is_ok() {
            self.accepted = Some(true);
        }
        for name in FIRST_STEPS.into_iter().chain(LAST_STEPS) {
            if !self.steps.iter().any(|step| step.name == name) {
                self.step(name, Verdict::NotReached, Value::Null, "");
            }
        }
        self
    }

    /// Returns the command's exit code: 0 accepted, 1 refused, 3 not known.
    pub(super) fn exit_code(&self) -> u8 {
        match self.accepted {
            Some(true) => 0,
            Some(false) => 1,
            None => 3,
        }
    }
}

impl fmt::Display for HandshakeStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, style) = match self.verdict {
            Verdict::Pass => ("pass", AnsiColor::Green.on_default()),
            Verdict::Fail => ("FAIL", bold(AnsiColor::Red)),
            Verdict::NotReached => ("-", Style::new()),
            Verdict::Unknown => ("unknown", bold(AnsiColor::Yellow)),
        };
        write!(f, "{:<11} {style}{word:<8}{style:#}", self.name)?;
        if !self.value.is_null() {
            write!(f, " {}", self.value)?;
        }
        if !self.detail.is_empty() {
            write!(f, " {}", self.detail)?;
        }
        Ok(())
    }
}

impl fmt::Display for HandshakeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reached = self.steps.iter();
        for step in reached.filter(|step| step.verdict != Verdict::NotReached) {
            writeln!(f, "{step}")?;
        }
        match (self.accepted, self.status, self.code) {
            (Some(true), ..) => writeln!(f, "\naccepted; groups: {}", self.groups.join(", "))?,
            (_, Some(status), Some(code)) => writeln!(f, "\nrefused: {status} {code}")?,
            _ => {}
        }
        if let Some(code) = self.close_code {
            writeln!(f, "the client sees the close code {code}")?;
        }
        match &self.advice {
            Some(advice) => writeln!(f, "→ {advice}"),
            None => Ok(()),
        }
    }
}
