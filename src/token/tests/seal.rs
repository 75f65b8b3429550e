//! Seals: what opens, and all that must not.

use proptest::prelude::*;

use super::{CLUSTER, PINNED, at, both, decoded, encoded, text_like, token};
use crate::token::{InvalidToken, SessionToken, TokenKeys, WeakKey};

fn keys() -> TokenKeys {
    TokenKeys::new([7; 32]).unwrap()
}

proptest! {
    #[test]
    fn sealed_tokens_go_round(token in token()) {
        let sealed = keys().seal(&token);
        prop_assert!(sealed.len() <= 74);
        prop_assert_eq!(keys().open(&sealed), Ok(token.clone()));
        // Neither kind is taken for the other.
        prop_assert_eq!(sealed.parse::<SessionToken>(), Err(InvalidToken::Malformed));
        prop_assert_eq!(keys().open(&token.to_string()), Err(InvalidToken::NotSealed));
    }

    #[test]
    fn nobody_elses_seal_opens(token in token(), key in proptest::collection::vec(any::<u8>(), 16..80)) {
        prop_assume!(key != [7; 32]);
        let sealed = TokenKeys::new(key).unwrap().seal(&token);
        prop_assert_eq!(keys().open(&sealed), Err(InvalidToken::BadSeal));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn only_what_was_sealed_opens(text in text_like(token().prop_map(|it| keys().seal(&it)))) {
        if let Ok(token) = keys().open(&text) {
            prop_assert_eq!(keys().seal(&token), text);
        }
    }
}

#[test]
fn no_byte_of_a_sealed_token_can_be_changed() {
    let sealed = keys().seal(&both(3, 0x16_B374_5848));
    let bytes = decoded(&sealed);
    for place in 0..bytes.len() {
        for change in 1..=u8::MAX {
            let mut bytes = bytes.clone();
            bytes[place] ^= change;
            assert_eq!(keys().open(&encoded(&bytes)), Err(InvalidToken::BadSeal));
        }
        assert!(keys().open(&encoded(&bytes[..place])).is_err());
    }
}

#[test]
fn no_character_of_a_sealed_token_can_be_changed() {
    let sealed = keys().seal(&both(3, 0x16_B374_5848));
    for place in 0..sealed.len() {
        for by in (0..=127u8).map(char::from) {
            let mut changed = sealed.clone();
            changed.replace_range(place..=place, by.encode_utf8(&mut [0; 4]));
            assert!(changed == sealed || keys().open(&changed).is_err());
        }
    }
}

#[test]
fn the_seal_does_not_change() {
    let token: SessionToken = PINNED[3].0.parse().unwrap();
    let sealed = "AWj7rAnFSZ1xAsiw0ZvrAgLIsNOb6wL1ZpN-mBGvTM8pYmfHyZqJ";
    assert_eq!(keys().seal(&token), sealed);
    assert_eq!(keys().open(sealed), Ok(token));
}

#[test]
fn sealed_tokens_are_short() {
    for (token, length) in [
        (SessionToken::new(CLUSTER, None, None), 36),
        (both(1, 0x16_B374_5848), 52),
        (both(126, (512 << 40) - 1), 55),
        (both(u32::MAX, u64::MAX), 74),
    ] {
        assert_eq!(keys().seal(&token).len(), length);
    }
}

#[test]
fn keys_change_without_refusing_anyone() {
    let (old, new) = ([6; 32], [7; 32]);
    let token = both(1, 5);
    let before = TokenKeys::new(old).unwrap();
    let announced = before.clone().accept(new).unwrap();
    let changed = TokenKeys::new(new).unwrap().accept(old).unwrap();
    let after = TokenKeys::new(new).unwrap();
    assert_eq!(announced.seal(&token), before.seal(&token));
    assert_eq!(changed.seal(&token), after.seal(&token));
    for keys in [&before, &announced, &changed] {
        assert_eq!(keys.open(&before.seal(&token)), Ok(token.clone()));
    }
    for keys in [&announced, &changed, &after] {
        assert_eq!(keys.open(&after.seal(&token)), Ok(token.clone()));
    }
    assert_eq!(after.open(&before.seal(&token)), Err(InvalidToken::BadSeal));
    assert_eq!(before.open(&after.seal(&token)), Err(InvalidToken::BadSeal));
}

#[test]
fn a_sealed_text_is_not_read_before_its_seal() {
    let token = SessionToken::new(CLUSTER, Some(at(1, 5)), None);
    let mut bytes = decoded(&keys().seal(&token));
    bytes[0] = 9;
    // Of another version, says whoever made it; but nobody vouches for that.
    assert_eq!(keys().open(&encoded(&bytes)), Err(InvalidToken::BadSeal));
    assert_eq!(keys().open(""), Err(InvalidToken::BadSeal));
    assert_eq!(keys().open("?"), Err(InvalidToken::NotBase64Url));
    assert_eq!(keys().open(&"A".repeat(129)), Err(InvalidToken::TooLong));
}

#[test]
fn keys_are_neither_weak_nor_shown() {
    assert_eq!(TokenKeys::new("fifteen bytes.,").unwrap_err(), WeakKey);
    assert!(TokenKeys::new("sixteen bytes.,;").is_ok());
    assert_eq!(keys().accept([0; 15]).unwrap_err(), WeakKey);
    let two = keys().accept("a second key, long enough").unwrap();
    assert_eq!(format!("{two:?}"), "TokenKeys { keys: 2, .. }");
}
