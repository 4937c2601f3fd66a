//! Routes whose clients come back: what none of them can do is said at the start.

use super::{Folder, TENANT, warnings};

const KEY: &str = "lockgate.toml:11:1: tenants.acme.routes[0].resume";
const NO_HISTORY: &str = "none of the route's groups has a history";

fn history(name: &str) -> String {
    format!("[[tenants.acme.groups]]\nname = \"{name}\"\nhistory = {{ size = 5 }}\n")
}

#[test]
fn a_route_whose_clients_can_resume_nothing_warns() {
    let route = format!("{TENANT}resume = true\n");
    for rest in [
        String::new(),
        "[[tenants.acme.groups]]\nname = \"all\"\npresence = {}\n".to_owned(),
        history("chat_<slug:room>"),
    ] {
        let loaded = Folder::new(format!("{route}{rest}")).load(&[]);
        let told = warnings(&loaded.expect("is valid"));
        assert!(
            told.contains(KEY) && told.contains(NO_HISTORY),
            "{rest}: {told}"
        );
        assert_eq!(told.lines().count(), 1, "{told}");
    }
    for name in ["all", "<slug:any>", "a<slug:any>"] {
        let loaded = Folder::new(format!("{route}{}", history(name))).load(&[]);
        assert_eq!(warnings(&loaded.expect("is valid")), "", "{name}");
    }
    // Without `resume` a history is for the API alone, and no route needs one.
    let loaded = Folder::new(TENANT).load(&[]);
    assert_eq!(warnings(&loaded.expect("is valid")), "");
}

/// The names that a template makes are compared by their beginnings.
#[test]
fn a_route_with_templates_warns_where_no_name_of_theirs_has_a_history() {
    let route = |group: &str| {
        let path = TENANT.replace("path = \"ws/\"", "path = \"ws/<slug:room>/\"");
        let groups = format!("groups = [\"{group}\"]");
        path.replace("groups = [\"all\"]", &groups) + "resume = true\n"
    };
    for (group, name, warns) in [
        ("chat_{room}", "chat_<slug:room>", false),
        ("chat_{room}", "chat_lobby", false),
        ("{room}", "chat_<slug:room>", false),
        ("chat_{room}", "news_<slug:room>", true),
        ("user_{user.id}", "chat_<slug:room>", true),
    ] {
        let loaded = Folder::new(format!("{}{}", route(group), history(name))).load(&[]);
        let told = warnings(&loaded.expect("is valid"));
        assert_eq!(told.contains(NO_HISTORY), warns, "{group} {name}: {told}");
    }
}

#[test]
fn a_consumer_of_a_program_beside_resume_is_refused() {
    let kind = "resume = true\nconsumer = { kind = \"chat\" }\n";
    let text = format!("{TENANT}{kind}{}", history("all"));
    let lines = Folder::new(text).load(&[]).expect_err("is refused");
    assert_eq!(lines.len(), 1, "{lines:?}");
    for part in [
        KEY,
        "true beside the consumer \"chat\"",
        "knows no positions",
    ] {
        assert!(lines[0].contains(part), "{lines:?}");
    }
}
