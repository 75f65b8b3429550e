//! A log sequence number, as PostgreSQL writes it.

use std::fmt;
use std::str::FromStr;

/// What one page of the log holds before its first record.
const PAGE: u64 = 8192;
const PAGE_HEADER: u64 = 0x18;
const SEGMENT_HEADER: u64 = 0x28;

/// A log sequence number: a byte's place in the write-ahead log.
///
/// Written as PostgreSQL's type
/// [`pg_lsn`](https://www.postgresql.org/docs/current/datatype-pg-lsn.html): two hexadecimal
/// numbers with a slash between.
///
/// ```
/// use diesel_replicated::position::Lsn;
///
/// let lsn: Lsn = "16/B374D848".parse()?;
/// assert_eq!(lsn.to_string(), "16/B374D848");
/// assert!(lsn < Lsn(0x17_0000_0000));
/// # Ok::<(), diesel_replicated::position::InvalidLsn>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The end of the last record, for a position at which the next one would begin.
    ///
    /// The next record begins behind the header of its page. If the last one ended with the page
    /// before, no standby says that it has replayed up to behind a header, until something is
    /// written there. No record ends within a header, so nothing is lost by stepping back.
    pub(crate) fn normalised(self) -> Self {
        let within = self.0 % PAGE;
        if within == PAGE_HEADER || within == SEGMENT_HEADER {
            Self(self.0 - within)
        } else {
            self
        }
    }
}

/// As PostgreSQL writes it.
#[cfg(feature = "serde")]
impl serde::Serialize for Lsn {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// A text that is no [`Lsn`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a log sequence number; one looks like `16/B374D848`")]
#[non_exhaustive]
pub struct InvalidLsn;

impl FromStr for Lsn {
    type Err = InvalidLsn;

    fn from_str(text: &str) -> Result<Self, InvalidLsn> {
        let (high, low) = text.split_once('/').ok_or(InvalidLsn)?;
        let part = |part: &str| {
            let hexadecimal = part.bytes().all(|byte| byte.is_ascii_hexdigit());
            if !hexadecimal {
                return Err(InvalidLsn);
            }
            u32::from_str_radix(part, 16).map_err(|_| InvalidLsn)
        };
        Ok(Self(u64::from(part(high)?) << 32 | u64::from(part(low)?)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn texts_go_round(number in any::<u64>()) {
            let lsn = Lsn(number);
            prop_assert_eq!(lsn.to_string().parse(), Ok(lsn));
        }

        #[test]
        fn nothing_else_is_read(text in "\\PC{0,12}") {
            if let Ok(lsn) = text.parse::<Lsn>() {
                prop_assert!(text.contains('/'));
                prop_assert_eq!(lsn.to_string().parse::<Lsn>().unwrap(), lsn);
            }
        }
    }

    #[test]
    fn a_position_behind_a_page_header_is_that_of_the_page() {
        for (raw, end) in [
            ("0/4032018", "0/4032000"),
            ("0/5000028", "0/5000000"),
            ("0/4032019", "0/4032019"),
            ("0/4032000", "0/4032000"),
            ("0/403201F", "0/403201F"),
        ] {
            let raw: Lsn = raw.parse().unwrap();
            assert_eq!(raw.normalised().to_string(), end);
        }
    }
}
