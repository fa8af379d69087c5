//! The contract of all kinds of databases, on files of SQLite.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;

use backstay_database::conformance::{self, Bench};
use backstay_database::connection::parse;
use backstay_database::sqlite::Sqlite;
use backstay_database::{ConnectionType, Database, Options};
use backstay_testing::quick_dir;
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags};

/// A folder of databases.
struct Folder {
    dir: tempfile::TempDir,
    /// The journal of what is made.
    mode: &'static str,
}

impl Folder {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Bench for Folder {
    fn make(&self, name: &str) {
        let connection = Connection::open(self.path(name)).unwrap();
        let sql = format!(
            "PRAGMA journal_mode={}; PRAGMA synchronous=OFF;
             CREATE TABLE posts (id INTEGER PRIMARY KEY, title TEXT NOT NULL, body BLOB);
             CREATE TABLE tags (post REFERENCES posts(id), tag TEXT, PRIMARY KEY (post, tag)) WITHOUT ROWID;
             CREATE INDEX by_title ON posts (title); CREATE VIEW titles AS SELECT title FROM posts;
             CREATE TRIGGER gone AFTER DELETE ON posts BEGIN DELETE FROM tags WHERE post = old.id; END;
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 900)
             INSERT INTO posts SELECT i, 'post ' || i, randomblob(500) FROM n;
             INSERT INTO tags SELECT id, 'tag ' || (id % 7) FROM posts",
            self.mode
        );
        connection.execute_batch(&sql).unwrap();
    }

    fn change(&self, name: &str) {
        let connection = Connection::open(self.path(name)).unwrap();
        let sql = "INSERT INTO posts (title, body) VALUES ('more', x'00'); DELETE FROM posts WHERE id % 100 = 3;
                   UPDATE posts SET title = title || '!' WHERE id % 50 = 1; ALTER TABLE tags ADD COLUMN weight";
        connection.execute_batch(sql).unwrap();
    }

    fn digest(&self, name: &str) -> Option<String> {
        let path = self.path(name);
        if !path.is_file() {
            return None;
        }
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap();
        let mut digest = String::new();
        for query in
            ["SELECT * FROM sqlite_schema ORDER BY name", "SELECT * FROM posts", "SELECT * FROM tags"]
        {
            let mut statement = connection.prepare(query).unwrap();
            let columns = statement.column_count();
            let mut rows = statement.query(()).unwrap();
            while let Some(row) = rows.next().unwrap() {
                for column in 0..columns {
                    write!(digest, "{:?} ", row.get::<_, Value>(column).unwrap()).unwrap();
                }
            }
        }
        Some(digest)
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.path(name)).unwrap();
    }

    fn names(&self) -> BTreeSet<String> {
        let entries = std::fs::read_dir(self.dir.path()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn writes(&self) -> Vec<String> {
        let elsewhere = self.path("elsewhere");
        let elsewhere = elsewhere.display();
        vec![
            "DELETE FROM posts".to_owned(),
            "DROP TABLE tags".to_owned(),
            "INSERT INTO posts (title) VALUES ('x') RETURNING title".to_owned(),
            "WITH x AS (SELECT 1) DELETE FROM posts RETURNING id".to_owned(),
            "PRAGMA user_version = 7".to_owned(),
            "VACUUM".to_owned(),
            format!("ATTACH '{elsewhere}' AS elsewhere"),
            format!("VACUUM INTO '{elsewhere}'"),
        ]
    }

    fn name_max(&self) -> usize {
        255 - "-journal".len()
    }

    fn open(&self, name: &str, options: Options) -> Box<dyn Database> {
        let address = format!("sqlite://{}", self.path(name).display());
        let endpoint = parse(&address, ConnectionType::Custom).unwrap();
        let it = Sqlite::new(&endpoint, None, crate::child(), options).unwrap();
        Box::new(it.temporary(std::env::temp_dir()))
    }
}

#[test]
fn the_contract_with_a_log() {
    conformance::suite(&Folder { dir: quick_dir(), mode: "wal" });
}

#[test]
fn the_contract_with_a_rollback_journal() {
    conformance::suite(&Folder { dir: quick_dir(), mode: "delete" });
}
