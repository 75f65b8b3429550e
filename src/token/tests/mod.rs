//! Tokens and texts of every kind, and the laws that hold for all of them.

mod fuzz;
#[cfg(feature = "signed")]
mod seal;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;
use proptest::sample::Index;

use super::{InvalidToken, SessionToken, UNKNOWN};
use crate::position::{Lsn, Position};

const CLUSTER: u64 = 7_564_829_157_063_499_121;

/// Texts with `written` and `seen` on timeline 1. Tokens outlive the version that wrote them.
const PINNED: [(&str, Option<u64>, Option<u64>); 4] = [
    ("AWj7rAnFSZ1xAAA", None, None),
    ("AWj7rAnFSZ1xAsiw0ZvrAgA", Some(0x16_B374_5848), None),
    ("AWj7rAnFSZ1xAALIsNOb6wI", None, Some(0x16_B374_D848)),
    (
        "AWj7rAnFSZ1xAsiw0ZvrAgLIsNOb6wI",
        Some(0x16_B374_5848),
        Some(0x16_B374_D848),
    ),
];

fn at(timeline: u32, lsn: u64) -> Position {
    Position::new(timeline, Lsn(lsn))
}

fn both(timeline: u32, lsn: u64) -> SessionToken {
    let position = Some(at(timeline, lsn));
    SessionToken::new(CLUSTER, position, position)
}

/// Numbers of every length, as a byte more or less is what goes wrong.
fn number() -> impl Strategy<Value = u64> {
    (any::<u64>(), 0..u64::BITS).prop_map(|(number, shift)| number >> shift)
}

fn position() -> impl Strategy<Value = Option<Position>> {
    let timeline = (any::<u32>(), 0..u32::BITS).prop_map(|(number, shift)| number >> shift);
    proptest::option::of((timeline, number()).prop_map(|(timeline, lsn)| at(timeline, lsn)))
}

fn token() -> impl Strategy<Value = SessionToken> {
    (number(), position(), position())
        .prop_map(|(cluster, written, seen)| SessionToken::new(cluster, written, seen))
}

/// Few enough of them that two often have something in common.
fn neighbour() -> impl Strategy<Value = SessionToken> {
    let position = || proptest::option::of((1..3u32, 0..3u64).prop_map(|(t, lsn)| at(t, lsn)));
    (position(), position()).prop_map(|(written, seen)| SessionToken::new(CLUSTER, written, seen))
}

fn encoded(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn decoded(text: &str) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(text).unwrap()
}

/// Texts of no kind, texts that are at least base64url, and good texts with one thing done to them.
fn text_like(good: impl Strategy<Value = String> + 'static) -> impl Strategy<Value = String> {
    let bytes = proptest::collection::vec(any::<u8>(), 0..64);
    let good = good.boxed();
    let harmed =
        (good.clone(), any::<(Index, u8)>(), 0..5u8).prop_map(|(text, (place, by), how)| {
            let mut bytes = decoded(&text);
            let index = place.index(bytes.len());
            match how {
                0 => bytes.truncate(index),
                1 => bytes[index] ^= 1 << (by % 8),
                2 => bytes[index] = by,
                3 => bytes.insert(index, by),
                _ => bytes.push(by),
            }
            encoded(&bytes)
        });
    let harmed_text =
        (good, any::<(Index, char)>(), 0..3u8).prop_map(|(text, (place, by), how)| {
            let mut chars: Vec<char> = text.chars().collect();
            let index = place.index(chars.len());
            match how {
                0 => chars.truncate(index),
                1 => chars[index] = by,
                _ => chars.insert(index, by),
            }
            chars.into_iter().collect()
        });
    prop_oneof![
        1 => any::<String>(),
        1 => "[A-Za-z0-9_-]{0,130}",
        1 => bytes.clone().prop_map(|bytes| encoded(&bytes)),
        2 => bytes.prop_map(|bytes| encoded(&[&[1], &bytes[..]].concat())),
        4 => harmed,
        3 => harmed_text,
    ]
}

