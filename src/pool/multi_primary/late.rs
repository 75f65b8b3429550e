//! What a group that was given up had written last, and no other group has applied.

use std::collections::BTreeMap;

use diesel::sql_types::{Array, Binary, Nullable, Text};
use diesel::{QueryResult, QueryableByName, sql_query};
use diesel_async::RunQueryDsl;

use super::MultiPrimaryPool;
use crate::error::{Error, GroupsError};
use crate::position::Lsn;

/// A change that a group has made and another one has not applied.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LateWrite {
    /// `insert`, `update`, `delete` or `truncate`.
    pub kind: &'static str,
    /// The table, with its schema.
    pub table: String,
    /// The row as it is after the change, or what tells which row was deleted: columns and their values as text.
    pub row: Vec<(String, Option<String>)>,
}

#[derive(QueryableByName)]
struct Slot {
    #[diesel(sql_type = Text)]
    slot: String,
    #[diesel(sql_type = Array<Text>)]
    publications: Vec<String>,
    #[diesel(sql_type = Text)]
    applied: String,
}

#[derive(QueryableByName)]
struct Message {
    #[diesel(sql_type = Nullable<Binary>)]
    data: Option<Vec<u8>>,
}

/// After a crash a slot may tell what was applied already. The subscriber knows better.
const SLOT: &str = "SELECT s.subslotname::text AS slot, s.subpublications AS publications, \
        coalesce(pg_catalog.pg_replication_origin_progress('pg_' || s.oid, true)::text, '0/0') AS applied \
    FROM pg_catalog.pg_subscription s WHERE s.subslotname IS NOT NULL AND s.subname = $1 AND s.subdbid = \
        (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())";

/// The options are those of the subscription. Nothing is taken from the slot.
const PEEK: &str = "SELECT data FROM pg_catalog.pg_logical_slot_peek_binary_changes($1, NULL, NULL, \
    'proto_version', '1', 'origin', 'none', 'publication_names', $2)";

impl MultiPrimaryPool {
    /// What `group` has written and `at` has not applied: after [`force_move_home`](Self::force_move_home), when the group
    /// that was given up is there again. Nobody applies it by itself; look what of it is still wanted.
    ///
    /// It reads the slot of the subscription, which must not be in use, with a role that may replicate. All of it is held
    /// in memory.
    ///
    /// # Errors
    ///
    /// There is no group of this name, one of them cannot be asked, or the slot is in use or gone.
    pub async fn late_writes(&self, group: &str, at: &str) -> Result<Vec<LateWrite>, Error> {
        let (from, at) = (self.find(group)?, self.find(at)?);
        let peeking = async {
            let subscription = &self.groups.members[at].subscriptions[from];
            let mut conn = self.pools[at].get().await?;
            let slot = sql_query(SLOT).bind::<Text, _>(subscription);
            let slot: Slot = slot.get_result(&mut conn.primary()).await?;
            let quoted = slot.publications.iter();
            let quoted = quoted.map(|name| format!("\"{}\"", name.replace('"', "\"\"")));
            let publications = quoted.collect::<Vec<_>>().join(",");
            let mut conn = self.pools[from].get().await?;
            let peek = sql_query(PEEK).bind::<Text, _>(slot.slot);
            let peek = peek.bind::<Text, _>(publications);
            let messages: Vec<Message> = peek.load(&mut conn.primary()).await?;
            let applied = slot.applied.parse::<Lsn>().unwrap_or_default();
            QueryResult::Ok((messages, applied))
        };
        let (messages, applied) = peeking.await.map_err(GroupsError::not_done)?;
        let messages = messages.into_iter().filter_map(|message| message.data);
        Ok(changes(messages, applied))
    }
}

/// What a table looks like.
struct Table {
    name: String,
    columns: Vec<String>,
}

/// Reads the [messages](https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html) of `pgoutput`.
fn changes(messages: impl Iterator<Item = Vec<u8>>, applied: Lsn) -> Vec<LateWrite> {
    let mut tables = BTreeMap::new();
    let mut changes = Vec::new();
    let mut is_late = true;
    for message in messages {
        let mut reader = Reader(&message);
        let before = changes.len();
        // A transaction begins with the place of its commit.
        if let [b'B', rest @ ..] = message.as_slice() {
            let commit = rest.first_chunk();
            is_late = commit.is_none_or(|commit| u64::from_be_bytes(*commit) >= applied.0);
        }
        // A message that ends too early is none that this version knows.
        let _ = read(&mut reader, &mut tables, &mut changes);
        if !is_late {
            changes.truncate(before);
        }
    }
    changes
}

