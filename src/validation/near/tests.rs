//! Tests of the check of changes: it finds what the check of all tenants finds, and tells it of the one that changes.

use super::*;
use crate::config::{ConsumerConfig, KeyConfig, LayerKind, RedisConfig, RouteConfig, UsersFrom};

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
        tenant.routes = vec![RouteConfig {
            consumer: ConsumerConfig {
                kind: "worker".to_owned(),
                channel: Some(channel.replace("own", &unique)),
                ..ConsumerConfig::default()
            },
            ..RouteConfig::default()
        }];
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
    type Take = fn(&mut TenantConfig);
    let takes: [(&str, Take); 4] = [
        ("hosts[0]", |own| own.hosts = vec!["Z.test".to_owned()]),
        ("api_keys[0]", |own| {
            own.api_keys = vec!["k".repeat(32).as_str().into()]
        }),
        ("layer.prefix", |own| own.layer.prefix = "pre".to_owned()),
        ("layer.prefix", |own| {
            own.layer.prefix = "prefixes".to_owned()
        }),
    ];
    for name in ["a", "z"] {
        for (key, take) in takes {
            let mut config = deployment();
            config.tenants.insert(id("m"), Arc::new(neighbour()));
            let mut own = TenantConfig {
                hosts: vec!["own.test".to_owned()],
                api_keys: Vec::new(),
                ..neighbour()
            };
            own.layer.prefix = "own".to_owned();
            take(&mut own);
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

/// Of two tenants the second by name was warned alone, so a caller whose tenant is the first never learned it.
#[test]
fn a_newcomer_is_warned_of_what_concerns_it_and_of_nothing_else() {
    let of_schema = |name: &str, key: &str| {
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
        Arc::new(tenant)
    };
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
