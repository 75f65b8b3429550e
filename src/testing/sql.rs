//! Statements to one node as its superuser, outside of any pool.

use super::error::ClusterError;

/// The rows of a query; `None` is NULL.
pub(super) type Rows = Vec<Vec<Option<String>>>;

/// Runs `query` over a connection of its own, in a thread of its own, because the caller may be
/// inside a runtime that does not let it block.
pub(super) fn run(node: &str, url: &str, query: &str) -> Result<Rows, ClusterError> {
    let failed = |message: String| ClusterError::Sql {
        node: node.to_owned(),
        message,
    };
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| failed(error.to_string()))?;
            let work = query_once(url, query);
            let limited = async { tokio::time::timeout(super::PATIENCE, work).await };
            match runtime.block_on(limited) {
                Ok(rows) => rows.map_err(|error| failed(describe(&error))),
                Err(_) => Err(failed(format!("no answer within {:?}", super::PATIENCE))),
            }
        });
        worker
            .join()
            .unwrap_or_else(|_| Err(failed("the worker thread panicked".to_owned())))
    })
}

async fn query_once(url: &str, query: &str) -> Result<Rows, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
    let driver = tokio::spawn(connection);
    let messages = client.simple_query(query).await?;
    let rows = messages.iter().filter_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => {
            let columns = (0..row.len()).map(|column| row.get(column).map(str::to_owned));
            Some(columns.collect())
        }
        _ => None,
    });
    let rows = rows.collect();
    drop(client);
    let _ = driver.await;
    Ok(rows)
}

fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(server) => format!("{} ({})", server.message(), server.code().code()),
        None => error.to_string(),
    }
}
