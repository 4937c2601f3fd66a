//! A scrape, read.

use std::collections::{BTreeMap, BTreeSet};

/// All samples of one scrape.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    text: String,
    samples: Vec<Sample>,
}

#[derive(Clone, Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Metrics {
    /// Reads Prometheus' text format.
    pub(crate) fn parse(text: &str) -> Self {
        let samples = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| parse_sample(line).unwrap_or_else(|| panic!("not a sample: {line}")))
            .collect();
        Self {
            text: text.to_owned(),
            samples,
        }
    }

    /// The sum of all samples of `name` that have these labels; 0 if there are none.
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.samples
            .iter()
            .filter(|sample| {
                sample.name == name
                    && labels
                        .iter()
                        .all(|(label, value)| sample.labels.get(*label).is_some_and(|v| v == value))
            })
            .map(|sample| sample.value)
            .sum()
    }

    /// The samples of `name` that have this label, by their other labels, written `label=value` and sorted; without those
    /// that are zero.
    pub(crate) fn of(&self, name: &str, (label, value): (&str, &str)) -> BTreeMap<String, f64> {
        let mut found = BTreeMap::new();
        for sample in self.samples.iter().filter(|sample| sample.name == name) {
            if sample.labels.get(label).is_some_and(|v| v == value) && sample.value != 0.0 {
                let others = sample.labels.iter().filter(|(name, _)| *name != label);
                let others: Vec<_> = others.map(|(name, v)| format!("{name}={v}")).collect();
                *found.entry(others.join(" ")).or_default() += sample.value;
            }
        }
        found
    }

    /// The names of the families, from their `# TYPE` lines, with the type.
    pub(crate) fn families(&self) -> BTreeMap<String, String> {
        self.text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .filter_map(|line| line.split_once(' '))
            .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
            .collect()
    }

    /// The labels that samples of a family have, without a histogram's `le` and a summary's `quantile`.
    pub(crate) fn labels(&self, family: &str) -> BTreeSet<String> {
        let parts = ["", "_bucket", "_sum", "_count"].map(|part| format!("{family}{part}"));
        self.samples
            .iter()
            .filter(|sample| parts.contains(&sample.name))
            .flat_map(|sample| sample.labels.keys().cloned())
            .filter(|label| label != "le" && label != "quantile")
            .collect()
    }

    /// Every value that a label takes anywhere.
    pub(crate) fn label_values(&self, label: &str) -> BTreeSet<String> {
        self.samples
            .iter()
            .filter_map(|sample| sample.labels.get(label).cloned())
            .collect()
    }

    /// The scrape as it came.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

/// `name{label="value",…} 1.5`; none of our label values holds a quote.
fn parse_sample(line: &str) -> Option<Sample> {
    let (series, value) = line.rsplit_once(' ')?;
    let (name, labels) = match series.split_once('{') {
        None => (series, ""),
        Some((name, labels)) => (name, labels.strip_suffix('}')?),
    };
    let labels = labels
        .split_terminator("\",")
        .map(|pair| pair.trim_end_matches('"').split_once("=\""))
        .map(|pair| pair.map(|(label, value)| (label.to_owned(), value.to_owned())))
        .collect::<Option<_>>()?;
    Some(Sample {
        name: name.to_owned(),
        labels,
        value: value.parse().ok()?,
    })
}
