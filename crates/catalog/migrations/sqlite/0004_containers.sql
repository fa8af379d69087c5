-- Containers: where custom backups go. The address holds no secret; what opens it is sealed (a text that only the
-- key-encryption keys in secrets.json open).
CREATE TABLE containers (
    name        TEXT NOT NULL PRIMARY KEY,
    address     TEXT NOT NULL,
    credentials TEXT,
    expires     TEXT,
    options     TEXT NOT NULL,
    created     TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- A view of the containers: custom backups as last seen, by the address of the place and their name in it.
CREATE TABLE custom_backups (
    container TEXT NOT NULL,
    name      TEXT NOT NULL,
    id        TEXT NOT NULL,
    app       TEXT NOT NULL,
    time      TEXT NOT NULL,
    record    TEXT NOT NULL,
    PRIMARY KEY (container, name)
) STRICT, WITHOUT ROWID;

CREATE INDEX custom_backups_by_app ON custom_backups (app, time);
