//! What is dumped comes back, all of it.

use backstay_database::{Database as _, Side};
use backstay_model::Code;
use backstay_testing::MariaDb;

use crate::world::{OWNER, all_of, databases, dump, same, shop, stage};

/// Everything that a database can hold.
pub const NASTY: &str = r#"
CREATE DATABASE shop CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci; USE shop;
CREATE TABLE kinds (id BIGINT UNSIGNED PRIMARY KEY AUTO_INCREMENT, ti TINYINT, bo BOOLEAN, de DECIMAL(30,10), fl FLOAT, dbl DOUBLE,
  da DATE, ti6 TIME(6), dt DATETIME(6), ts TIMESTAMP(6) NULL, ye YEAR, ch CHAR(5), vc VARCHAR(500), tx LONGTEXT, bi BINARY(4), vb VARBINARY(50), bl LONGBLOB,
  en ENUM('a','b''c'), se SET('x','y'), bt BIT(9), js JSON, geo GEOMETRY, pt POINT, ip INET6, uu UUID, inv INT INVISIBLE DEFAULT 7);
INSERT INTO kinds (ti,bo,de,fl,dbl,da,ti6,dt,ts,ye,ch,vc,tx,bi,vb,bl,en,se,bt,js,geo,pt,ip,uu) VALUES
 (-128,true,12345678901234567890.0123456789,1.5e-10,1.7976931348623157e308,'0001-01-01','-838:59:59.000001','9999-12-31 23:59:59.999999','2038-01-19 03:14:07',2155,
  'abc','it''s "q" \\ back\nnew\ttab \r ; -- no /* comment */ (1,2),',REPEAT('😀 \0 end',1000),'\0\0',X'00FF0A0D1A2C27285C',REPEAT(X'0001FF275C0A',20000),'b''c','x,y',b'101010101',
  '{"a":[1,"é"]}',ST_GeomFromText('POLYGON((0 0,1 0,1 1,0 0))'),POINT(1.5,-2),'::ffff:1.2.3.4','123e4567-e89b-12d3-a456-426655440000'),
 (NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL),
 (0,false,0,0,-0.0,'0000-00-00','00:00:00','0000-00-00 00:00:00',NULL,0,'','','','','','','a','',b'0','null',NULL,NULL,NULL,NULL);
CREATE TABLE `odd ``name` (`a b` INT, `sel``ect` VARCHAR(20) DEFAULT 'x''y' COMMENT 'line\nbreak; ''quoted''', `ключ` INT, PRIMARY KEY (`a b`)) COMMENT='INSERT INTO `x` VALUES\n(1);';
INSERT INTO `odd ``name` VALUES (1,'INSERT INTO `kinds` VALUES (1);',2),(2,');\n-- Dump completed',3);
CREATE TABLE empty_one (id INT);
CREATE TABLE gen (id INT PRIMARY KEY, v INT AS (id * 2) VIRTUAL, s INT AS (id * 3) STORED, KEY (v), CHECK (id > 0));
INSERT INTO gen (id) VALUES (1),(2);
CREATE TABLE part (id INT, y INT, PRIMARY KEY (id, y)) PARTITION BY RANGE (y) SUBPARTITION BY HASH (id) SUBPARTITIONS 2
  (PARTITION old VALUES LESS THAN (2000), PARTITION new VALUES LESS THAN MAXVALUE);
