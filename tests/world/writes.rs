//! An acknowledged write is seen by whoever must see it, or its loss is told.
