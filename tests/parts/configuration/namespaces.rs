//! `layer.namespace`: the schemas of one project on one prefix, and what does not keep them apart.

use super::{Folder, warnings};

const KEY: &str = "01234567890123456789012345678901";

/// A tenant on the Redis of the deployment, with more of its layer, token and users.
fn tenant(name: &str, layer: &str, token: &str, users: &str) -> String {
    format!(
        "[tenants.{name}]\nhosts = [\"{name}.example.com\"]\nlayer = {{ prefix = \"shop\"{layer} }}\n\
         [tenants.{name}.token]\nalgorithm = \"HS256\"\nsigning_key = \"{KEY}\"\n{token}\n\
         [tenants.{name}.users]\n{users}\n\
         [[tenants.{name}.routes]]\npath = \"ws/\"\ngroups = [\"all\"]\n"
    )
}

fn two(layers: [&str; 2], token: &str, users: [&str; 2]) -> Result<String, Vec<String>> {
    let mut text = "[redis]\nurl = \"redis://h\"\n".to_owned();
    for (name, (layer, users)) in ["acme", "globex"]
        .into_iter()
        .zip(layers.into_iter().zip(users))
    {
        text += &tenant(name, layer, &token.replace("NAME", name), users);
    }
    Folder::new(&text).load(&[]).map(|loaded| warnings(&loaded))
}

const APART: [&str; 2] = [", namespace = \"acme.\"", ", namespace = \"globex.\""];
const DATABASE: &str = "database = \"postgres://h/shop\"";
const TABLES: [&str; 2] = [
    "database = \"postgres://h/shop\"\ntable = \"acme.auth_user\"",
    "database = \"postgres://h/shop\"\ntable = \"globex.auth_user\"",
];

/// One key signs for all schemas of a project. Without a rule, user 1 of one schema opened sockets as user 1 of the next.
#[test]
fn tenants_of_one_project_that_take_each_others_tokens_warn() {
    let from_claims = ["source = \"claims\""; 2];
    for (token, users, told) in [
        ("", TABLES, true),
        ("audience = \"shop\"", TABLES, true),
        ("claims = { azp = 'web' }", TABLES, true),
        ("claims = { schema = 'NAME' }", TABLES, false),
        ("audience = \"NAME\"", TABLES, false),
        ("issuer = \"https://NAME.example.com\"", TABLES, false),
        // The users lie in a schema that all share.
        ("", [DATABASE; 2], false),
        ("", from_claims, true),
    ] {
        let warned = two(APART, token, users).expect("is valid");
        let line = "tenants.globex.token: one of it and of tenant acme takes tokens of the other";
        assert_eq!(warned.contains(line), told, "{token} {users:?}: {warned}");
        assert!(!warned.contains(KEY), "{warned}");
    }
}

/// Before, the warning came only where both lacked the rule.
#[test]
fn a_schema_without_the_rule_of_the_others_warns() {
    let apart = "claims = { schema = 'NAME' }";
    for (tokens, told) in [
        ([apart, apart, apart], false),
        (["", apart, apart], true),
        ([apart, apart, ""], true),
        ([apart, "claims = { region = 'eu' }", apart], true),
        // What tells the third one apart is a rule that all have.
        (
            [
                "audience = \"NAME\"\nclaims = { schema = 'NAME' }",
                "audience = \"NAME\"\nclaims = { schema = 'NAME' }",
                "audience = \"NAME\"",
            ],
            false,
        ),
    ] {
        let mut text = "[redis]\nurl = \"redis://h\"\n".to_owned();
        for (name, token) in ["acme", "globex", "initech"].into_iter().zip(tokens) {
            let layer = format!(", namespace = \"{name}.\"");
            let users = format!("{DATABASE}\ntable = \"{name}.auth_user\"");
            text += &tenant(name, &layer, &token.replace("NAME", name), &users);
        }
        let loaded = Folder::new(&text).load(&[]).expect("is valid");
        let warned = warnings(&loaded);
        assert_eq!(
            warned.contains("takes tokens of the other"),
            told,
            "{tokens:?}: {warned}"
        );
    }
}

