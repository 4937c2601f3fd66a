//! Rules for groups: keys that stand for commands of clients, and names that no group can have.

use super::{Folder, TENANT};

/// Loads a tenant with these lines after its route, and its layer's.
fn mistakes(layer: &str, groups: &str) -> Vec<String> {
    let tenant = TENANT.replace("kind = \"memory\"\n", layer);
    let loaded = Folder::new(format!("{tenant}{groups}")).load(&[]);
    loaded.err().unwrap_or_default()
}

fn rule(name: &str, lines: &str) -> String {
    format!("[[tenants.acme.groups]]\nname = \"{name}\"\n{lines}")
}

const MEMORY: &str = "kind = \"memory\"\n";

/// `subscribe`, `authorize` and `publish` were unknown keys.
#[test]
fn the_rule_of_the_contract_is_valid() {
    let sql = "SELECT 1 FROM members WHERE user_id = :user_id AND room = :room";
    let lines = format!(
        "history = {{ size = 100, ttl = \"10m\" }}\npresence = {{ notify = true, linger = \"5s\" }}\n\
         subscribe = \"never\"\nauthorize = \"{sql}\"\npublish = false\n"
    );
    let told = mistakes(MEMORY, &rule("chat_<slug:room>", &lines));
    assert_eq!(told, Vec::<String>::new());
}

#[test]
fn commands_of_clients_are_refused_with_the_reason() {
    for (lines, parts) in [
        (
            "subscribe = \"anyone\"\n",
            ["groups[0].subscribe", "cannot subscribe by a command yet"],
        ),
        (
            "subscribe = false\n",
            ["groups[0].subscribe", "cannot subscribe by a command yet"],
        ),
        (
            "publish = true\n",
            ["groups[0].publish", "cannot publish by a command yet"],
        ),
        (
            "publish = \"false\"\n",
            ["groups[0].publish", "cannot publish by a command yet"],
        ),
        (
            "authorize = \"SELECT 1 WHERE room = :rome\"\n",
            ["groups[0].authorize", ":rome"],
        ),
    ] {
        let told = mistakes(MEMORY, &rule("chat_<slug:room>", lines));
        assert_eq!(told.len(), 1, "{lines}: {told:?}");
        for part in parts {
            assert!(told[0].contains(part), "{lines}: {told:?}");
        }
    }
}

/// Such a rule was valid, and its history was never kept.
#[test]
fn a_rule_whose_name_no_group_can_have_is_refused() {
    let long = "x".repeat(100);
    let fits = "x".repeat(98);
    let redis = "kind = \"pubsub\"\nhosts = [\"redis://127.0.0.1:1\"]\n";
    let namespace = format!("{redis}prefix = \"acme\"\nnamespace = \"acme.\"\n");
    let any = format!("{redis}prefix = \"acme\"\ngroup_names = \"any\"\n");
    for (layer, name, why) in [
        (MEMORY, "a b", Some("the character ' '")),
        (MEMORY, "rooms/<slug:room>", Some("the character '/'")),
        (MEMORY, &*long, Some("100 characters, more than 99")),
        (
            MEMORY,
            &format!("{fits}<int:a><int:b>"),
            Some("100 characters"),
        ),
        (
            MEMORY,
            &format!("{}<uuid:a>", &fits[..64]),
            Some("100 characters"),
        ),
        (MEMORY, &format!("{fits}<int:a>"), None),
        (MEMORY, "<path:any>", None),
        (
            &namespace,
            &format!("{fits}<int:a>"),
            Some("layer.namespace"),
        ),
        (&any, "a b", None),
        (&any, &*long, None),
    ] {
        let told = mistakes(layer, &rule(name, "history = {}\n"));
        match why {
            None => assert_eq!(told, Vec::<String>::new(), "{name}"),
            Some(why) => {
                assert_eq!(told.len(), 1, "{name}: {told:?}");
                for part in ["tenants.acme.groups[0].name", "no group can have", why] {
                    assert!(told[0].contains(part), "{name}: {told:?}");
                }
            }
        }
    }
}
