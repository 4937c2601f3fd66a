//! `/metrics` and `/metrics/tenants` of the admin listener.
//!
//! The first names the busiest tenants only, which bounds it. The second is for those who want all: it has pages, and one
//! tenant by its name.
//!
//! A text takes a processor for milliseconds. It is written in a thread of lower priority, so that neither probes nor sockets wait for
//! it, and one of each kind at a time: the scrapes that come while the first is written share it.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header::{CONTENT_TYPE, LINK};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use metrics_exporter_prometheus::PrometheusHandle;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::{Semaphore, watch};

use super::problem::ApiProblem;
use crate::fleet::message::{LARGEST_PAGE, PAGE};
use crate::heavy::spawn_nicely;
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
    recorder: PrometheusHandle,
    /// The metrics of tenants.
    series: Arc<TenantSeries>,
    /// The tenants that there are.
    tenants: Arc<Tenants>,
    /// The scrape that is being written.
    writing: Arc<SharedWriting>,
    /// One permit, for the page that is being written.
    paging: Arc<Semaphore>,
}

impl ScrapeState {
    /// Makes the state of these sources.
    pub fn new(
        recorder: PrometheusHandle,
        series: Arc<TenantSeries>,
        tenants: Arc<Tenants>,
    ) -> Self {
        Self {
            recorder,
            series,
            tenants,
            writing: Arc::default(),
            paging: Arc::new(Semaphore::new(1)),
        }
    }
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
    let ScrapeState {
        recorder, series, ..
    } = state;
    let write = move || {
        metrics_process::Collector::default().collect();
        series.scrape(&recorder)
    };
    answer_with(state.writing.text(write).await)
}

fn answer_with(text: Option<Bytes>) -> Response {
    match text {
        Some(text) => ([TEXT], text).into_response(),
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// The receivers of a text that is being written.
type Reader = watch::Receiver<Option<Bytes>>;

/// A text that many ask for and that is written once for all who ask meanwhile.
///
/// The figures are read while it is written. So they are older than the question by no more than that takes, and who asks
/// after its end gets a text of its own.
#[derive(Debug, Default)]
struct SharedWriting(Mutex<Option<Reader>>);

/// A writing that is under way; its drop ends it.
struct UnderWay {
    shared: Arc<SharedWriting>,
    reader: Reader,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.shared.end(&self.reader);
    }
}

/// The start of a writing. Where it panics, since the system has no thread, the work stays in tokio's queue; the next scrape
/// does not wait for that.
struct Starting<'a> {
    shared: &'a SharedWriting,
    reader: &'a Reader,
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.end(self.reader);
        }
    }
}

impl SharedWriting {
    /// Returns the text that is being written, else that of `write`; `None` if writing it panics.
    ///
    /// It goes on if all who asked leave, so that questions that are given up do not add up.
    async fn text(
        self: &Arc<Self>,
        write: impl FnOnce() -> String + Send + 'static,
    ) -> Option<Bytes> {
        let mut reader = self.reader(write, |work| drop(spawn_nicely(work)));
        let text = reader.wait_for(Option::is_some).await;
        text.ok()?.clone()
    }

    fn reader(
        self: &Arc<Self>,
        write: impl FnOnce() -> String + Send + 'static,
        spawn: impl FnOnce(Box<dyn FnOnce() + Send>),
    ) -> Reader {
        let (tell, reader) = watch::channel(None);
        if let Some(other) = self.join(&reader) {
            return other;
        }
        let ends = UnderWay {
            shared: self.clone(),
            reader: reader.clone(),
        };
        let starting = Starting {
            shared: self,
            reader: &reader,
        };
        // Without the lock: a runtime that shuts down drops the work at once, and with it `ends`.
        spawn(Box::new(move || {
            let text = Bytes::from(write());
            drop(ends);
            tell.send_replace(Some(text));
        }));
        drop(starting);
        reader
    }

    /// Returns the reader of the writing that is under way. Without one `reader` takes its place. A writing that has ended without
    /// a text is none.
    fn join(&self, reader: &Reader) -> Option<Reader> {
        let mut under_way = self.0.lock();
        if let Some(other) = &*under_way
            && other.has_changed().is_ok()
        {
            return Some(other.clone());
        }
        *under_way = Some(reader.clone());
        None
    }

