//! Whether a history keeps what its level of consistency promises.
//!
//! A write adds one to its key's version, on the primary, under the row's lock. So the versions are the
//! order of the writes of a key, and every read tells by the version which write it saw.

use std::collections::BTreeMap;

pub const KEYS: usize = 8;

/// The versions that a session must not fall behind, key by key.
type Floors = [u64; KEYS];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// With the version that it made, if its answer came.
    Write(Option<u64>),
    /// With the version that it saw, and whether a replica served it.
    Read(u64, bool),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    pub key: usize,
    pub kind: Kind,
    /// Nanoseconds of a clock that all processes share.
    pub start: u64,
    pub end: u64,
}

/// The operations of one session in their order, and what it goes on from: another session, after so
/// many of that one's operations.
#[derive(Clone, Debug, Default)]
pub struct Session {
    pub parent: Option<(u64, usize)>,
    pub operations: Vec<Operation>,
}

pub type History = BTreeMap<u64, Session>;

/// What was promised and not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Broken {
    ReadYourWrites,
    MonotonicReads,
    MonotonicWrites,
    WritesFollowReads,
    /// A read missed what was done before it began.
    Stale,
    /// A read saw what was begun after it ended.
    Future,
    /// Writes took effect against the order of time.
    WriteOrder,
}

/// What each session has written and seen after each of its operations.
#[derive(Clone, Copy, Default)]
struct Known {
    written: Floors,
    seen: Floors,
}

/// The guarantees of sessions, also where they go on in others, each broken one with its session.
pub fn sessions(history: &History) -> Vec<(Broken, u64)> {
    let mut broken = Vec::new();
    let mut after: BTreeMap<u64, Vec<Known>> = BTreeMap::new();
    // A session starts after the one that it goes on from.
    let mut order: Vec<(u64, &Session)> =
        history.iter().map(|(id, session)| (*id, session)).collect();
    order.sort_by_key(|(_, session)| session.operations.first().map(|first| first.start));
    for (id, session) in order {
        let inherited = session
            .parent
            .and_then(|(parent, count)| after.get(&parent)?.get(count));
        let mut known = inherited.copied().unwrap_or_default();
        let mut states = vec![known];
        for operation in &session.operations {
            let (written, seen) = (known.written[operation.key], known.seen[operation.key]);
            match operation.kind {
                Kind::Read(version, _) => {
                    if version < written {
                        broken.push((Broken::ReadYourWrites, id));
                    }
                    if version < seen {
                        broken.push((Broken::MonotonicReads, id));
                    }
                    known.seen[operation.key] = seen.max(version);
                }
                Kind::Write(Some(version)) => {
                    if version <= written {
                        broken.push((Broken::MonotonicWrites, id));
                    }
                    if version <= seen {
                        broken.push((Broken::WritesFollowReads, id));
                    }
                    known.written[operation.key] = written.max(version);
                }
                Kind::Write(None) => {}
            }
            states.push(known);
        }
        after.insert(id, states);
    }
    broken
}

