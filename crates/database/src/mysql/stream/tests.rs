//! Dumps in small, cut into pieces of every length.

use super::*;

const HEADER: &str = "/*M!999999\\- enable the sandbox mode */ \n-- MariaDB dump\n-- CHANGE MASTER TO MASTER_LOG_FILE='b.000001', MASTER_LOG_POS=77;\n";
const END: &str = "-- SET GLOBAL gtid_slave_pos='0-1-9';\n-- Dump completed\n";

fn seen(text: &str, piece: usize) -> Seen {
    let mut along = Along::new(Hashes::All);
    for part in text.as_bytes().chunks(piece) {
        along.feed(part).unwrap();
    }
    along.finish().unwrap()
}

fn loaded(text: &str, piece: usize, changes: &Changes) -> String {
    let mut along = Along::changing(changes.clone());
    let mut out = Vec::new();
    for part in text.as_bytes().chunks(piece) {
        along.feed(part).unwrap();
        out.extend(along.take());
    }
    out.extend(along.take());
    String::from_utf8(out).unwrap()
}

fn table(insert: &str) -> String {
    format!(
        "{HEADER}CREATE TABLE `a``b` (\n  `x` int\n) ENGINE=InnoDB AUTO_INCREMENT=7 DEFAULT;\n{insert}{END}"
    )
}

#[test]
fn rows_count_the_same_in_one_line_and_in_many_and_in_any_order() {
    let many = table("INSERT INTO `a``b` VALUES\n(1,'x),(\\'y'),\n(2,0x00FF),\n(3,'\\\\');\n");
    let one = table("INSERT INTO `a``b` VALUES (3,'\\\\'),(1,'x),(\\'y'),(2,0x00FF);\n");
    let named = table("INSERT INTO `a``b` (`x`, `y)`) VALUES (3,'\\\\'),(1,'x),(\\'y'),(2,0x00FF);\n");
    let mixed = table("INSERT INTO `a``b` (`x`) VALUES (3,'\\\\'),\n(1,'x),(\\'y'),\n(2,0x00FF);\n");
    let expected = seen(&many, usize::MAX);
    assert_eq!((expected.tables[0].name.as_str(), expected.tables[0].rows), ("a`b", 3));
    assert_eq!(expected.position.as_deref(), Some("b.000001:77 gtid 0-1-9"));
    for text in [&many, &one, &named, &mixed] {
        for piece in [1, 2, 3, 7, 64, usize::MAX] {
            let seen = seen(text, piece);
            assert_eq!(seen.tables, expected.tables, "{piece} {text}");
            assert_eq!(seen.schema_hash, expected.schema_hash);
        }
    }
}

#[test]
fn a_changed_value_a_lost_row_and_a_doubled_row_are_seen() {
    let rows =
        |rows: &str| seen(&table(&format!("INSERT INTO `a``b` VALUES\n{rows};\n")), 16).tables[0].clone();
    let base = rows("(1,'a'),\n(2,'b')");
    assert_ne!(rows("(1,'a'),\n(2,'c')"), base);
    assert_ne!(rows("(1,'a')"), base);
    assert_ne!(rows("(1,'a'),\n(2,'b'),\n(2,'b')"), base);
    assert_eq!(rows("(2,'b'),\n(1,'a')"), base);
}

#[test]
fn the_structure_is_seen_without_what_differs_by_itself() {
    let base = table("");
    let hash = |text: &str| seen(text, 5).schema_hash;
    assert_eq!(
        hash(&base),
        hash(&base.replace("AUTO_INCREMENT=7 ", "").replace("MariaDB dump", "MariaDB dump 11"))
    );
    assert_ne!(hash(&base), hash(&base.replace("`x` int", "`x` bigint")));
}

#[test]
fn what_only_looks_like_rows_is_none() {
    let body = "DELIMITER ;;\nCREATE DEFINER=`r`@`%` PROCEDURE `p`()\nbegin\nINSERT INTO `a``b` VALUES\n(1);\nend ;;\nDELIMITER ;\n";
    assert_eq!(seen(&table(body), 3).tables[0].rows, 0);
    let odd = format!("{HEADER}CREATE TABLE `a\nb` (\n);\nINSERT INTO `a\nb` VALUES\n(1),\n(2);\n{END}");
    for piece in [1, 4, 1000] {
        assert_eq!(seen(&odd, piece).tables, seen(&odd, 9).tables);
        assert_eq!(
            (seen(&odd, piece).tables[0].name.as_str(), seen(&odd, piece).tables[0].rows),
            ("a\nb", 2)
        );
    }
}

#[test]
fn without_the_end_mark_it_is_no_dump() {
    let whole = table("INSERT INTO `a``b` VALUES\n(1,'-- Dump completed');\n");
    let cut = whole.strip_suffix("-- Dump completed\n").unwrap();
    let mut along = Along::new(Hashes::None);
    along.feed(cut.as_bytes()).unwrap();
    assert_eq!(along.finish().unwrap_err().code(), Code::DatabaseInterrupted);
}

#[test]
fn what_is_loaded_differs_only_in_definers_events_and_the_name() {
    let objects = "ALTER DATABASE `live` CHARACTER SET latin1 COLLATE latin1_swedish_ci ;\n\
        DELIMITER ;;\n\
        /*!50003 CREATE*/ /*!50017 DEFINER=`ro``ot`@`localhost`*/ /*!50003 trigger t before insert on a */;;\n\
        /*!50106 CREATE*/ /*!50117 DEFINER=`root`@`%`*/ /*!50106 EVENT `e``1` ON SCHEDULE AT '2001-01-01' ON COMPLETION NOT PRESERVE ENABLE DO select ' ON COMPLETION PRESERVE ENABLE' */ ;;\n\
        DELIMITER ;\n\
        /*!50013 DEFINER=`root`@`localhost` SQL SECURITY DEFINER */\n";
    let text = table(&format!("{objects}INSERT INTO `a``b` VALUES\n(1,'DEFINER=`a`@`b`');\n"));
    let mut changes = Changes { database: "st`aged".into(), without_definers: false };
    for piece in [1, 5, 4000] {
        let kept = loaded(&text, piece, &changes);
        let expected = text
            .replace("DATABASE `live`", "DATABASE `st``aged`")
            .replace("ON COMPLETION NOT PRESERVE ENABLE DO", "ON COMPLETION PRESERVE DISABLE DO");
        assert_eq!(kept, expected);
    }
    changes.without_definers = true;
    let stripped = loaded(&text, 3, &changes);
    assert!(stripped.contains("/*!50003 CREATE*/ /*!50017 */ /*!50003 trigger"), "{stripped}");
    assert!(stripped.contains("/*!50013 SQL SECURITY DEFINER */"), "{stripped}");
    assert!(stripped.contains("(1,'DEFINER=`a`@`b`');"), "{stripped}");
    let seen = seen(&text, 11);
    assert_eq!(seen.definers, ["ro`ot@localhost", "root@%", "root@localhost"]);
    assert_eq!(seen.events["e`1"], EventState(" ON COMPLETION NOT PRESERVE ENABLE".into()));
    // What was loaded reads as the same structure.
    let mut along = Along::new(Hashes::All);
    along.feed(stripped.as_bytes()).unwrap();
    assert_eq!(along.finish().unwrap().schema_hash, seen.schema_hash);
}