proptest! {
    #[test]
    fn tokens_go_round(token in token()) {
        let text = token.to_string();
        prop_assert!(text.len() <= 52);
        prop_assert!(text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_'));
        prop_assert_eq!(text.parse(), Ok(token));
    }

    #[test]
    fn tokens_differ_if_their_texts_do(one in neighbour(), other in neighbour()) {
        prop_assert_eq!(one == other, one.to_string() == other.to_string());
    }

    #[test]
    fn merging_is_a_least_upper_bound(
        one in neighbour(),
        two in neighbour(),
        three in neighbour(),
    ) {
        let merged = one.merge(&two);
        prop_assert_eq!(&one.merge(&one), &one);
        prop_assert_eq!(&merged, &two.merge(&one));
        prop_assert_eq!(merged.merge(&three), one.merge(&two.merge(&three)));
        prop_assert!(!one.advances(&merged) && !two.advances(&merged));
        prop_assert_eq!(merged.advances(&one), merged != one);
        // It promises nothing that neither did.
        prop_assert!([one.written(), two.written()].contains(&merged.written()));
        prop_assert!([one.seen(), two.seen()].contains(&merged.seen()));
        prop_assert_eq!(merged.is_empty(), one.is_empty() && two.is_empty());
    }

    #[test]
    fn other_clusters_are_ignored(one in token(), other in token()) {
        prop_assume!(one.cluster() != other.cluster());
        prop_assume!(one.cluster() != UNKNOWN && other.cluster() != UNKNOWN);
        prop_assert_eq!(&one.merge(&other), &one);
        prop_assert_eq!(one.advances(&other), !one.is_empty());
    }
}

proptest! {
    #[test]
    fn who_does_not_know_the_cluster_counts_in_every_one(one in neighbour(), other in neighbour()) {
        let unknown = SessionToken::new(UNKNOWN, other.written(), other.seen());
        prop_assert_eq!(one.merge(&unknown), one.merge(&other));
        prop_assert_eq!(unknown.merge(&one), one.merge(&other));
        prop_assert_eq!(unknown.advances(&one), other.advances(&one));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn what_is_read_is_written_just_so(text in text_like(token().prop_map(|it| it.to_string()))) {
        if let Ok(token) = text.parse::<SessionToken>() {
            prop_assert_eq!(token.to_string(), text);
        }
    }
}

#[test]
fn the_text_of_a_token_does_not_change() {
    for (text, written, seen) in PINNED {
        let position = |lsn: Option<u64>| lsn.map(|lsn| at(1, lsn));
        let token = SessionToken::new(CLUSTER, position(written), position(seen));
        assert_eq!(token.to_string(), text);
        assert_eq!(text.parse(), Ok(token));
    }
}

#[test]
fn tokens_are_short() {
    for (token, length) in [
        (SessionToken::new(CLUSTER, None, None), 15),
        (both(1, 0x0016_B374_5848), 31),
        (both(126, (512 << 40) - 1), 34),
        (both(u32::MAX, u64::MAX), 52),
    ] {
        assert_eq!(token.to_string().len(), length);
    }
}

#[test]
fn each_fault_has_its_name() {
    let body = decoded(PINNED[1].0);
    let after_cluster = |bytes: &[u8]| encoded(&[&body[..9], bytes].concat());
    let eleven = [0xFF; 11];
    for (text, fault) in [
        (String::new(), InvalidToken::Malformed),
        (format!("{}=", PINNED[1].0), InvalidToken::NotBase64Url),
        (format!(" {}", PINNED[1].0), InvalidToken::NotBase64Url),
        // Two bits of the last character belong to no byte.
        ("AWj7rAnFSZ1xAAB".to_owned(), InvalidToken::NotBase64Url),
        ("AR".to_owned(), InvalidToken::NotBase64Url),
        ("+/".to_owned(), InvalidToken::NotBase64Url),
        ("A".repeat(128), InvalidToken::UnknownVersion),
        ("A".repeat(129), InvalidToken::TooLong),
        ("ö".repeat(65), InvalidToken::TooLong),
        (encoded(&[2]), InvalidToken::UnknownVersion),
        (encoded(&[1]), InvalidToken::Malformed),
        (after_cluster(&[0]), InvalidToken::Malformed),
        (after_cluster(&[0, 0, 0]), InvalidToken::Malformed),
        // Numbers with a byte too many, without an end, and beyond their type.
        (after_cluster(&[0x80, 0, 0]), InvalidToken::Malformed),
        (after_cluster(&[2, 0x85, 0, 0]), InvalidToken::Malformed),
        (after_cluster(&eleven), InvalidToken::Malformed),
        (
            after_cluster(&[&[2], &eleven[..9], &[2, 0]].concat()),
            InvalidToken::Malformed,
        ),
        (
            after_cluster(&[0x81, 0x80, 0x80, 0x80, 0x10, 5, 0]),
            InvalidToken::Malformed,
        ),
    ] {
        assert_eq!(text.parse::<SessionToken>(), Err(fault), "{text}");
    }
    // The last two, one less.
    for good in [
        after_cluster(&[&[2], &eleven[..9], &[1, 0]].concat()),
        after_cluster(&[0x80, 0x80, 0x80, 0x80, 0x10, 5, 0]),
    ] {
        assert_eq!(good.parse::<SessionToken>().unwrap().to_string(), good);
    }
}

#[test]
fn a_place_that_was_not_learnt_has_its_timeline() {
    let token = SessionToken::new(7, Some(Position::somewhere(3)), None);
    let text = token.to_string();
    let read: SessionToken = text.parse().unwrap();
    let written = read.written().unwrap();
    assert!(written.is_somewhere() && written.home() == 3);
    assert!(text.len() <= 34, "{text}");
    // As they were before they had one.
    let old = SessionToken::new(7, Some(at(u32::MAX, 0)), None);
    let old: SessionToken = old.to_string().parse().unwrap();
    assert!(old.written().unwrap().is_somewhere());
    assert_eq!(old.written().unwrap().home(), 0);
    // It is later than all that is known; that of the newer timeline is the later one.
    let known = SessionToken::new(7, Some(at(9, 9)), None);
    assert_eq!(known.merge(&read), read);
    assert_eq!(old.merge(&read), read);
}

#[test]
fn a_newer_timeline_is_later_whatever_its_numbers() {
    let (old, new) = (both(1, 900), both(2, 5));
    assert_eq!(old.merge(&new), new);
    assert!(new.advances(&old) && !old.advances(&new));
}

#[cfg(feature = "serde")]
#[test]
fn serde_has_the_same_text() {
    let token = both(1, 0x16_B374_5848);
    let json = serde_json::to_string(&token).unwrap();
    assert_eq!(json, format!("\"{token}\""));
    assert_eq!(serde_json::from_str::<SessionToken>(&json).unwrap(), token);
    // Where nothing can be borrowed.
    let value = serde_json::to_value(&token).unwrap();
    assert_eq!(
        serde_json::from_value::<SessionToken>(value).unwrap(),
        token
    );
    let error = serde_json::from_str::<SessionToken>("\"<script>\"").unwrap_err();
    assert!(!error.to_string().contains("script"), "{error}");
}
