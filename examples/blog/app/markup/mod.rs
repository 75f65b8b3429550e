//! The pages as HTML. Everything that is spliced in is escaped by the macro.

mod report;

use chrono::{DateTime, Utc};
use maud::{DOCTYPE, Markup, html};

use super::error::{Error, Mistake};
use super::input::{CommentInput, Filter, MAX_BODY, MAX_COMMENT, MAX_TITLE, PostInput};
use super::models::{Comment, Post, PostSummary, Status, User};
use super::store::PAGE;

pub(crate) use report::Report;

/// What the first page shows.
#[derive(Debug)]
pub(crate) struct Home {
    pub(crate) posts: Vec<PostSummary>,
    pub(crate) users: Vec<User>,
    pub(crate) filter: Filter,
    /// What was sent, where it could not be accepted.
    pub(crate) input: PostInput,
}

/// What the page of a post shows.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) post: Post,
    pub(crate) comments: Vec<Comment>,
    pub(crate) users: Vec<User>,
    pub(crate) input: CommentInput,
}

pub(crate) fn home(home: &Home, mistakes: &[Mistake], report: &Report) -> Markup {
    let content = html! {
        (report.summary())
        (failed(mistakes))
        h1 { "Posts" }
        (filters(home.filter.status))
        @if home.posts.is_empty() {
            p { "There is nothing here yet." }
        }
        ul.posts {
            @for post in &home.posts {
                li {
                    h2 { a href={ "/posts/" (post.id) } { (post.title) } }
                    p.meta {
                        (status(post.status)) " " (post.author) " · " (time(post.created_at)) " · "
                        (post.comments) @if post.comments == 1 { " comment" } @else { " comments" }
                    }
                }
            }
        }
        (older(home))
        (post_form(home, mistakes))
        (report.details())
    };
    layout("Posts", &content)
}

pub(crate) fn post(reading: &Reading, mistakes: &[Mistake], report: &Report) -> Markup {
    let post = &reading.post;
    let content = html! {
        (report.summary())
        (failed(mistakes))
        article {
            h1 { (post.title) }
            p.meta {
                (status(post.status)) " " (post.author) " · " (time(post.created_at))
                @if let Some(published) = post.published_at {
                    " · published " (time(published))
                }
            }
            div.text { (post.body) }
            (status_form(post))
        }
        section #comments aria-labelledby="comments-title" {
            h2 #comments-title { "Comments" }
            @if reading.comments.is_empty() {
                p { "Nobody has said anything yet." }
            }
            ol.comments {
                @for comment in &reading.comments {
                    li {
                        p.meta { (comment.author) " · " (time(comment.created_at)) }
                        div.text { (comment.body) }
                    }
                }
            }
            (comment_form(reading, mistakes))
        }
        (report.details())
    };
    layout(&post.title, &content)
}

pub(crate) fn failure(error: &Error) -> Markup {
    let status = error.status();
    let title = status.canonical_reason().unwrap_or("Error");
    let content = html! {
        h1 { (status.as_str()) " " (title) }
        p role="alert" { (error.message()) }
        @if let Some(outcome) = error.outcome() {
            p { "The change: " (outcome) "." }
        }
        p { a href="/" { "To the posts" } }
    };
    layout(title, &content)
}

fn layout(title: &str, content: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " – a replicated blog" }
                link rel="stylesheet" href="/style.css";
                // Browsers ask for an icon otherwise, and the console shows that there is none.
                link rel="icon" href="data:,";
            }
            body {
                header {
                    nav aria-label="Main" {
                        a.home href="/" { "A replicated blog" } " " a href="/status/live" { "Live status" }
                    }
                }
                main { (content) }
            }
        }
    }
}

fn filters(current: Option<Status>) -> Markup {
    let choices = [
        ("All", "/", None),
        ("Published", "/?status=published", Some(Status::Published)),
        ("Drafts", "/?status=draft", Some(Status::Draft)),
    ];
    html! {
        nav.filters aria-label="Which posts" {
            @for (name, link, status) in choices {
                a href=(link) aria-current=[(status == current).then_some("page")] { (name) }
                " "
            }
        }
    }
}

fn older(home: &Home) -> Markup {
    let last = home.posts.last().map(|post| post.id);
    let full = i64::try_from(home.posts.len()).is_ok_and(|posts| posts == PAGE);
    html! {
        @if let (true, Some(last)) = (full, last) {
            @let status = home.filter.status.map(|status| format!("&status={status}"));
            p { a href={ "/?before=" (last) (status.unwrap_or_default()) } { "Older posts" } }
        }
    }
}

