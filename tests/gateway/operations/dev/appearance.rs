//! How the page of `lockgate dev` looks and reads: on a desk and on a phone, in light and in dark, by keyboard and by ear.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::{dev, dev_with};
use crate::support::browser::Page;

const DESK: (u32, u32) = (1240, 800);
const PHONE: (u32, u32) = (360, 760);

/// Elements that are wider than the page, those in a box that scrolls by itself excepted.
const OVERFLOWING: &str = "
    (() => {
        const scrolls = (element) => element && (/auto|scroll/.test(getComputedStyle(element).overflowX) || scrolls(element.parentElement));
        const width = document.documentElement.clientWidth;
        return [...document.body.querySelectorAll('*')]
            .filter((element) => !element.closest('.skip') && !scrolls(element.parentElement))
            .filter((element) => element.getBoundingClientRect().right > width + 1 || document.documentElement.scrollWidth > width)
            .map((element) => `${element.tagName} ${element.className} ${element.innerText}`);
    })()";

/// Texts whose contrast with their ground is under 4.5 (WCAG 2.1, 1.4.3).
const PALE: &str = "
    (() => {
        const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
        const light = (colour) => {
            const [r, g, b] = numbers(colour).map((part) => part / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const ground = (element) => {
            if (!element) return 'rgb(255, 255, 255)';
            const colour = getComputedStyle(element).backgroundColor;
            return numbers(colour)[3] === 0 ? ground(element.parentElement) : colour;
        };
        const hasText = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        const ratio = (element, pseudo) => {
            const [a, b] = [light(getComputedStyle(element, pseudo).color), light(ground(element))].sort((x, y) => y - x);
            return (a + 0.05) / (b + 0.05);
        };
        const seen = [...document.body.querySelectorAll('*')].filter((element) => element.checkVisibility() && element.tagName !== 'SCRIPT');
        const texts = seen.filter(hasText).map((element) => [element, ratio(element)]);
        const hints = seen.filter((element) => element.placeholder).map((element) => [element, ratio(element, '::placeholder')]);
        return [...texts, ...hints].filter(([, value]) => value < 4.5).map(([element, value]) => `${element.className} ${element.innerText}: ${value}`);
    })()";

/// Brings the page into a state that shows all there is: frames, a result, a pane that is closed, one that waits.
async fn fill(page: &mut Page) {
    for user in ["alice", "bob"] {
        page.wait_for(&format!(
            "document.querySelector('#{user} .state.open') !== null"
        ))
        .await;
    }
    for (user, text) in [
        ("alice", "Hello Bob, can you hear me?"),
        ("bob", "Loud and clear."),
    ] {
        page.evaluate(&format!(
            "(() => {{
                document.querySelector('#{user} input').value = {text:?};
                document.querySelector('#{user} form').requestSubmit();
            }})()"
        ))
        .await;
        page.wait_for(&format!(
            "document.querySelectorAll('#bob .received').length + document.querySelectorAll('#alice .received').length >= {}",
            if user == "alice" { 2 } else { 4 }
        ))
        .await;
    }
    press(page, "Send the event").await;
    press(page, "Call a crowd").await;
    page.wait_for("document.querySelector('#chart-lag .value').innerText.endsWith(' ms')")
        .await;
}

async fn press(page: &mut Page, label: &str) {
    page.evaluate(&format!(
        "[...document.querySelectorAll('#tries button')].find((button) => button.innerText === '{label}').click()"
    ))
    .await;
}

async fn assert_it_fits_and_is_readable(page: &mut Page, what: &str) {
    let wide = page.evaluate(OVERFLOWING).await;
    assert_eq!(wide, serde_json::json!([]), "{what}: wider than the page");
    let pale = page.evaluate(PALE).await;
    assert_eq!(pale, serde_json::json!([]), "{what}: contrast");
}

fn takes_pictures() -> bool {
    std::env::var_os("UPDATE_DOCS").is_some()
}

