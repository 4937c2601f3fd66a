//! The rate of calls: each tenant, and each operator's key, makes so many per second on this replica.
//!
//! Without it a back end in a loop would take the processor from the sockets of all tenants.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::http::Method;
use axum::http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use hashbrown::HashMap;
use parking_lot::Mutex;

use super::keys::{Caller, KeyDigest};
use super::problem::ApiProblem;
use super::{ApiState, MAX_BODY};
use crate::ids::TenantId;
use crate::metrics;
use crate::rate::Bucket;

/// Bytes of a body that take as long as a short call.
const UNIT: u64 = 64 * 1024;
/// The wait before a call over the rate is refused. A client that repeats it at once would else cost as much as one whose
/// calls are carried out.
const REFUSED_AFTER: Duration = Duration::from_millis(100);

/// The time between two looks for buckets that are full again, which are those of keys and tenants of long ago.
const SWEPT_EVERY: Duration = Duration::from_secs(60);

/// The ends of the paths that take something back; a DELETE does too. They have a bucket of their own, so that a flood of other calls does not
/// delay a revocation.
const URGENT: [&str; 5] = [
    "/revocations",
    "/invalidate",
    "/disconnect",
    "/suspend",
    "/resume",
];

/// The owner of a bucket, and of the calls under way.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Payer {
    /// An operator's key.
    Operator(KeyDigest),
    /// All keys of a tenant.
    Tenant(TenantId),
}

impl Payer {
    /// Returns the owner of a call with this key.
    pub(super) fn of(caller: &Caller, key: KeyDigest) -> Self {
        match caller {
            Caller::Operator | Caller::Confined(_) => Self::Operator(key),
            Caller::Tenant(id) => Self::Tenant(id.clone()),
        }
    }
}

/// The buckets of all callers.
#[derive(Clone, Default)]
pub(super) struct CallRate(Arc<Mutex<CallBuckets>>);

/// The buckets of callers with a call of late, for urgent calls and others.
#[derive(Default)]
struct CallBuckets {
    by_payer: HashMap<(Payer, bool), Bucket>,
    swept_at: Option<Instant>,
}

impl CallBuckets {
    fn take(&mut self, payer: (Payer, bool), now: Instant, per_second: u32, weight: u32) -> bool {
        let since = self
            .swept_at
            .map(|swept| now.saturating_duration_since(swept));
        if since.is_none_or(|since| since >= SWEPT_EVERY) {
            self.swept_at = Some(now);
            self.by_payer.retain(|_, bucket| !bucket.is_full(now));
        }
        let bucket = self.by_payer.entry(payer).or_default();
        bucket.take_many(now, per_second, weight)
    }
}

impl CallRate {
    /// Takes a call from its caller's bucket. Returns false, and counts it, if the bucket is empty.
    pub(super) fn take(
        &self,
        state: &ApiState,
        (caller, key): (&Caller, KeyDigest),
        request: &Request,
    ) -> bool {
        let tenant = match caller {
            Caller::Operator | Caller::Confined(_) => None,
            Caller::Tenant(id) => state.tenants.named(id.as_str()),
        };
        let per_second = match (caller, &tenant) {
            (Caller::Tenant(_), Some(tenant)) => tenant.relay.limits().api_calls_per_second,
            // It is not in use here yet, and the rate holds before it is made.
            (Caller::Tenant(id), None) => {
                let unmade = state.tenants.configured(id.as_str());
                let limits = unmade.map(|(_, config)| config.limits).unwrap_or_default();
                limits.api_calls_per_second
            }
            (Caller::Operator | Caller::Confined(_), _) => state.api_keys.operator_calls(),
        };
        let weight = 1 + body_length(request) / UNIT;
        let weight = u32::try_from(weight).unwrap_or(u32::MAX);
        let now = Instant::now();
        let taken = {
            let mut buckets = self.0.lock();
            let payer = (Payer::of(caller, key), is_urgent(request));
            buckets.take(payer, now, per_second, weight)
        };
        if !taken {
            match tenant {
                Some(tenant) => tenant.metrics.rate_limited("api_calls_per_second"),
                None => metrics::operator_rate_limited("calls_per_second"),
            }
        }
        taken
    }
}

/// Refuses a call over the rate, after a wait.
pub(super) async fn refuse() -> ApiProblem {
    tokio::time::sleep(REFUSED_AFTER).await;
    ApiProblem::TooManyCalls
}

/// Returns true for a call that takes something back.
pub(super) fn is_urgent(request: &Request) -> bool {
    let path = request.uri().path();
    request.method() == Method::DELETE || URGENT.iter().any(|end| path.ends_with(end))
}

/// Returns the most bytes that the body may have: the length that the request claims, more than which the server does not read, or
/// the most of all for one that claims none.
pub(super) fn body_length(request: &Request) -> u64 {
    if request.headers().contains_key(TRANSFER_ENCODING) {
        return MAX_BODY as u64;
    }
    let length = request.headers().get(CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.parse().ok());
    length.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    /// Before, a body that comes in chunks counted as none.
    #[test]
    fn a_body_without_a_length_counts_as_the_longest() {
        let length = |name: &str, value: &str| {
            let request = Request::builder().header(name, value);
            body_length(&request.body(Body::empty()).unwrap())
        };
        assert_eq!(length("Content-Length", "70000"), 70_000);
        assert_eq!(length("Transfer-Encoding", "chunked"), MAX_BODY as u64);
        assert_eq!(length("Host", "x"), 0);
    }

    /// Before, a tenant that had ever called kept its buckets.
    #[test]
    fn a_caller_of_long_ago_has_no_bucket() {
        let (mut buckets, now) = (CallBuckets::default(), Instant::now());
        let payer = |number: u32| {
            let tenant: TenantId = format!("t{number}").parse().unwrap();
            (Payer::Tenant(tenant), false)
        };
        for number in 0..100 {
            assert!(buckets.take(payer(number), now, 1, 2));
        }
        assert!(!buckets.take(payer(0), now, 1, 1));
        assert!(buckets.take(payer(0), now + SWEPT_EVERY, 1, 1));
        assert_eq!(buckets.by_payer.len(), 1);
    }
}
