//! The report of `token explain`: the result of every check of a token.
//!
//! It never contains a signature or a key, and contains claims only if the signature is valid.

use std::fmt;

use serde::Serialize;

use crate::error::{Check, Refusal, StoreError};

use super::VerifiedToken;

/// The result of one check in a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It holds.
    Pass,
    /// It does not hold: the token is refused.
    Fail,
    /// It was skipped because an earlier check failed.
    NotReached,
    /// It was not made, on purpose or because a dependency did not answer.
    Unknown,
}

/// One check of a report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CheckReport {
    /// The check's name ([`Check::label`]).
    pub name: &'static str,
    /// Its result.
    pub verdict: Verdict,
    /// The value that it checked, or `null` if that must not be shown.
    pub value: serde_json::Value,
    /// The reason, a fixed text. May be empty.
    pub detail: &'static str,
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Pass => "pass",
            Verdict::Fail => "FAIL",
            Verdict::NotReached => "-",
            Verdict::Unknown => "unknown",
        };
        write!(f, "{:<11} {:<8}", self.name, verdict)?;
        if !self.value.is_null() {
            write!(f, " {}", self.value)?;
        }
        if !self.detail.is_empty() {
            write!(f, " {}", self.detail)?;
        }
        Ok(())
    }
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

/// The results of the checks that need neither Redis nor a database.
#[derive(Debug)]
pub struct Explained {
    /// The checks from `size` to `user_id`, in order.
    pub checks: Vec<CheckReport>,
    /// The server's decision at this point.
    pub outcome: Result<VerifiedToken, super::TokenError>,
}

/// The result of a check that needs Redis or a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// It holds.
    Pass,
    /// The tenant does not check it.
    NotChecked,
    /// The claims are the user, so there is no record.
    Claimed,
    /// It does not hold.
    Fail,
    /// It was skipped on purpose: `--offline`, or no Redis is configured.
    NotAsked,
    /// The dependency did not answer.
    Unavailable,
}

/// The results of the checks after `user_id`, made by the caller.
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
    /// No dependency was asked.
    pub const OFFLINE: Self = Self {
        denylist: Asked::NotAsked,
        user: Asked::NotAsked,
        is_active: Asked::NotAsked,
        password: Asked::NotAsked,
    };

    /// The claims are the user, so no record can speak against the token.
    pub const CLAIMED: Self = Self {
        denylist: Asked::NotAsked,
        user: Asked::Claimed,
        is_active: Asked::Claimed,
        password: Asked::Claimed,
    };

    /// The token's own checks failed, so these count as not reached.
    pub const NOT_REACHED: Self = Self {
        denylist: Asked::Pass,
        user: Asked::Pass,
        is_active: Asked::Pass,
        password: Asked::Pass,
    };
}

/// The whole report. `token explain --json` prints it as JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// `None`: no check refused the token, but a dependency did not answer.
    pub accepted: Option<bool>,
    /// The code of the refusal. `None`: the token is accepted.
    pub code: Option<&'static str>,
    /// Every check, in order.
    pub checks: Vec<CheckReport>,
}

impl Report {
    /// Combines the token's own checks with the later ones.
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
                Asked::Claimed => CheckReport::bare(check, Verdict::Pass, CLAIMED),
                Asked::NotChecked => CheckReport::bare(check, Verdict::Pass, switched_off(check)),
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

    /// Returns the command's exit code: 0 accepted, 1 refused, 3 not known.
    pub fn exit_code(&self) -> u8 {
        match self.accepted {
            Some(true) => 0,
            Some(false) => 1,
            None => 3,
        }
    }
}

/// The detail of the checks of a user without a record.
const CLAIMED: &str = "not checked: users.source is \"claims\"";

/// Names the setting that switches a later check off.
fn switched_off(check: Check) -> &'static str {
    match check {
        Check::IsActive => "not checked: check_user_is_active is false",
        Check::Password => "not checked: check_revoke_token is false",
        _ => "not checked",
    }
}

