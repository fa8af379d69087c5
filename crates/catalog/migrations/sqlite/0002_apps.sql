-- What is set about an app, as JSON, and when it was removed.
ALTER TABLE apps ADD COLUMN config TEXT NOT NULL DEFAULT '{}';
ALTER TABLE apps ADD COLUMN removed TEXT;

-- The home of a removed app is free for another one.
DROP INDEX apps_by_home;
CREATE UNIQUE INDEX apps_by_home ON apps (home) WHERE home IS NOT NULL AND removed IS NULL;
