//! The lines that `dev` prints once it is ready.

use serde::Serialize;

use super::ROOM;
use super::backstage::DemoFacts;
use super::demo::{DemoLogin, USERS};

#[derive(Serialize)]
struct Announcement {
    listen: String,
    admin: String,
    api: String,
    api_key: String,
    page: String,
    config: String,
    replicas: Vec<String>,
    users: Vec<UserUrl>,
}

#[derive(Serialize)]
struct UserUrl {
    name: String,
    url: String,
}

/// Prints the addresses, as a line of JSON or for a person.
///
/// # Errors
/// If no token can be signed.
pub(super) fn announce(facts: &DemoFacts, login: &DemoLogin, json: bool) -> anyhow::Result<()> {
    let told = Announcement {
        listen: facts.sockets[0].to_string(),
        admin: facts.admin.to_string(),
        api: facts.api.to_string(),
        api_key: facts.api_key.expose().to_owned(),
        page: format!("http://{}/", facts.sockets[0]),
        config: facts.config_file.display().to_string(),
        replicas: facts.sockets.iter().map(ToString::to_string).collect(),
        users: user_urls(facts, login)?,
    };
    let text = match json {
        true => format!("{}\n", serde_json::to_string(&told)?),
        false => for_a_person(&told),
    };
    crate::cli::print(&text);
    Ok(())
}

/// The users of the page sit on one replica each, as far as there are several.
fn user_urls(facts: &DemoFacts, login: &DemoLogin) -> anyhow::Result<Vec<UserUrl>> {
    let mut urls = Vec::new();
    for ((_, name), socket) in USERS.iter().zip(facts.sockets.iter().cycle()) {
        let token = login.token(name)?.unwrap_or_default();
        let url = format!("ws://{socket}/{ROOM}?token={token}");
        urls.push(UserUrl {
            name: (*name).to_owned(),
            url,
        });
    }
    Ok(urls)
}

fn for_a_person(told: &Announcement) -> String {
    let mut text = format!(
        "Lockgate is ready. Open the page, and press its buttons.\n\n  page     {}\n  metrics  http://{}/metrics\n  config   {}\n\n",
        told.page, told.admin, told.config
    );
    for user in &told.users {
        text += &format!("  {:<7}  {}\n", user.name, user.url);
    }
    text += &format!(
        "\nBoth users get each JSON object that one of them sends, and each event that you send:\n\n  lockgate send -c {} --tenant demo --group chat_lobby '{{\"type\": \"chat.message\", \"message\": \"hello\"}}'\n\nCtrl-C stops the gateway.\n",
        told.config
    );
    text
}
