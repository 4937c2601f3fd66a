//! What the reference says of a key.

/// One key of the reference.
pub(crate) struct ReferenceKey {
    /// As it stands in the file.
    pub(super) name: &'static str,
    /// The documentation of the field, one line each.
    pub(super) meaning: &'static [&'static str],
    /// What may stand there.
    pub(super) expected: String,
    /// The default as TOML; `None`: not set.
    pub(super) default: Option<String>,
    /// What stands below it.
    pub(super) inner: Inner,
}

/// What stands below a key.
pub(crate) enum Inner {
    /// Nothing: a value.
    Value,
    /// One table, which has its defaults when it is left out.
    Table(&'static [&'static str], Vec<ReferenceKey>),
    /// One table, which may be left out.
    Optional(&'static [&'static str], Vec<ReferenceKey>),
    /// A list of tables.
    List(&'static [&'static str], Vec<ReferenceKey>),
    /// Tables by a name of the operator's choice.
    Named(&'static [&'static str], Vec<ReferenceKey>),
}
