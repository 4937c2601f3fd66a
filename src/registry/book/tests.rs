//! Tests of the choice of what can be served.

use super::*;
use std::cell::Cell;
use std::collections::BTreeSet;

fn id(name: &str) -> TenantId {
    name.parse().unwrap()
}

fn tenant(host: &str) -> Arc<TenantConfig> {
    Arc::new(TenantConfig {
        hosts: vec![host.to_owned()],
        ..TenantConfig::default()
    })
}

/// Refuses two tenants with one host.
fn judge(config: &Config) -> Result<(), String> {
    let mut hosts = BTreeSet::new();
    let mut all = config.tenants.values().flat_map(|tenant| &tenant.hosts);
    match all.find(|host| !hosts.insert(*host)) {
        Some(twice) => Err(format!("{twice} twice")),
        None => Ok(()),
    }
}

fn files(tenants: &[(&str, &str)]) -> Config {
    let mut config = Config::default();
    for (name, host) in tenants {
        config.tenants.insert(id(name), tenant(host));
    }
    config
}

fn put(pages: &mut TenantPages, name: &str, made: i64, read: Result<&str, &str>) {
    put_version(pages, name, (1, made), read);
}

fn put_version(
    pages: &mut TenantPages,
    name: &str,
    (version, serial): (i64, i64),
    read: Result<&str, &str>,
) {
    let wrong = |why: &str| WrongTenant {
        why: why.to_owned(),
        hosts: Vec::new(),
    };
    let read = read.map(tenant).map_err(wrong);
    let making = Making {
        serial,
        created_at: 0,
    };
    pages.record(id(name), StoredState { version, making }, read);
}

/// The hosts that are served, by tenant, and the troubles.
fn served(pages: &mut TenantPages, files: &Config) -> (Vec<String>, Vec<String>) {
    let config = pages.together(files, &judge);
    let hosts = config.tenants.iter();
    let hosts = hosts.map(|(id, tenant)| format!("{id}={}", tenant.hosts[0]));
    let trouble = pages.iter().filter_map(|(id, page)| {
        let trouble = page.trouble.as_ref()?;
        Some(format!("{id}: {trouble}"))
    });
    (hosts.collect(), trouble.collect())
}

#[test]
fn a_wrong_tenant_keeps_its_last_good_configuration() {
    let mut pages = TenantPages::default();
    let files = files(&[("file", "f")]);
    put(&mut pages, "a", 1, Ok("a"));
    put(&mut pages, "b", 2, Err("no JSON"));
    let (hosts, trouble) = served(&mut pages, &files);
    assert_eq!(hosts, ["a=a", "file=f"]);
    assert_eq!(trouble, ["b: no JSON"]);
    put(&mut pages, "a", 1, Err("no key"));
    put(&mut pages, "b", 2, Ok("b"));
    let (hosts, trouble) = served(&mut pages, &files);
    assert_eq!(hosts, ["a=a", "b=b", "file=f"]);
    assert_eq!(trouble, ["a: no key"]);
    put(&mut pages, "a", 1, Ok("c"));
    let (hosts, trouble) = served(&mut pages, &files);
    assert_eq!(
        (hosts, trouble.len()),
        (vec!["a=c".into(), "b=b".into(), "file=f".into()], 0)
    );
    pages.forget(&id("a"));
    pages.forget(&id("unknown"));
    assert_eq!(served(&mut pages, &files).0, ["b=b", "file=f"]);
}

#[test]
fn files_win_and_of_two_tenants_the_served_one_stays() {
    let mut pages = TenantPages::default();
    put(&mut pages, "file", 1, Ok("x"));
    put(&mut pages, "taken", 1, Ok("f"));
    put(&mut pages, "later", 3, Ok("one"));
    put(&mut pages, "sooner", 2, Ok("one"));
    let of_files = files(&[("file", "f")]);
    let (hosts, trouble) = served(&mut pages, &of_files);
    assert_eq!(hosts, ["file=f", "sooner=one"]);
    let expected = [
        format!("file: {IN_FILES}"),
        "later: one twice".to_owned(),
        "taken: f twice".to_owned(),
    ];
    assert_eq!(trouble, expected);
    // The one that is served stays, whichever was made first.
    put(&mut pages, "oldest", 0, Ok("one"));
    put(&mut pages, "sooner", 2, Ok("one"));
    assert_eq!(served(&mut pages, &of_files).0, ["file=f", "sooner=one"]);
    // A change that takes another's host is refused, and the tenant keeps its own.
    put(&mut pages, "fourth", 4, Ok("own"));
    served(&mut pages, &of_files);
    put(&mut pages, "fourth", 4, Ok("one"));
    let (hosts, trouble) = served(&mut pages, &of_files);
    assert_eq!(hosts, ["file=f", "fourth=own", "sooner=one"]);
    assert!(trouble.contains(&"fourth: one twice".to_owned()));
    // A new file takes the host; what had it is served no more.
    let more = files(&[("file", "f"), ("new", "own")]);
    assert_eq!(
        served(&mut pages, &more).0,
        ["file=f", "new=own", "sooner=one"]
    );
    // Once the host is free again, the tenant is back.
    let (hosts, _) = served(&mut pages, &of_files);
    assert_eq!(hosts, ["file=f", "sooner=one"]);
    put(&mut pages, "fourth", 4, Ok("own"));
    assert_eq!(
        served(&mut pages, &of_files).0,
        ["file=f", "fourth=own", "sooner=one"]
    );
}

