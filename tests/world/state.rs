//! What a session leaves on a connection reaches no other session.