/// The pictures of the documentation. `UPDATE_DOCS=1` takes them again.
#[tokio::test]
async fn the_page_fits_and_is_readable_in_every_size_and_colour() {
    let dev = dev_with(&["--replicas", "2"]).await;
    let mut page = Page::open(dev.text("page")).await;
    page.resize(DESK, false).await;
    fill(&mut page).await;
    if takes_pictures() {
        // Charts of a few seconds show more than a corner.
        let long = "document.querySelector('#chart-lag polyline').points.numberOfItems >= 16";
        page.wait_for(long).await;
    }
    for (name, size, dark) in [
        ("dev-light", DESK, false),
        ("dev-dark", DESK, true),
        ("dev-phone", PHONE, false),
    ] {
        page.resize(size, dark).await;
        assert_it_fits_and_is_readable(&mut page, name).await;
        let picture = page.picture().await;
        assert_eq!(size_of(&picture), size, "{name}");
        keep(name, &picture, size);
    }
    press(&mut page, "Revoke it").await;
    page.wait_for("document.querySelector('#alice .state.closed') !== null")
        .await;
    press(&mut page, "Suspend").await;
    page.wait_for("document.querySelector('#bob .state.waiting') !== null")
        .await;
    for (size, dark) in [(DESK, false), (DESK, true), (PHONE, false), (PHONE, true)] {
        page.resize(size, dark).await;
        assert_it_fits_and_is_readable(&mut page, "closed panes").await;
    }
    page.resize(DESK, false).await;
    keep("dev-closed", &page.picture().await, DESK);
}

/// Compares the size of the picture in the documentation, or takes the picture.
fn keep(name: &str, picture: &[u8], size: (u32, u32)) {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("docs/images/{name}.png"));
    if takes_pictures() {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, picture).unwrap();
    }
    let kept = std::fs::read(&file);
    let kept = kept.unwrap_or_else(|_| panic!("no {name}.png: take it with UPDATE_DOCS=1"));
    assert_eq!(size_of(&kept), size, "{name}: take it with UPDATE_DOCS=1");
}

/// Width and height, from the head of a PNG (ISO/IEC 15948, 11.2.2).
fn size_of(png: &[u8]) -> (u32, u32) {
    assert!(png.starts_with(b"\x89PNG\r\n\x1a\n"));
    let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
    (number(16), number(20))
}

/// All that the page loads comes from the demo itself, and a page that breaks the policy would say so.
#[tokio::test]
async fn nothing_is_loaded_from_elsewhere() {
    let dev = dev().await;
    let mut page = Page::open(dev.text("page")).await;
    page.wait_for("document.querySelector('#alice .state.open') !== null")
        .await;
    let foreign = page
        .evaluate("performance.getEntriesByType('resource').map((entry) => entry.name).filter((name) => !name.startsWith(location.origin))")
        .await;
    assert_eq!(foreign, serde_json::json!([]));
    // The policy holds: neither a script in an attribute nor a picture of another site.
    page.evaluate(
        "window.refused = [];
        document.addEventListener('securitypolicyviolation', (event) => window.refused.push(event.effectiveDirective));
        document.body.insertAdjacentHTML('beforeend', '<img src=\"data:,\" onerror=\"window.broken = true\">');
        document.body.insertAdjacentHTML('beforeend', '<img src=\"http://other.example/a.png\">');",
    )
    .await;
    for directive in ["script-src-attr", "img-src"] {
        page.wait_for(&format!("window.refused.includes('{directive}')"))
            .await;
    }
    let broken = page.evaluate("window.broken === true").await;
    assert_eq!(broken, false);
}

#[tokio::test]
async fn every_button_is_reached_by_keyboard_and_has_a_name() {
    let dev = dev().await;
    let mut page = Page::open(dev.text("page")).await;
    page.wait_for("document.querySelector('#bob .state.open') !== null")
        .await;
    let all = "[...document.querySelectorAll('a, button, input, summary, pre[tabindex], .log')]
        .filter((element) => element.checkVisibility() && !element.disabled).length";
    let all = page.evaluate(all).await.as_u64().unwrap();
    let mut reached = BTreeSet::new();
    for _ in 0..all {
        page.press_tab().await;
        let place = page
            .evaluate("[...document.querySelectorAll('*')].indexOf(document.activeElement)")
            .await;
        reached.insert(place.as_i64().unwrap());
    }
    assert_eq!(reached.len() as u64, all);
    let names = page.accessible_names().await;
    for role in ["button", "textbox", "log", "link", "region"] {
        let of_role = names.iter().filter(|(is, _)| is == role);
        let named: Vec<_> = of_role.map(|(_, name)| name.as_str()).collect();
        assert!(!named.is_empty(), "{role}");
        assert!(
            named.iter().all(|name| !name.is_empty()),
            "{role}: {named:?}"
        );
        if role != "link" {
            let distinct: BTreeSet<_> = named.iter().collect();
            assert_eq!(distinct.len(), named.len(), "{role}: {named:?}");
        }
    }
}
