//! A statement's error says nothing of its node.
