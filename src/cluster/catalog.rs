//! Loading what the classification must know of the database's catalog.

use std::sync::Arc;

use diesel::QueryableByName;
use diesel::sql_types::Text;
use diesel_async::RunQueryDsl;

use crate::classify::{
    CODE_SQL, Catalog, FUNCTIONS_SQL, OPERATORS_SQL, RELATIONS_SQL, RelationRow,
};
use crate::node::{Node, code_changes};

/// One row of any of the four queries; those with two columns get an empty third.
#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Text)]
    sort: String,
    #[diesel(sql_type = Text)]
    definition: String,
}

/// Asks one node, over a connection of its pool. With it comes how often the code in the database had
/// changed before, where that could be asked.
pub(super) async fn load(
    node: &Arc<Node>,
) -> Result<(Catalog, Option<i64>), diesel::result::Error> {
    let mut pooled = node.pool.checkout().await?;
    let code = code_changes(&mut pooled.pg).await.ok();
    let mut rows = async |query: &str| {
        let query = format!("SELECT * FROM ({query}) AS rows (name, sort, definition)");
        diesel::sql_query(query).load::<Row>(&mut pooled.pg).await
    };
    let functions = rows(&with_empty(FUNCTIONS_SQL)).await?;
    let relations = rows(RELATIONS_SQL).await?;
    let operators = rows(&with_empty(OPERATORS_SQL)).await?;
    let bodies = rows(CODE_SQL).await?;
    let pairs = |rows: Vec<Row>| rows.into_iter().map(|row| (row.name, row.sort));
    let texts = |rows: Vec<Row>| {
        rows.into_iter().map(|row| RelationRow {
            name: row.name,
            kind: row.sort,
            definition: row.definition,
        })
    };
    let catalog = Catalog::new(
        pairs(functions),
        texts(relations),
        pairs(operators),
        texts(bodies),
    );
    Ok((catalog, code))
}

fn with_empty(query: &str) -> String {
    format!("SELECT pairs.*, ''::text FROM ({query}) AS pairs")
}