impl Explained {
    /// Returns the error of a dependency that the token's own checks needed.
    pub fn unavailable(&self) -> Option<&StoreError> {
        match &self.outcome {
            Err(super::TokenError::Unavailable(error)) => Some(error),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{RawToken, TokenVerifier, mint};
    use crate::clock::UnixTime;
    use crate::config::{IdType, KeyConfig, Secret, TokenConfig};

    const ALL_PASS: Later = Later {
        denylist: Asked::Pass,
        user: Asked::Pass,
        is_active: Asked::Pass,
        password: Asked::Pass,
    };

    fn explain(claims: serde_json::Value, at: f64) -> Explained {
        let key = KeyConfig {
            algorithm: "HS256".into(),
            kid: None,
            signing_key: Some(Secret::from("0123456789abcdef0123456789abcdef")),
            verifying_key: None,
        };
        let config = TokenConfig {
            keys: vec![key],
            ..TokenConfig::default()
        };
        let request = mint::MintRequest {
            user_id: "7",
            lifetime: std::time::Duration::from_secs(60),
            claims: claims.as_object().unwrap().clone(),
        };
        let token = RawToken::new(mint::mint(&config, &request, UnixTime(1000.0)).unwrap());
        let verifier = TokenVerifier::new(&config, IdType::Int).unwrap();
        let explained = verifier.explain(&token, UnixTime(at));
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(explained)
    }

    fn summary(report: &Report) -> String {
        let letter = |check: &CheckReport| match check.verdict {
            Verdict::Pass => 'p',
            Verdict::Fail => 'F',
            Verdict::NotReached => '-',
            Verdict::Unknown => '?',
        };
        report.checks.iter().map(letter).collect()
    }

    #[test]
    fn reports_tell_how_far_a_token_came() {
        let none = serde_json::json!({});
        let good = explain(none.clone(), 1000.0);
        let expired = explain(none, 1060.0);
        let wrong = explain(
            serde_json::json!({"token_type": "refresh", "user_id": [1]}),
            1060.0,
        );
        let nobody = explain(serde_json::json!({"user_id": null}), 1000.0);
        let denied = Later {
            denylist: Asked::Fail,
            ..ALL_PASS
        };
        let inactive = Later {
            is_active: Asked::Fail,
            ..ALL_PASS
        };
        let no_redis = Later {
            denylist: Asked::NotAsked,
            ..ALL_PASS
        };
        let outage = Later {
            user: Asked::Unavailable,
            is_active: Asked::Unavailable,
            ..ALL_PASS
        };
        let not_checked = Later {
            is_active: Asked::NotChecked,
            password: Asked::NotChecked,
            ..ALL_PASS
        };
        let rows = [
            (&good, ALL_PASS, "pppppppppppppppppp", Some(true), None),
            (&good, not_checked, "pppppppppppppppppp", Some(true), None),
            (
                &good,
                Later::OFFLINE,
                "pppppppppppppp????",
                Some(true),
                None,
            ),
            (&good, no_redis, "pppppppppppppp?ppp", Some(true), None),
            (
                &good,
                denied,
                "ppppppppppppppF---",
                Some(false),
                Some("token_revoked"),
            ),
            (
                &good,
                inactive,
                "ppppppppppppppppF-",
                Some(false),
                Some("user_inactive"),
            ),
            (
                &good,
                outage,
                "ppppppppppppppp??p",
                None,
                Some("unavailable"),
            ),
            (
                &expired,
                ALL_PASS,
                "pppppppFpppppp----",
                Some(false),
                Some("token_not_valid"),
            ),
            (
                &wrong,
                ALL_PASS,
                "pppppppFppppFF----",
                Some(false),
                Some("token_not_valid"),
            ),
            (
                &nobody,
                ALL_PASS,
                "pppppppppppppp-F--",
                Some(false),
                Some("user_not_found"),
            ),
        ];
        for (explained, later, checks, accepted, code) in rows {
            let report = Report::assemble(explained, later);
            assert_eq!(summary(&report), checks);
            assert_eq!((report.accepted, report.code), (accepted, code), "{checks}");
        }
    }

    #[test]
    fn a_report_is_json_as_the_contract_has_it() {
        let explained = explain(serde_json::json!({}), 1060.0);
        let report = serde_json::to_value(Report::assemble(&explained, Later::OFFLINE)).unwrap();
        let names: Vec<&str> = report["checks"]
            .as_array()
            .unwrap()
            .iter()
            .map(|check| check["name"].as_str().unwrap())
            .collect();
        assert_eq!(
            names.join(" "),
            "size format algorithm key signature iat nbf exp issuer audience sub jti token_type user_id denylist user \
             is_active password"
        );
        let exp = serde_json::json!({"name": "exp", "verdict": "fail", "value": 1060, "detail": "has passed"});
        assert_eq!(report["checks"][7], exp);
        assert_eq!(report["checks"][4]["value"], serde_json::Value::Null);
        assert_eq!(report["accepted"], false);
    }
}
