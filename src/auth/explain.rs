//! Why a token is accepted or refused: the report of `token explain`, assembled from what the checks themselves said.
//!
//! No signature and no key is ever part of it; claims only once the signature was good.

use serde::Serialize;

use crate::error::{Check, Refusal, StoreError};

use super::VerifiedToken;

/// What became of one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It holds.
    Pass,
    /// It does not: the token is refused.
    Fail,
    /// An earlier check failed, so that this one means nothing.
    NotReached,
    /// It was not asked or could not be.
    Unknown,
}

/// One check of a report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CheckReport {
    /// The check's name ([`Check::label`]).
    pub name: &'static str,
    /// What became of it.
    pub verdict: Verdict,
    /// What it looked at, where that may be shown; else `null`.
    pub value: serde_json::Value,
    /// Why, in fixed words; empty where there is nothing to say.
    pub detail: &'static str,
}

impl CheckReport {
    fn bare(check: Check, verdict: Verdict, detail: &'static str) -> Self {
        Self {
            name: check.label(),
            verdict,
            value: serde_json::Value::Null,
            detail,
        }
    }
}

/// What a token's own checks say, before anything is asked of Redis or a database.
#[derive(Debug)]
pub struct Explained {
    /// The checks from `size` to `user_id`, in order.
    pub checks: Vec<CheckReport>,
    /// What the server would have decided at this point.
    pub outcome: Result<VerifiedToken, super::TokenError>,
}

/// What became of a check that needs Redis or a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// It holds, or the tenant does not check it.
    Pass,
    /// It does not hold.
    Fail,
    /// On purpose not asked: `--offline`, or no Redis is configured.
    NotAsked,
    /// The dependency did not answer.
    Unavailable,
}

/// The checks after `user_id`, as whoever asked found them.
#[derive(Clone, Copy, Debug)]
pub struct Later {
    /// Fails if the token, its user or its tenant was revoked.
    pub denylist: Asked,
    /// Fails if there is no such user.
    pub user: Asked,
    /// Fails if the user is inactive, and that is checked.
    pub is_active: Asked,
    /// Fails if the password changed, and that is checked.
    pub password: Asked,
}

impl Later {
    /// Nothing is asked.
    pub const OFFLINE: Self = Self {
        denylist: Asked::NotAsked,
        user: Asked::NotAsked,
        is_active: Asked::NotAsked,
        password: Asked::NotAsked,
    };
}

/// The whole report; as JSON it is what `token explain --json` prints.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// `None` if nothing refused the token, but a dependency could not be asked.
    pub accepted: Option<bool>,
    /// The refusal's word; `None` when accepted.
    pub code: Option<&'static str>,
    /// Every check, in order.
    pub checks: Vec<CheckReport>,
}

impl Report {
    /// Puts a token's own checks and the later ones together.
    pub fn assemble(explained: &Explained, later: Later) -> Self {
        let mut checks = explained.checks.clone();
        let (mut refusal, mut unavailable) = match &explained.outcome {
            Ok(_) => (None, false),
            Err(super::TokenError::Refused(refusal)) => (Some(*refusal), false),
            Err(super::TokenError::Unavailable(_)) => (None, true),
        };
        let nobody = refusal == Some(Refusal::UserNotFound);
        let steps = [
            (Check::Denylist, later.denylist, Refusal::TokenRevoked),
            (Check::User, later.user, Refusal::UserNotFound),
            (Check::IsActive, later.is_active, Refusal::UserInactive),
            (Check::Password, later.password, Refusal::PasswordChanged),
        ];
        let mut reached = explained.outcome.is_ok();
        for (check, asked, if_failed) in steps {
            let report = match asked {
                _ if nobody && check == Check::User => {
                    CheckReport::bare(check, Verdict::Fail, "no user can have this id")
                }
                Asked::NotAsked => CheckReport::bare(check, Verdict::Unknown, "not asked"),
                _ if !reached => CheckReport::bare(check, Verdict::NotReached, ""),
                Asked::Pass => CheckReport::bare(check, Verdict::Pass, ""),
                Asked::Fail => {
                    refusal = refusal.or(Some(if_failed));
                    reached = false;
                    CheckReport::bare(check, Verdict::Fail, if_failed.detail())
                }
                Asked::Unavailable => {
                    unavailable = true;
                    CheckReport::bare(check, Verdict::Unknown, "could not be asked")
                }
            };
            checks.push(report);
        }
        let (accepted, code) = match (refusal, unavailable) {
            (Some(refusal), _) => (Some(false), Some(refusal.code())),
            (None, true) => (None, Some(Refusal::Unavailable.code())),
            (None, false) => (Some(true), None),
        };
        Self {
            accepted,
            code,
            checks,
        }
    }

    /// The command's exit code: 0 accepted, 1 refused, 3 not known.
    pub fn exit_code(&self) -> u8 {
        match self.accepted {
            Some(true) => 0,
            Some(false) => 1,
            None => 3,
        }
    }
}

impl Explained {
    /// The dependency that did not answer, if one was needed for the token's own checks.
    pub fn unavailable(&self) -> Option<&StoreError> {
        match &self.outcome {
            Err(super::TokenError::Unavailable(error)) => Some(error),
            _ => None,
        }
    }
}
