//! Logs refused handshakes: one line at `info` for each reason and tenant in ten seconds, with a count; at `debug` every one.
//!
//! A line says what a person has to do. It holds no query and no token. Only refused handshakes come here, so a connect
//! that opens pays nothing.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use axum::http::header::{HOST, ORIGIN};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName};
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use parking_lot::Mutex;

use self::advice::{Refuser, advice};
use self::shown::{shown, shown_path};
use crate::error::Refusal;
use crate::ids::TenantId;
use crate::tenant::Tenant;

pub(crate) mod advice;
mod shown;

/// The time in which one reason of one tenant has one line.
const PAUSE: Duration = Duration::from_secs(10);

/// A refused handshake, as far as it is known.
pub(super) struct RefusedHandshake<'a> {
    pub(super) refusal: Refusal,
    /// The tenant that refused; `None` if the refusal came before it was known.
    pub(super) tenant: Option<&'a Tenant>,
    /// The exact reason, if the step that refused knows more than its word.
    pub(super) why: Option<&'a str>,
    /// The head of the request; `None` if it was not read.
    pub(super) head: Option<&'a Parts>,
    pub(super) client: IpAddr,
}

/// Counts refused handshakes by reason and tenant, and logs them.
#[derive(Default)]
pub struct RefusalLog {
    /// One entry for each kind of refusal of the last seconds: at most some forty for each tenant.
    bursts: Mutex<HashMap<RefusalKind, Burst>>,
}

/// One line is logged for each kind. The check of a token counts, so that expired tokens do not hide a wrong key.
type RefusalKind = (Option<TenantId>, Refusal);

/// The refusals of one kind since its last line.
struct Burst {
    told_at: Instant,
    untold: u64,
    /// The first of those that are not told.
    example: Option<RefusalLine>,
}

impl RefusalLog {
    /// Logs a refused handshake, or counts it for the next line of its kind.
    pub(super) fn note(&self, refused: &RefusedHandshake<'_>) {
        let now = Instant::now();
        match self.count(refused, now) {
            Some(count) => RefusalLine::of(refused).tell(count),
            None => {
                if tracing::enabled!(tracing::Level::DEBUG) {
                    RefusalLine::of(refused).whisper();
                }
            }
        }
    }

    /// Returns the number for a line that is due, or `None` if the kind had its line a moment ago.
    fn count(&self, refused: &RefusedHandshake<'_>, now: Instant) -> Option<u64> {
        let tenant = refused.tenant.map(|tenant| tenant.id.clone());
        match self.bursts.lock().entry((tenant, refused.refusal)) {
            Entry::Vacant(entry) => {
                entry.insert(Burst {
                    told_at: now,
                    untold: 0,
                    example: None,
                });
                Some(1)
            }
            Entry::Occupied(mut entry) => {
                let burst = entry.get_mut();
                if now.saturating_duration_since(burst.told_at) >= PAUSE {
                    burst.told_at = now;
                    burst.example = None;
                    return Some(std::mem::take(&mut burst.untold) + 1);
                }
                burst.untold += 1;
                burst
                    .example
                    .get_or_insert_with(|| RefusalLine::of(refused));
                None
            }
        }
    }

    /// Logs what was counted and not told, once its ten seconds are over, and forgets kinds that have ended.
    pub fn upkeep(&self) {
        let now = Instant::now();
        for (line, count) in self.due(now) {
            line.tell(count);
        }
    }

    /// Takes the lines whose time has come.
    fn due(&self, now: Instant) -> Vec<(RefusalLine, u64)> {
        let mut due = Vec::new();
        self.bursts.lock().retain(|_, burst| {
            if now.saturating_duration_since(burst.told_at) < PAUSE {
                return true;
            }
            burst.told_at = now;
            let count = std::mem::take(&mut burst.untold);
            match burst.example.take() {
                Some(line) => due.push((line, count)),
                None => return false,
            }
            true
        });
        due
    }
}

/// The fields of one line.
#[derive(Debug)]
struct RefusalLine {
    refusal: Refusal,
    tenant: Option<TenantId>,
    path: Option<String>,
    origin: Option<String>,
    host: Option<String>,
    client: IpAddr,
    why: Option<String>,
    advice: String,
}

/// Logs a [`RefusalLine`] at a level, which tracing needs as a constant.
macro_rules! log_line {
    ($level:ident, $line:expr, $count:expr) => {{
        let line = $line;
        tracing::$level!(
            tenant.id = line.tenant.as_ref().map(TenantId::as_str),
            reason = line.refusal.code(),
            check = line.refusal.check().map(|check| check.label()),
            count = $count,
            path = line.path.as_deref(),
            origin = line.origin.as_deref(),
            host = line.host.as_deref(),
            client = %line.client,
            why = line.why.as_deref(),
            advice = line.advice,
            "Refused a handshake"
        );
    }};
}

impl RefusalLine {
    fn of(refused: &RefusedHandshake<'_>) -> Self {
        let headers = refused.head.map(|head| &head.headers);
        let header = |name| headers.and_then(|headers| sent(headers, name));
        let tenant = refused.tenant;
        Self {
            refusal: refused.refusal,
            tenant: tenant.map(|tenant| tenant.id.clone()),
            path: refused.head.map(|head| shown_path(head.uri.path())),
            origin: header(ORIGIN),
            host: header(HOST),
            client: refused.client,
            why: refused.why.map(str::to_owned).or_else(|| {
                let degraded = tenant.filter(|_| refused.refusal == Refusal::Unavailable);
                degraded.and_then(|tenant| tenant.life().obstacle().map(str::to_owned))
            }),
            advice: advice(refused.refusal, tenant.map(refuser), refused.head),
        }
    }

    fn tell(&self, count: u64) {
        log_line!(info, self, count);
    }

    fn whisper(&self) {
        log_line!(debug, self, 1);
    }
}

fn refuser(tenant: &Tenant) -> Refuser<'_> {
    Refuser {
        id: &tenant.id,
        config: &tenant.config,
        routes: &tenant.scope.routes,
    }
}

/// Returns the first value of a header in the form for the log.
fn sent(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    let value = headers.get(name)?;
    Some(shown(&String::from_utf8_lossy(value.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(refusal: Refusal) -> RefusedHandshake<'static> {
        RefusedHandshake {
            refusal,
            tenant: None,
            why: None,
            head: None,
            client: [192, 0, 2, 1].into(),
        }
    }

    /// Before: nothing was logged, whatever was refused.
    #[test]
    fn a_reason_has_one_line_in_ten_seconds_and_no_refusal_is_lost() {
        let log = RefusalLog::default();
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let missing = refused(Refusal::TokenMissing);
        assert_eq!(log.count(&missing, at(0)), Some(1));
        assert_eq!(log.count(&missing, at(1)), None);
        assert_eq!(log.count(&missing, at(9)), None);
        // Another reason has a line of its own.
        let unknown = refused(Refusal::TenantNotFound);
        assert_eq!(log.count(&unknown, at(9)), Some(1));
        assert_eq!(log.count(&missing, at(10)), Some(3));
        assert_eq!(log.count(&missing, at(12)), None);
        assert!(log.due(at(18)).is_empty());
        let due = log.due(at(20));
        let told: Vec<_> = due
            .iter()
            .map(|(line, count)| (line.refusal, *count))
            .collect();
        assert_eq!(told, [(Refusal::TokenMissing, 1)]);
        assert_eq!(log.bursts.lock().len(), 1, "the other kind is forgotten");
        assert!(log.due(at(30)).is_empty());
        assert!(log.bursts.lock().is_empty());
    }
}
