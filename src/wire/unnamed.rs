//! Prepared statements for poolers that give each transaction another server: none has a name, and each travels whole.
//!
//! `tokio-postgres` prepares a statement under a name, and uses it later. Behind such a pooler the name may be unknown by
//! then, or be another client's. So the name is left out on the way, and the statement is parsed again, as the unnamed
//! one, in the same round trip in which it is used. Nothing else of what passes is changed. See
//! <https://www.pgbouncer.org/features.html> and
//! <https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-EXT-QUERY>.

use std::collections::{HashMap, VecDeque};

const HEADER: usize = 5;

/// What the server will answer, as far as that matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// `ParseComplete` for the client.
    Parsed,
    /// `ParseComplete` that the client has not asked for.
    ParsedAgain,
    /// `ReadyForQuery`.
    Ready,
}

/// Takes the names out of what passes.
#[derive(Debug, Default)]
pub(super) struct Unnamed {
    /// Name → what `Parse` says after the name.
    statements: HashMap<Vec<u8>, Vec<u8>>,
    /// The name of the statement that the server has parsed since the last `Sync`.
    current: Option<Vec<u8>>,
    expected: VecDeque<Expected>,
    /// The beginning of a message of the client.
    sent: Vec<u8>,
    /// The beginning of a message header of the server.
    header: Vec<u8>,
    /// How much of the server's current message is still to come.
    passing: usize,
}

impl Unnamed {
    /// Takes what the client sends. Appends to `out` what goes to the server.
    pub(super) fn sends(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        self.sent.extend_from_slice(bytes);
        let mut all = std::mem::take(&mut self.sent);
        let mut done = 0;
        while let Some(length) = length_of(&all[done..]) {
            let Some(message) = all.get(done..done + length) else {
                break;
            };
            self.message(message, out);
            done += length;
        }
        all.drain(..done);
        self.sent = all;
    }

    fn message(&mut self, message: &[u8], out: &mut Vec<u8>) {
        let (kind, body) = (message[0], &message[HEADER..]);
        match kind {
            b'P' => {
                let (name, rest) = text(body);
                if !name.is_empty() {
                    self.statements.insert(name.to_vec(), rest.to_vec());
                }
                self.current = Some(name.to_vec());
                self.expected.push_back(Expected::Parsed);
                put(out, b'P', &[b"\0", rest]);
            }
            b'B' => {
                let (portal, rest) = text(body);
                let (name, rest) = text(rest);
                self.parse_again(name, out);
                put(out, b'B', &[portal, b"\0\0", rest]);
            }
            b'D' if body.first() == Some(&b'S') => {
                let (name, _) = text(&body[1..]);
                self.parse_again(name, out);
                put(out, b'D', &[b"S\0"]);
            }
            b'C' if body.first() == Some(&b'S') => {
                let (name, _) = text(&body[1..]);
                self.statements.remove(name);
                self.current = None;
                put(out, b'C', &[b"S\0"]);
            }
            b'S' | b'Q' | b'F' => {
                self.current = None;
                self.expected.push_back(Expected::Ready);
                out.extend_from_slice(message);
            }
            _ => out.extend_from_slice(message),
        }
    }

    /// Has the server parse a statement that the client believes it knows.
    fn parse_again(&mut self, name: &[u8], out: &mut Vec<u8>) {
        if self.current.as_deref() == Some(name) {
            return;
        }
        if let Some(rest) = self.statements.get(name) {
            put(out, b'P', &[b"\0", rest]);
            self.expected.push_back(Expected::ParsedAgain);
            self.current = Some(name.to_vec());
        }
    }

    /// Takes what the server sends. Appends to `out` what goes to the client.
    pub(super) fn receives(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            if self.passing > 0 {
                let (now, later) = bytes.split_at(self.passing.min(bytes.len()));
                out.extend_from_slice(now);
                self.passing -= now.len();
                bytes = later;
                continue;
            }
            let missing = HEADER - self.header.len();
            let (now, later) = bytes.split_at(missing.min(bytes.len()));
            self.header.extend_from_slice(now);
            bytes = later;
            let Some(length) = length_of(&self.header) else {
                return;
            };
            let header = std::mem::take(&mut self.header);
            if self.is_for_the_client(header[0]) {
                out.extend_from_slice(&header);
                self.passing = length - HEADER;
            }
        }
    }

    fn is_for_the_client(&mut self, kind: u8) -> bool {
        match kind {
            b'1' => self.expected.pop_front() != Some(Expected::ParsedAgain),
            b'Z' => {
                // After an error nothing else comes before it.
                while self
                    .expected
                    .pop_front()
                    .is_some_and(|next| next != Expected::Ready)
                {}
                true
            }
            _ => true,
        }
    }
}

/// The length of the message that begins here, its type included.
fn length_of(bytes: &[u8]) -> Option<usize> {
    let length = bytes.get(1..HEADER)?.try_into().ok()?;
    // The length counts itself, and a wrong one must not stop everything.
    Some(1 + (u32::from_be_bytes(length) as usize).max(4))
}

/// What stands before the first zero, and what follows it.
fn text(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = bytes.iter().position(|byte| *byte == 0);
    match end {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (bytes, &[]),
    }
}

