//! Finds the OIDs of custom types before a statement is sent.

use std::sync::Arc;

use diesel::sql_types::{Nullable, Oid, Text};
use diesel::{QueryResult, QueryableByName, sql_query};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use super::ReplicatedConnection;
use crate::node::Lease;
use crate::statement::{CustomType, OidMap, Oids, Statement};

/// The type that a name means on this connection: in the schema given, else by `search_path`.
const FIND: &str = "SELECT t.oid, t.typarray AS array FROM pg_catalog.pg_type t \
    WHERE CASE WHEN $2 IS NULL \
    THEN t.oid = pg_catalog.to_regtype(pg_catalog.quote_ident($1)) \
    ELSE t.typname = $1 AND t.typnamespace = (SELECT n.oid FROM pg_catalog.pg_namespace n \
    WHERE n.nspname = $2) END";

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Oid)]
    oid: u32,
    #[diesel(sql_type = Oid)]
    array: u32,
}

impl ReplicatedConnection {
    /// The types that this session knows.
    fn known_types(&self) -> Arc<OidMap> {
        match &self.session().own_types {
            Some(own) => Arc::clone(own),
            None => self.cluster.oids.known(),
        }
    }

    /// Fills in the types of the statement's values: those that are known, and others as they are on the
    /// connection that it is sent over.
    pub(super) async fn resolve_types(
        &self,
        statement: &mut Statement,
        lease: &Lease,
    ) -> QueryResult<()> {
        if statement.custom_types().is_empty() {
            return Ok(());
        }
        Box::pin(self.resolve_open_types(statement, lease)).await
    }

    async fn resolve_open_types(
        &self,
        statement: &mut Statement,
        lease: &Lease,
    ) -> QueryResult<()> {
        let known = self.known_types();
        let mut oids = Vec::with_capacity(statement.custom_types().len());
        let mut found = Vec::new();
        for custom in statement.custom_types() {
            oids.push(match known.get(custom) {
                Some(oids) => oids,
                None => {
                    let oids = look_up(custom, lease.pg()).await?;
                    found.push((custom.clone(), oids));
                    oids
                }
            });
        }
        if !found.is_empty() {
            self.keep_types(&found, lease);
        }
        statement.resolve(&oids);
        Ok(())
    }

    fn keep_types(&self, found: &[(CustomType, Oids)], lease: &Lease) {
        let mut session = self.session();
        if let Some(own) = &mut session.own_types {
            let own = Arc::make_mut(own);
            for (custom, oids) in found {
                own.insert(custom.clone(), *oids);
            }
        } else if !lease.wire.in_transaction() {
            // A type made in an open transaction may never exist for others.
            self.cluster.oids.insert(found);
        }
    }
}

async fn look_up(custom: &CustomType, mut connection: &AsyncPgConnection) -> QueryResult<Oids> {
    let rows: Vec<Row> = sql_query(FIND)
        .bind::<Text, _>(&custom.name)
        .bind::<Nullable<Text>, _>(&custom.schema)
        .load(&mut connection)
        .await?;
    match rows.into_iter().next() {
        Some(row) => Ok(Oids {
            oid: row.oid,
            array: row.array,
        }),
        None => Err(undefined_type(custom)),
    }
}

fn undefined_type(custom: &CustomType) -> diesel::result::Error {
    let name = match &custom.schema {
        Some(schema) => format!("{schema}.{}", custom.name),
        None => custom.name.clone(),
    };
    diesel::result::Error::SerializationError(
        format!("the database has no type `{name}`, or it is not in the `search_path`").into(),
    )
}