fn post_form(home: &Home, mistakes: &[Mistake]) -> Markup {
    let input = &home.input;
    html! {
        section #write aria-labelledby="write-title" {
            h2 #write-title { "Write a post" }
            form method="post" action="/posts" {
                (author_field(&home.users, input.author_id, mistakes))
                (field("title", "", mistakes, &html! {
                    input #title name="title" value=(input.title) required
                        maxlength=(MAX_TITLE) autocomplete="off"
                        aria-invalid=[invalid("title", mistakes)]
                        aria-describedby=[describe("title", mistakes)];
                }))
                (field("body", "A draft may be empty.", mistakes, &html! {
                    textarea #body name="body" rows="6" maxlength=(MAX_BODY)
                        aria-invalid=[invalid("body", mistakes)]
                        aria-describedby=[describe("body", mistakes)] { "\n" (input.body) }
                }))
                div.buttons {
                    button name="status" value="published" { "Publish" }
                    button.quiet name="status" value="draft" { "Save as draft" }
                }
            }
        }
    }
}

fn comment_form(reading: &Reading, mistakes: &[Mistake]) -> Markup {
    let input = &reading.input;
    html! {
        form method="post" action={ "/posts/" (reading.post.id) "/comments" } {
            (author_field(&reading.users, input.author_id, mistakes))
            (field("body", "", mistakes, &html! {
                textarea #body name="body" rows="3" required maxlength=(MAX_COMMENT)
                    aria-invalid=[invalid("body", mistakes)]
                    aria-describedby=[describe("body", mistakes)] { "\n" (input.body) }
            }))
            div.buttons { button { "Comment" } }
        }
    }
}

fn status_form(post: &Post) -> Markup {
    let (next, label) = match post.status {
        Status::Draft => (Status::Published, "Publish"),
        Status::Published => (Status::Draft, "Take back to draft"),
    };
    html! {
        form.inline method="post" action={ "/posts/" (post.id) "/status" } {
            button.quiet name="status" value=(next) { (label) }
        }
    }
}

fn author_field(users: &[User], chosen: i64, mistakes: &[Mistake]) -> Markup {
    field(
        "author_id",
        "",
        mistakes,
        &html! {
            select #author_id name="author_id" aria-invalid=[invalid("author_id", mistakes)]
                aria-describedby=[describe("author_id", mistakes)] {
                @for user in users {
                    option value=(user.id) selected[user.id == chosen] { (user.name) }
                }
            }
        },
    )
}

fn field(name: &str, hint: &str, mistakes: &[Mistake], control: &Markup) -> Markup {
    html! {
        div.field {
            label for=(name) {
                (label(name))
                @if !hint.is_empty() { " " span.meta { (hint) } }
            }
            (control)
            @if invalid(name, mistakes).is_some() {
                div.mistake id={ (name) "-mistake" } {
                    @for mistake in mistakes.iter().filter(|mistake| mistake.field == name) {
                        p { (label(name)) " " (mistake.message) "." }
                    }
                }
            }
        }
    }
}

fn label(field: &str) -> &'static str {
    match field {
        "author_id" => "Author",
        "title" => "Title",
        _ => "Text",
    }
}

fn invalid(field: &str, mistakes: &[Mistake]) -> Option<&'static str> {
    mistakes
        .iter()
        .any(|mistake| mistake.field == field)
        .then_some("true")
}

fn describe(field: &str, mistakes: &[Mistake]) -> Option<String> {
    invalid(field, mistakes).map(|_| format!("{field}-mistake"))
}

fn failed(mistakes: &[Mistake]) -> Markup {
    html! {
        @if !mistakes.is_empty() {
            div.alert role="alert" {
                p { "This could not be saved:" }
                ul {
                    @for mistake in mistakes {
                        li {
                            a href={ "#" (mistake.field) } { (label(mistake.field)) }
                            " " (mistake.message)
                        }
                    }
                }
            }
        }
    }
}

fn status(status: Status) -> Markup {
    html! {
        @if status == Status::Draft { span.draft { "draft" } }
    }
}

fn time(at: DateTime<Utc>) -> Markup {
    html! {
        time datetime=(at.to_rfc3339()) { (at.format("%-d %b %Y, %H:%M")) " UTC" }
    }
}
