//! Tests of the check of changes: it finds what the check of all tenants finds, and tells it of the one that changes.

use super::*;
use crate::config::{ConsumerConfig, KeyConfig, RedisConfig, RouteConfig, UsersFrom};

fn id(name: &str) -> TenantId {
    name.parse().unwrap()
}

/// Numbers from a seed.
struct Dice(u64);

impl Dice {
    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        from[(self.0 >> 33) as usize % from.len()]
    }
}

fn deployment() -> Config {
    let mut config = Config::default();
    config.redis.url = Some("redis://one.test/0".into());
    config
}

/// A route whose workers listen to a channel.
fn route_to(channel: &str) -> RouteConfig {
    RouteConfig {
        consumer: ConsumerConfig {
            kind: "worker".to_owned(),
            channel: Some(channel.to_owned()),
            ..ConsumerConfig::default()
        },
        ..RouteConfig::default()
    }
}

/// A tenant of few words, so that two of them often share one.
fn random_tenant(dice: &mut Dice, number: usize) -> TenantConfig {
    let unique = format!("own{number}");
    let mut tenant = TenantConfig::default();
    let host = match dice.pick(&["own", "own", "own", "taken"]) {
        "own" => format!("{unique}.test"),
        _ => dice
            .pick(&["a.test", "A.test.", "*.a.test", "*"])
            .to_owned(),
    };
    tenant.hosts = vec![host];
    if dice.pick(&["none", "none", "one"]) == "one" {
        let key = dice.pick(&["1", "2", "3", "4", "5", "6"]).repeat(32);
        tenant.api_keys = vec![key.as_str().into()];
    }
    let layer = &mut tenant.layer;
    layer.kind = Some(match dice.pick(&["pubsub", "pubsub", "core", "memory"]) {
        "core" => LayerKind::Core,
        "memory" => LayerKind::Memory,
        _ => LayerKind::PubSub,
    });
    layer.prefix = match dice.pick(&["own", "own", "shared", "shared", "odd"]) {
        "own" => format!("{unique}-"),
        "shared" => dice.pick(&["p", "pq", "q"]).to_owned(),
        _ => dice.pick(&["", "lockgate:x", "p"]).to_owned(),
    };
    layer.namespace = dice.pick(&["", "n.", "nm.", "m.", "o.", "x."]).to_owned();
    if dice.pick(&["shared", "shared", "own"]) == "own" {
        tenant.redis = Some(RedisConfig {
            url: Some(
                dice.pick(&["redis://two.test/1", "redis://TWO.test/2"])
                    .into(),
            ),
            ..RedisConfig::default()
        });
    }
    if dice.pick(&["none", "none", "worker"]) == "worker" {
        let channel = dice.pick(&["work", "p-work", "q-work", "own"]);
        tenant.routes = vec![route_to(&channel.replace("own", &unique))];
    }
    tenant.token.keys = vec![KeyConfig {
        signing_key: Some(dice.pick(&["one key", "another key"]).into()),
        ..KeyConfig::default()
    }];
    tenant.users.source = UsersFrom::Claims;
    tenant
}

