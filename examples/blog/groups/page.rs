//! The page as HTML.

use maud::{DOCTYPE, Markup, html};

use super::world::PLACES;
use super::{Seen, Step, Trail, User};

pub(super) fn page(seen: &Seen, trail: &Trail) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "Two places" }
                style { (include_str!("../app/style.css")) }
            }
            body {
                main {
                    h1 { "A blog in two places" }
                    p {
                        "You are in " strong { (seen.place) } ". "
                        @for place in PLACES {
                            @if place != seen.place {
                                a href={ "/?from=" (place) } { "Go to " (place) }
                            }
                        }
                        ". An ocean of 40 ms each way is between the places. Each user is written at home, and read near."
                    }
                    (cable(seen))
                    (write_form(seen))
                    (users(seen))
                    h2 { "Posts" }
                    @if seen.posts.is_empty() { p { "There is nothing here yet." } }
                    ul { @for post in &seen.posts { li { (post.title) " (" (post.author) ")" } } }
                    (steps(trail))
                    (groups(seen))
                }
            }
        }
    }
}

fn cable(seen: &Seen) -> Markup {
    html! {
        form method="post" action="/cable" {
            input type="hidden" name="from" value=(seen.place);
            input type="hidden" name="on" value=(!seen.cut);
            @if seen.cut {
                strong { "The ocean cable is cut. " }
                button { "Mend the cable" }
            } @else {
                button { "Cut the ocean cable" }
            }
        }
    }
}

fn write_form(seen: &Seen) -> Markup {
    html! {
        form method="post" action="/posts" {
            input type="hidden" name="from" value=(seen.place);
            label { "As " select name="user" {
                @for user in &seen.users { option value=(user.id) { (user.name) " (" (user.home) ")" } }
            } }
            " "
            label { "write " input name="title" required maxlength="200" value="Hello"; }
            " "
            button { "Post" }
        }
    }
}

fn users(seen: &Seen) -> Markup {
    let other = |user: &User| PLACES.into_iter().find(|place| *place != user.home);
    html! {
        h2 { "Users" }
        table {
            tr { th { "user" } th { "home" } th { "posts" } th { } }
            @for user in &seen.users {
                tr {
                    td { (user.name) }
                    td { (user.home) }
                    td { (user.posts) }
                    td {
                        @if let Some(to) = other(user) {
                            form method="post" action="/moves" {
                                input type="hidden" name="from" value=(seen.place);
                                input type="hidden" name="user" value=(user.id);
                                input type="hidden" name="to" value=(to);
                                button { "Move to " (to) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn steps(trail: &Trail) -> Markup {
    html! {
        h2 { "What was asked, and where that went" }
        table {
            tr { th { "statement" } th { "group" } th { "node" } th { "why" } th { "took" } }
            @for step in &trail.0 { (row(step)) }
        }
    }
}

fn row(step: &Step) -> Markup {
    html! {
        tr {
            td { (step.what) }
            @match (&step.route, &step.error) {
                (Some(route), _) => {
                    td { (route.group.as_deref().unwrap_or_default()) }
                    td { (route.node) }
                    td { (route.kind) ": " (route.reason) }
                }
                (None, Some(error)) => td colspan="3" { (error) },
                (None, None) => td colspan="3" { },
            }
            td { (step.took.as_millis()) " ms" }
        }
    }
}

fn groups(seen: &Seen) -> Markup {
    html! {
        h2 { "How the groups stand" }
        table {
            tr { th { "group" } th { "gets" } th { "applies" } th { "behind" } th { "findings" } }
            @for group in &seen.groups {
                @if let Some(error) = &group.error {
                    tr { td { (group.name) } td colspan="4" { (error) } }
                }
                @for direction in &group.directions {
                    tr {
                        td { (group.name) ", home of " (group.keys) }
                        td { "from " (direction.from) }
                        td { @if direction.applies { "yes" } @else { "no" } }
                        td { @if let Some(bytes) = direction.behind_bytes { (bytes) " bytes" } }
                        td { @for finding in &group.findings { p { (finding) } } }
                    }
                }
            }
        }
    }
}
