//! How a token is written and read: one text for each token, and no other text accepted.
//!
//! In bytes: the version, the cluster's identifier (8 bytes, big-endian, as it uses nearly all of
//! its bits), then `written` and `seen`. A position is its timeline plus one and its LSN, each as
//! LEB128; one that is missing is a zero. In text: base64url (RFC 4648, section 5) without padding.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::display::Base64Display;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::SessionToken;
use crate::position::{Lsn, Position};

const VERSION: u8 = 1;

/// More than any token has, sealed or not, with room for those of later versions: these shall be
/// told that their version is unknown, not that they are too long.
const LONGEST_TEXT: usize = 128;

/// What a text of that length decodes to.
pub(super) const LONGEST: usize = LONGEST_TEXT / 4 * 3;

/// Why a text is no session token. It never quotes the text, which may come from anyone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidToken {
    /// It is longer than any token.
    #[error("longer than any session token")]
    TooLong,
    /// It is not base64url without padding, in its one canonical form.
    #[error("not a session token: it is not base64url without padding")]
    NotBase64Url,
    /// It begins with a version that is not known here: a newer version of this crate wrote it, or
    /// it is no token.
    #[error("a session token, if at all, of a version that is not known here")]
    UnknownVersion,
    /// Its bytes are not those of a token. So it is for a sealed token that is read without keys.
    #[error("not a session token, or a sealed one, which only its keys can open")]
    Malformed,
    /// It is a token, but was to be a sealed one.
    #[error("a session token without a seal, where only sealed ones are accepted")]
    NotSealed,
    /// Its seal was made with none of the keys, or for another token.
    #[error("the session token was not sealed with any of the accepted keys, or was changed since")]
    BadSeal,
}

impl SessionToken {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(LONGEST);
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.cluster.to_be_bytes());
        push_position(&mut bytes, self.written);
        push_position(&mut bytes, self.seen);
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidToken> {
        let mut rest = Rest(bytes);
        if rest.byte()? != VERSION {
            return Err(InvalidToken::UnknownVersion);
        }
        let cluster = rest.fixed()?;
        let token = Self::new(cluster, rest.position()?, rest.position()?);
        if rest.0.is_empty() {
            Ok(token)
        } else {
            Err(InvalidToken::Malformed)
        }
    }
}

#[cfg(feature = "signed")]
pub(super) fn to_text(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The bytes of a text, in `space`.
pub(super) fn from_text<'a>(
    text: &str,
    space: &'a mut [u8; LONGEST],
) -> Result<&'a [u8], InvalidToken> {
    if text.len() > LONGEST_TEXT {
        return Err(InvalidToken::TooLong);
    }
    // This engine refuses padding and bits that the last byte leaves over.
    let length = URL_SAFE_NO_PAD
        .decode_slice(text, space)
        .map_err(|_| InvalidToken::NotBase64Url)?;
    space.get(..length).ok_or(InvalidToken::Malformed)
}

fn push_position(bytes: &mut Vec<u8>, position: Option<Position>) {
    match position {
        None => push_number(bytes, 0),
        Some(Position { timeline, lsn }) => {
            push_number(bytes, u64::from(timeline) + 1);
            push_number(bytes, lsn.0);
        }
    }
}

fn push_number(bytes: &mut Vec<u8>, mut number: u64) {
    loop {
        let [low, ..] = number.to_le_bytes();
        number >>= 7;
        if number == 0 {
            bytes.push(low);
            return;
        }
        bytes.push(low | 0x80);
    }
}

/// What is still to be read.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn byte(&mut self) -> Result<u8, InvalidToken> {
        let (byte, rest) = self.0.split_first().ok_or(InvalidToken::Malformed)?;
        self.0 = rest;
        Ok(*byte)
    }

    fn fixed(&mut self) -> Result<u64, InvalidToken> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(InvalidToken::Malformed)?;
        self.0 = rest;
        Ok(u64::from_be_bytes(*bytes))
    }

    fn number(&mut self) -> Result<u64, InvalidToken> {
        let mut number = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7F);
            if bits << shift >> shift != bits {
                return Err(InvalidToken::Malformed);
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                // The same number is written without this byte, too.
                let superfluous = byte == 0 && shift > 0;
                return if superfluous {
                    Err(InvalidToken::Malformed)
                } else {
                    Ok(number)
                };
            }
        }
        Err(InvalidToken::Malformed)
    }

    fn position(&mut self) -> Result<Option<Position>, InvalidToken> {
        let Some(timeline) = self.number()?.checked_sub(1) else {
            return Ok(None);
        };
        let timeline = u32::try_from(timeline).map_err(|_| InvalidToken::Malformed)?;
        Ok(Some(Position::new(timeline, Lsn(self.number()?))))
    }
}

impl fmt::Display for SessionToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Base64Display::new(&self.to_bytes(), &URL_SAFE_NO_PAD).fmt(f)
    }
}

impl FromStr for SessionToken {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        Self::from_bytes(from_text(text, &mut [0; LONGEST])?)
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for SessionToken {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for SessionToken {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text)
    }
}

/// Reads a token wherever serde finds a string, borrowed or not.
#[cfg(feature = "serde")]
struct Text;

#[cfg(feature = "serde")]
impl serde::de::Visitor<'_> for Text {
    type Value = SessionToken;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a session token")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<SessionToken, E> {
        text.parse().map_err(E::custom)
    }
}