#[test]
fn a_newcomer_is_refused_where_the_check_of_all_refuses_it() {
    let (mut refused, mut taken, mut fewer) = (0, 0, 0);
    for seed in 0..30 {
        let mut dice = Dice(seed);
        let (mut config, mut successions) = (deployment(), Successions::default());
        for number in 0..60 {
            // Names in no order, so that the newcomer is now the first of two, now the second.
            let name = format!("{}{number}", dice.pick(&["a", "k", "z"]));
            let tenant = Arc::new(random_tenant(&mut dice, number));
            let mut with = config.clone();
            with.tenants.insert(id(&name), tenant);
            let all = check_together(&with).map(drop);
            let one = check_newcomer(&with, &id(&name));
            let told = format!("seed {seed}, {name}: {all:?} {one:?}");
            assert_eq!(all.is_ok(), one.is_ok(), "{told}");
            assert_eq!(all.is_ok(), successions.check(&with).is_ok(), "{told}");
            if let Err(errors) = &one {
                let own = format!("tenants.{name}.");
                let is_own = |key: &str| key.starts_with(&own);
                assert!(
                    errors.mistakes().iter().all(|one| is_own(&one.key)),
                    "{told}"
                );
            }
            fewer += usize::from(near(&with, &BTreeSet::from([&id(&name)])).tenants.len() < 5);
            match all {
                Ok(()) => (taken, config) = (taken + 1, with),
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > 150 && taken > 150, "{refused} {taken}");
    assert!(fewer > 300, "{fewer} of {}", refused + taken);
}

/// The mistake was that of the neighbour, at a key that the document does not have.
#[test]
fn what_two_tenants_share_is_told_of_the_newcomer() {
    let neighbour = || {
        let mut tenant = TenantConfig {
            hosts: vec!["z.test".to_owned()],
            api_keys: vec!["k".repeat(32).as_str().into()],
            ..TenantConfig::default()
        };
        tenant.layer.kind = Some(LayerKind::PubSub);
        tenant.layer.prefix = "prefix".to_owned();
        tenant
    };
    type Take = fn(&mut TenantConfig, &mut TenantConfig);
    let takes: [(&str, Take); 6] = [
        ("hosts[0]", |own, _| own.hosts = vec!["Z.test".to_owned()]),
        ("api_keys[0]", |own, _| {
            own.api_keys = vec!["k".repeat(32).as_str().into()]
        }),
        ("layer.prefix", |own, _| own.layer.prefix = "pre".to_owned()),
        ("layer.prefix", |own, _| {
            own.layer.prefix = "prefixes".to_owned()
        }),
        // These were right while they had the server alone.
        ("layer", |_, other| other.layer.prefix = String::new()),
        ("layer", |_, other| {
            other.routes = vec![route_to("work"), route_to("more-work")]
        }),
    ];
    for name in ["a", "z"] {
        for (key, take) in takes {
            let (mut config, mut other) = (deployment(), neighbour());
            let mut own = TenantConfig {
                hosts: vec!["own.test".to_owned()],
                api_keys: Vec::new(),
                ..neighbour()
            };
            own.layer.prefix = "own".to_owned();
            take(&mut own, &mut other);
            config.tenants.insert(id("m"), Arc::new(other));
            config.tenants.insert(id(name), Arc::new(own));
            let errors = check_newcomer(&config, &id(name)).unwrap_err();
            let [mistake] = errors.mistakes() else {
                panic!("{errors}")
            };
            assert_eq!(mistake.key, format!("tenants.{name}.{key}"));
            assert!(
                mistake.found.contains("enant m") || key == "api_keys[0]",
                "{mistake}"
            );
        }
    }
}

/// A tenant of one project's schema: it has a namespace of its own, and the users of its tokens' claims.
fn of_schema(name: &str, key: &str) -> TenantConfig {
    let mut tenant = TenantConfig {
        hosts: vec![format!("{name}.test")],
        ..TenantConfig::default()
    };
    tenant.layer.kind = Some(LayerKind::PubSub);
    tenant.layer.prefix = "project".to_owned();
    tenant.layer.namespace = format!("{name}.");
    tenant.users.source = UsersFrom::Claims;
    tenant.token.keys = vec![KeyConfig {
        signing_key: Some(key.into()),
        ..KeyConfig::default()
    }];
    tenant
}

/// Of two tenants the second by name was warned alone, so a caller whose tenant is the first never learned it.
#[test]
fn a_newcomer_is_warned_of_what_concerns_it_and_of_nothing_else() {
    let of_schema = |name: &str, key: &str| Arc::new(of_schema(name, key));
    let mut config = deployment();
    for (name, key) in [("k", "one key"), ("l", "one key"), ("m", "another key")] {
        config.tenants.insert(id(name), of_schema(name, key));
    }
    for (name, key, warnings) in [
        ("a", "one key", 1),
        ("z", "one key", 1),
        ("a", "third key", 0),
        ("z", "third key", 0),
    ] {
        let mut with = config.clone();
        with.tenants.insert(id(name), of_schema(name, key));
        let told = check_newcomer(&with, &id(name)).unwrap();
        assert_eq!(told.len(), warnings, "{name} {key}: {told:?}");
        assert!(
            told.iter()
                .all(|warning| warning.key == format!("tenants.{name}.token"))
        );
    }
}

/// The holder with the same users stood before the one with others, where something else had brought it there.
#[test]
fn a_newcomer_is_warned_of_other_users_behind_those_that_it_shares() {
    let mut config = deployment();
    for (name, database) in [
        ("k", Some("postgres://db/all")),
        ("l", None),
        ("n", Some("postgres://db/all")),
    ] {
        let mut tenant = of_schema(name, "one key");
        if let Some(database) = database {
            tenant.users.source = UsersFrom::Database;
            tenant.users.database = Some(Secret::from(database));
        }
        if name != "l" {
            tenant.routes = vec![route_to("project-work")];
        }
        config.tenants.insert(id(name), Arc::new(tenant));
    }
    let told = check_newcomer(&config, &id("n")).unwrap();
    let keys: Vec<_> = told.iter().map(|warning| warning.key.as_str()).collect();
    let expected = ["tenants.n.routes[0].consumer.channel", "tenants.n.token"];
    assert_eq!(keys, expected, "{told:?}");
    assert!(told[1].text.contains("tenant l"), "{told:?}");
}

/// The default prefix is that of all, and one change was judged beside each of them.
#[test]
fn tenants_with_equal_names_on_servers_of_their_own_are_not_near() {
    let mut config = deployment();
    for number in 0..20 {
        let mut tenant = TenantConfig {
            hosts: vec![format!("t{number}.test")],
            ..TenantConfig::default()
        };
        let own = format!("redis://r{number}.test");
        match number % 2 {
            0 => tenant.layer.hosts = vec![own.as_str().into()],
            _ => tenant.layer.kind = Some(LayerKind::Memory),
        }
        config
            .tenants
            .insert(id(&format!("t{number}")), Arc::new(tenant));
    }
    for (name, namesakes) in [("t0", 10), ("t1", 1)] {
        let near = near(&config, &BTreeSet::from([&id(name)]));
        // The second is there so that a tenant is not judged as a sole one.
        assert_eq!(near.tenants.len(), 2, "{name}");
        // Two URLs may name one server.
        let found = with_namesakes(&config, &id(name));
        assert_eq!(found.tenants.len(), namesakes, "{name}");
    }
}
