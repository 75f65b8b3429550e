//! Message headers: finds the few messages that matter in a byte stream, without copying the rest.
//!
//! See <https://www.postgresql.org/docs/current/protocol-message-formats.html>.

use super::fields::Fields;
use super::state::Wire;

const HEADER: usize = 5;

/// A message that is kept whole is never longer than this; what lies beyond is skipped.
const KEPT: usize = 8 * 1024;

/// Splits a stream into messages; one that `keep` chooses is collected and handed on whole.
#[derive(Debug)]
struct Frames {
    header: [u8; HEADER],
    /// How many bytes of the header have been seen.
    seen: usize,
    /// The start-up message of a client has no type byte.
    untyped: bool,
    /// Payload bytes of the current message that are still to come.
    remaining: usize,
    kept: Option<Vec<u8>>,
}

impl Frames {
    fn new(untyped: bool) -> Self {
        Self {
            header: [0; HEADER],
            seen: usize::from(untyped),
            untyped,
            remaining: 0,
            kept: None,
        }
    }

    fn scan(&mut self, mut bytes: &[u8], keep: fn(u8) -> bool, mut on: impl FnMut(u8, &[u8])) {
        while !bytes.is_empty() {
            // Nearly all messages come in one piece, and are handed on as they lie there.
            if let Some((kind, payload, later)) = whole(bytes).filter(|_| self.seen == 0) {
                let kept = if keep(kind) {
                    payload.len().min(KEPT)
                } else {
                    0
                };
                on(kind, &payload[..kept]);
                bytes = later;
                continue;
            }
            if self.seen < HEADER {
                let (now, later) = bytes.split_at(bytes.len().min(HEADER - self.seen));
                self.header[self.seen..self.seen + now.len()].copy_from_slice(now);
                self.seen += now.len();
                bytes = later;
                if self.seen < HEADER {
                    return;
                }
                let [_, length @ ..] = self.header;
                self.remaining = payload_length(length);
                self.kept = keep(self.kind()).then(Vec::new);
            }
            let (now, later) = bytes.split_at(bytes.len().min(self.remaining));
            self.remaining -= now.len();
            bytes = later;
            if let Some(kept) = &mut self.kept {
                let room = KEPT.saturating_sub(kept.len());
                kept.extend_from_slice(&now[..now.len().min(room)]);
            }
            if self.remaining == 0 {
                on(self.kind(), self.kept.as_deref().unwrap_or_default());
                self.next();
            }
        }
    }

    fn next(&mut self) {
        self.kept = None;
        self.untyped = false;
        self.seen = 0;
    }

    fn kind(&self) -> u8 {
        if self.untyped { 0 } else { self.header[0] }
    }
}

/// The type and the payload of the first message, if all of it is there, and what follows.
fn whole(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let ([kind, length @ ..], rest) = bytes.split_first_chunk::<HEADER>()?;
    let (payload, later) = rest.split_at_checked(payload_length(*length))?;
    Some((*kind, payload, later))
}

/// The length counts itself.
fn payload_length(length: [u8; HEADER - 1]) -> usize {
    (u32::from_be_bytes(length) as usize).saturating_sub(4)
}

/// Follows what the server sends.
#[derive(Debug)]
pub(super) struct BackendScanner(Frames);

impl Default for BackendScanner {
    fn default() -> Self {
        Self(Frames::new(false))
    }
}

impl BackendScanner {
    pub(super) fn scan(&mut self, bytes: &[u8], wire: &Wire) {
        let interesting =
            |kind| matches!(kind, b'E' | b'N' | b'Z' | b'S' | b'C' | b'2' | b'R' | b'K');
        self.0.scan(bytes, interesting, |kind, payload| match kind {
            b'E' => wire.saw_error(&Fields::parse(payload)),
            b'N' => wire.saw_notice(&Fields::parse(payload)),
            // BindComplete and CommandComplete.
            b'2' => wire.saw_bound(),
            b'C' => wire.saw_done(payload.strip_suffix(&[0]).unwrap_or(payload)),
            b'Z' => wire.saw_ready(payload.first().copied().unwrap_or(b'E')),
            b'R' => wire.login().saw_request(payload),
            b'K' => wire.login().saw_key(payload),
            b'S' => {
                let mut parts = payload.split(|byte| *byte == 0);
                if let (Some(name), Some(value)) = (parts.next(), parts.next()) {
                    wire.saw_parameter(name, value);
                }
            }
            _ => {}
        });
    }
}

/// Follows what the client sends, only to know how many answers are still owed, and whether anything
/// was sent that the server runs.
#[derive(Debug)]
pub(super) struct FrontendScanner(Frames);

impl Default for FrontendScanner {
    fn default() -> Self {
        Self(Frames::new(true))
    }
}