/// Linearizability of each key. With the order of the writes known this is exact: every operation
/// must fit between what ended before it began and what began after it ended.
pub fn linearizable(history: &History) -> Vec<(Broken, u64)> {
    let mut broken = Vec::new();
    for key in 0..KEYS {
        let mut of_key: Vec<(u64, Operation)> = Vec::new();
        for (id, session) in history {
            let operations = session.operations.iter().filter(|one| one.key == key);
            of_key.extend(operations.map(|one| (*id, *one)));
        }
        let begun: BTreeMap<u64, u64> = of_key
            .iter()
            .filter_map(|(_, one)| match one.kind {
                Kind::Write(Some(version)) => Some((version, one.start)),
                _ => None,
            })
            .collect();
        let mut ends = of_key.clone();
        ends.sort_by_key(|(_, one)| one.end);
        of_key.sort_by_key(|(_, one)| one.start);
        let (mut ended, mut newest) = (ends.iter().peekable(), 0);
        for (id, one) in &of_key {
            while let Some((_, before)) = ended.next_if(|(_, before)| before.end < one.start) {
                if let Kind::Write(Some(version)) | Kind::Read(version, _) = before.kind {
                    newest = newest.max(version);
                }
            }
            match one.kind {
                Kind::Read(version, _) => {
                    if version < newest {
                        broken.push((Broken::Stale, *id));
                    }
                    if begun.get(&version).is_some_and(|begun| *begun > one.end) {
                        broken.push((Broken::Future, *id));
                    }
                }
                Kind::Write(Some(version)) if version <= newest => {
                    broken.push((Broken::WriteOrder, *id));
                }
                Kind::Write(_) => {}
            }
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A session, what it goes on from, and when it does what with key 0.
    type Sketch<'a> = (u64, Option<(u64, usize)>, &'a [(u64, Kind)]);

    /// The history of these sessions.
    fn history(sessions: &[Sketch<'_>]) -> History {
        let session = |(id, parent, operations): &Sketch<'_>| {
            let operations = operations.iter().map(|(time, kind)| Operation {
                key: 0,
                kind: *kind,
                start: time * 10,
                end: time * 10 + 5,
            });
            let session = Session {
                parent: *parent,
                operations: operations.collect(),
            };
            (*id, session)
        };
        sessions.iter().map(session).collect()
    }

    const WROTE_1: Kind = Kind::Write(Some(1));
    const WROTE_2: Kind = Kind::Write(Some(2));

    fn read(version: u64) -> Kind {
        Kind::Read(version, true)
    }

    #[test]
    fn each_broken_promise_is_found() {
        let found = |operations: &[(u64, Kind)]| {
            let broken = sessions(&history(&[(1, None, operations)]));
            broken
                .into_iter()
                .map(|(broken, _)| broken)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            found(&[(1, WROTE_1), (2, read(1)), (3, WROTE_2), (4, read(2))]),
            []
        );
        assert_eq!(
            found(&[(1, WROTE_1), (2, read(0))]),
            [Broken::ReadYourWrites]
        );
        assert_eq!(
            found(&[(1, read(2)), (2, read(1))]),
            [Broken::MonotonicReads]
        );
        assert_eq!(
            found(&[(1, WROTE_2), (2, WROTE_1)]),
            [Broken::MonotonicWrites]
        );
        assert_eq!(
            found(&[(1, read(1)), (2, WROTE_1)]),
            [Broken::WritesFollowReads]
        );
        assert_eq!(
            found(&[(1, Kind::Write(None)), (2, read(0))]),
            [],
            "not known"
        );
    }

    #[test]
    fn promises_go_with_the_token_and_no_further() {
        let parent: Sketch<'_> = (1, None, &[(1, WROTE_1), (5, WROTE_2)]);
        let child = |version| (2, Some((1, 1)), [(7, read(version))]);
        let broken = |version| {
            let (id, parent_of, operations) = child(version);
            sessions(&history(&[parent, (id, parent_of, &operations)]))
        };
        assert_eq!(broken(0), [(Broken::ReadYourWrites, 2)]);
        assert_eq!(broken(1), [], "the token is from before the second write");
    }

    #[test]
    fn real_time_is_kept() {
        let found = |sessions: &[Sketch<'_>]| {
            let broken = linearizable(&history(sessions));
            broken
                .into_iter()
                .map(|(broken, _)| broken)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            found(&[(1, None, &[(1, WROTE_1)]), (2, None, &[(2, read(1))])]),
            []
        );
        assert_eq!(
            found(&[(1, None, &[(1, WROTE_1)]), (2, None, &[(2, read(0))])]),
            [Broken::Stale]
        );
        assert_eq!(
            found(&[
                (1, None, &[(1, read(1))]),
                (2, None, &[(2, read(0)), (3, WROTE_1)])
            ]),
            [Broken::Future, Broken::Stale, Broken::WriteOrder]
        );
        // At the same time either order will do.
        let (early, late) = ([(1, WROTE_1)], [(1, read(0)), (1, read(1))]);
        assert_eq!(found(&[(1, None, &early), (2, None, &late)]), []);
    }
}
