//! Rules for groups: names that no group can have.

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
