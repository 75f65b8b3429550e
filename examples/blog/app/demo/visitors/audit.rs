//! Which confirmed rows the database has lost, by asking whoever is the primary.

use std::error::Error;
use std::sync::Mutex;
use std::time::Duration;

use diesel::prelude::*;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use tokio::time::timeout;

use super::super::faults::{Stage, lock};
use super::{Tally, visits};

/// How long the answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// While there is no primary, nobody knows, and what was known stays.
pub(super) async fn look(tally: &Tally, stage: &Mutex<Stage>, database: &str) {
    if let Ok(Err(error)) = timeout(PATIENCE, ask(tally, stage, database)).await {
        tracing::debug!(%error, "nobody tells which rows there are");
    }
}

async fn ask(
    tally: &Tally,
    stage: &Mutex<Stage>,
    database: &str,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    // In this order: what is confirmed by now, whoever is the primary afterwards has to have.
    let (beginning, rows) = tally.confirmed();
    let url = lock(stage).primary_url(database);
    let mut conn = AsyncPgConnection::establish(&url).await?;
    let there: i64 = visits::table
        .filter(visits::id.eq_any(&rows))
        .count()
        .get_result(&mut conn)
        .await?;
    let there = usize::try_from(there)?;
    tally.lost(beginning, u64::try_from(rows.len().saturating_sub(there))?);
    Ok(())
}
