//! Which ways of logging in are allowed.

/// The ways that a server may ask for; see
/// <https://www.postgresql.org/docs/18/libpq-connect.html#LIBPQ-CONNECT-REQUIRE-AUTH>.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequireAuth(u8);

/// A way of logging in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AuthMethod {
    Password,
    Md5,
    ScramSha256,
    /// The server asks for nothing.
    None,
    /// One that is not known here.
    Other,
}

const KNOWN: &[(&str, AuthMethod)] = &[
    ("password", AuthMethod::Password),
    ("md5", AuthMethod::Md5),
    ("scram-sha-256", AuthMethod::ScramSha256),
    ("none", AuthMethod::None),
    ("gss", AuthMethod::Other),
    ("sspi", AuthMethod::Other),
    ("oauth", AuthMethod::Other),
];

impl AuthMethod {
    const fn bit(self) -> u8 {
        1 << self as u8
    }

    /// Its name in errors.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Password => "password",
            Self::Md5 => "md5",
            Self::ScramSha256 => "scram-sha-256",
            Self::None => "none",
            Self::Other => "another way",
        }
    }
}

impl RequireAuth {
    pub(crate) const EXPECTED: &'static str = "a list of `password`, `md5`, `scram-sha-256` and `none`, or of all that are \
         not allowed, each with `!`";

    #[cfg(test)]
    pub(crate) const SCRAM: Self = Self(AuthMethod::ScramSha256.bit());

    /// Reads the list. Methods are either all allowed or all, with `!`, refused.
    pub(super) fn read(text: &str) -> Option<Self> {
        let refuses = text.trim_start().starts_with('!');
        let mut listed = 0;
        for word in text.split(',') {
            let (name, refused) = match word.trim().strip_prefix('!') {
                Some(name) => (name, true),
                None => (word.trim(), false),
            };
            let (_, method) = KNOWN.iter().find(|(known, _)| *known == name)?;
            if refused != refuses {
                return None;
            }
            listed |= method.bit();
        }
        Some(Self(if refuses { !listed } else { listed }))
    }

    pub(crate) fn allows(self, method: AuthMethod) -> bool {
        self.0 & method.bit() != 0
    }
}

#[cfg(test)]
mod tests {
    use super::AuthMethod::{Md5, None, Password, ScramSha256};
    use super::*;

    #[test]
    fn lists_are_read_as_libpq_reads_them() {
        for (text, allowed) in [
            ("scram-sha-256", vec![ScramSha256]),
            ("scram-sha-256, md5", vec![Md5, ScramSha256]),
            ("none", vec![None]),
            ("!password", vec![Md5, ScramSha256, None]),
            ("!password,!md5,!none", vec![ScramSha256]),
        ] {
            let read = RequireAuth::read(text).unwrap();
            let all = [Password, Md5, ScramSha256, None];
            let found: Vec<_> = all
                .into_iter()
                .filter(|method| read.allows(*method))
                .collect();
            assert_eq!(found, allowed, "{text}");
        }
        for wrong in ["", "scram", "md5,!password", "!md5,password", "md5,,none"] {
            assert_eq!(RequireAuth::read(wrong), Option::None, "{wrong}");
        }
    }
}
