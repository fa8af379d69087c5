//! The contract of all kinds, on a real MariaDB.

use std::cell::Cell;
use std::collections::BTreeSet;

use backstay_database::{Database, Endpoint, MySql, Options, conformance};
use backstay_testing::MariaDb;

use crate::world::endpoint;

struct Bench {
    server: MariaDb,
    changes: Cell<u32>,
}

impl conformance::Bench for Bench {
    fn make(&self, name: &str) {
        self.server.sql(&format!(
            "CREATE DATABASE `{name}`; USE `{name}`; CREATE TABLE posts (id INT PRIMARY KEY AUTO_INCREMENT, body TEXT, at TIMESTAMP NULL); \
             INSERT INTO posts (body) SELECT CONCAT(seq, ' ', REPEAT('text ', 20)) FROM mysql.numbers; \
             CREATE TABLE notes (id INT PRIMARY KEY, post INT, FOREIGN KEY (post) REFERENCES posts (id)); \
             INSERT INTO notes SELECT seq, seq FROM mysql.numbers WHERE seq < 100; CREATE SEQUENCE seq; ANALYZE TABLE posts;"
        ));
    }

    fn change(&self, name: &str) {
        self.changes.set(self.changes.get() + 1);
        let n = self.changes.get();
        self.server.sql(&format!(
            "USE `{name}`; DELETE FROM notes WHERE id % 7 = 0; UPDATE posts SET body = 'x{n}' WHERE id % 5 = 0; \
             INSERT INTO posts (body) VALUES ('{n}'); ALTER TABLE posts ADD COLUMN c{n} INT; CREATE TABLE t{n} (id INT);"
        ));
    }

    // Views and the like rest in the marker while a side is not in use; `round_trip` has them.
    fn digest(&self, name: &str) -> Option<String> {
        self.names().contains(name).then(|| crate::world::all_of(&self.server, name))
    }

    fn remove(&self, name: &str) {
        self.server.sql(&format!("DROP DATABASE `{name}`"));
    }

    fn names(&self) -> BTreeSet<String> {
        self.server.sql("SHOW DATABASES").lines().map(str::to_owned).collect()
    }

    fn writes(&self) -> Vec<String> {
        let of = |statement: &str| statement.to_owned();
        vec![
            of("DROP TABLE posts"),
            of("SELECT 1; DROP TABLE notes"),
            of("UPDATE posts SET body = ''"),
            of("COMMIT"),
            of("WITH x AS (SELECT 1) DELETE FROM notes"),
            of("SELECT NEXTVAL(seq)"),
            of("SELECT 1 INTO OUTFILE '/tmp/backstay-out'"),
        ]
    }

    fn name_max(&self) -> usize {
        64
    }

    fn open(&self, name: &str, options: Options) -> Box<dyn Database> {
        let endpoint = Endpoint { database: Some(name.to_owned()), ..endpoint(&self.server, "root") };
        Box::new(MySql::new(endpoint, options))
    }
}

#[test]
fn mariadb_keeps_the_contract() {
    let server = MariaDb::start();
    server.sql(
        "CREATE TABLE mysql.numbers (seq INT PRIMARY KEY); INSERT INTO mysql.numbers \
         WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 900) SELECT i FROM n; \
         INSERT INTO mysql.numbers SELECT seq + 900 FROM mysql.numbers; INSERT INTO mysql.numbers SELECT seq + 1800 FROM mysql.numbers;",
    );
    conformance::suite(&Bench { server, changes: Cell::new(0) });
}
