//! What cookies say, and what is found in headers; no server takes part.

use std::time::Duration;

use http::header::{CACHE_CONTROL, COOKIE, SET_COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::carrier::{Carrier, MOST, TokenPlace};
use super::error::InvalidCarrier;
use super::{SameSite, SessionCookie};
use crate::token::SessionToken;

const TEXT: &str = "AWj7rAnFSZ1xAsiw0ZvrAgLIsNOb6wI";
const OTHER: &str = "AWj7rAnFSZ1xAsiw0ZvrAgA";

fn token() -> SessionToken {
    TEXT.parse().unwrap()
}

fn header() -> Carrier {
    Carrier {
        place: TokenPlace::Header(HeaderName::from_static("x-session-token")),
        ..Carrier::default()
    }
}

fn read(carrier: &Carrier, name: HeaderName, values: &[&[u8]]) -> Vec<String> {
    let mut headers = HeaderMap::new();
    for value in values {
        headers.append(&name, HeaderValue::from_bytes(value).unwrap());
    }
    let tokens = carrier.read(&headers);
    tokens.iter().map(ToString::to_string).collect()
}

#[test]
fn the_cookie_is_careful_unless_told_otherwise() {
    let careful = SessionCookie::default().set("abc".to_owned()).unwrap();
    assert_eq!(
        careful,
        "drs=abc; HttpOnly; SameSite=Lax; Secure; Path=/; Max-Age=3600"
    );
    let told = SessionCookie::named("blog")
        .and_then(|cookie| cookie.path("/blog"))
        .and_then(|cookie| cookie.domain("example.com"))
        .unwrap()
        .max_age(Duration::from_millis(90_500))
        .same_site(SameSite::Strict)
        .secure(false)
        .http_only(false);
    assert_eq!(
        told.set("abc".to_owned()).unwrap(),
        "blog=abc; SameSite=Strict; Path=/blog; Domain=example.com; Max-Age=90"
    );
    let forever = SessionCookie::default().max_age(Duration::MAX);
    assert!(forever.set("abc".to_owned()).is_some());
}

#[test]
fn what_no_cookie_can_have_is_refused() {
    for name in ["", "a b", "a=b", "a;b", "ä", "a\r\nb"] {
        let error = SessionCookie::named(name).unwrap_err();
        assert_eq!(error, InvalidCarrier::CookieName(name.to_owned()));
    }
    for path in ["", "blog", "/a;b", "/a\nb", "/ä"] {
        let error = SessionCookie::default().path(path).unwrap_err();
        assert_eq!(error, InvalidCarrier::CookiePath(path.to_owned()));
    }
    for domain in ["", "a;b", "a\r\nb", "ä.example"] {
        let error = SessionCookie::default().domain(domain).unwrap_err();
        assert_eq!(error, InvalidCarrier::CookieDomain(domain.to_owned()));
    }
}

#[test]
fn the_token_is_found_among_other_cookies() {
    let carrier = Carrier::default();
    let found = |values: &[&[u8]]| read(&carrier, COOKIE, values);
    let own = format!("drs={TEXT}");
    assert_eq!(found(&[own.as_bytes()]), [TEXT]);
    let among = format!("a=1; =; drs=\"{TEXT}\"; ;drsx={OTHER};b");
    assert_eq!(found(&[among.as_bytes()]), [TEXT]);
    // Others may write what they like.
    let bytes = [b"a=\xff\xfe; drs=", TEXT.as_bytes()].concat();
    assert_eq!(found(&[b"\xe4", &bytes]), [TEXT]);
    let both = format!("drs={OTHER}");
    assert_eq!(
        found(&[own.as_bytes(), b"drs=nonsense", both.as_bytes()]),
        [TEXT, OTHER]
    );
    assert!(found(&[format!("DRS={TEXT}").as_bytes()]).is_empty());
}

#[test]
fn several_tokens_may_come_in_headers() {
    let found = |values: &[&[u8]]| {
        read(
            &header(),
            HeaderName::from_static("x-session-token"),
            values,
        )
    };
    assert_eq!(found(&[TEXT.as_bytes(), OTHER.as_bytes()]), [TEXT, OTHER]);
    let list = format!("{TEXT} ,\t{OTHER},,\u{fc}");
    assert_eq!(found(&[list.as_bytes()]), [TEXT, OTHER]);
    let many = format!("{TEXT},").repeat(1000);
    assert_eq!(found(&[many.as_bytes()]).len(), 8);
    let long = "A".repeat(60_000);
    assert!(found(&[long.as_bytes()]).is_empty());
}

#[test]
fn answers_keep_what_handlers_say() {
    let mut headers = HeaderMap::new();
    Carrier::default().write(&token(), &mut headers);
    assert_eq!(headers[CACHE_CONTROL], "private");
    let mut headers = HeaderMap::new();
    headers.insert(SET_COOKIE, HeaderValue::from_static("theirs=1"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Carrier::default().write(&token(), &mut headers);
    let cookies: Vec<_> = headers.get_all(SET_COOKIE).into_iter().collect();
    assert_eq!(cookies.len(), 2);
    assert_eq!(cookies[0], "theirs=1");
    assert_eq!(headers.get_all(CACHE_CONTROL).into_iter().count(), 1);
    assert_eq!(headers[CACHE_CONTROL], "no-store");
    header().write(&token(), &mut headers);
    assert_eq!(headers["x-session-token"], TEXT);
}

#[cfg(feature = "signed")]
#[test]
fn only_what_the_keys_sealed_is_taken() {
    use crate::token::TokenKeys;

    let with = |keys| Carrier {
        keys: Some(keys),
        ..header()
    };
    let keys = |key: u8| TokenKeys::new([key; 32]).unwrap();
    let sealed = |key| {
        let mut headers = HeaderMap::new();
        with(keys(key)).write(&token(), &mut headers);
        headers["x-session-token"].to_str().unwrap().to_owned()
    };
    let name = || HeaderName::from_static("x-session-token");
    let rotated = with(keys(2).accept([1; 32]).unwrap());
    for (text, taken) in [
        (sealed(1), true),
        (sealed(2), true),
        (sealed(3), false),
        (TEXT.to_owned(), false),
    ] {
        let found = read(&rotated, name(), &[text.as_bytes()]);
        assert_eq!(!found.is_empty(), taken);
    }
    assert!(read(&header(), name(), &[sealed(1).as_bytes()]).is_empty());
}

/// Headers come from strangers: whatever they say, no more tokens are read than there may be, and one's own is found
/// among other cookies.
#[test]
fn any_headers_of_a_request() {
    bolero::check!()
        .with_type::<Vec<Vec<u8>>>()
        .for_each(|values| {
            for (carrier, name) in [
                (Carrier::default(), COOKIE),
                (header(), HeaderName::from_static("x-session-token")),
            ] {
                let mut headers = HeaderMap::new();
                for value in values {
                    let value = value.iter().map(|byte| byte % 96 + 32).collect::<Vec<u8>>();
                    if let Ok(value) = HeaderValue::from_bytes(&value) {
                        headers.append(&name, value);
                    }
                }
                assert!(carrier.read(&headers).len() <= MOST);
                let mut answer = HeaderMap::new();
                carrier.write(&token(), &mut answer);
                assert!(!answer.is_empty());
            }
        });
}