/// Only a namespace each, of which none begins another, keeps tenants of one prefix apart.
#[test]
fn names_that_meet_are_mistakes() {
    for (layers, told) in [
        (APART, None),
        ([", namespace = \"a\"", ", namespace = \"b\""], None),
        ([", namespace = \"a.\"", ", namespace = \"A.\""], None),
        (
            [", namespace = \"a\"", ", namespace = \"ab\""],
            Some(
                "tenants.globex.layer.namespace: found \"ab\", which begins with \"a\" of tenant acme, at lockgate.toml:5:",
            ),
        ),
        (
            [", namespace = \"ab\"", ", namespace = \"a\""],
            Some(
                "tenants.acme.layer.namespace: found \"ab\", which begins with \"a\" of tenant globex",
            ),
        ),
        (
            [", namespace = \"a.\"", ", namespace = \"a.\""],
            Some(
                "tenants.globex.layer.namespace: found \"a.\", which begins with \"a.\" of tenant acme",
            ),
        ),
        (
            [", namespace = \"\"", ", namespace = \"a.\""],
            Some(
                "tenants.globex.layer.prefix: found \"shop\", which begins with \"shop\" of tenant acme",
            ),
        ),
        // The kind of a layer and the number of a database keep no names apart.
        (
            [
                ", namespace = \"a.\", kind = \"core\"",
                ", namespace = \"a.b\", hosts = [\"redis://H:6379/7\"]",
            ],
            Some(
                "tenants.globex.layer.namespace: found \"a.b\", which begins with \"a.\" of tenant acme",
            ),
        ),
        // Another server does.
        (
            [
                ", namespace = \"a.\"",
                ", namespace = \"a.\", hosts = [\"redis://h2\"]",
            ],
            None,
        ),
    ] {
        let lines = two(layers, "claims = { schema = 'NAME' }", TABLES);
        match told {
            None => assert!(lines.is_ok(), "{layers:?}: {lines:#?}"),
            Some(told) => {
                let lines = lines.expect_err("they meet");
                assert_eq!(lines.len(), 1, "{lines:#?}");
                assert!(lines[0].contains(told), "{lines:#?}");
                let expected = "that keeps it apart from other tenants on h:6379";
                assert!(
                    lines[0].contains(expected) && lines[0].contains("namespace"),
                    "{lines:#?}"
                );
            }
        }
    }
}

/// Names that Channels refuses, or that a reader could take for those of another layer.
#[test]
fn a_namespace_is_a_beginning_of_a_name_of_channels() {
    let long = "a".repeat(65);
    for bad in [
        "acme:",
        "a b",
        "a*",
        "caf\u{e9}.",
        "a\u{661}",
        "a{b}",
        "x__group__y",
        "__group__",
        "a!b",
        "a/b",
        "a\n",
        &long,
    ] {
        let layer = format!(", namespace = {bad:?}");
        let lines = two([&layer, APART[1]], "claims = { schema = 'NAME' }", TABLES);
        let lines = lines.expect_err(bad);
        let told = "tenants.acme.layer.namespace: found ";
        assert!(
            lines.len() == 1 && lines[0].contains(told),
            "{bad:?}: {lines:#?}"
        );
        assert!(
            lines[0].contains("expected at most 64 ASCII letters"),
            "{bad:?}: {lines:#?}"
        );
    }
    let longest = format!(", namespace = \"{}\"", &long[..64]);
    let loaded = two([&longest, APART[1]], "claims = { schema = 'NAME' }", TABLES);
    assert!(loaded.is_ok(), "{loaded:#?}");
}

/// One worker then reads the frames of both tenants' sockets, which only one project may want.
#[test]
fn tenants_whose_workers_share_a_channel_warn() {
    let core = [
        ", namespace = \"acme.\", kind = \"core\"",
        ", namespace = \"globex.\", kind = \"core\"",
    ];
    let elsewhere = [
        core[0],
        ", namespace = \"globex.\", kind = \"core\", hosts = [\"redis://h2\"]",
    ];
    for (layers, channels, told) in [
        (core, ["'jobs'", "'jobs'"], true),
        (
            core,
            ["'jobs', partitions = 3", "'jobs', partitions = 2"],
            true,
        ),
        (core, ["'jobs', partitions = 3", "'jobs.2'"], true),
        (core, ["'jobs', partitions = 3", "'jobs.3'"], false),
        (core, ["'jobs'", "'job'"], false),
        (elsewhere, ["'jobs'", "'jobs'"], false),
        (APART, ["'shop.jobs'", "'shop.jobs'"], true),
        (APART, ["'shop.jobs'", "'shop.tasks'"], false),
    ] {
        let mut text = "[redis]\nurl = \"redis://h\"\n".to_owned();
        for (name, (layer, channel)) in ["acme", "globex"]
            .into_iter()
            .zip(layers.into_iter().zip(channels))
        {
            let rule = format!("claims = {{ schema = '{name}' }}");
            text += &tenant(name, layer, &rule, DATABASE);
            text += &format!("consumer = {{ kind = 'worker', channel = {channel} }}\n");
        }
        let loaded = Folder::new(&text)
            .load(&[])
            .unwrap_or_else(|lines| panic!("{text}\n{lines:#?}"));
        let warned = warnings(&loaded);
        let line = "tenants.globex.routes[0].consumer.channel: the workers of acme have the same channel on h:6379";
        assert_eq!(
            warned.matches(line).count(),
            usize::from(told),
            "{channels:?}: {warned}"
        );
        assert_eq!(
            warned.matches("have the same channel").count(),
            usize::from(told),
            "{warned}"
        );
    }
}