INSERT INTO part VALUES (1,1990),(2,2020);
CREATE TABLE ring_a (id INT PRIMARY KEY, b INT); CREATE TABLE ring_b (id INT PRIMARY KEY, a INT REFERENCES ring_a (id) ON DELETE CASCADE, up INT REFERENCES ring_b (id));
ALTER TABLE ring_a ADD CONSTRAINT to_b FOREIGN KEY (b) REFERENCES ring_b (id) ON DELETE SET NULL;
INSERT INTO ring_a VALUES (1,NULL); INSERT INTO ring_b VALUES (1,1,1),(2,1,1); UPDATE ring_a SET b = 2;
CREATE TABLE words (id INT PRIMARY KEY, body TEXT, FULLTEXT (body)); INSERT INTO words VALUES (1,'hello world');
CREATE TABLE latin (t VARCHAR(10)) CHARACTER SET latin1; INSERT INTO latin VALUES ('äöü');
CREATE TABLE myisam (id INT) ENGINE=MyISAM; INSERT INTO myisam VALUES (1),(1);
CREATE TABLE aria (id INT) ENGINE=Aria; INSERT INTO aria VALUES (9);
CREATE SEQUENCE seq START WITH 5 INCREMENT BY 5; SELECT NEXTVAL(seq);
CREATE TABLE log (t TEXT);
DELIMITER //
CREATE FUNCTION twice (x INT) RETURNS INT DETERMINISTIC RETURN x * 2//
CREATE PROCEDURE fill (IN n INT) MODIFIES SQL DATA COMMENT 'fills; it' BEGIN
DECLARE i INT DEFAULT 0;
INSERT INTO `kinds` (ti) VALUES
(1);
WHILE i < n DO INSERT INTO log VALUES ('grün'); SET i = i + 1; END WHILE; END//
CREATE TRIGGER on_gen AFTER INSERT ON gen FOR EACH ROW BEGIN INSERT INTO log VALUES (CONCAT('ü ', NEW.id)); END//
CREATE TRIGGER on_gen2 AFTER INSERT ON gen FOR EACH ROW FOLLOWS on_gen INSERT INTO log VALUES ('second')//
create trigger shop . `on_words` before insert on shop.words for each row set new.body = trim(new.body)//
CREATE EVENT hourly ON SCHEDULE EVERY 1 HOUR STARTS '2020-01-01 00:00:00' ENDS '2037-01-01' ON COMPLETION PRESERVE DO BEGIN DELETE FROM log WHERE t = 'x'; END//
CREATE EVENT off ON SCHEDULE EVERY 1 DAY DISABLE DO DELETE FROM log//
SET sql_mode = ORACLE//
CREATE PACKAGE bag AS FUNCTION one RETURN INT; END//
CREATE PACKAGE BODY bag AS FUNCTION one RETURN INT AS BEGIN RETURN 1; END; END//
SET sql_mode = ''//
DELIMITER ;
CREATE TABLE versioned (id INT PRIMARY KEY) WITH SYSTEM VERSIONING; INSERT INTO versioned VALUES (1),(2);
CREATE VIEW b_base AS SELECT id, twice(v) AS w FROM gen;
CREATE VIEW a_above AS SELECT w + 1 AS x, 'é' AS lit FROM b_base WITH CASCADED CHECK OPTION;
"#;

pub fn nasty(options: &[&str]) -> MariaDb {
    let server = MariaDb::start_with(options);
    let setup = NASTY.replace("WITH CASCADED CHECK OPTION", "");
    server.sql(&format!("SET SESSION sql_mode='';{setup}{OWNER}"));
    server
}