#[test]
fn two_tenants_may_exchange_their_hosts() {
    let mut pages = TenantPages::default();
    put(&mut pages, "a", 1, Ok("x"));
    put(&mut pages, "b", 2, Ok("y"));
    let none = Config::default();
    served(&mut pages, &none);
    put(&mut pages, "a", 1, Ok("y"));
    put(&mut pages, "b", 2, Ok("x"));
    let (hosts, trouble) = served(&mut pages, &none);
    assert_eq!(
        (hosts, trouble.len()),
        (vec!["a=y".into(), "b=x".into()], 0)
    );
}

#[test]
fn a_tenant_that_cannot_be_built_is_left_out() {
    let mut pages = TenantPages::default();
    let none = Config::default();
    put(&mut pages, "a", 1, Ok("x"));
    let config = pages.together(&none, &judge);
    let built = &config.tenants["a"];
    assert!(pages.cannot_be_built(&id("a"), built, "no such file"));
    assert!(!pages.cannot_be_built(&id("a"), built, "no such file"));
    assert!(!pages.cannot_be_built(&id("file"), built, "no such file"));
    let (hosts, trouble) = served(&mut pages, &none);
    assert_eq!(
        (hosts.len(), trouble),
        (0, vec!["a: no such file".to_owned()])
    );
}

/// The tenants `t0` to `t999`, each with a host.
fn a_thousand() -> TenantPages {
    let mut pages = TenantPages::default();
    for n in 0..1000 {
        put(&mut pages, &format!("t{n}"), n, Ok(&format!("h{n}")));
    }
    pages
}

/// Counts the judgements.
fn counting(judged: &Cell<usize>) -> impl Fn(&Config) -> Result<(), String> {
    |config| {
        judged.set(judged.get() + 1);
        judge(config)
    }
}

#[test]
fn where_all_is_well_one_judgement_is_enough() {
    let mut pages = a_thousand();
    let judged = Cell::new(0);
    let count = counting(&judged);
    let config = pages.together(&Config::default(), &count);
    assert_eq!((config.tenants.len(), judged.get()), (1000, 1));
    put(&mut pages, "t5", 5, Ok("h7"));
    let config = pages.together(&Config::default(), &count);
    assert_eq!(config.tenants["t5"].hosts, ["h5"]);
    assert!(judged.get() < 6, "{}", judged.get());
}

/// Each of them was judged beside all: 5,000 changes took 37 s.
#[test]
fn one_conflict_beside_many_changes_takes_few_judgements() {
    let mut pages = a_thousand();
    let judged = Cell::new(0);
    let count = counting(&judged);
    let files = files(&[("file", "f")]);
    pages.together(&files, &count);
    judged.set(0);
    for n in 0..1000 {
        let host = format!("g{n}");
        let host = if n == 700 { "f" } else { &host };
        put(&mut pages, &format!("t{n}"), n, Ok(host));
    }
    let config = pages.together(&files, &count);
    assert_eq!(config.tenants["t700"].hosts, ["h700"]);
    assert_eq!(config.tenants["t999"].hosts, ["g999"]);
    assert!(judged.get() < 30, "{}", judged.get());
}

/// The one before was left out, and its sockets closed.
#[test]
fn a_change_that_cannot_be_built_leaves_what_was_served() {
    let mut pages = TenantPages::default();
    let none = Config::default();
    put(&mut pages, "a", 1, Ok("x"));
    pages.together(&none, &judge);
    put(&mut pages, "a", 1, Ok("y"));
    let config = pages.together(&none, &judge);
    assert!(pages.cannot_be_built(&id("a"), &config.tenants["a"], "no such file"));
    let (hosts, trouble) = served(&mut pages, &none);
    assert_eq!(hosts, ["a=x"]);
    assert_eq!(trouble, ["a: no such file"]);
    // A change that can be built ends it.
    put(&mut pages, "a", 1, Ok("z"));
    let (hosts, trouble) = served(&mut pages, &none);
    assert_eq!((hosts, trouble.len()), (vec!["a=z".into()], 0));
}

/// A replica that read the end of a tenant and the beginning of its successor together kept the old one's configuration.
#[test]
fn a_tenant_that_was_made_again_has_no_last_good_configuration() {
    let mut pages = TenantPages::default();
    let none = Config::default();
    put(&mut pages, "a", 1, Ok("x"));
    served(&mut pages, &none);
    put(&mut pages, "a", 5, Err("no JSON"));
    let (hosts, trouble) = served(&mut pages, &none);
    assert_eq!((hosts.len(), trouble), (0, vec!["a: no JSON".to_owned()]));
    put(&mut pages, "a", 5, Ok("x"));
    served(&mut pages, &none);
    assert_eq!(pages.get(&id("a")).unwrap().stored.making.serial, 5);
}

#[test]
fn what_is_read_during_a_judgement_is_judged_by_the_next_one() {
    let mut pages = TenantPages::default();
    let none = Config::default();
    for name in ["a", "b", "c"] {
        put(&mut pages, name, 1, Ok(name));
    }
    let mut judged = pages.clone();
    judged.together(&none, &judge);
    // Meanwhile one changes, one is made again and one goes.
    put_version(&mut pages, "a", (2, 1), Err("no JSON"));
    put(&mut pages, "b", 2, Ok("b2"));
    pages.forget(&id("c"));
    pages.adopt(&judged);
    let (hosts, trouble) = served(&mut pages, &none);
    assert_eq!(hosts, ["a=a", "b=b2"]);
    assert_eq!(trouble, ["a: no JSON"]);
}
