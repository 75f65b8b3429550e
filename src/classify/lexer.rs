//! The tokens of a text, by the rules of PostgreSQL's own lexer.
//!
//! Nothing here recurses, so no text can exhaust the stack. Where versions or settings of the
//! server would read a text differently (`standard_conforming_strings`, junk after numbers), the
//! text counts as unreadable rather than as one of its readings.

use super::tokens::{Token, TokenKind};

/// Longer texts are not read at all.
pub(super) const MAX_TEXT: usize = 1 << 20;

/// The server truncates longer identifiers. They then name something else.
const MAX_IDENTIFIER: usize = 63;

/// No sensible statement has more operator characters in a row. Where an operator ends depends on all that follow, so
/// the lexer reads them again for each operator.
const MAX_OPERATORS: usize = 256;

/// The text cannot be read, or could be read in more than one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unreadable;

/// Reads the tokens of a text; comments and white space are left out.
pub(super) fn tokens(text: &str) -> Result<Vec<Token>, Unreadable> {
    if text.len() > MAX_TEXT || text.contains('\0') {
        return Err(Unreadable);
    }
    let mut lexer = Lexer {
        bytes: text.as_bytes(),
        at: 0,
        after_escape_string: false,
    };
    let mut tokens = Vec::with_capacity(text.len() / 5);
    while let Some((kind, start)) = lexer.next_token()? {
        tokens.push(Token {
            kind,
            start: u32::try_from(start).map_err(|_| Unreadable)?,
            end: u32::try_from(lexer.at).map_err(|_| Unreadable)?,
        });
    }
    Ok(tokens)
}

struct Lexer<'a> {
    bytes: &'a [u8],
    at: usize,
    /// `E'…'` may go on in a further `'…'` on the next line, with the rules of the first.
    after_escape_string: bool,
}

