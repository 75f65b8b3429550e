//! How a text divides transactions, whatever else it does.

use super::lexer;
use super::tokens::{Tokens, statements};
use super::transaction::{TransactionControl, control};

/// What a text of one or more statements does to transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// A transaction begins or ends before the text is at its end, so that more than one has a part in it.
    pub(crate) divides: bool,
    /// It may change what the transaction is allowed to do.
    pub(crate) sets: bool,
}

impl Shape {
    /// The shape of a text. What cannot be read may do anything.
    pub(crate) fn of(text: &str) -> Self {
        let Ok(tokens) = lexer::tokens(text) else {
            return Self {
                divides: true,
                sets: true,
            };
        };
        let (mut count, mut bounds, mut sets, mut chains) = (0, false, false, false);
        for statement in statements(Tokens::new(text, &tokens)) {
            count += 1;
            match control(statement) {
                Some(TransactionControl::Begin { .. }) => bounds = true,
                Some(TransactionControl::End) => {
                    bounds = true;
                    // `AND CHAIN` begins the next one.
                    chains |= (0..statement.len()).any(|at| {
                        statement.is_word(at, "chain") && !statement.is_word(at - 1, "no")
                    });
                }
                Some(TransactionControl::Setting) => sets = true,
                Some(TransactionControl::Within) | None => {
                    sets |= statement.is_any(0, &["set", "reset", "discard"]);
                }
            }
        }
        Self {
            divides: bounds && count > 1 || chains,
            sets,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_divide_transactions_are_known() {
        for text in [
            "BEGIN; SELECT 1",
            "SELECT 1; COMMIT",
            "SAVEPOINT a; RELEASE a; ROLLBACK; SELECT 1",
            "COMMIT AND CHAIN",
            "rollback /* x */ and chain;",
            "SELECT 'open",
        ] {
            assert!(Shape::of(text).divides, "{text}");
        }
        for text in [
            "BEGIN",
            "BEGIN -- ; COMMIT",
            "COMMIT;",
            "COMMIT AND NO CHAIN",
            "SELECT 1; SELECT ';COMMIT;'",
            "SAVEPOINT a; INSERT INTO t VALUES (1); RELEASE a",
            "SET LOCAL x = 1; INSERT INTO t VALUES (1)",
        ] {
            assert!(!Shape::of(text).divides, "{text}");
        }
        for text in [
            "SAVEPOINT a; RELEASE a; SET TRANSACTION READ WRITE; SELECT 1",
            "SELECT 1; RESET transaction_read_only",
        ] {
            assert!(Shape::of(text).sets, "{text}");
        }
    }
}
