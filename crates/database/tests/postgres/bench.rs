//! Databases of a real server, made and looked at with `psql` and `pg_dump`.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Read as _;
use std::sync::Arc;

use backstay_database::conformance::Bench;
use backstay_database::{ConnectionType, Database, DumpRecord, Endpoint, Options, connection};
use backstay_testing::{Postgres, program};

/// The server that all tests share, and an ordinary user of it who may make databases.
pub struct Server(pub Arc<Postgres>);

/// The password of every ordinary user: it has all that needs escaping.
pub const PASSWORD: &str = r"p:a\ss 'w' ö";

impl Server {
    pub fn new() -> Self {
        let server = Postgres::shared();
        role(&server, "app", "CREATEDB");
        Server(server)
    }
}

/// Makes an ordinary user unless there is one.
pub fn role(server: &Postgres, name: &str, rights: &str) {
    let exists = format!("SELECT 1 FROM pg_roles WHERE rolname = '{name}'");
    if server.psql("postgres", &exists).is_empty() {
        let made = format!("CREATE ROLE {name} LOGIN {rights} PASSWORD {}", literal(PASSWORD));
        // Another test may have been faster.
        let outcome = server.try_psql("postgres", &made);
        assert!(
            outcome.is_ok()
                || outcome.stderr.contains("already exists")
                || outcome.stderr.contains("duplicate")
        );
    }
}

pub fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', r"\\").replace('\'', "''"))
}

pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The endpoint of a database, as a connection string gives it.
pub fn endpoint(server: &Postgres, user: &str, password: &str, database: &str) -> Endpoint {
    let quote = |text: &str| format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'"));
    let text = format!(
        "host=127.0.0.1 port={} user={} password={} dbname={}",
        server.port(),
        quote(user),
        quote(password),
        quote(database)
    );
    connection::parse(&text, ConnectionType::PostgreSql).unwrap()
}

/// Structure and content: what `pg_dump` says, shortened.
pub fn digest(server: &Postgres, name: &str) -> Option<String> {
    let mut hasher = DefaultHasher::new();
    lines(server, name)?.hash(&mut hasher);
    Some(format!("{:016x}", hasher.finish()))
}

/// What `pg_dump` says, line by line, in an order that does not depend on the order of rows.
pub fn lines(server: &Postgres, name: &str) -> Option<Vec<String>> {
    let there = format!("SELECT 1 FROM pg_database WHERE datname = {}", literal(name));
    if server.psql("postgres", &there).is_empty() {
        return None;
    }
    let dump =
        program::run(server.client("pg_dump").args(["--no-owner", "-d"]).arg(target(name))).ok().stdout;
    // The token against injection differs each time, and PostgreSQL writes casts otherwise when it has read what it wrote.
    let mut lines: Vec<String> = dump
        .lines()
        .filter(|line| !line.contains("restrict "))
        .map(|line| {
            line.replace("::character varying", "").replace("::text", "").replace(['(', ')', '[', ']'], "")
        })
        .collect();
    lines.sort_unstable();
    Some(lines)
}

pub fn target(name: &str) -> String {
    format!("dbname='{}'", name.replace('\\', r"\\").replace('\'', r"\'"))
}

pub fn dump(database: &mut dyn Database) -> (Vec<u8>, DumpRecord) {
    let mut dump = database.dump().unwrap();
    let mut bytes = Vec::new();
    dump.read_to_end(&mut bytes).unwrap();
    (bytes, dump.finish().unwrap())
}

const CONTENT: &str = "
    CREATE TABLE posts (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, title text NOT NULL, body text,
        state varchar(10) DEFAULT 'new' CHECK (state IN ('new', 'shown', 'gone')));
    CREATE TABLE tags (post bigint REFERENCES posts ON DELETE CASCADE, tag text, PRIMARY KEY (post, tag));
    CREATE INDEX ON posts (lower(title)) WHERE state <> 'gone';
    CREATE VIEW shown AS SELECT id, title FROM posts WHERE state = 'shown' OR title LIKE '%🦀%';
    INSERT INTO posts (title, body, state)
        SELECT 'post ' || i, repeat(md5(i::text), 8), CASE WHEN i % 3 = 0 THEN 'shown' ELSE 'new' END
          FROM generate_series(1, 1500) i;
    INSERT INTO tags SELECT i, 'tag ' || i % 7 FROM generate_series(1, 1500) i;";

impl Bench for Server {
    fn make(&self, name: &str) {
        self.0.psql("postgres", &format!("CREATE DATABASE {} OWNER app", quoted(name)));
        self.0.psql(&target(name), &format!("SET ROLE app; {CONTENT}"));
    }

    fn change(&self, name: &str) {
        self.0.psql(
            &target(name),
            "SET ROLE app;
             DELETE FROM posts WHERE id % 10 = 0;
             UPDATE posts SET body = 'changed' WHERE id % 100 = 1;
             INSERT INTO posts (title) VALUES ('another');
             ALTER TABLE tags ADD COLUMN made timestamptz DEFAULT '2026-01-01';
             DROP VIEW shown;",
        );
    }

    fn digest(&self, name: &str) -> Option<String> {
        digest(&self.0, name)
    }

    fn remove(&self, name: &str) {
        self.0.psql("postgres", &format!("DROP DATABASE {} WITH (FORCE)", quoted(name)));
    }

    fn names(&self) -> BTreeSet<String> {
        let names = self.0.psql("postgres", "SELECT datname FROM pg_database");
        // Other tests have databases of their own on this server.
        names
            .lines()
            .filter(|name| name.contains("contract") || name.starts_with("nnn"))
            .map(str::to_owned)
            .collect()
    }

    fn writes(&self) -> Vec<String> {
        [
            "DELETE FROM posts",
            "SELECT 1; DELETE FROM posts",
            "SELECT 1; COMMIT; DELETE FROM posts",
            "DELETE FROM posts RETURNING title",
            "WITH gone AS (DELETE FROM posts RETURNING title) SELECT title FROM gone",
            "DROP TABLE tags",
        ]
        .map(str::to_owned)
        .into()
    }

    fn name_max(&self) -> usize {
        63
    }

    fn open(&self, name: &str, options: Options) -> Box<dyn Database> {
        backstay_database::open(&endpoint(&self.0, "app", PASSWORD, name), options).unwrap()
    }
}