impl FrontendScanner {
    pub(super) fn scan(&mut self, bytes: &[u8], wire: &Wire) {
        self.0.scan(
            bytes,
            |_| false,
            |kind, _| {
                // Start-up, Query, Sync and FunctionCall are each answered by one ReadyForQuery.
                if matches!(kind, 0 | b'Q' | b'S' | b'F') {
                    wire.sent_request();
                }
                // Query, Execute and FunctionCall run something; the rest only prepares it.
                if matches!(kind, b'Q' | b'E' | b'F') {
                    wire.sent_command(kind != b'E');
                }
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::SqlState;

    fn message(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![kind];
        out.extend_from_slice(&u32::try_from(payload.len() + 4).unwrap().to_be_bytes());
        out.extend_from_slice(payload);
        out
    }

    fn conversation() -> Vec<u8> {
        let mut bytes = message(b'S', b"in_hot_standby\0on\0");
        bytes.extend(message(b'D', &[b'E'; 70_000]));
        bytes.extend(message(b'Z', b"T"));
        bytes.extend(message(
            b'E',
            b"SERROR\0VERROR\0C25006\0Mcannot execute INSERT\0\0",
        ));
        bytes.extend(message(b'Z', b"E"));
        bytes
    }

    proptest! {
        #[test]
        fn messages_are_found_however_the_stream_is_cut(cuts in prop::collection::vec(1usize..5000, 1..60)) {
            let wire = Wire::default();
            let mut scanner = BackendScanner::default();
            let bytes = conversation();
            let mut rest = &bytes[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                scanner.scan(now, &wire);
                rest = later;
            }
            prop_assert_eq!(wire.role(), Some(super::super::ServerRole::Standby));
            prop_assert_eq!(wire.transaction_status(), b'E');
            let remark = wire.remark_of("cannot execute INSERT");
            prop_assert_eq!(remark.map(|r| r.sqlstate), Some(SqlState::READ_ONLY_SQL_TRANSACTION));
            prop_assert_eq!(wire.remark_of("something else"), None);
            prop_assert!(!wire.is_closed());
        }

        #[test]
        fn no_bytes_can_break_the_scanners(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let wire = Wire::default();
            BackendScanner::default().scan(&bytes, &wire);
            FrontendScanner::default().scan(&bytes, &wire);
        }
    }

    /// What servers send, and what they never do, in pieces of any length: nothing panics, what is kept is bounded,
    /// and it does not matter how the stream is cut.
    #[test]
    fn any_stream_from_the_server() {
        let kinds = *b"SDZECNA12sKR";
        bolero::check!()
            .with_type::<(Vec<(u8, Vec<u8>)>, u8)>()
            .for_each(|(messages, cut)| {
                let kind = |byte: &u8| match kinds.get(usize::from(*byte)) {
                    Some(kind) => *kind,
                    None => *byte,
                };
                let bytes: Vec<u8> = messages
                    .iter()
                    .flat_map(|(byte, payload)| message(kind(byte), payload))
                    .collect();
                let told = |pieces: &mut dyn Iterator<Item = &[u8]>| {
                    let wire = Wire::default();
                    let mut scanner = BackendScanner::default();
                    pieces.for_each(|piece| scanner.scan(piece, &wire));
                    let kept = scanner.0.kept.as_ref().map_or(0, Vec::capacity);
                    assert!(kept <= 2 * KEPT, "{kept} bytes are kept");
                    let death = wire.death().map(|death| death.message);
                    (
                        wire.transaction_status(),
                        wire.role(),
                        wire.is_idle(),
                        death,
                    )
                };
                let whole = told(&mut std::iter::once(&bytes[..]));
                let cut = told(&mut bytes.chunks(1 + usize::from(*cut)));
                assert_eq!(whole, cut);
                // And bytes that are no messages at all.
                for (_, bytes) in messages {
                    let wire = Wire::default();
                    BackendScanner::default().scan(bytes, &wire);
                    FrontendScanner::default().scan(bytes, &wire);
                }
            });
    }

    #[test]
    fn each_request_is_owed_one_answer() {
        let wire = Wire::default();
        let mut frontend = FrontendScanner::default();
        let mut startup = 8u32.to_be_bytes().to_vec();
        startup.extend_from_slice(&196_608u32.to_be_bytes());
        frontend.scan(&startup, &wire);
        assert!(!wire.is_idle(), "the start-up is unanswered");
        BackendScanner::default().scan(&message(b'Z', b"I"), &wire);
        assert!(wire.is_idle());
        for kind in [b'P', b'B', b'E', b'S', b'Q'] {
            frontend.scan(&message(kind, b"x"), &wire);
        }
        BackendScanner::default().scan(&message(b'Z', b"I"), &wire);
        assert!(!wire.is_idle(), "two requests, one answer");
        BackendScanner::default().scan(&message(b'Z', b"I"), &wire);
        assert!(wire.is_idle());
    }

    #[test]
    fn what_only_prepares_is_no_command() {
        let wire = Wire::default();
        let mut frontend = FrontendScanner::default();
        let mut startup = 8u32.to_be_bytes().to_vec();
        startup.extend_from_slice(&196_608u32.to_be_bytes());
        frontend.scan(&startup, &wire);
        for kind in [b'P', b'D', b'S', b'B'] {
            frontend.scan(&message(kind, b"x"), &wire);
        }
        assert_eq!(wire.commands(), 0);
        let execute = message(b'E', b"x");
        let (begin, end) = execute.split_at(4);
        frontend.scan(begin, &wire);
        assert_eq!(
            wire.commands(),
            0,
            "the server runs nothing of which it lacks a part"
        );
        frontend.scan(end, &wire);
        assert_eq!(wire.commands(), 1);
        frontend.scan(&message(b'Q', b"x"), &wire);
        assert_eq!(wire.commands(), 2);
    }

    #[test]
    fn a_fatal_error_means_death_before_the_socket_closes() {
        let wire = Wire::default();
        let fatal = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0";
        BackendScanner::default().scan(&message(b'E', fatal), &wire);
        assert!(wire.is_closed());
        assert_eq!(
            wire.death().and_then(|death| death.sqlstate),
            Some(SqlState::ADMIN_SHUTDOWN)
        );
    }
}
