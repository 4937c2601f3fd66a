//! The page of `lockgate dev` in a browser: every button does what it says.

use std::path::Path;

use super::{Dev, dev, dev_with};
use crate::support::PATIENCE;
use crate::support::browser::Page;
use crate::support::process::{Program, find_program};
use crate::support::replica::LOCKGATE;

async fn open(dev: &Dev) -> Page {
    let mut page = Page::open(dev.text("page")).await;
    for user in ["alice", "bob"] {
        wait_for_state(&mut page, user, "open").await;
    }
    page
}

async fn wait_for_state(page: &mut Page, user: &str, state: &str) {
    let open = format!("document.querySelector('#{user} .state.{state}') !== null");
    page.wait_for(&open).await;
}

/// Waits until both users have received a frame with this text.
async fn wait_for_frame(page: &mut Page, text: &str) {
    for user in ["alice", "bob"] {
        page.wait_for(&format!(
            "[...document.querySelectorAll('#{user} .received')].some((frame) => frame.innerText.includes('{text}'))"
        ))
        .await;
    }
}

/// Presses the button of a step with this label.
async fn press(page: &mut Page, label: &str) {
    page.evaluate(&format!(
        "[...document.querySelectorAll('#tries button')].find((button) => button.innerText === '{label}').click()"
    ))
    .await;
}

/// Waits until a step shows a result with this text.
async fn wait_for_result(page: &mut Page, text: &str) {
    page.wait_for(&format!(
        "[...document.querySelectorAll('#tries output')].some((output) => output.innerText.includes('{text}'))"
    ))
    .await;
}

#[tokio::test]
async fn two_panes_of_the_page_connect_and_chat_in_a_browser() {
    let dev = dev().await;
    let mut page = Page::open(dev.ready["page"].as_str().unwrap()).await;
    for user in ["alice", "bob"] {
        page.wait_for(&format!(
            "document.querySelector('#{user} .state.open') !== null"
        ))
        .await;
    }
    page.evaluate(
        "(() => {
            const alice = document.querySelector('#alice');
            alice.querySelector('input').value = 'hello from a browser';
            alice.querySelector('form').requestSubmit();
        })()",
    )
    .await;
    for user in ["alice", "bob"] {
        page.wait_for(&format!(
            "document.querySelector('#{user} .received')?.innerText.includes('hello from a browser') === true"
        ))
        .await;
    }
    page.evaluate("document.querySelector('#alice header .toggle').click()")
        .await;
    page.wait_for("document.querySelector('#alice ol').innerText.includes('closed: 1000')")
        .await;
    page.wait_for("document.querySelector('#bob .state.open') !== null")
        .await;
}

/// A pane that was opened again began with what came then.
#[tokio::test]
async fn a_pane_that_comes_back_gets_what_it_missed() {
    let dev = dev().await;
    let mut page = open(&dev).await;
    let toggle = "document.querySelector('#alice .toggle').click()";
    page.evaluate(toggle).await;
    wait_for_state(&mut page, "alice", "closed").await;
    press(&mut page, "Send it").await;
    wait_for_result(&mut page, "200").await;
    page.evaluate(toggle).await;
    wait_for_frame(&mut page, "from a button").await;
    let gaps = "document.querySelector('#alice .log').innerText.includes('a gap')";
    assert_eq!(page.evaluate(gaps).await, false);
}

#[tokio::test]
async fn the_buttons_send_as_a_back_end_does() {
    let dev = dev().await;
    let mut page = open(&dev).await;
    press(&mut page, "Send it").await;
    wait_for_frame(&mut page, "from a button").await;
    press(&mut page, "Send the event").await;
    wait_for_frame(&mut page, "from Django").await;
    wait_for_result(&mut page, "200").await;
}