const fn starts_identifier(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

const fn continues_identifier(byte: u8) -> bool {
    starts_identifier(byte) || byte.is_ascii_digit() || byte == b'$'
}

const fn is_operator(byte: u8) -> bool {
    matches!(
        byte,
        b'~' | b'!'
            | b'@'
            | b'#'
            | b'^'
            | b'&'
            | b'|'
            | b'`'
            | b'?'
            | b'+'
            | b'-'
            | b'*'
            | b'/'
            | b'%'
            | b'<'
            | b'>'
            | b'='
    )
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> u8 {
        // No text holds a zero byte, so zero means the end.
        self.bytes.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn next_token(&mut self) -> Result<Option<(TokenKind, usize)>, Unreadable> {
        self.skip_blanks()?;
        let start = self.at;
        let after_escape_string = std::mem::take(&mut self.after_escape_string);
        let kind = match self.peek(0) {
            0 => return Ok(None),
            b'\'' if after_escape_string => return Err(Unreadable),
            b'\'' => self.string()?,
            b'"' => self.quoted()?,
            b'$' => self.dollar()?,
            b'0'..=b'9' => self.number()?,
            b'.' if self.peek(1).is_ascii_digit() => self.number()?,
            byte if starts_identifier(byte) => self.word()?,
            b'(' | b')' | b'[' | b']' | b',' | b';' => self.punctuation(1),
            b'.' => self.punctuation(if self.peek(1) == b'.' { 2 } else { 1 }),
            b':' => self.punctuation(if matches!(self.peek(1), b':' | b'=') {
                2
            } else {
                1
            }),
            byte if is_operator(byte) => self.operator()?,
            _ => return Err(Unreadable),
        };
        Ok(Some((kind, start)))
    }

    fn punctuation(&mut self, length: usize) -> TokenKind {
        self.at += length;
        TokenKind::Punctuation
    }

    fn skip_blanks(&mut self) -> Result<(), Unreadable> {
        loop {
            match (self.peek(0), self.peek(1)) {
                (b' ' | b'\t' | b'\n' | b'\r' | 0x0c, _) => self.at += 1,
                (b'-', b'-') => {
                    while !matches!(self.peek(0), 0 | b'\n' | b'\r') {
                        self.at += 1;
                    }
                }
                (b'/', b'*') => self.block_comment()?,
                _ => return Ok(()),
            }
        }
    }

    fn block_comment(&mut self) -> Result<(), Unreadable> {
        let mut depth = 0_usize;
        loop {
            match (self.peek(0), self.peek(1)) {
                (b'/', b'*') => {
                    depth += 1;
                    self.at += 2;
                }
                (b'*', b'/') => {
                    depth -= 1;
                    self.at += 2;
                    if depth == 0 {
                        return Ok(());
                    }
                }
                (0, _) => return Err(Unreadable),
                _ => self.at += 1,
            }
        }
    }

    /// A string by the standard rules: a backslash is only a backslash.
    fn string(&mut self) -> Result<TokenKind, Unreadable> {
        self.at += 1;
        let mut backslashes = 0_usize;
        loop {
            match self.peek(0) {
                0 => return Err(Unreadable),
                // Without `standard_conforming_strings` this quote would not end the string.
                b'\'' if backslashes % 2 == 1 => return Err(Unreadable),
                b'\'' if self.peek(1) == b'\'' => {
                    self.at += 2;
                    backslashes = 0;
                }
                b'\'' => {
                    self.at += 1;
                    return Ok(TokenKind::Text);
                }
                b'\\' => {
                    self.at += 1;
                    backslashes += 1;
                }
                _ => {
                    self.at += 1;
                    backslashes = 0;
                }
            }
        }
    }

    fn escape_string(&mut self) -> Result<TokenKind, Unreadable> {
        self.at += 1;
        loop {
            match self.peek(0) {
                0 => return Err(Unreadable),
                b'\'' if self.peek(1) == b'\'' => self.at += 2,
                b'\\' if self.peek(1) != 0 => self.at += 2,
                b'\'' => {
                    self.at += 1;
                    self.after_escape_string = true;
                    return Ok(TokenKind::Text);
                }
                _ => self.at += 1,
            }
        }
    }

    fn quoted(&mut self) -> Result<TokenKind, Unreadable> {
        let start = self.at;
        self.at += 1;
        loop {
            match self.peek(0) {
                0 => return Err(Unreadable),
                b'"' if self.peek(1) == b'"' => self.at += 2,
                b'"' => {
                    self.at += 1;
                    let length = self.at - start - 2;
                    return if length == 0 || length > MAX_IDENTIFIER {
                        Err(Unreadable)
                    } else {
                        Ok(TokenKind::Quoted)
                    };
                }
                _ => self.at += 1,
            }
        }
    }

    /// `$1` or `$tag$ … $tag$`.
    fn dollar(&mut self) -> Result<TokenKind, Unreadable> {
        if self.peek(1).is_ascii_digit() {
            self.at += 1;
            while self.peek(0).is_ascii_digit() {
                self.at += 1;
            }
            return self.not_before_identifier(TokenKind::Parameter);
        }
        let mut length = 1;
        while self.peek(length) != b'$' {
            let byte = self.peek(length);
            let tag = starts_identifier(byte) || length > 1 && byte.is_ascii_digit();
            if !tag {
                return Err(Unreadable);
            }
            length += 1;
        }
        let (_, rest) = self.bytes.split_at(self.at);
        let (tag, body) = rest.split_at(length + 1);
        let mut from = 0;
        while let Some(dollar) = find(body, from, b'$') {
            if body.get(dollar..).is_some_and(|rest| rest.starts_with(tag)) {
                self.at += tag.len() + dollar + tag.len();
                return Ok(TokenKind::Text);
            }
            from = dollar + 1;
        }
        Err(Unreadable)
    }

    fn number(&mut self) -> Result<TokenKind, Unreadable> {
        while self.peek(0).is_ascii_digit() {
            self.at += 1;
        }
        if self.peek(0) == b'.' && self.peek(1) != b'.' {
            self.at += 1;
            while self.peek(0).is_ascii_digit() {
                self.at += 1;
            }
        }
        if matches!(self.peek(0), b'e' | b'E') {
            let sign = usize::from(matches!(self.peek(1), b'+' | b'-'));
            if self.peek(1 + sign).is_ascii_digit() {
                self.at += 1 + sign;
                while self.peek(0).is_ascii_digit() {
                    self.at += 1;
                }
            }
        }
        self.not_before_identifier(TokenKind::Number)
    }

    /// `1for` and `$1for` are two tokens to older servers and an error to newer ones.
    fn not_before_identifier(&self, kind: TokenKind) -> Result<TokenKind, Unreadable> {
        if starts_identifier(self.peek(0)) {
            Err(Unreadable)
        } else {
            Ok(kind)
        }
    }

    fn word(&mut self) -> Result<TokenKind, Unreadable> {
        match (self.peek(0), self.peek(1), self.peek(2)) {
            (b'e' | b'E', b'\'', _) => {
                self.at += 1;
                return self.escape_string();
            }
            (b'b' | b'B' | b'x' | b'X' | b'n' | b'N', b'\'', _) => {
                self.at += 1;
                return self.string();
            }
            (b'u' | b'U', b'&', b'\'') => {
                self.at += 2;
                return self.string();
            }
            // An identifier that says what it is only after decoding.
            (b'u' | b'U', b'&', b'"') => return Err(Unreadable),
            _ => {}
        }
        let start = self.at;
        while continues_identifier(self.peek(0)) {
            self.at += 1;
        }
        if self.at - start > MAX_IDENTIFIER {
            return Err(Unreadable);
        }
        Ok(TokenKind::Word)
    }

    fn operator(&mut self) -> Result<TokenKind, Unreadable> {
        let start = self.at;
        while is_operator(self.peek(0)) {
            if self.at - start == MAX_OPERATORS {
                return Err(Unreadable);
            }
            if matches!((self.peek(0), self.peek(1)), (b'-', b'-') | (b'/', b'*'))
                && self.at > start
            {
                break;
            }
            self.at += 1;
        }
        let may_end_in_sign = self.bytes.get(start..self.at).is_some_and(|operator| {
            operator.iter().any(|byte| {
                matches!(
                    byte,
                    b'~' | b'!' | b'@' | b'#' | b'^' | b'&' | b'|' | b'`' | b'?' | b'%'
                )
            })
        });
        while !may_end_in_sign
            && self.at - start > 1
            && self
                .bytes
                .get(self.at - 1)
                .is_some_and(|byte| matches!(byte, b'+' | b'-'))
        {
            self.at -= 1;
        }
        Ok(
            if self.bytes.get(start..self.at) == Some(b"=>".as_slice()) {
                TokenKind::Punctuation
            } else {
                TokenKind::Operator
            },
        )
    }
}

fn find(bytes: &[u8], from: usize, wanted: u8) -> Option<usize> {
    bytes
        .get(from..)?
        .iter()
        .position(|byte| *byte == wanted)
        .map(|offset| from + offset)
}