    /// Ends the writing of `reader`, unless another has taken its place.
    fn end(&self, reader: &Reader) {
        let ended = self.0.lock().take_if(|now| now.same_channel(reader));
        drop(ended);
    }
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
        } => state.paged(move |state| one(state, &tenant)).await,
        SeriesQuery {
            tenant: None,
            after,
            limit,
        } => {
            let limit = limit.unwrap_or(PAGE);
            let write = move |state: &ScrapeState| page(state, after.as_deref(), limit);
            state.paged(write).await
        }
        _ => Err(ApiProblem::SeriesQueryNotValid),
    }
}

impl ScrapeState {
    /// Writes a page once no other is written.
    async fn paged(
        self,
        write: impl FnOnce(&Self) -> Result<Response, ApiProblem> + Send + 'static,
    ) -> Result<Response, ApiProblem> {
        // The semaphore is never closed. The permit goes with the work, which outlives a client that leaves.
        let turn = self.paging.clone().acquire_owned().await.ok();
        let written = spawn_nicely(move || {
            let _turn = turn;
            write(&self)
        });
        let failed = |_| Ok(StatusCode::INTERNAL_SERVER_ERROR.into_response());
        written.await.unwrap_or_else(failed)
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use futures_util::future::join_all;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Before, each scrape was written by itself, on the thread that answers probes.
    #[tokio::test]
    async fn scrapes_that_come_while_one_is_written_share_it() {
        let (writing, count) = (Arc::<SharedWriting>::default(), Arc::default());
        let write = |begun: Option<mpsc::Receiver<()>>| {
            let count: Arc<AtomicUsize> = Arc::clone(&count);
            move || {
                let number = count.fetch_add(1, Ordering::SeqCst) + 1;
                if let Some(goes_on) = begun {
                    goes_on.recv_timeout(PATIENCE).unwrap();
                }
                number.to_string()
            }
        };
        let (go_on, goes_on) = mpsc::channel();
        let first = writing.text(write(Some(goes_on)));
        let mut first = Box::pin(first);
        // The thread of the listener has its next turn, although the text is not there.
        assert!(futures_util::poll!(&mut first).is_pending());
        let mut others: Vec<_> = (0..200)
            .map(|_| Box::pin(writing.text(write(None))))
            .collect();
        for other in &mut others {
            assert!(futures_util::poll!(other).is_pending());
        }
        // One that is given up takes nothing from the others, and neither does the first.
        drop((others.pop(), first));
        go_on.send(()).unwrap();
        for text in join_all(others).await {
            assert_eq!(text.unwrap(), "1");
        }
        // What comes later has figures of its own.
        assert_eq!(writing.text(write(None)).await.unwrap(), "2");
        assert_eq!(count.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_panic_while_a_scrape_is_written_ends_that_one_alone() {
        let writing = Arc::<SharedWriting>::default();
        let text = writing.text(|| panic!("as a bug would")).await;
        assert_eq!(text, None);
        assert_eq!(writing.text(|| "x".to_owned()).await.unwrap(), "x");
    }

    /// As tokio does without a thread for the work: it keeps the work, and panics. Before, all later scrapes waited for it.
    #[tokio::test]
    async fn a_scrape_that_no_thread_writes_holds_up_no_other() {
        let (writing, mut queue) = (Arc::<SharedWriting>::default(), Vec::new());
        let fails = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let spawn = |work| {
                queue.push(work);
                panic!("OS can't spawn worker thread");
            };
            writing.reader(|| "kept".to_owned(), spawn)
        }));
        assert!(fails.is_err());
        let next = tokio::time::timeout(PATIENCE, writing.text(|| "x".to_owned())).await;
        assert_eq!(next.expect("a scrape of its own").unwrap(), "x");
        // The end of the work that was kept ends no other.
        let reader = writing.reader(|| "y".to_owned(), |work| queue.push(work));
        queue.remove(0)();
        assert!(writing.join(&reader).unwrap().same_channel(&reader));
    }

    /// Before, the drop of the work waited for a lock that the same thread had.
    #[test]
    fn a_scrape_on_a_runtime_that_shuts_down_ends() {
        let (done, is_done) = mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.build().unwrap();
            let handle = runtime.handle().clone();
            runtime.shutdown_background();
            let _entered = handle.enter();
            let text = Arc::<SharedWriting>::default();
            done.send(futures_util::FutureExt::now_or_never(
                text.text(|| "x".to_owned()),
            ))
        });
        assert_eq!(is_done.recv_timeout(PATIENCE), Ok(Some(None)));
    }
}
