//! The pages of the documentation that the demo links to, as they were when the binary was built.

use axum::extract::Path;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use pulldown_cmark::{CowStr, Event, Options, Parser, Tag, TagEnd, html};

macro_rules! manual_pages {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../docs/", $name)))),*]
    };
}

/// The pages by their names in `docs/`.
const PAGES: &[(&str, &str)] = manual_pages![
    "api.md",
    "command-line.md",
    "configuration.md",
    "groups-and-events.md",
    "guarantees.md",
    "limits.md",
    "metrics.md",
    "moving-from-channels.md",
    "refusals.md",
    "resume.md",
    "revocation.md",
    "security.md",
    "token-refresh.md",
];

/// Shows a page.
pub(super) async fn show(Path(name): Path<String>) -> Response {
    let Some((_, text)) = PAGES.iter().find(|(known, _)| *known == name) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let page = include_str!("assets/manual.html")
        .replace("{title}", title(text))
        .replace("{text}", &as_html(text));
    ([(CONTENT_TYPE, "text/html; charset=utf-8")], page).into_response()
}

fn title(text: &str) -> &str {
    let first = text.lines().next().unwrap_or_default();
    first.trim_start_matches("# ")
}

/// Returns Markdown as HTML. Headings have the ids that links to them expect; pictures, and links to files that are not
/// here, are text.
fn as_html(text: &str) -> String {
    let mut events: Vec<_> = Parser::new_ext(text, Options::ENABLE_TABLES).collect();
    let mut dead = None;
    for place in 0..events.len() {
        if let Event::Start(Tag::Heading { .. }) = events[place] {
            let words = slug(&events[place..]);
            if let Event::Start(Tag::Heading { id, .. }) = &mut events[place] {
                *id = Some(CowStr::from(words));
            }
            continue;
        }
        let ends = match &events[place] {
            Event::Start(tag) if !leads_somewhere(tag) => {
                dead = Some(tag.to_end());
                true
            }
            Event::End(end) if dead == Some(*end) => {
                dead = None;
                true
            }
            _ => false,
        };
        if ends {
            events[place] = Event::Text("".into());
        }
    }
    let mut page = String::with_capacity(text.len() * 2);
    html::push_html(&mut page, events.into_iter());
    // Wide tables scroll by themselves, so that the page does not.
    page.replace(
        "<table>",
        "<div class=\"wide\" role=\"region\" aria-label=\"Table\" tabindex=\"0\"><table>",
    )
    .replace("</table>", "</table></div>")
}

/// Returns false for a picture, and for a link to a file that is not here.
fn leads_somewhere(tag: &Tag<'_>) -> bool {
    match tag {
        Tag::Image { .. } => false,
        Tag::Link { dest_url, .. } => {
            let (file, _) = dest_url.split_once('#').unwrap_or((dest_url, ""));
            let is_known = PAGES.iter().any(|(name, _)| *name == file);
            file.is_empty() || file.contains("://") || is_known
        }
        _ => true,
    }
}

/// Returns the id of the heading that begins these events, in the form that code forges give it.
fn slug(events: &[Event<'_>]) -> String {
    let heading = events.iter();
    let heading = heading.take_while(|event| !matches!(event, Event::End(TagEnd::Heading(_))));
    let text: String = heading
        .filter_map(|event| match event {
            Event::Text(text) | Event::Code(text) => Some(&**text),
            _ => None,
        })
        .collect();
    let kept = text.chars().filter_map(|character| match character {
        ' ' => Some('-'),
        '-' | '_' => Some(character),
        other => other.is_alphanumeric().then(|| other.to_ascii_lowercase()),
    });
    kept.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headings_have_ids_and_dead_links_are_text() {
        let page = as_html(
            "# A `b` c\n[here](api.md#calls) [there](../README.md) [below](#a-b-c) ![seen](a.png)\n\n|a|\n|-|\n|b|\n",
        );
        assert!(page.contains("<h1 id=\"a-b-c\">"), "{page}");
        assert!(
            page.contains("<a href=\"api.md#calls\">here</a> there"),
            "{page}"
        );
        assert!(page.contains("<a href=\"#a-b-c\">below</a> seen"), "{page}");
        assert!(page.contains("tabindex=\"0\"><table>"), "{page}");
    }

    /// Links from one page to a heading of another one lead somewhere.
    #[test]
    fn links_between_the_pages_have_targets() {
        let pages: Vec<_> = PAGES
            .iter()
            .map(|(name, text)| (*name, as_html(text)))
            .collect();
        for (from, page) in &pages {
            for link in page.split("href=\"").skip(1) {
                let url = link.split('"').next().unwrap();
                let Some((file, id)) = url.split_once('#').filter(|_| !url.contains("://")) else {
                    continue;
                };
                let file = if file.is_empty() { from } else { file };
                let (_, target) = pages.iter().find(|(name, _)| *name == file).unwrap();
                assert!(target.contains(&format!("id=\"{id}\"")), "{from}: {url}");
            }
        }
    }
}
