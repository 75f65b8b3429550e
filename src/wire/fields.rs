//! The fields of errors and notices that are used.
//!
//! See <https://www.postgresql.org/docs/current/protocol-error-fields.html>.

/// The fields of an `ErrorResponse` or `NoticeResponse` that are used.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Fields<'a> {
    pub(super) severity: &'a [u8],
    pub(super) code: &'a [u8],
    pub(super) message: &'a [u8],
    /// The C function that raised it, which no language setting translates.
    pub(super) routine: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn parse(payload: &'a [u8]) -> Self {
        let mut fields = Self::default();
        for field in payload.split(|byte| *byte == 0) {
            match field.split_first() {
                // `V` is the severity that is never translated.
                Some((b'V', value)) => fields.severity = value,
                Some((b'C', value)) => fields.code = value,
                Some((b'M', value)) => fields.message = value,
                Some((b'R', value)) => fields.routine = value,
                _ => {}
            }
        }
        fields
    }

    pub(super) fn is_fatal(&self) -> bool {
        matches!(self.severity, b"FATAL" | b"PANIC")
    }
}
