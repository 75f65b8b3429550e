//! Durations as people write them: `30s`, `250ms`, `10min`, or a plain number of seconds.

use std::time::Duration;

/// What [`parse`] reads, for errors.
pub(crate) const EXPECTED: &str =
    "a duration, such as 30 (seconds), 2.5, `250ms`, `30s`, `10min` or `1h`";

/// What [`parse_limit`] reads, for errors.
pub(crate) const EXPECTED_LIMIT: &str =
    "a duration, such as 30 (seconds), 2.5, `250ms`, `30s`, `10min` or `1h`, nor `never`";

/// What `humantime` reads, and a plain number for seconds.
pub(crate) fn parse(text: &str) -> Option<Duration> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok().map(Duration::from_secs);
    }
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    match text.split_once('.') {
        Some((whole, fraction)) if number(whole) && number(fraction) => {
            Duration::try_from_secs_f64(text.parse().ok()?).ok()
        }
        _ => humantime::parse_duration(text).ok(),
    }
}

/// As [`parse`], and `never` for no limit.
pub(crate) fn parse_limit(text: &str) -> Option<Option<Duration>> {
    if text.trim() == "never" {
        Some(None)
    } else {
        parse(text).map(Some)
    }
}

/// The shortest exact text: [`parse`] reads it back as the same duration.
pub(crate) fn format(duration: Duration) -> String {
    let (seconds, rest) = (duration.as_secs(), duration.subsec_nanos());
    match (seconds, rest) {
        (_, 0) => format!("{seconds}s"),
        (0, _) if rest % 1_000_000 == 0 => format!("{}ms", rest / 1_000_000),
        (0, _) if rest % 1_000 == 0 => format!("{}us", rest / 1_000),
        (0, _) => format!("{rest}ns"),
        (_, _) if rest % 1_000_000 == 0 => format!("{seconds}s{}ms", rest / 1_000_000),
        _ => format!("{seconds}s{rest}ns"),
    }
}

/// How serde writes and reads the durations: as the texts above, or as a number of seconds.
#[cfg(feature = "serde")]
pub(crate) mod human {
    use std::fmt;
    use std::time::Duration;

    use serde::de::{Deserializer, Error, Visitor};
    use serde::ser::Serializer;

    struct Limit;

    impl Visitor<'_> for Limit {
        /// `None` for `never`.
        type Value = Option<Duration>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(super::EXPECTED)
        }

        fn visit_u64<E: Error>(self, seconds: u64) -> Result<Self::Value, E> {
            Ok(Some(Duration::from_secs(seconds)))
        }

        fn visit_i64<E: Error>(self, seconds: i64) -> Result<Self::Value, E> {
            let seconds =
                u64::try_from(seconds).map_err(|_| E::custom("a duration cannot be negative"))?;
            self.visit_u64(seconds)
        }

        fn visit_f64<E: Error>(self, seconds: f64) -> Result<Self::Value, E> {
            Duration::try_from_secs_f64(seconds)
                .map(Some)
                .map_err(|_| E::custom("a duration cannot be negative or infinite"))
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
            super::parse_limit(text)
                .ok_or_else(|| E::custom(format_args!("expected {}", super::EXPECTED)))
        }
    }

    /// A duration, or one that `never` turns off.
    pub(crate) trait Human: Sized {
        fn text(&self) -> String;
        /// `None` is `never`.
        fn of(limit: Option<Duration>) -> Option<Self>;
    }

    impl Human for Duration {
        fn text(&self) -> String {
            super::format(*self)
        }

        fn of(limit: Option<Duration>) -> Option<Self> {
            limit
        }
    }

    impl Human for Option<Duration> {
        fn text(&self) -> String {
            self.map_or_else(|| "never".to_owned(), super::format)
        }

        fn of(limit: Self) -> Option<Self> {
            Some(limit)
        }
    }

    pub(crate) fn serialize<T: Human, S: Serializer>(value: &T, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&value.text())
    }

    pub(crate) fn deserialize<'de, T: Human, D: Deserializer<'de>>(d: D) -> Result<T, D::Error> {
        let limit = d.deserialize_any(Limit)?;
        T::of(limit).ok_or_else(|| D::Error::custom("this duration cannot be `never`"))
    }

    /// One that may be left out; it is then not written at all.
    pub(crate) mod optional {
        use super::{Deserializer, Human, Serializer};

        #[expect(clippy::ref_option, reason = "the signature that serde calls")]
        pub(crate) fn serialize<T: Human, S: Serializer>(
            value: &Option<T>,
            s: S,
        ) -> Result<S::Ok, S::Error> {
            match value {
                Some(value) => super::serialize(value, s),
                None => s.serialize_none(),
            }
        }

        pub(crate) fn deserialize<'de, T: Human, D: Deserializer<'de>>(
            d: D,
        ) -> Result<Option<T>, D::Error> {
            super::deserialize(d).map(Some)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, millis) in [
            ("30", 30_000),
            ("2.5", 2_500),
            (" 250ms ", 250),
            ("30s", 30_000),
            ("1.5 s", 1_500),
            ("10min", 600_000),
            ("10m", 600_000),
            ("1h", 3_600_000),
            ("2d", 172_800_000),
            ("0", 0),
        ] {
            assert_eq!(parse(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "",
            "s",
            ".5",
            "1.",
            "1.2.3",
            "-1",
            "+1",
            "1e3",
            "never",
            "5 fortnights",
            "1 s s",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse(&"9".repeat(60)), None);
        assert_eq!(parse_limit("never"), Some(None));
    }

    #[test]
    fn writes_what_it_reads() {
        for duration in [
            Duration::ZERO,
            Duration::from_secs(90),
            Duration::from_millis(1_250),
            Duration::from_nanos(1),
            Duration::MAX,
        ] {
            assert_eq!(parse(&format(duration)), Some(duration));
        }
        assert_eq!(format(Duration::from_millis(250)), "250ms");
    }
}
