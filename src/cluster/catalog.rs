//! Loading what the classification must know of the database's catalog.

use std::sync::Arc;

use diesel::QueryableByName;
use diesel::result::QueryResult;
use diesel::sql_types::Text;
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};

use crate::classify::{CODE_SQL, Catalog, CodeKind, CodeRow, FUNCTIONS_SQL, OPERATORS_SQL};
use crate::node::{Node, code_changes};

/// One row of any of the three queries; those with two columns get an empty third.
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
    let changes = code_changes(&mut pooled.pg).await.ok();
    let mut snapshot = pooled.pg.build_transaction().read_only().repeatable_read();
    let (functions, operators, code) = snapshot
        .run(async |pg| {
            // Compiling these queries takes longer than running them.
            pg.batch_execute("SET LOCAL jit = off; SET LOCAL statement_timeout = 0")
                .await?;
            let functions = rows(pg, &with_empty(FUNCTIONS_SQL)).await?;
            let operators = rows(pg, &with_empty(OPERATORS_SQL)).await?;
            QueryResult::Ok((functions, operators, rows(pg, CODE_SQL).await?))
        })
        .await?;
    let pairs = |rows: Vec<Row>| rows.into_iter().map(|row| (row.name, row.sort));
    let code = code.into_iter().filter_map(|row| {
        Some(CodeRow {
            name: row.name,
            kind: CodeKind::parse(&row.sort)?,
            definition: row.definition,
        })
    });
    let catalog = Catalog::new(pairs(functions), pairs(operators), code);
    Ok((catalog, changes))
}

async fn rows(pg: &mut AsyncPgConnection, query: &str) -> QueryResult<Vec<Row>> {
    let query = format!("SELECT * FROM ({query}) AS rows (name, sort, definition)");
    diesel::sql_query(query).load(pg).await
}

fn with_empty(query: &str) -> String {
    format!("SELECT pairs.*, ''::text FROM ({query}) AS pairs")
}
