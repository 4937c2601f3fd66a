//! Scrapes in Prometheus' text format: the recorder's text, and below it the series of tenants from the book.

use std::fmt::Write;
use std::sync::Arc;

use metrics_exporter_prometheus::PrometheusHandle;

use super::families;
use super::family::Description;
use super::ledger::{Catalogue, NO_TENANT, SeriesKey, SeriesValue, WITHOUT_TENANT};
use super::series::{CountedSeries, TenantSeries};

/// A page of `/metrics/tenants`.
pub struct SeriesPage {
    /// The series.
    pub text: String,
    /// The name of the last tenant of the page, if there are more behind it.
    pub next: Option<String>,
}

impl TenantSeries {
    /// Returns the scrape of this replica: at most `metrics.tenant_series` tenants by name.
    pub fn scrape(&self, recorder: &PrometheusHandle) -> String {
        let mut text = recorder.render();
        text.push_str(&self.shown_text());
        text
    }

    /// Returns the part of the scrape that has tenants.
    pub(super) fn shown_text(&self) -> String {
        let mut shown = self.shown();
        shown.push((NO_TENANT.into(), WITHOUT_TENANT.totals()));
        text_of(&shown)
    }

    /// Returns the series of up to `limit` tenants behind `after`, in the order of their names: all that are made on this
    /// replica, each with all that it has counted since then.
    pub fn scrape_page(&self, after: Option<&str>, limit: usize) -> SeriesPage {
        let (page, more) = self.page(after, limit);
        let last = page.last().map(|(tenant, _)| tenant.to_string());
        SeriesPage {
            text: text_of(&page),
            next: last.filter(|_| more),
        }
    }

    /// Returns the series of one tenant; `None` if it is not made on this replica.
    pub fn scrape_of(&self, tenant: &str) -> Option<String> {
        self.of(tenant).map(|counted| text_of(&[counted]))
    }
}

/// Writes family after family, as the format demands.
fn text_of(counted: &[CountedSeries]) -> String {
    let mut text = String::new();
    // Read after the values, so that it has the series of each.
    let keys = Catalogue::keys();
    let mut rows: Vec<Vec<(&Arc<str>, SeriesValue)>> = vec![Vec::new(); keys.len()];
    for (tenant, values) in counted {
        for value in values {
            rows[usize::from(value.series)].push((tenant, *value));
        }
    }
    for family in families::ALL {
        let own = { keys.iter().zip(&rows) }.filter(|(key, _)| key.family == family.name);
        let own: Vec<_> = own.filter(|(_, rows)| !rows.is_empty()).collect();
        if own.is_empty() {
            continue;
        }
        family.write_head(&mut text);
        for (key, rows) in own {
            for (tenant, value) in rows {
                write_line(&mut text, (family, key), tenant, *value);
            }
        }
    }
    text
}

/// Writes one sample. Nothing is escaped: names of tenants and the words of labels hold no quote, backslash or line end.
fn write_line(
    text: &mut String,
    (family, key): (&Description, &SeriesKey),
    tenant: &str,
    value: SeriesValue,
) {
    let written = (|| {
        write!(text, "{}{{tenant=\"{tenant}\"", family.name)?;
        for (label, word) in family.labels.iter().skip(1).zip(key.words()) {
            write!(text, ",{label}=\"{word}\"")?;
        }
        match value.is_gauge {
            true => writeln!(text, "}} {}", f64::from_bits(value.bits)),
            false => writeln!(text, "}} {}", value.bits),
        }
    })();
    written.expect("a string takes all text");
}
