CREATE TYPE post_status AS ENUM ('draft', 'published');

CREATE TABLE posts (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    author_id BIGINT NOT NULL REFERENCES users (id),
    title TEXT NOT NULL CHECK (title <> ''),
    body TEXT NOT NULL,
    status post_status NOT NULL DEFAULT 'draft',
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    published_at TIMESTAMPTZ,
    CHECK ((status = 'published') = (published_at IS NOT NULL))
);

CREATE INDEX posts_author_id_idx ON posts (author_id);
-- The list is filtered by status and read from the newest post on.
CREATE INDEX posts_status_id_idx ON posts (status, id DESC);
