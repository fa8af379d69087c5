-- Times are RFC 3339 text in UTC with nine fractional digits, so that they sort as text.
-- Paths are bytes as the kernel has them.

CREATE TABLE apps (
    name    TEXT NOT NULL PRIMARY KEY,
    home    BLOB,
    kind    TEXT NOT NULL,
    created TEXT NOT NULL
) STRICT;

CREATE UNIQUE INDEX apps_by_home ON apps (home) WHERE home IS NOT NULL;

-- A view of the vault, reconciled whenever it is opened. `vault` is the vault's own id.
CREATE TABLE points (
    vault    TEXT NOT NULL,
    snapshot TEXT NOT NULL,
    id       TEXT NOT NULL,
    app      TEXT NOT NULL,
    time     TEXT NOT NULL,
    record   TEXT NOT NULL,
    PRIMARY KEY (vault, snapshot)
) STRICT, WITHOUT ROWID;

CREATE TABLE jobs (
    id               TEXT NOT NULL PRIMARY KEY,
    kind             TEXT NOT NULL,
    app              TEXT,
    exclusive        INTEGER NOT NULL,
    state            TEXT NOT NULL,
    created          TEXT NOT NULL,
    started          TEXT,
    ended            TEXT,
    owner            TEXT NOT NULL,
    token            INTEGER NOT NULL,
    lease_until      TEXT,
    lease_uptime_ms  INTEGER,
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    steps            TEXT NOT NULL,
    progress         TEXT NOT NULL,
    message          TEXT,
    code             TEXT
) STRICT;

CREATE INDEX jobs_by_time ON jobs (created);

-- The database itself refuses a second exclusive job of one app.
CREATE UNIQUE INDEX one_exclusive_job ON jobs (app) WHERE state = 'running' AND exclusive = 1;

CREATE TABLE job_log (
    job  TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    seq  INTEGER NOT NULL,
    time TEXT NOT NULL,
    text TEXT NOT NULL,
    PRIMARY KEY (job, seq)
) STRICT, WITHOUT ROWID;

-- The last fencing token given out. It only grows.
CREATE TABLE fence (
    one   INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    token INTEGER NOT NULL
) STRICT;

INSERT INTO fence (one, token) VALUES (1, 0);
