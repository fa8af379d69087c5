-- Settings and connection strings of apps; the slot of production is empty. The value is sealed (a text that only the
-- key-encryption keys in secrets.json open, for this very record).
CREATE TABLE settings (
    app     TEXT NOT NULL,
    slot    TEXT NOT NULL,
    kind    TEXT NOT NULL CHECK (kind IN ('setting', 'connection')),
    name    TEXT NOT NULL,
    value   TEXT NOT NULL,
    type    TEXT,
    sticky  INTEGER NOT NULL,
    changed TEXT NOT NULL,
    PRIMARY KEY (app, slot, kind, name)
) STRICT, WITHOUT ROWID;
