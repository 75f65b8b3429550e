//! What clients may send: JSON and forms are checked by the same rules.

use chrono::Utc;
use serde::Deserialize;

use super::error::{Error, Mistake};
use super::models::{NewComment, NewPost, Status};

pub(crate) const MAX_TITLE: usize = 200;
pub(crate) const MAX_BODY: usize = 20_000;
pub(crate) const MAX_COMMENT: usize = 2_000;

#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct PostInput {
    pub(crate) author_id: i64,
    pub(crate) title: String,
    #[serde(default)]
    pub(crate) body: String,
    pub(crate) status: Option<Status>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct CommentInput {
    pub(crate) author_id: i64,
    pub(crate) body: String,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct StatusInput {
    pub(crate) status: Status,
}

/// Which part of the list of posts is asked for.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(crate) struct Filter {
    pub(crate) status: Option<Status>,
    pub(crate) before: Option<i64>,
}

impl PostInput {
    pub(crate) fn check(&self) -> Result<NewPost, Error> {
        let mut mistakes = Vec::new();
        let title = text("title", &self.title, MAX_TITLE, &mut mistakes);
        let body = text("body", &self.body, MAX_BODY, &mut mistakes);
        let status = self.status.unwrap_or(Status::Draft);
        let published = status == Status::Published;
        if title.is_empty() {
            mistakes.push(mistake("title", "must not be empty"));
        }
        if title.contains(['\n', '\t']) {
            mistakes.push(mistake("title", "must be a single line"));
        }
        if published && body.is_empty() {
            mistakes.push(mistake(
                "body",
                "must not be empty if it is to be published",
            ));
        }
        if !mistakes.is_empty() {
            return Err(Error::Invalid(mistakes));
        }
        Ok(NewPost {
            author_id: self.author_id,
            title,
            body,
            status,
            published_at: published.then(Utc::now),
        })
    }
}

impl CommentInput {
    pub(crate) fn check(&self, post_id: i64) -> Result<NewComment, Error> {
        let mut mistakes = Vec::new();
        let body = text("body", &self.body, MAX_COMMENT, &mut mistakes);
        if body.is_empty() {
            mistakes.push(mistake("body", "must not be empty"));
        }
        if !mistakes.is_empty() {
            return Err(Error::Invalid(mistakes));
        }
        Ok(NewComment {
            post_id,
            author_id: self.author_id,
            body,
        })
    }
}

/// Browsers send line ends as CR LF; PostgreSQL cannot store NUL, and nobody can read the others.
fn text(field: &'static str, raw: &str, max: usize, mistakes: &mut Vec<Mistake>) -> String {
    let text = raw.replace("\r\n", "\n").trim().to_owned();
    let length = text.chars().count();
    if length > max {
        let message = format!("has {length} characters; at most {max} are allowed");
        mistakes.push(Mistake { field, message });
    }
    if text.contains(|c: char| c.is_control() && c != '\n' && c != '\t') {
        mistakes.push(mistake(field, "contains control characters"));
    }
    text
}

fn mistake(field: &'static str, message: &str) -> Mistake {
    let message = message.to_owned();
    Mistake { field, message }
}
