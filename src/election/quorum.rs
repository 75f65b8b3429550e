//! How many nodes are a majority, and whether one answers.

/// How many have to agree among so many configured nodes.
pub(crate) fn needed(nodes: usize) -> usize {
    nodes / 2 + 1
}

/// Whether a majority answers of so many nodes. Whoever was not asked yet is neither there nor gone: while
/// these could make up the majority, it is as it was.
pub(crate) fn has_quorum(nodes: usize, answer: usize, unasked: usize, had: bool) -> bool {
    let needed = needed(nodes);
    answer >= needed || had && answer + unasked >= needed
}
