//! Reads Rust sources: the modules, and the places where each file names something of another one.
//!
//! Imports (`use crate::{a, b::c}`, `use super::d`), paths in code, in macros and in the strings of attributes count.
//! Tests (`#[cfg(test)]`), comments and visibilities (`pub(in crate::a)`) do not.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use proc_macro2::{Span, TokenStream, TokenTree};
use syn::visit::{self, Visit};

/// A path from the root of the crate, such as `["hub", "Outbound"]`.
pub(super) type Names = Vec<String>;

/// A place where a file names something of this crate.
#[derive(Debug)]
pub(super) struct Mention {
    pub(super) line: usize,
    pub(super) path: Names,
    /// `pub use`: the name is passed on, and need not be used here.
    pub(super) passes_on: bool,
}

/// One source file.
#[derive(Debug)]
pub(super) struct Source {
    /// Relative to `src`, such as `hub/outbound.rs`.
    pub(super) file: String,
    /// The module that it is, such as `["hub", "outbound"]`; empty for the root of the crate.
    pub(super) module: Names,
    pub(super) mentions: Vec<Mention>,
}

/// A module, in a file of its own or inline.
#[derive(Debug, Default)]
struct Module {
    items: BTreeSet<String>,
    /// The structs, enums and traits among `items`.
    types: BTreeSet<String>,
    /// By the name that stands here: the path that a `use` gave for it.
    uses: BTreeMap<String, Names>,
    /// The names of the modules right below this one.
    children: BTreeSet<String>,
    /// Modules behind `use …::*`.
    globs: Vec<Names>,
}

/// All sources of a crate.
#[derive(Debug, Default)]
pub(super) struct Sources {
    pub(super) files: Vec<Source>,
    modules: BTreeMap<Names, Module>,
    /// Modules that only tests have.
    tests: BTreeSet<Names>,
}

impl Sources {
    /// Every source below `src`.
    pub(super) fn below(src: &Path) -> Self {
        let mut texts = Vec::new();
        collect(src, src, &mut texts);
        texts.sort();
        Self::parse(&texts)
    }

    /// Sources by their paths relative to `src`.
    pub(super) fn parse(texts: &[(String, String)]) -> Self {
        let mut sources = Self::default();
        let trees: Vec<_> = texts
            .iter()
            .map(|(file, text)| {
                let tree = syn::parse_file(text);
                (file, tree.unwrap_or_else(|error| panic!("{file}: {error}")))
            })
            .collect();
        // Names first: a path in one file can only be read with the modules and imports of the others at hand.
        for (file, tree) in &trees {
            sources.declare(module_of(file), &tree.items);
        }
        let only_tests = |file: &str| {
            let module = module_of(file);
            (0..=module.len()).any(|end| sources.tests.contains(&module[..end]))
        };
        for (file, tree) in &trees {
            if only_tests(file) {
                continue;
            }
            let mut reader = Reader {
                modules: &sources.modules,
                module: module_of(file),
                mentions: Vec::new(),
            };
            reader.visit_file(tree);
            let mentions = reader.mentions;
            sources.files.push(Source {
                file: (*file).clone(),
                module: module_of(file),
                mentions,
            });
        }
        sources
    }

    /// The structs, enums and traits that are declared in several modules, with these modules.
    pub(super) fn types_declared_twice(&self) -> BTreeMap<&str, Vec<String>> {
        let mut declared: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (name, module) in &self.modules {
            // A test module in a file of its own is declared where its parent stands.
            let is_of_tests = (0..=name.len()).any(|end| self.tests.contains(&name[..end]));
            for declaration in module.types.iter().filter(|_| !is_of_tests) {
                declared
                    .entry(declaration)
                    .or_default()
                    .push(name.join("::"));
            }
        }
        declared.retain(|_, modules| modules.len() > 1);
        declared
    }

    fn declare(&mut self, name: Names, items: &[syn::Item]) {
        let children: BTreeSet<_> = items
            .iter()
            .filter_map(|item| match item {
                syn::Item::Mod(inner) => Some(inner.ident.to_string()),
                _ => None,
            })
            .collect();
        let mut module = Module::default();
        for item in items {
            match item {
                syn::Item::Mod(inner) if is_test(item) => {
                    self.tests.insert(joined(&name, [inner.ident.to_string()]));
                }
                item if is_test(item) => {}
                syn::Item::Mod(inner) => {
                    if let Some((_, items)) = &inner.content {
                        self.declare(joined(&name, [inner.ident.to_string()]), items);
                    }
                }
                syn::Item::Use(import) => {
                    for leaf in leaves(&import.tree) {
                        let Some(path) = absolute(&name, &leaf.path, &children) else {
                            continue;
                        };
                        match leaf.name {
                            Some(here) => drop(module.uses.insert(here, path)),
                            None => module.globs.push(path),
                        }
                    }
                }
                item => {
                    if let syn::Item::Struct(_) | syn::Item::Enum(_) | syn::Item::Trait(_) = item {
                        module.types.extend(item_name(item));
                    }
                    module.items.extend(item_name(item));
                }
            }
        }
        module.children = children;
        self.modules.insert(name, module);
    }