fn read(
    reader: &mut Reader<'_>,
    tables: &mut BTreeMap<u32, Table>,
    changes: &mut Vec<LateWrite>,
) -> Option<()> {
    match reader.byte()? {
        b'R' => {
            let id = reader.long()?;
            let name = format!("{}.{}", reader.text()?, reader.text()?);
            reader.byte()?;
            let mut columns = Vec::new();
            for _ in 0..reader.short()? {
                reader.byte()?;
                columns.push(reader.text()?);
                reader.take(8)?;
            }
            tables.insert(id, Table { name, columns });
        }
        kind @ (b'I' | b'U' | b'D') => {
            let table = tables.get(&reader.long()?)?;
            let mut row = reader.row(table)?;
            // The row as it was comes before the row as it is.
            if kind == b'U' && !reader.0.is_empty() {
                row = reader.row(table)?;
            }
            let kind = match kind {
                b'I' => "insert",
                b'U' => "update",
                _ => "delete",
            };
            let table = table.name.clone();
            changes.push(LateWrite { kind, table, row });
        }
        b'T' => {
            let count = reader.long()?;
            reader.byte()?;
            for _ in 0..count {
                let table = tables.get(&reader.long()?)?.name.clone();
                let (kind, row) = ("truncate", Vec::new());
                changes.push(LateWrite { kind, table, row });
            }
        }
        _ => {}
    }
    Some(())
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn short(&mut self) -> Option<u16> {
        let bytes = self.take(2)?.first_chunk()?;
        Some(u16::from_be_bytes(*bytes))
    }

    fn long(&mut self) -> Option<u32> {
        let bytes = self.take(4)?.first_chunk()?;
        Some(u32::from_be_bytes(*bytes))
    }

    /// A text that ends with a zero.
    fn text(&mut self) -> Option<String> {
        let end = self.0.iter().position(|byte| *byte == 0)?;
        let text = String::from_utf8_lossy(self.take(end)?).into_owned();
        self.byte()?;
        Some(text)
    }

    /// `N`, `K` or `O`, and the values.
    fn row(&mut self, table: &Table) -> Option<Vec<(String, Option<String>)>> {
        self.byte()?;
        let mut row = Vec::new();
        for at in 0..usize::from(self.short()?) {
            let value = match self.byte()? {
                b't' => {
                    let length = usize::try_from(self.long()?).ok()?;
                    let bytes = self.take(length)?;
                    Some(String::from_utf8_lossy(bytes).into_owned())
                }
                b'u' => continue,
                _ => None,
            };
            row.push((table.columns.get(at)?.clone(), value));
        }
        Some(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relation() -> Vec<u8> {
        let mut message = b"R\x00\x00\x00\x07public\0notes\0d\x00\x02".to_vec();
        for column in ["id", "text"] {
            message.push(0);
            message.extend(column.as_bytes());
            message.extend([0; 9]);
        }
        message
    }

    #[test]
    fn changes_are_read_whatever_they_are() {
        let insert = b"I\x00\x00\x00\x07N\x00\x02t\x00\x00\x00\x011n".to_vec();
        let update = b"U\x00\x00\x00\x07K\x00\x02t\x00\x00\x00\x011nN\x00\x02t\x00\x00\x00\x012u";
        let delete = b"D\x00\x00\x00\x07K\x00\x02t\x00\x00\x00\x012n".to_vec();
        let torn = b"I\x00\x00\x00\x07N\x00\x02t\x00".to_vec();
        let truncate = b"T\x00\x00\x00\x01\x00\x00\x00\x00\x07".to_vec();
        let begin = |commit: u64| [b"B".as_slice(), &commit.to_be_bytes(), &[0; 12]].concat();
        let (old, new) = (begin(9), begin(10));
        let all = [
            relation(),
            old,
            insert.clone(),
            new,
            insert,
            update.to_vec(),
            delete,
            torn,
            truncate,
        ];
        let changes = changes(all.into_iter(), Lsn(10));
        let kinds: Vec<_> = changes.iter().map(|change| change.kind).collect();
        assert_eq!(kinds, ["insert", "update", "delete", "truncate"]);
        assert!(changes.iter().all(|change| change.table == "public.notes"));
        let id = |value: &str| ("id".to_owned(), Some(value.to_owned()));
        assert_eq!(changes[0].row, [id("1"), ("text".to_owned(), None)]);
        assert_eq!(changes[1].row, [id("2")]);
    }
}
