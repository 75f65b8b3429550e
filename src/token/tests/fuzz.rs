//! Tokens of any text: they come from strangers.

use bolero::check;

use super::super::SessionToken;
#[cfg(feature = "signed")]
use super::super::TokenKeys;

/// What is read as a token is written and read as the same; nothing panics.
#[test]
fn any_text_as_a_token() {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    #[cfg(feature = "signed")]
    let keys = TokenKeys::new([7; 32]).unwrap();
    check!().with_type::<Vec<u8>>().for_each(|bytes| {
        let letters = bytes
            .iter()
            .map(|byte| match ALPHABET.get(usize::from(*byte)) {
                Some(letter) => char::from(*letter),
                None => char::from(*byte),
            });
        // Nearly every token begins so.
        let letters: String = letters.collect();
        for text in [letters.clone(), format!("A{letters}")] {
            if let Ok(token) = text.parse::<SessionToken>() {
                let written = token.to_string();
                assert_eq!(
                    written.parse::<SessionToken>().as_ref(),
                    Ok(&token),
                    "{text}"
                );
            }
            #[cfg(feature = "signed")]
            assert!(keys.open(&text).is_err(), "{text}");
        }
    });
}
