//! What is counted beside what, and how much more this pool may take.

use super::contenders::{Case, Contender, Operation};

/// One operation, by several contenders.
pub(crate) struct Table {
    pub(crate) name: &'static str,
    operation: Operation,
    rivals: &'static [Contender],
    ours: &'static [Ours],
}

/// One way to use this pool, with the rival that it is held against.
struct Ours {
    contender: Contender,
    against: Contender,
    /// The greatest ratio.
    bound: f64,
}

const fn ours(contender: Contender, against: Contender, bound: f64) -> Ours {
    Ours {
        contender,
        against,
        bound,
    }
}

use Contender::{
    Bare, Bb8, Bb8Ping, OurReplicas, OursHeld, OursOnPrimary, OursRecorded, SyncOurs, SyncR2d2,
};

/// The bounds are those that are met today, rounded up: what grows beyond them has to be looked at.
pub(crate) const TABLES: [Table; 6] = [
    Table {
        name: "read",
        operation: Operation::Read,
        rivals: &[Bare, Bb8, Bb8Ping],
        ours: &[
            ours(OursOnPrimary, Bb8, 1.25),
            ours(OurReplicas, Bb8, 1.25),
            ours(OursRecorded, OurReplicas, 1.10),
            ours(OursHeld, Bare, 1.20),
        ],
    },
    Table {
        name: "sync",
        operation: Operation::Read,
        rivals: &[SyncR2d2],
        ours: &[ours(SyncOurs, SyncR2d2, 1.75)],
    },
    Table {
        name: "read of a session that has written",
        operation: Operation::ReadOwn,
        rivals: &[Bb8],
        ours: &[ours(OurReplicas, Bb8, 1.35)],
    },
    Table {
        name: "two reads in one round trip",
        operation: Operation::Pair,
        rivals: &[Bare, Bb8],
        ours: &[ours(OurReplicas, Bb8, 1.40), ours(OursHeld, Bare, 1.40)],
    },
    Table {
        name: "write",
        operation: Operation::Write,
        rivals: &[Bare, Bb8],
        ours: &[ours(OurReplicas, Bb8, 1.40), ours(OursHeld, Bare, 1.35)],
    },
    Table {
        name: "transaction",
        operation: Operation::Transaction,
        rivals: &[Bare, Bb8],
        ours: &[ours(OurReplicas, Bb8, 1.42), ours(OursHeld, Bare, 1.45)],
    },
];

impl Table {
    /// Counts and prints. Returns whether all bounds are met.
    pub(crate) fn print(&self, count: impl Fn(Case) -> f64) -> bool {
        println!("{}: instructions for one", self.name);
        let counted = |contender| {
            let instructions = count(Case {
                operation: self.operation,
                contender,
            });
            (contender, instructions)
        };
        let mut counts: Vec<(Contender, f64)> = self.rivals.iter().copied().map(counted).collect();
        for (contender, instructions) in &counts {
            println!("  {:<28} {instructions:>9.0}", contender.words());
        }
        let mut all_met = true;
        for ours in self.ours {
            let (contender, instructions) = counted(ours.contender);
            let rival = counts.iter().find(|(rival, _)| *rival == ours.against);
            let Some((rival, its)) = rival.copied() else {
                panic!("{:?} is not counted", ours.against);
            };
            counts.push((contender, instructions));
            let ratio = instructions / its;
            let met = ratio <= ours.bound;
            all_met = all_met && met;
            println!(
                "  {:<28} {instructions:>9.0}  {ratio:.2} of {}, {} {:.2}",
                contender.words(),
                rival.words(),
                if met { "at most" } else { "MISSED:" },
                ours.bound,
            );
        }
        all_met
    }
}
