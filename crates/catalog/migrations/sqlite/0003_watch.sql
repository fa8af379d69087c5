-- What the scheduler remembers from one look to the next: small values by name (the last run of an app, alerts and
-- who was told of them). Each value is JSON of its owner.
CREATE TABLE notes (
    name  TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Jobs of automatic points are not cancelled one by one.
ALTER TABLE jobs ADD COLUMN automatic INTEGER NOT NULL DEFAULT 0;