fn put(out: &mut Vec<u8>, kind: u8, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum::<usize>() + 4;
    out.push(kind);
    // It was read from such a length, and has become shorter, or is as long as the `Parse` that it repeats.
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, kind, &[body]);
        out
    }

    fn sent(unnamed: &mut Unnamed, messages: &[Vec<u8>]) -> Vec<u8> {
        let mut out = Vec::new();
        unnamed.sends(&messages.concat(), &mut out);
        out
    }

    fn received(unnamed: &mut Unnamed, messages: &[Vec<u8>]) -> Vec<u8> {
        let mut out = Vec::new();
        unnamed.receives(&messages.concat(), &mut out);
        out
    }

    #[test]
    fn a_statement_travels_whole_each_time() {
        let mut unnamed = Unnamed::default();
        let sync = message(b'S', b"");
        // As tokio-postgres prepares.
        let prepared = [
            message(b'P', b"s1\0SELECT 1\0\0\0"),
            message(b'D', b"Ss1\0"),
            sync.clone(),
        ];
        let expected = [
            message(b'P', b"\0SELECT 1\0\0\0"),
            message(b'D', b"S\0"),
            sync.clone(),
        ];
        assert_eq!(sent(&mut unnamed, &prepared), expected.concat());
        let answer = [
            message(b'1', b""),
            message(b't', b"\0\0"),
            message(b'Z', b"I"),
        ];
        assert_eq!(received(&mut unnamed, &answer), answer.concat());
        // As it uses it.
        let used = [
            message(b'B', b"\0s1\0\0\0"),
            message(b'E', b"\0\0\0\0\0"),
            sync.clone(),
        ];
        let expected = [
            message(b'P', b"\0SELECT 1\0\0\0"),
            message(b'B', b"\0\0\0\0"),
            message(b'E', b"\0\0\0\0\0"),
            sync.clone(),
        ];
        for _ in 0..2 {
            assert_eq!(sent(&mut unnamed, &used), expected.concat());
        }
        let answer = [
            message(b'1', b""),
            message(b'2', b""),
            message(b'D', b"\0\x01x"),
            message(b'Z', b"I"),
        ];
        for _ in 0..2 {
            assert_eq!(received(&mut unnamed, &answer), answer[1..].concat());
        }
        // As it forgets it. What is unknown is passed on.
        let closed = [message(b'C', b"Ss1\0"), sync.clone()];
        assert_eq!(
            sent(&mut unnamed, &closed),
            [message(b'C', b"S\0"), sync].concat()
        );
        assert!(unnamed.statements.is_empty());
    }

    #[test]
    fn an_error_sets_nothing_out_of_step() {
        let mut unnamed = Unnamed::default();
        let sync = message(b'S', b"");
        sent(&mut unnamed, &[message(b'P', b"s1\0x\0\0\0"), sync.clone()]);
        received(&mut unnamed, &[message(b'1', b""), message(b'Z', b"I")]);
        // Two uses in one go, of which the first fails at `Parse`.
        let used = [
            message(b'B', b"\0s1\0"),
            sync.clone(),
            message(b'B', b"\0s1\0"),
            sync,
        ];
        sent(&mut unnamed, &used);
        let answer = [
            message(b'E', b"C42P01\0\0"),
            message(b'Z', b"I"),
            message(b'1', b""),
            message(b'2', b""),
            message(b'Z', b"I"),
        ];
        let expected = [
            message(b'E', b"C42P01\0\0"),
            message(b'Z', b"I"),
            message(b'2', b""),
            message(b'Z', b"I"),
        ];
        assert_eq!(received(&mut unnamed, &answer), expected.concat());
        assert!(unnamed.expected.is_empty());
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_the_streams_are_cut(cuts in prop::collection::vec(1usize..40, 1..40)) {
            let there = [
                message(b'P', b"s1\0SELECT $1\0\0\0"), message(b'S', b""), message(b'B', b"\0s1\0abc"),
                message(b'Q', b"BEGIN\0"), message(b'D', b"Ss1\0"), message(b'S', b""),
            ].concat();
            let back = [
                message(b'1', b""), message(b'Z', b"I"), message(b'1', b""), message(b'2', b""), message(b'D', &[b'1'; 300]),
                message(b'Z', b"T"), message(b'1', b""), message(b'Z', b"T"),
            ].concat();
            let whole = {
                let mut unnamed = Unnamed::default();
                let (mut out, mut answer) = (Vec::new(), Vec::new());
                unnamed.sends(&there, &mut out);
                unnamed.receives(&back, &mut answer);
                (out, answer)
            };
            let mut unnamed = Unnamed::default();
            let (mut out, mut answer) = (Vec::new(), Vec::new());
            for (bytes, is_sent) in [(&there, true), (&back, false)] {
                let mut rest = &bytes[..];
                for cut in cuts.iter().cycle() {
                    if rest.is_empty() { break; }
                    let (now, later) = rest.split_at((*cut).min(rest.len()));
                    if is_sent { unnamed.sends(now, &mut out) } else { unnamed.receives(now, &mut answer) }
                    rest = later;
                }
            }
            prop_assert_eq!(whole, (out, answer));
        }

        #[test]
        fn no_bytes_can_break_it(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            let mut unnamed = Unnamed::default();
            let mut out = Vec::new();
            unnamed.sends(&bytes, &mut out);
            unnamed.receives(&bytes, &mut out);
        }
    }
}