    /// The module that has what `mention` names, re-exports followed; `None` for a module itself and for foreign names.
    pub(super) fn module_of(&self, mention: &Mention) -> Option<&[String]> {
        self.locate(&mention.path, 0)
    }

    /// The module right below the root that `mention` goes through, re-exports of the root followed.
    pub(super) fn room_of(&self, mention: &Mention) -> Option<String> {
        let first = mention.path.first()?;
        if self.modules.contains_key(std::slice::from_ref(first)) {
            return Some(first.clone());
        }
        self.module_of(mention)?.first().cloned()
    }

    fn locate(&self, path: &[String], depth: usize) -> Option<&[String]> {
        const DEEPEST: usize = 8;
        let split = (0..=path.len())
            .rev()
            .find(|&end| self.modules.contains_key(&path[..end]))?;
        let (item, rest) = path[split..].split_first()?;
        let (name, module) = self.modules.get_key_value(&path[..split])?;
        if module.items.contains(item) || depth == DEEPEST {
            return Some(name);
        }
        if let Some(passed_on) = module.uses.get(item) {
            return self.locate(&joined(passed_on, rest.iter().cloned()), depth + 1);
        }
        module
            .globs
            .iter()
            .find_map(|glob| self.locate(&joined(glob, [item.clone()]), depth + 1))
    }
}

fn collect(src: &Path, dir: &Path, texts: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(src, &path, texts);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let file = path.strip_prefix(src).unwrap().to_str().unwrap();
            texts.push((file.to_owned(), std::fs::read_to_string(&path).unwrap()));
        }
    }
}

/// `hub/outbound.rs` is `["hub", "outbound"]`, `hub/mod.rs` and `hub.rs` are `["hub"]`, `lib.rs` and `main.rs` the root.
fn module_of(file: &str) -> Names {
    let name = file.trim_end_matches(".rs").trim_end_matches("/mod");
    match name {
        "lib" | "main" => Vec::new(),
        _ => name.split('/').map(str::to_owned).collect(),
    }
}

fn joined(path: &[String], more: impl IntoIterator<Item = String>) -> Names {
    path.iter().cloned().chain(more).collect()
}

