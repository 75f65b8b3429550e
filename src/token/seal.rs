//! Sealed tokens: those that only the holder of a key can make.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::SessionToken;
use super::encoding::{self, InvalidToken};

/// Keeps the seals of tokens apart from all else that is signed with the same key.
const PURPOSE: &[u8] = b"diesel-replicated session token\0";

const WEAKEST: usize = 16;

/// The tag is cut to this: 128 bits, which nobody guesses, in 22 characters less.
const TAG: usize = 16;

/// The keys that seal tokens and open them: HMAC-SHA256, cut to 128 bits.
///
/// A sealed token comes from someone who holds the key, unchanged. So nobody else can make one up,
/// to let reads wait or go to the primary. That is all: it is not encrypted, it does not expire, and
/// whoever has it can show it again, or give it to another. See [`SessionToken`] for what it tells.
///
/// A sealed token has at most 55 characters where a bare one has 34, and never more than 74.
///
/// ```
/// use diesel_replicated::SessionToken;
/// use diesel_replicated::token::{InvalidToken, TokenKeys};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let (key, last_years_key) = ([7; 32], [6; 32]);
/// # let token: SessionToken = "AWj7rAnFSZ1xAsiw0ZvrAgLIsNOb6wI".parse()?;
/// let keys = TokenKeys::new(key)?.accept(last_years_key)?;
/// let cookie = keys.seal(&token);
/// assert_eq!(keys.open(&cookie)?, token);
/// assert_eq!(keys.open(&token.to_string()), Err(InvalidToken::NotSealed));
/// # Ok(())
/// # }
/// ```
///
/// # Changing the key
///
/// Where several processes exchange tokens, none may seal with a key that another does not know
/// yet. So first let all of them [`accept`](Self::accept) the new key, then seal with it and accept
/// the old one, and drop the old one when its tokens are of no more use.
#[derive(Clone)]
pub struct TokenKeys {
    current: Hmac<Sha256>,
    accepted: Vec<Hmac<Sha256>>,
}

/// A key that is too short to seal with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key for session tokens has at least {WEAKEST} bytes; take 32 random ones")]
#[non_exhaustive]
pub struct WeakKey;

impl TokenKeys {
    /// Seals with this key, and opens what it sealed.
    ///
    /// Take 32 random bytes, the same in every process that is to open the tokens.
    ///
    /// # Errors
    ///
    /// [`WeakKey`] if the key has fewer than 16 bytes.
    pub fn new(key: impl AsRef<[u8]>) -> Result<Self, WeakKey> {
        Ok(Self {
            current: keyed(key.as_ref())?,
            accepted: Vec::new(),
        })
    }

    /// Opens what was sealed with this key, too, but does not seal with it.
    ///
    /// # Errors
    ///
    /// [`WeakKey`] if the key has fewer than 16 bytes.
    pub fn accept(mut self, older_key: impl AsRef<[u8]>) -> Result<Self, WeakKey> {
        self.accepted.push(keyed(older_key.as_ref())?);
        Ok(self)
    }

    /// The token with its seal, as URL-safe text.
    #[must_use]
    pub fn seal(&self, token: &SessionToken) -> String {
        let mut bytes = token.to_bytes();
        let tag = sealing(&self.current, &bytes).finalize().into_bytes();
        bytes.extend_from_slice(&tag[..TAG]);
        encoding::to_text(&bytes)
    }

    /// The token that was sealed with one of the keys.
    ///
    /// The seal is compared in constant time, before anything of the token is looked at.
    ///
    /// # Errors
    ///
    /// [`InvalidToken::NotSealed`] if it is a token without a seal, [`InvalidToken::BadSeal`] if
    /// the seal does not fit, and the other [`InvalidToken`]s if it is no token at all.
    pub fn open(&self, sealed: &str) -> Result<SessionToken, InvalidToken> {
        let mut space = [0; encoding::LONGEST];
        let bytes = encoding::from_text(sealed, &mut space)?;
        let authentic = bytes
            .split_last_chunk::<TAG>()
            .filter(|(token, tag)| self.fits(token, tag.as_slice()));
        match authentic {
            Some((token, _)) => SessionToken::from_bytes(token),
            None if SessionToken::from_bytes(bytes).is_ok() => Err(InvalidToken::NotSealed),
            None => Err(InvalidToken::BadSeal),
        }
    }

    fn fits(&self, token: &[u8], tag: &[u8]) -> bool {
        std::iter::once(&self.current)
            .chain(&self.accepted)
            .any(|key| sealing(key, token).verify_truncated_left(tag).is_ok())
    }
}

fn keyed(key: &[u8]) -> Result<Hmac<Sha256>, WeakKey> {
    if key.len() < WEAKEST {
        return Err(WeakKey);
    }
    // Of itself HMAC takes keys of any length.
    Hmac::new_from_slice(key).map_err(|_| WeakKey)
}

fn sealing(key: &Hmac<Sha256>, token: &[u8]) -> Hmac<Sha256> {
    key.clone().chain_update(PURPOSE).chain_update(token)
}

impl fmt::Debug for TokenKeys {
    /// How many keys there are, and nothing of them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenKeys")
            .field("keys", &(1 + self.accepted.len()))
            .finish_non_exhaustive()
    }
}
