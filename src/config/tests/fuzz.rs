//! Connection strings of any bytes.

use bolero::check;

use super::super::conn_string::ConnString;
use crate::config::Config;

/// What connection strings are made of, so that most inputs come further than the first character.
const PIECES: &[&str] = &[
    "postgres://",
    "postgresql://",
    "host=",
    "port=",
    "user=",
    "password=",
    "dbname=",
    "options=",
    "db1",
    "db2",
    ":",
    "5432",
    "@",
    "/",
    "?",
    "&",
    "=",
    ",",
    "%40",
    "%2F",
    "%",
    "%zz",
    "[::1]",
    "[",
    "]",
    "'",
    "\\",
    " ",
    "max_size=",
    "weights=3,1",
    "consistency=strong",
    "connect_timeout=",
    "sslmode=",
    "#",
    "+",
    ";",
    "é",
    "\0",
    "\n",
];

fn text(bytes: &[u8]) -> String {
    let piece = |byte: &u8| match PIECES.get(usize::from(*byte)) {
        Some(piece) => (*piece).to_owned(),
        None => char::from(*byte).to_string(),
    };
    bytes.iter().map(piece).collect()
}

/// Whatever is accepted is written so that it is read as the same, and nothing panics.
#[test]
fn any_connection_string() {
    check!().with_type::<Vec<u8>>().for_each(|bytes| {
        let text = text(bytes);
        let _ = Config::from_url(&text).map(|config| format!("{config:?}"));
        if let Ok(parsed) = ConnString::parse(&text) {
            let _ = parsed.addresses();
            let url = parsed.to_url();
            let again =
                ConnString::parse(&url).unwrap_or_else(|error| panic!("{text:?} {url:?}: {error}"));
            assert_eq!(again.to_url(), url, "{text:?}");
            assert_eq!(again.password, parsed.password, "{text:?}");
        }
    });
}
