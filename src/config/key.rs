//! The entries of the reference.

/// One key of the reference.
pub(crate) struct ReferenceKey {
    /// The key's name in the file.
    pub(super) name: &'static str,
    /// The documentation of the field, one line each.
    pub(super) meaning: &'static [&'static str],
    /// The values that are allowed.
    pub(super) expected: String,
    /// The default as TOML. `None`: not set.
    pub(super) default: Option<String>,
    /// The keys below it.
    pub(super) inner: Inner,
}

/// The keys below a key.
pub(crate) enum Inner {
    /// None: the key has a value.
    Value,
    /// One table. Without it its defaults apply.
    Table(&'static [&'static str], Vec<ReferenceKey>),
    /// One optional table.
    Optional(&'static [&'static str], Vec<ReferenceKey>),
    /// A list of tables.
    List(&'static [&'static str], Vec<ReferenceKey>),
    /// Tables by names that the operator chooses.
    Named(&'static [&'static str], Vec<ReferenceKey>),
}