#[tokio::test]
async fn the_commands_to_copy_work_in_a_shell() {
    let dev = dev().await;
    let mut page = open(&dev).await;
    let folder = Path::new(LOCKGATE).parent().unwrap().display();
    let path = format!("{folder}:{}", std::env::var("PATH").unwrap());
    for (number, name) in [(1, "the lockgate command"), (2, "the curl command")] {
        let command = page
            .evaluate(&format!(
                "document.querySelector('[aria-label=\"Copy {name}\"]').parentElement.querySelector('pre').textContent"
            ))
            .await;
        let shell = Program::new("sh", find_program("sh"))
            .args(["-c", command.as_str().unwrap()])
            .env("PATH", &path)
            .start();
        let code = shell.exited(PATIENCE).await.code();
        assert_eq!(code, Some(0), "{name}: {}", shell.output.text());
        page.wait_for(&format!(
            "[...document.querySelectorAll('#bob .received')].filter((frame) => frame.innerText.includes('from a terminal')).length === {number}"
        ))
        .await;
    }
}

#[tokio::test]
async fn a_revoked_token_closes_its_pane_and_a_new_one_opens_it() {
    let dev = dev().await;
    let mut page = open(&dev).await;
    press(&mut page, "Revoke it").await;
    wait_for_state(&mut page, "alice", "closed").await;
    page.wait_for(
        "document.querySelector('#alice .notice').innerText.includes('4501 token_revoked')",
    )
    .await;
    wait_for_result(&mut page, "closed with 4501").await;
    wait_for_state(&mut page, "bob", "open").await;
    let label = "document.querySelector('#alice .toggle').innerText";
    assert_eq!(page.evaluate(label).await, "Sign in again");
    page.evaluate("document.querySelector('#alice .toggle').click()")
        .await;
    wait_for_state(&mut page, "alice", "open").await;
}

#[tokio::test]
async fn a_suspended_tenant_shows_a_countdown_and_comes_back() {
    let dev = dev().await;
    let mut page = open(&dev).await;
    press(&mut page, "Suspend").await;
    for user in ["alice", "bob"] {
        // The first wait may be short; the log keeps its reason.
        page.wait_for(&format!(
            "document.querySelector('#{user} .log').innerText.includes('4016 tenant_suspended')"
        ))
        .await;
        page.wait_for(&format!(
            "/Comes back in \\d+ s/.test(document.querySelector('#{user} .notice').innerText)"
        ))
        .await;
    }
    press(&mut page, "Resume").await;
    wait_for_result(&mut page, "/resume").await;
    for user in ["alice", "bob"] {
        page.evaluate(&format!(
            "document.querySelector('#{user} .state.waiting') && document.querySelector('#{user} .toggle').click()"
        ))
        .await;
        wait_for_state(&mut page, user, "open").await;
    }
}

#[tokio::test]
async fn a_crowd_moves_the_metrics_and_goes() {
    let dev = dev_with(&["--replicas", "2"]).await;
    let mut page = open(&dev).await;
    let value = |chart: &str| format!("document.querySelector('#chart-{chart} .value').innerText");
    page.wait_for(&format!("{} === '2'", value("sockets")))
        .await;
    press(&mut page, "Call a crowd").await;
    page.wait_for(&format!("{} === '22'", value("sockets")))
        .await;
    page.wait_for(&format!(
        "Number({}.replace(',', '')) > 100",
        value("deliveries")
    ))
    .await;
    page.wait_for(&format!("{}.endsWith(' ms')", value("lag")))
        .await;
    press(&mut page, "Send the crowd home").await;
    wait_for_result(&mut page, "The crowd is gone").await;
    page.wait_for(&format!("{} === '2'", value("sockets")))
        .await;
}

/// The links of the page lead to the documentation, and a page that the demo has not is told.
#[tokio::test]
async fn the_documentation_is_in_the_binary() {
    let dev = dev().await;
    let mut page = open(&dev).await;
    let broken = page
        .evaluate(
            "Promise.all([...document.querySelectorAll('a[href^=\"/\"]')].map(async (link) => [link.href, (await fetch(link.href)).status]))
                .then((all) => all.filter(([, status]) => status !== 200))",
        )
        .await;
    assert_eq!(broken, serde_json::json!([]));
    page.go_to(&format!("{}dev/docs/refusals.md", dev.text("page")))
        .await;
    page.wait_for("document.querySelector('h1')?.innerText === 'Refusals and close codes'")
        .await;
    let missing = "fetch('/dev/docs/nothing.md').then((answer) => answer.status)";
    assert_eq!(page.evaluate(missing).await, 404);
}
