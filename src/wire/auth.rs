//! What the server asks for when somebody logs in.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, Ordering};

use crate::config::{AuthMethod, RequireAuth};

/// The log-in of one connection.
#[derive(Debug, Default)]
pub(super) struct Login {
    allowed: Option<RequireAuth>,
    asked: AtomicBool,
    refused: AtomicU8,
    /// The process in the upper half, the secret in the lower one.
    key: AtomicI64,
}

const METHODS: [AuthMethod; 5] = [
    AuthMethod::Password,
    AuthMethod::Md5,
    AuthMethod::ScramSha256,
    AuthMethod::None,
    AuthMethod::Other,
];

impl Login {
    pub(super) fn new(allowed: Option<RequireAuth>) -> Self {
        Self {
            allowed,
            ..Self::default()
        }
    }

    /// An `Authentication…` message.
    pub(super) fn saw_request(&self, payload: &[u8]) {
        let Some(allowed) = self.allowed else {
            return;
        };
        let (code, rest) = payload.split_at_checked(4).unwrap_or((payload, &[]));
        let method = match code {
            [0, 0, 0, 0] if self.asked.load(Ordering::Acquire) => return,
            [0, 0, 0, 0] => AuthMethod::None,
            [0, 0, 0, 3] => AuthMethod::Password,
            [0, 0, 0, 5] => AuthMethod::Md5,
            [0, 0, 0, 10] if rest.starts_with(b"SCRAM-SHA-256") => AuthMethod::ScramSha256,
            // Within SASL.
            [0, 0, 0, 11 | 12] => return,
            _ => AuthMethod::Other,
        };
        self.asked.store(true, Ordering::Release);
        if !allowed.allows(method) {
            let place = METHODS.iter().position(|known| *known == method);
            let place = place.and_then(|place| u8::try_from(place + 1).ok());
            self.refused
                .store(place.unwrap_or(u8::MAX), Ordering::Release);
        }
    }

    pub(super) fn refused(&self) -> Option<AuthMethod> {
        let place = usize::from(self.refused.load(Ordering::Acquire));
        METHODS.get(place.checked_sub(1)?).copied()
    }

    pub(super) fn saw_key(&self, payload: &[u8]) {
        if let Some(key) = payload.first_chunk() {
            self.key.store(i64::from_be_bytes(*key), Ordering::Release);
        }
    }

    /// The process that serves the connection, as the server calls it, and the secret to cancel it by.
    pub(super) fn key(&self) -> Option<(i32, i32)> {
        let key = self.key.load(Ordering::Acquire);
        let [a, b, c, d, rest @ ..] = key.to_be_bytes();
        let process = i32::from_be_bytes([a, b, c, d]);
        (key != 0).then_some((process, i32::from_be_bytes(rest)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_that_is_not_allowed_is_noticed_before_anything_is_answered() {
        let scram = b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0".as_slice();
        let oauth = b"\0\0\0\x0aOAUTHBEARER\0\0".as_slice();
        let (password, md5, ok) = (b"\0\0\0\x03", b"\0\0\0\x05salt", b"\0\0\0\0");
        let table: [(&[&[u8]], Option<AuthMethod>); 6] = [
            (&[scram, b"\0\0\0\x0bx", b"\0\0\0\x0cx", ok], None),
            (&[oauth], Some(AuthMethod::Other)),
            (&[password], Some(AuthMethod::Password)),
            (&[md5], Some(AuthMethod::Md5)),
            (&[ok], Some(AuthMethod::None)),
            (&[b"\0\0\0\x07"], Some(AuthMethod::Other)),
        ];
        for (messages, refused) in table {
            let login = Login::new(Some(RequireAuth::SCRAM));
            for message in messages {
                login.saw_request(message);
            }
            assert_eq!(login.refused(), refused, "{messages:?}");
        }
    }

    #[test]
    fn a_key_is_kept() {
        let login = Login::default();
        assert_eq!(login.key(), None);
        login.saw_key(&[0, 0, 1, 0, 0xff, 0xff, 0xff, 0xfe]);
        assert_eq!(login.key(), Some((256, -2)));
        login.saw_key(&[1]);
        assert_eq!(login.key(), Some((256, -2)));
    }
}
