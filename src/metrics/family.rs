//! A family of metrics: one name, one type, its labels, and the buckets of a histogram.
//!
//! [`families!`] declares each family once, and the recording functions use its constant, so that a name, a label or a help
//! text cannot differ between two places.

use std::fmt::Write;
use std::marker::PhantomData;

use metrics::{
    Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder, SharedString, Unit,
};

/// The types that a family may have.
pub(super) trait FamilyKind: Sized + 'static {
    /// The name of the type in a scrape.
    const LABEL: &'static str;

    /// Returns the handle for `key`.
    fn register(recorder: &dyn Recorder, key: &Key) -> Self;

    /// Describes a family to the recorder.
    fn describe(recorder: &dyn Recorder, family: &Description);
}

/// The metadata of every metric. It is the same for all, since the recorder does not filter by level or target.
static METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

macro_rules! kind {
    ($kind:ident, $label:literal, $register:ident, $describe:ident) => {
        impl FamilyKind for $kind {
            const LABEL: &'static str = $label;

            fn register(recorder: &dyn Recorder, key: &Key) -> Self {
                recorder.$register(key, &METADATA)
            }

            fn describe(recorder: &dyn Recorder, family: &Description) {
                let help = family.help.trim_start();
                recorder.$describe(family.name.into(), family.unit(), help.into());
            }
        }
    };
}

kind!(Counter, "counter", register_counter, describe_counter);
kind!(Gauge, "gauge", register_gauge, describe_gauge);
kind!(
    Histogram,
    "histogram",
    register_histogram,
    describe_histogram
);

/// A family of type `K` with `N` labels.
pub(super) struct Family<K, const N: usize> {
    name: &'static str,
    labels: [&'static str; N],
    kind: PhantomData<fn() -> K>,
}

impl<K: FamilyKind, const N: usize> Family<K, N> {
    pub(super) const fn new(name: &'static str, labels: [&'static str; N]) -> Self {
        Self {
            name,
            labels,
            kind: PhantomData,
        }
    }

    /// Returns its name in a scrape.
    pub(super) const fn name(&self) -> &'static str {
        self.name
    }

    /// Returns the handle for these values of the labels, in the order of the declaration.
    pub(super) fn with(&self, values: [SharedString; N]) -> K {
        let labels = self.labels.iter().zip(values);
        let labels: Vec<_> = labels
            .map(|(name, value)| Label::new(*name, value))
            .collect();
        let key = Key::from_parts(self.name, labels);
        metrics::with_recorder(|recorder| K::register(recorder, &key))
    }
}

impl<K: FamilyKind> Family<K, 0> {
    /// Returns the handle of a family without labels.
    pub(super) fn get(&self) -> K {
        let key = Key::from_static_name(self.name);
        metrics::with_recorder(|recorder| K::register(recorder, &key))
    }
}

/// The description of a family for operators.
#[derive(Clone, Copy, Debug)]
pub struct Description {
    /// Its name in a scrape.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// The help text. It comes from a doc comment, so it begins with a blank.
    pub(super) help: &'static str,
    /// The upper bounds of a histogram's buckets.
    pub(super) buckets: Option<&'static [f64]>,
    pub(super) describe: fn(&dyn Recorder, &Description),
}

impl Description {
    /// Describes the family to the recorder.
    pub(super) fn describe(&self, recorder: &dyn Recorder) {
        (self.describe)(recorder, self);
    }

    /// Writes the lines above the samples of a scrape.
    pub(super) fn write_head(&self, text: &mut String) {
        let (name, help, kind) = (self.name, self.help.trim_start(), self.kind);
        let written = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        written.expect("a string takes all text");
    }

    /// Returns the unit, which is a part of the name.
    fn unit(&self) -> Option<Unit> {
        let name = self.name.strip_suffix("_total").unwrap_or(self.name);
        match name.rsplit('_').next() {
            Some("seconds") => Some(Unit::Seconds),
            Some("bytes") => Some(Unit::Bytes),
            _ => None,
        }
    }
}

/// Declares families, each below its help text, and the list `ALL` of their descriptions.
///
/// An entry is `/// Open sockets` above `CONNECTIONS: Gauge = "lockgate_connections", ["tenant"];`. For a histogram,
/// `in BUCKETS` follows the labels.
macro_rules! families {
    ($(
        #[doc = $help:literal]
        $family:ident: $kind:ident = $name:literal, [$($label:literal),*] $(in $buckets:ident)?;
    )+) => {
        $(
            #[doc = $help]
            pub(super) const $family: Family<$kind, { const L: &[&str] = &[$($label),*]; L.len() }> =
                Family::new($name, [$($label),*]);
        )+

        pub(super) const ALL: &[Description] = &[$(
            Description {
                name: $name,
                kind: <$kind as FamilyKind>::LABEL,
                labels: &[$($label),*],
                help: $help,
                buckets: { const B: &[&[f64]] = &[$($buckets)?]; B.first().copied() },
                describe: <$kind as FamilyKind>::describe,
            },
        )+];
    };
}

pub(super) use families;
