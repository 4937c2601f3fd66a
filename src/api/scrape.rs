//! `/metrics` and `/metrics/tenants` of the admin listener.
//!
//! The first names the busiest tenants only, which bounds it. The second is for those who want all: it has pages, and one
//! tenant by its name.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header::{CONTENT_TYPE, LINK};
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Deserialize;

use super::problem::ApiProblem;
use crate::fleet::message::{LARGEST_PAGE, PAGE};
use crate::metrics::TenantSeries;
use crate::tenant::Tenants;

/// Prometheus' text format.
const TEXT: (HeaderName, HeaderValue) = (
    CONTENT_TYPE,
    HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
);

/// The sources of scrapes.
#[derive(Clone)]
pub struct ScrapeState {
    /// The metrics without those of tenants.
    pub recorder: PrometheusHandle,
    /// The metrics of tenants.
    pub series: Arc<TenantSeries>,
    /// The tenants that there are.
    pub tenants: Arc<Tenants>,
}

/// The query of `/metrics/tenants`: a page, or one tenant.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SeriesQuery {
    /// The name of a tenant. The page begins behind it.
    after: Option<String>,
    /// The most tenants: 1 to 1,000; the default is 100.
    limit: Option<usize>,
    /// The only tenant.
    tenant: Option<String>,
}

/// Answers with everything that this replica counts, under at most `metrics.tenant_series` names of tenants.
pub(super) async fn replica(State(state): State<ScrapeState>) -> Response {
    metrics_process::Collector::default().collect();
    ([TEXT], state.series.scrape(&state.recorder)).into_response()
}

/// Answers with the series of tenants that are in use on this replica. `Link` leads to the next page.
pub(super) async fn tenants(
    State(state): State<ScrapeState>,
    query: Result<Query<SeriesQuery>, QueryRejection>,
) -> Result<Response, ApiProblem> {
    let Query(query) = query.map_err(|_| ApiProblem::SeriesQueryNotValid)?;
    match query {
        SeriesQuery {
            tenant: Some(tenant),
            after: None,
            limit: None,
        } => one(&state, &tenant),
        SeriesQuery {
            tenant: None,
            after,
            limit,
        } => page(&state, after.as_deref(), limit.unwrap_or(PAGE)),
        _ => Err(ApiProblem::SeriesQueryNotValid),
    }
}

fn one(state: &ScrapeState, tenant: &str) -> Result<Response, ApiProblem> {
    match state.series.scrape_of(tenant) {
        Some(text) => Ok(([TEXT], text).into_response()),
        // A tenant that is not in use here has no samples, and its scrape works.
        None if state.tenants.configured(tenant).is_some() => Ok([TEXT].into_response()),
        None => Err(ApiProblem::TenantNotFound),
    }
}

fn page(state: &ScrapeState, after: Option<&str>, limit: usize) -> Result<Response, ApiProblem> {
    if !(1..=LARGEST_PAGE).contains(&limit) {
        return Err(ApiProblem::SeriesQueryNotValid);
    }
    let page = state.series.scrape_page(after, limit);
    let mut response = ([TEXT], page.text).into_response();
    if let Some(last) = page.next {
        let link = format!("</metrics/tenants?after={last}&limit={limit}>; rel=\"next\"");
        let link = HeaderValue::try_from(link);
        let link = link.expect("a tenant's name is a header's text");
        response.headers_mut().insert(LINK, link);
    }
    Ok(response)
}