fn item_name(item: &syn::Item) -> Option<String> {
    let ident = match item {
        syn::Item::Const(item) => &item.ident,
        syn::Item::Enum(item) => &item.ident,
        syn::Item::Fn(item) => &item.sig.ident,
        syn::Item::Macro(item) => item.ident.as_ref()?,
        syn::Item::Static(item) => &item.ident,
        syn::Item::Struct(item) => &item.ident,
        syn::Item::Trait(item) => &item.ident,
        syn::Item::Type(item) => &item.ident,
        syn::Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(ident.to_string())
}

/// One name of a `use`; without a name it is a `*`, and the path is the module's.
struct Leaf {
    name: Option<String>,
    path: Names,
    span: Span,
}

fn leaves(tree: &syn::UseTree) -> Vec<Leaf> {
    match tree {
        syn::UseTree::Path(path) => {
            let ident = path.ident.to_string();
            let mut inner = leaves(&path.tree);
            for leaf in &mut inner {
                leaf.path.insert(0, ident.clone());
                // `use a::{self}` brings in `a`.
                if leaf.name.as_deref() == Some("self") {
                    leaf.path.pop();
                    leaf.name = Some(ident.clone());
                }
            }
            inner
        }
        syn::UseTree::Group(group) => group.items.iter().flat_map(leaves).collect(),
        syn::UseTree::Name(name) => vec![Leaf {
            name: Some(name.ident.to_string()),
            path: vec![name.ident.to_string()],
            span: name.ident.span(),
        }],
        syn::UseTree::Rename(rename) => vec![Leaf {
            name: Some(rename.rename.to_string()),
            path: vec![rename.ident.to_string()],
            span: rename.ident.span(),
        }],
        syn::UseTree::Glob(glob) => vec![Leaf {
            name: None,
            path: Vec::new(),
            span: glob.star_token.spans[0],
        }],
    }
}

/// `path` from the root of the crate, as `module` means it; `None` where it begins with neither a keyword nor one of
/// `known` names of this module.
fn absolute(module: &[String], path: &[String], known: &BTreeSet<String>) -> Option<Names> {
    let (first, rest) = path.split_first()?;
    match first.as_str() {
        "crate" => Some(rest.to_vec()),
        "self" => absolute_within(module, rest),
        "super" => absolute_within(module.split_last()?.1, rest),
        _ if known.contains(first) => Some(joined(module, path.iter().cloned())),
        _ => None,
    }
}

/// The rest of a path after `self` or `super`, which may go further up.
fn absolute_within(module: &[String], rest: &[String]) -> Option<Names> {
    match rest.split_first() {
        Some((first, rest)) if first == "super" => absolute_within(module.split_last()?.1, rest),
        _ => Some(joined(module, rest.iter().cloned())),
    }
}

/// `#[cfg(test)]` and its kin.
fn is_test(item: &syn::Item) -> bool {
    let attributes = match item {
        syn::Item::Const(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Struct(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        _ => return false,
    };
    attributes.iter().any(is_cfg_test)
}

fn is_cfg_test(attribute: &syn::Attribute) -> bool {
    attribute.path().is_ident("cfg")
        && attribute
            .parse_args::<syn::Path>()
            .is_ok_and(|condition| condition.is_ident("test"))
}

/// Walks one file and notes what it names.
struct Reader<'a> {
    modules: &'a BTreeMap<Names, Module>,
    module: Names,
    mentions: Vec<Mention>,
}

impl Reader<'_> {
    fn mention(&mut self, path: Names, span: Span, passes_on: bool) {
        self.mentions.push(Mention {
            line: span.start().line,
            path,
            passes_on,
        });
    }

    /// A path in code, which may begin with a name that a `use` brought in.
    fn name(&mut self, path: &[String], span: Span) {
        let Some((first, rest)) = path.split_first() else {
            return;
        };
        let module = &self.modules[&self.module];
        let full = match module.uses.get(first) {
            Some(imported) => Some(joined(imported, rest.iter().cloned())),
            None => absolute(&self.module, path, &module.children)
                .or_else(|| Some(joined(self.behind_a_glob(first)?, path.iter().cloned()))),
        };
        if let Some(full) = full {
            self.mention(full, span, false);
        }
    }

    /// The module that has `name` and whose names a `use …::*` brought in.
    fn behind_a_glob(&self, name: &str) -> Option<&Names> {
        let module = &self.modules[&self.module];
        let has = |glob: &&Names| {
            let behind = self.modules.get(glob.as_slice());
            behind.is_some_and(|behind| behind.items.contains(name))
        };
        module.globs.iter().find(has)
    }

    /// The paths in the tokens of a macro, or in the strings of an attribute.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<(String, Span)> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.end(&mut path);
                    }
                    path.push((ident.to_string(), ident.span()));
                    colons = 0;
                }
                other => {
                    self.end(&mut path);
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.tokens(group.stream());
                    }
                }
            }
        }
        self.end(&mut path);
    }

    fn end(&mut self, path: &mut Vec<(String, Span)>) {
        if let Some((_, span)) = path.first() {
            let span = *span;
            let names: Names = path.drain(..).map(|(name, _)| name).collect();
            self.name(&names, span);
        }
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if !is_test(item) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if item.content.is_some() {
            self.module.push(item.ident.to_string());
            visit::visit_item_mod(self, item);
            self.module.pop();
        }
    }

    fn visit_item_use(&mut self, import: &'ast syn::ItemUse) {
        let passes_on = !matches!(import.vis, syn::Visibility::Inherited);
        let modules = self.modules;
        let children = &modules[&self.module].children;
        for leaf in leaves(&import.tree) {
            if let Some(path) = absolute(&self.module, &leaf.path, children) {
                self.mention(path, leaf.span, passes_on);
            }
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Names = path
            .segments
            .iter()
            .map(|part| part.ident.to_string())
            .collect();
        if path.leading_colon.is_none() {
            self.name(&names, path.segments[0].ident.span());
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.visit_path(&call.path);
        self.tokens(call.tokens.clone());
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        if let syn::Meta::List(list) = &attribute.meta {
            for token in list.tokens.clone() {
                // As in `#[serde(with = "crate::config::duration")]`.
                if let TokenTree::Literal(literal) = token
                    && let Ok(text) = syn::parse_str::<syn::LitStr>(&literal.to_string())
                    && let Ok(path) = text.parse::<syn::Path>()
                {
                    let names: Names = path
                        .segments
                        .iter()
                        .map(|part| part.ident.to_string())
                        .collect();
                    if names.len() > 1 {
                        self.name(&names, literal.span());
                    }
                }
            }
        }
    }

    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}
}
