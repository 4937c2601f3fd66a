//! Circles among the modules beside each other in one folder: which needs which, and the shortest way around.
//!
//! A folder's own file (`mod.rs`) is left out: it holds what its files share, and ties them together.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::sources::Sources;

/// Which module needs which, and a place that says so.
type Needs<'a> = BTreeMap<&'a [String], BTreeMap<&'a [String], String>>;

/// Each circle by its shortest way around, such as `api/a.rs:3 needs api::b, api/b.rs:7 needs api::a`.
pub(super) fn circles(sources: &Sources) -> BTreeSet<String> {
    let needs = needs(sources);
    let mut found = BTreeMap::new();
    for &start in needs.keys() {
        if let Some(way) = way_around(&needs, start) {
            let members: BTreeSet<_> = way.iter().copied().collect();
            found.entry(members).or_insert(way);
        }
    }
    let told = |way: Vec<&[String]>| {
        let arrows = way.iter().enumerate().map(|(n, &from)| {
            let to = way[(n + 1) % way.len()];
            format!("{} needs {}", needs[from][to], to.join("::"))
        });
        arrows.collect::<Vec<_>>().join(", ")
    };
    found.into_values().map(told).collect()
}

fn needs(sources: &Sources) -> Needs<'_> {
    let mut needs = Needs::new();
    for source in &sources.files {
        for mention in source.mentions.iter().filter(|mention| !mention.passes_on) {
            let Some(named) = sources.module_of(mention) else {
                continue;
            };
            let shared = named.iter().zip(&source.module);
            let shared = shared.take_while(|(one, other)| one == other).count();
            // One stands inside the other.
            if shared == named.len() || shared == source.module.len() {
                continue;
            }
            let place = || format!("{}:{}", source.file, mention.line);
            needs
                .entry(&source.module[..=shared])
                .or_default()
                .entry(&named[..=shared])
                .or_insert_with(place);
        }
    }
    needs
}

/// The shortest way from `start` back to itself.
fn way_around<'a>(needs: &Needs<'a>, start: &'a [String]) -> Option<Vec<&'a [String]>> {
    let mut before = BTreeMap::new();
    let mut next = VecDeque::from([start]);
    while let Some(from) = next.pop_front() {
        for &to in needs.get(from).into_iter().flat_map(BTreeMap::keys) {
            if to == start {
                let mut way = vec![from];
                while way[0] != start {
                    way.insert(0, before[way[0]]);
                }
                return Some(way);
            }
            before.entry(to).or_insert_with(|| {
                next.push_back(to);
                from
            });
        }
    }
    None
}
