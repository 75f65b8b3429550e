//! What is read from the tables and written to them.

use std::fmt;
use std::io::Write;

use chrono::{DateTime, Utc};
use diesel::deserialize::{self, FromSql, FromSqlRow};
use diesel::expression::AsExpression;
use diesel::pg::{Pg, PgValue};
use diesel::prelude::*;
use diesel::serialize::{self, IsNull, Output, ToSql};
use serde::{Deserialize, Serialize};

use super::schema::{comments, posts, sql_types, users};

/// Whether a post is ready to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, AsExpression, FromSqlRow, Serialize, Deserialize)]
#[diesel(sql_type = sql_types::PostStatus)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    Draft,
    Published,
}

impl Status {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Draft => "draft",
            Self::Published => "published",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl ToSql<sql_types::PostStatus, Pg> for Status {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
        out.write_all(self.as_str().as_bytes())?;
        Ok(IsNull::No)
    }
}

impl FromSql<sql_types::PostStatus, Pg> for Status {
    fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
        match value.as_bytes() {
            b"draft" => Ok(Self::Draft),
            b"published" => Ok(Self::Published),
            other => Err(format!("`{}` is no status", String::from_utf8_lossy(other)).into()),
        }
    }
}

#[derive(Debug, Queryable, Selectable, Serialize)]
#[diesel(table_name = users)]
pub(crate) struct User {
    pub(crate) id: i64,
    pub(crate) name: String,
}

/// A post in a list.
#[derive(Debug, Queryable, Serialize)]
pub(crate) struct PostSummary {
    pub(crate) id: i64,
    pub(crate) title: String,
    pub(crate) author: String,
    pub(crate) status: Status,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) comments: i64,
}

/// A post as it is read.
#[derive(Debug, Queryable, Selectable, Serialize)]
#[diesel(table_name = posts)]
pub(crate) struct Post {
    pub(crate) id: i64,
    pub(crate) title: String,
    pub(crate) body: String,
    #[diesel(select_expression = users::name)]
    pub(crate) author: String,
    pub(crate) status: Status,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) published_at: Option<DateTime<Utc>>,
}

#[derive(Debug, Queryable, Selectable, Serialize)]
#[diesel(table_name = comments)]
pub(crate) struct Comment {
    pub(crate) id: i64,
    #[diesel(select_expression = users::name)]
    pub(crate) author: String,
    pub(crate) body: String,
    pub(crate) created_at: DateTime<Utc>,
}

#[derive(Debug, Insertable)]
#[diesel(table_name = posts)]
pub(crate) struct NewPost {
    pub(crate) author_id: i64,
    pub(crate) title: String,
    pub(crate) body: String,
    pub(crate) status: Status,
    pub(crate) published_at: Option<DateTime<Utc>>,
}

#[derive(Debug, Insertable)]
#[diesel(table_name = comments)]
pub(crate) struct NewComment {
    pub(crate) post_id: i64,
    pub(crate) author_id: i64,
    pub(crate) body: String,
}
