//! What a database answers when a key is not at home there.

/// The SQLSTATE of the answer. Nothing of the statement has run.
pub(crate) const SQLSTATE: &str = "ZH001";

/// What the database knows of the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It knows no home of the key.
    Unknown,
    /// The home is there, in this generation; not settled yet if the key still moves.
    Elsewhere {
        group: String,
        generation: i64,
        settled: bool,
    },
}

impl Refusal {
    /// Reads the detail of the error: `generation settled group`, or nothing.
    pub(crate) fn read(detail: Option<&str>) -> Self {
        let parse = |detail: &str| {
            let mut parts = detail.splitn(3, ' ');
            let generation = parts.next()?.parse().ok()?;
            let settled = parts.next()? == "t";
            let group = parts.next()?.to_owned();
            Some(Self::Elsewhere {
                group,
                generation,
                settled,
            })
        };
        detail.and_then(parse).unwrap_or(Self::Unknown)
    }
}