#[test]
fn everything_comes_back_and_goes_back_again() {
    let server = nasty(&["--event-scheduler=ON", "--log-bin=log"]);
    let before = all_of(&server, "shop");
    let mut root = shop(&server, "root");
    let probe = root.probe().unwrap();
    assert!(probe.version.starts_with("MariaDB 10."), "{}", probe.version);
    assert_eq!((probe.missing.len(), probe.notes.len()), (0, 2), "{probe:?}");
    let taken = dump(&mut root);
    let rows = |name: &str| taken.1.tables.iter().find(|table| table.name == name).map(|table| table.rows);
    assert_eq!(
        (rows("kinds"), rows("odd `name"), rows("empty_one"), rows("seq")),
        (Some(3), Some(2), Some(0), None)
    );
    assert!(
        taken.1.position.as_ref().is_some_and(|p| p.starts_with("log.000001:") && p.contains("gtid 0-")),
        "{:?}",
        taken.1
    );

    // The app ruins it.
    server.sql(
        "USE shop; DROP VIEW a_above; DROP TRIGGER on_gen; DELETE FROM kinds; CREATE TABLE extra (id INT); \
        INSERT INTO extra VALUES (1); DROP EVENT hourly; CREATE VIEW only_old AS SELECT 1 AS one;",
    );
    let ruined = all_of(&server, "shop");
    let words = {
        let names = root.exchange_names("0123abcd");
        root.check_restore(&taken.1, &names).unwrap()
    };
    assert!(words.iter().any(|w| w.contains("stop the app")), "{words:?}");
    let exchange = stage(&mut root, &taken);
    same(&all_of(&server, "shop"), &ruined);
    assert_eq!(root.side(&exchange).unwrap(), Side::Old);
    // Nothing of the staged one acts.
    assert_eq!(
        server.sql("SELECT COUNT(*) FROM information_schema.EVENTS WHERE EVENT_SCHEMA LIKE 'shop%new'"),
        "0\n"
    );

    for _ in 0..2 {
        root.exchange(&exchange, Side::New).unwrap();
        assert_eq!(root.side(&exchange).unwrap(), Side::New);
        same(&all_of(&server, "shop"), &before);
        root.exchange(&exchange, Side::Old).unwrap();
        assert_eq!(root.side(&exchange).unwrap(), Side::Old);
        same(&all_of(&server, "shop"), &ruined);
    }
    root.exchange(&exchange, Side::New).unwrap();
    root.discard(&exchange).unwrap();
    root.discard(&exchange).unwrap();
    assert_eq!(databases(&server), ["shop"]);
    same(&all_of(&server, "shop"), &before);
    assert!(!all_of(&server, "shop").contains("_backstay"));
    // Dumped again it is the same.
    let again = dump(&mut root).1;
    assert_eq!((again.tables, again.schema_hash), (taken.1.tables, taken.1.schema_hash));
}

#[test]
fn the_owner_of_a_database_restores_it_without_rights_on_the_server() {
    let server = MariaDb::start();
    server.sql(&format!("CREATE DATABASE shop; {OWNER} USE shop; CREATE TABLE t (id INT PRIMARY KEY); INSERT INTO t VALUES (1),(2);\
        CREATE VIEW v AS SELECT * FROM t;"));
    let mut root = shop(&server, "root");
    let taken = dump(&mut root);
    let mut app = shop(&server, "app");
    let exchange = app.exchange_names("0123abcd");
    // What root has defined could not be made again by this user.
    let error = app.check_restore(&taken.1, &exchange).unwrap_err();
    assert_eq!(error.code(), Code::DatabasePrivileges);
    assert!(error.message().contains("GRANT SET USER ON *.* TO `app`@`%`"), "{}", error.message());
    server.sql("DROP VIEW shop.v; DELETE FROM shop.t;");
    app.check_restore(&taken.1, &exchange).unwrap();
    let words = app.stage(&mut taken.0.as_slice(), &taken.1, &exchange).unwrap();
    assert!(words.iter().any(|word| word.contains("`root@localhost`")), "{words:?}");
    app.exchange(&exchange, Side::New).unwrap();
    assert_eq!(server.sql("SELECT * FROM shop.v ORDER BY 1"), "1\n2\n");
    assert_eq!(
        server.sql("SELECT DEFINER FROM information_schema.VIEWS WHERE TABLE_SCHEMA = 'shop'"),
        "app@%\n"
    );
    app.discard(&exchange).unwrap();
    assert_eq!(databases(&server), ["shop"]);
}

#[test]
fn a_database_that_is_gone_comes_back_and_can_go_again() {
    let server = nasty(&[]);
    let before = all_of(&server, "shop");
    let mut root = shop(&server, "root");
    let taken = dump(&mut root);
    server.sql("DROP DATABASE shop");
    let exchange = stage(&mut root, &taken);
    assert_eq!(root.side(&exchange).unwrap(), Side::Old);
    root.exchange(&exchange, Side::New).unwrap();
    same(&all_of(&server, "shop"), &before);
    root.exchange(&exchange, Side::Old).unwrap();
    assert!(!databases(&server).contains(&"shop".to_owned()));
    root.exchange(&exchange, Side::New).unwrap();
    same(&all_of(&server, "shop"), &before);
    root.discard(&exchange).unwrap();
    assert_eq!(databases(&server), ["shop"]);
}
