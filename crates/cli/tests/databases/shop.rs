//! An app with files, a database in PostgreSQL and one in MariaDB, all of one version.

use backstay_testing::{MariaDb, Postgres, temp_dir};

use crate::{Ran, World};

/// Passwords that must show up nowhere.
pub(crate) const PASSWORDS: [&str; 2] = ["c4nary:pg/\\secret", "c4nary;my'secret"];

/// The app `shop`.
pub(crate) struct Shop {
    pub(crate) world: World,
    pub(crate) pg: Postgres,
    pub(crate) maria: MariaDb,
}

impl Shop {
    /// The app at version `A`, known to Backstay with both connections; no point yet of the databases.
    pub(crate) fn new() -> Self {
        let world = World::within(temp_dir());
        let shop = Shop { world, pg: Postgres::start(), maria: MariaDb::start() };
        for n in 0..40 {
            shop.world.write(&format!("shop/uploads/{n}.bin"), &vec![n; 2_000]);
        }
        shop.make_databases();
        shop.set("A");
        shop.world.ok(&["app", "add", "shop", shop.world.path("shop").to_str().unwrap()]);
        shop.connect("main", "PostgreSQL", &shop.pg_address("shop")).ok();
        shop.connect("orders", "MySql", &shop.maria_address("shop")).ok();
        shop
    }

    fn make_databases(&self) {
        let [pg, my] = PASSWORDS.map(|p| p.replace('\'', "''"));
        self.pg.psql(
            "postgres",
            &format!("SET standard_conforming_strings = on; CREATE ROLE web LOGIN CREATEDB PASSWORD '{pg}';"),
        );
        self.pg.psql("postgres", "CREATE DATABASE shop OWNER web;");
        self.pg.psql(
            "shop",
            "SET ROLE web;
             CREATE TABLE version (v text);
             INSERT INTO version VALUES ('A');
             CREATE TABLE posts (id serial PRIMARY KEY, body text, at timestamptz DEFAULT now());
             INSERT INTO posts (body) SELECT repeat('post ' || n, 20) FROM generate_series(1, 500) n;
             CREATE VIEW short AS SELECT id, left(body, 10) AS head FROM posts;",
        );
        self.maria.sql(&format!(
            "CREATE DATABASE shop CHARACTER SET utf8mb4;
             CREATE USER web@'%' IDENTIFIED BY '{my}';
             GRANT ALL ON shop.* TO web@'%';
             GRANT ALL ON `shop\\_bs\\_%`.* TO web@'%';
             GRANT SELECT ON mysql.proc TO web@'%';
             USE shop;
             CREATE TABLE version (v varchar(10));
             INSERT INTO version VALUES ('A');
             CREATE TABLE customers (id int PRIMARY KEY AUTO_INCREMENT, name varchar(100));
             CREATE TABLE orders (id int PRIMARY KEY AUTO_INCREMENT, customer int,
                                  CONSTRAINT buys FOREIGN KEY (customer) REFERENCES customers(id));
             INSERT INTO customers (name) SELECT CONCAT('customer ', seq, ' \u{1f600}') FROM seq_1_to_300;
             INSERT INTO orders (customer) SELECT id FROM customers;
             CREATE DEFINER=web@`%` VIEW many AS SELECT c.name, COUNT(*) AS n FROM customers c JOIN orders o ON o.customer = c.id GROUP BY c.name;
             CREATE DEFINER=web@`%` TRIGGER named BEFORE INSERT ON customers FOR EACH ROW SET NEW.name = TRIM(NEW.name);
             CREATE DEFINER=web@`%` PROCEDURE answer() SELECT 42 AS answer;"
        ));
    }

    pub(crate) fn pg_address(&self, database: &str) -> String {
        format!("postgresql://web:{}@127.0.0.1:{}/{database}", encoded(PASSWORDS[0]), self.pg.port())
    }

    pub(crate) fn maria_address(&self, database: &str) -> String {
        format!("mysql://web:{}@127.0.0.1:{}/{database}", encoded(PASSWORDS[1]), self.maria.port())
    }

    pub(crate) fn connect(&self, name: &str, kind: &str, address: &str) -> Ran {
        self.world.run_with("home", &["connection", "set", "shop", name, "--type", kind], address)
    }

    /// Brings files and databases to a version, as the app itself would.
    pub(crate) fn set(&self, version: &str) {
        self.world.write("shop/version.txt", version.as_bytes());
        self.world.write(&format!("shop/uploads/{version}.bin"), version.repeat(3_000).as_bytes());
        self.pg.psql(
            "shop",
            &format!("UPDATE version SET v = '{version}'; INSERT INTO posts (body) VALUES ('{version}');"),
        );
        self.maria.sql(&format!(
            "USE shop; UPDATE version SET v = '{version}'; INSERT INTO customers (name) VALUES ('{version}');"
        ));
    }

    /// The versions of files, PostgreSQL and MariaDB.
    #[track_caller]
    pub(crate) fn versions(&self) -> [String; 3] {
        let file = std::fs::read_to_string(self.world.path("shop/version.txt")).unwrap_or_default();
        let pg = self.pg.psql("shop", "SELECT v FROM version;");
        let maria = self.maria.sql("SELECT v FROM shop.version;");
        [file, pg.trim().to_owned(), maria.trim().to_owned()]
    }

    /// Everything in both databases, as their own tools write it, line by line.
    pub(crate) fn content(&self) -> Vec<String> {
        let pg = self.pg.client("pg_dump").args(["--inserts", "shop"]).output().unwrap();
        let mut dump = self.maria.client("mariadb-dump");
        dump.args([
            "--skip-dump-date",
            "--routines",
            "--triggers",
            "--events",
            "--skip-extended-insert",
            "shop",
        ]);
        let maria = dump.output().unwrap();
        assert!(pg.status.success() && maria.status.success(), "{pg:?} {maria:?}");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        // pg_dump draws a new key for each dump.
        let pg = text(&pg.stdout);
        let mut lines: Vec<String> =
            pg.lines().filter(|l| !l.contains("restrict ")).map(str::to_owned).collect();
        lines.extend(text(&maria.stdout).lines().map(str::to_owned));
        lines
    }

    /// Both databases have that content.
    #[track_caller]
    pub(crate) fn assert_content(&self, expected: &[String], when: &str) {
        let content = self.content();
        if content == expected {
            return;
        }
        let gone: Vec<_> = expected.iter().filter(|l| !content.contains(l)).take(10).collect();
        let new: Vec<_> = content.iter().filter(|l| !expected.contains(l)).take(10).collect();
        panic!(
            "{when}: {} lines, {} expected; missing {gone:#?}, not expected {new:#?}",
            content.len(),
            expected.len()
        );
    }

    /// The databases that an exchange has left at the servers.
    pub(crate) fn left(&self) -> String {
        self.pg.psql("postgres", "SELECT datname FROM pg_database WHERE datname LIKE '%\\_bs\\_%';")
            + &self.maria.sql("SHOW DATABASES LIKE '%\\_bs\\_%';")
    }

    pub(crate) fn backup(&self) -> String {
        self.world.ok(&["backup", "shop"]);
        self.world.points("shop")[0].clone()
    }
}

/// As it stands in an address.
pub(crate) fn encoded(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(b).to_string(),
            b => format!("%{b:02X}"),
        })
        .collect()
}
