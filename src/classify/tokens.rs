//! A text as its tokens, and what can be asked of them.

use std::borrow::Cow;

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// A key word or an unquoted identifier: case does not matter.
    Word,
    /// An identifier in double quotes: case matters.
    Quoted,
    /// A string constant of any kind.
    Text,
    /// A numeric constant.
    Number,
    /// A bind parameter, `$1`.
    Parameter,
    /// An operator that could be defined by a user.
    Operator,
    /// Any of `( ) [ ] , ; . :`, and `::`, `:=`, `=>`, `..`
    Punctuation,
}

/// One token: its kind and its place in the text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token {
    pub(super) kind: TokenKind,
    pub(super) start: u32,
    pub(super) end: u32,
}

/// A run of tokens together with the text that they were read from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tokens<'a> {
    text: &'a str,
    tokens: &'a [Token],
}

impl<'a> Tokens<'a> {
    pub(super) fn new(text: &'a str, tokens: &'a [Token]) -> Self {
        Self { text, tokens }
    }

    pub(super) fn len(self) -> usize {
        self.tokens.len()
    }

    pub(super) fn is_empty(self) -> bool {
        self.tokens.is_empty()
    }

    /// The tokens from `start` up to and without `end`.
    pub(super) fn slice(self, start: usize, end: usize) -> Self {
        let end = end.min(self.tokens.len());
        let tokens = self.tokens.get(start.min(end)..end).unwrap_or_default();
        Self { tokens, ..self }
    }

    pub(super) fn kind(self, at: usize) -> Option<TokenKind> {
        self.tokens.get(at).map(|token| token.kind)
    }

    /// The token as it was written.
    pub(super) fn raw(self, at: usize) -> &'a str {
        self.tokens
            .get(at)
            .and_then(|token| self.text.get(token.start as usize..token.end as usize))
            .unwrap_or_default()
    }

    /// The value of a string constant, where it does not depend on a setting.
    pub(super) fn string(self, at: usize) -> Option<Cow<'a, str>> {
        let raw = self.raw(at);
        if raw.starts_with('$') {
            let tag = raw.get(1..)?.find('$')? + 2;
            let inner = raw.get(tag..raw.len().checked_sub(tag)?)?;
            return Some(Cow::Borrowed(inner));
        }
        let inner = raw.strip_prefix('\'')?.strip_suffix('\'')?;
        // The meaning of a backslash depends on a setting. A string that goes on in the next line has quotes inside.
        if inner.contains('\\') || inner.replace("''", "").contains('\'') {
            return None;
        }
        Some(if inner.contains('\'') {
            Cow::Owned(inner.replace("''", "'"))
        } else {
            Cow::Borrowed(inner)
        })
    }

    /// The text from the first token to the last.
    pub(super) fn text(self) -> Option<&'a str> {
        let (first, last) = (self.tokens.first()?, self.tokens.last()?);
        self.text.get(first.start as usize..last.end as usize)
    }

    /// Whether the token is this key word (given in lower case), unquoted.
    pub(super) fn is_word(self, at: usize, word: &str) -> bool {
        self.kind(at) == Some(TokenKind::Word) && self.raw(at).eq_ignore_ascii_case(word)
    }

    /// Whether the token is one of these key words (given in lower case), unquoted.
    pub(super) fn is_any(self, at: usize, words: &[&str]) -> bool {
        words.iter().any(|word| self.is_word(at, word))
    }

    /// Whether the token is this punctuation.
    pub(super) fn is(self, at: usize, punctuation: &str) -> bool {
        self.kind(at) == Some(TokenKind::Punctuation) && self.raw(at) == punctuation
    }

    /// The name that the token stands for, if it can be one.
    pub(super) fn name(self, at: usize) -> Option<Cow<'a, str>> {
        let raw = self.raw(at);
        match self.kind(at)? {
            TokenKind::Word if raw.bytes().any(|byte| byte.is_ascii_uppercase()) => {
                Some(Cow::Owned(raw.to_ascii_lowercase()))
            }
            TokenKind::Word => Some(Cow::Borrowed(raw)),
            TokenKind::Quoted => {
                let inner = raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default();
                Some(if inner.contains('"') {
                    Cow::Owned(inner.replace("\"\"", "\""))
                } else {
                    Cow::Borrowed(inner)
                })
            }
            _ => None,
        }
    }
}

/// The statements of a text, without empty ones.
pub(super) fn statements(tokens: Tokens<'_>) -> impl Iterator<Item = Tokens<'_>> {
    let mut start = 0;
    let next = move || {
        let end = end_of_statement(tokens, start)?;
        let statement = tokens.slice(start, end);
        start = end + 1;
        Some(statement)
    };
    std::iter::from_fn(next).filter(|statement| !statement.is_empty())
}

/// Where the statement from `start` on ends: at a semicolon or with the text. Only rules and
/// bodies of functions have semicolons inside.
fn end_of_statement(tokens: Tokens<'_>, start: usize) -> Option<usize> {
    if start >= tokens.len() {
        return None;
    }
    let mut depth = 0_usize;
    let create = tokens.is_word(start, "create");
    let mut body = false;
    for at in start..tokens.len() {
        if create && tokens.is(at, "(") {
            depth += 1;
        } else if tokens.is(at, ")") {
            depth = depth.saturating_sub(1);
        } else if tokens.is(at, ";") && depth == 0 {
            return Some(at);
        } else if create && tokens.is_word(at, "begin") && tokens.is_word(at + 1, "atomic") {
            body = true;
            depth += 1;
        } else if body && tokens.is_word(at, "case") {
            depth += 1;
        } else if body && tokens.is_word(at, "end") {
            depth = depth.saturating_sub(1);
        }
    }
    Some(tokens.len())
}
