//! Paths against what Django says of them, hostile ones, and routes that are not valid.

use super::*;
use crate::config::Fault;

fn routes(paths: &[&str]) -> Result<Routes, Vec<RouteError>> {
    let configs: Vec<_> = paths
        .iter()
        .map(|path| RouteConfig {
            path: (*path).to_owned(),
            ..RouteConfig::default()
        })
        .collect();
    Routes::parse(&configs)
}

fn found(path: &str, raw: &str) -> Option<Vec<String>> {
    let (_, params) = routes(&[path]).unwrap().find(raw)?;
    Some(params.iter().map(|(_, v)| v.as_str().to_owned()).collect())
}

/// Before: `config check` accepted any number, and the start failed at the 65,537th route.
#[test]
fn a_tenant_has_a_bounded_number_of_routes() {
    let paths: Vec<_> = (0..MOST_ROUTES + 5).map(|n| n.to_string()).collect();
    let paths: Vec<_> = paths.iter().map(String::as_str).collect();
    assert!(routes(&paths[..MOST_ROUTES]).is_ok());
    let errors = routes(&paths).unwrap_err();
    assert_eq!((errors.len(), errors[0].route), (1, MOST_ROUTES));
    let told = Fault::from(errors[0].clone());
    assert_eq!(told.key, "routes[1000].path");
    assert_eq!(told.expected, "at most 1000 routes");
}

#[test]
fn paths_match_as_in_django() {
    // Each outcome is what Django 5.2's RoutePattern(route, is_endpoint=True).match() says of the decoded path.
    let uuid = "7d444840-9dc0-11d1-b245-5ffdce74fad2";
    let huge = "9".repeat(40);
    let cases: &[(&str, &str, Option<&[&str]>)] = &[
        ("", "/", Some(&[])),
        ("", "/x", None),
        ("ws/", "/ws/", Some(&[])),
        ("ws/", "/ws", None),
        ("ws/", "//ws/", None),
        ("ws/<slug:room>/", "/ws/a-b_9/", Some(&["a-b_9"])),
        ("ws/<slug:room>/", "/ws/a.b/", None),
        ("ws/<slug:room>/", "/ws//", None),
        ("ws/<slug:room>/", "/ws/a/x", None),
        ("ws/<room>", "/ws/%C3%A9 x", Some(&["é x"])),
        ("ws/<str:room>", "/ws/a/b", None),
        ("ws/<str:room>", "/ws/a%2Fb", None),
        ("ws/<str:room>", "/ws/a%0A", Some(&["a\n"])),
        ("ws/<path:room>", "/ws/a%0A", None),
        ("ws/<str:room>", "/ws/%zz", Some(&["%zz"])),
        ("ws/<str:room>", "/ws/%FF", None),
        ("ws/<int:n>", "/ws/007", Some(&["7"])),
        ("ws/<int:n>", "/ws/000", Some(&["0"])),
        ("ws/<int:n>", "/ws/-1", None),
        ("ws/<int:n>", "/ws/%EF%BC%91", None),
        ("ws/<path:p>/end", "/ws/a/b/end", Some(&["a/b"])),
        ("<path:a>/<path:b>", "/1/2/3", Some(&["1/2", "3"])),
        ("<str:a><str:b>", "/x%C3%A9", Some(&["x", "é"])),
        ("<str:a><str:b>", "/%C3%A9", None),
        ("<int:a><int:b>", "/1234", Some(&["123", "4"])),
        ("<slug:a>-<slug:b>", "/x-y-z", Some(&["x-y", "z"])),
        ("<slug:a>-<int:b>x", "/q-1-2x", Some(&["q-1", "2"])),
        ("a b/<x>", "/a%20b/c", Some(&["c"])),
        ("é/<x>", "/%C3%A9/c", Some(&["c"])),
    ];
    for (route, raw, expected) in cases {
        let expected = expected.map(|v| v.iter().map(|s| (*s).to_owned()).collect());
        assert_eq!(found(route, raw), expected, "{route} {raw}");
    }
    assert_eq!(
        found("<uuid:u>", &format!("/{uuid}")),
        Some(vec![uuid.into()])
    );
    assert_eq!(
        found("<uuid:u>", &format!("/{}", uuid.to_uppercase())),
        None
    );
    assert_eq!(
        found("<uuid:u>", &format!("/{}", uuid.replace('-', ""))),
        None
    );
    assert_eq!(
        found("<uuid:u><str:x>", &format!("/{uuid}y")),
        Some(vec![uuid.into(), "y".into()])
    );
    assert_eq!(found("<int:n>", &format!("/{huge}")), Some(vec![huge]));
    assert_eq!(found("<int:n>", &format!("/{}", "1".repeat(4301))), None);
}

#[test]
fn the_first_route_wins() {
    let routes = routes(&["ws/<int:n>/", "ws/<slug:s>/", "ws/1/"]).unwrap();
    assert_eq!(routes.find("/ws/1/").unwrap().0, 0);
    assert_eq!(routes.find("/ws/one/").unwrap().0, 1);
    assert!(routes.find("/").is_none());
}

#[test]
fn hostile_paths_cost_linear_time() {
    let routes = routes(&["<path:a>/<path:b>/<path:c>/<path:d>/end"]).unwrap();
    let began = std::time::Instant::now();
    assert!(routes.find(&format!("/{}", "a/".repeat(8000))).is_none());
    assert!(began.elapsed().as_millis() < 200, "{:?}", began.elapsed());
}

#[test]
fn what_is_wrong_is_named_all_at_once() {
    let problems: Vec<_> = routes(&[
        "/ws/",
        "ok/<int:a>",
        "<float:x>",
        "<int:1x>",
        "<int:>",
        "<a>/<int:a>",
        "<a",
        "a>",
        "<int: a>",
    ])
    .unwrap_err()
    .into_iter()
    .map(|error| (error.route, error.problem))
    .collect();
    let name = |text: &str| RouteProblem::ParameterName(text.into());
    assert_eq!(
        problems,
        [
            (0, RouteProblem::LeadingSlash),
            (2, RouteProblem::UnknownConverter("float".into())),
            (3, name("1x")),
            (4, name("")),
            (5, RouteProblem::DuplicateParameter("a".into())),
            (6, RouteProblem::Brackets),
            (7, RouteProblem::Brackets),
            (8, name(" a")),
        ]
    );
}

#[test]
fn a_parameter_cannot_hide_the_user_id_of_authorize() {
    let config = RouteConfig {
        path: "<int:user_id>/".into(),
        authorize: Some("SELECT 1 WHERE :user_id = 1".into()),
        ..RouteConfig::default()
    };
    let errors = Routes::parse(&[config]).unwrap_err();
    assert_eq!(errors[0].problem, RouteProblem::HidesUserId);
}
