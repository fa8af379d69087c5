//! Dumps written here as `pg_dump` writes them; those of the real one are read by `tests/postgres`.

use proptest::prelude::*;

use super::*;

/// Writes the form.
struct Writer {
    bytes: Vec<u8>,
    minor: u8,
}

impl Writer {
    fn new(minor: u8, entries: u32) -> Self {
        let mut writer = Writer { bytes: b"PGDMP".to_vec(), minor };
        writer.bytes.extend([1, minor, 0, 4, 8, 1]);
        if minor < 15 {
            writer.number(0)
        } else {
            writer.bytes.push(0)
        }
        (0..7).for_each(|n| writer.number(n));
        ["database", "15.18", "15.18"].iter().for_each(|text| writer.text(Some(text)));
        writer.number(i64::from(entries));
        writer
    }

    fn number(&mut self, number: i64) {
        self.bytes.push(u8::from(number < 0));
        self.bytes.extend(u32::try_from(number.abs()).unwrap().to_le_bytes());
    }

    fn text(&mut self, text: Option<&str>) {
        self.number(text.map_or(-1, |text| i64::try_from(text.len()).unwrap()));
        self.bytes.extend(text.unwrap_or_default().as_bytes());
    }

    fn entry(&mut self, number: i64, what: &str, name: &str, copy: Option<&str>) {
        let has_data = matches!(what, "TABLE DATA" | "BLOBS");
        self.number(number);
        self.number(i64::from(has_data));
        [Some("1259"), Some("16384"), Some(name), Some(what)].iter().for_each(|text| self.text(*text));
        self.number(3);
        [Some("CREATE …"), Some("DROP …"), copy, Some("public"), None]
            .iter()
            .for_each(|text| self.text(*text));
        if self.minor >= 14 {
            self.text(Some("heap"));
        }
        if self.minor >= 16 {
            self.number(i64::from(b'r'));
        }
        ["app", "false", "7", "8"].iter().for_each(|text| self.text(Some(text)));
        self.text(None);
        self.bytes.push(if has_data { 1 } else { NO_DATA });
        self.bytes.extend([0; 8]);
    }

    fn table(&mut self, number: i64, chunks: &[&str]) {
        self.bytes.push(ROWS);
        self.number(number);
        for chunk in chunks {
            self.text(Some(chunk));
        }
        self.number(0);
    }

    fn objects(&mut self, number: i64, objects: &[(i64, &[&str])]) {
        self.bytes.push(OBJECTS);
        self.number(number);
        for (object, chunks) in objects {
            self.number(*object);
            chunks.iter().for_each(|chunk| self.text(Some(chunk)));
            self.number(0);
        }
        self.number(0);
    }
}

fn sample(minor: u8) -> Vec<u8> {
    let mut writer = Writer::new(minor, 5);
    writer.entry(1, "TABLE", "a", None);
    writer.entry(10, "TABLE DATA", "a", Some("COPY public.a (b, \"a \"\"(x)\", c) FROM stdin;\n"));
    writer.entry(11, "BLOBS", "BLOBS", None);
    writer.entry(12, "TABLE DATA", "none", Some("COPY public.\"none\"  FROM stdin;\n"));
    writer.entry(2, "CONSTRAINT", "a_pkey", None);
    writer.table(10, &["1\tone\t\\N\n", "2\tt", "wo\tx\n3\tthree\ty\n", "\\.\n\n\n"]);
    writer.objects(11, &[(4242, &["one", "two\n\\.\n"]), (-7, &[]), (9, &["x"])]);
    writer.table(12, &["\n", "\n", "\\.\n\n\n"]);
    writer.bytes
}

fn read(bytes: &[u8], cuts: usize, hashes: Hashes) -> Result<Option<Vec<TableRecord>>> {
    let mut archive = Archive::new(hashes);
    bytes.chunks(cuts.max(1)).try_for_each(|part| archive.feed(part))?;
    archive.finish()
}

#[test]
fn rows_are_counted_and_hashed_in_the_order_of_the_columns_names() {
    let mut copied = Table::sorted("public.a".to_owned());
    // As COPY ("a ""(x)", b, c) gives it, in another order.
    copied.lines(b"three\t3\ty\none\t1\t\\N\ntwo\t2\tx\n");
    let a = copied.record();
    let mut copied = Table::sorted("public.none".to_owned());
    copied.lines(b"\n\n");
    let expected = vec![a, copied.record()];
    for minor in 12..=16 {
        for cuts in [1, 2, 7, 4096] {
            let read = read(&sample(minor), cuts, Hashes::All).unwrap().unwrap();
            assert_eq!(read, expected, "1.{minor} in parts of {cuts}");
        }
    }
    assert_eq!((expected[0].rows, expected[1].rows), (3, 2));
    let counted = read(&sample(15), 100, Hashes::None).unwrap().unwrap();
    assert!(counted.iter().all(|table| table.hash.is_none()) && counted[0].rows == 3);
}

#[test]
fn an_end_in_the_middle_is_noticed_wherever_it_is() {
    let whole = sample(15);
    for length in 0..whole.len() {
        let error = read(&whole[..length], 1 << 20, Hashes::All).unwrap_err();
        assert_eq!(error.code(), Code::DatabaseInterrupted, "{length} of {}", whole.len());
    }
    let mut more = whole;
    more.push(ROWS);
    assert!(read(&more, 1 << 20, Hashes::All).is_err());
}

#[test]
fn a_version_of_tomorrow_is_left_unread() {
    for version in [(1, 11), (1, 17), (2, 0)] {
        let mut bytes = sample(15);
        (bytes[5], bytes[6]) = version;
        assert!(read(&bytes, 1000, Hashes::All).unwrap().is_none());
    }
}

#[test]
fn a_row_that_is_too_long_is_counted_and_leaves_no_hash() {
    let long = "x".repeat(ROW);
    for (rest, hashed) in [("", true), ("y", false)] {
        for cut in [1 << 16, 1 << 30] {
            let mut table = Table::sorted("t".to_owned());
            format!("{long}{rest}\nz\n").as_bytes().chunks(cut).for_each(|part| table.lines(part));
            let record = table.record();
            assert_eq!((record.rows, record.hash.is_some()), (2, hashed));
        }
    }
}

#[test]
fn statements_that_are_not_understood_leave_no_hash() {
    let names = |copy: &str| {
        let columns = columns(copy.as_bytes())?;
        Some(columns.into_iter().map(|c| String::from_utf8(c).unwrap()).collect::<Vec<_>>())
    };
    assert_eq!(
        names("COPY a.\"b (c) FROM stdin;\" (d, \"e, f\", ü) FROM stdin;\n").unwrap(),
        ["d", "e, f", "ü"]
    );
    assert_eq!(names("COPY a.b FROM stdin;").unwrap(), [""; 0]);
    for odd in [
        "",
        "COPY",
        "COPY a.b (c FROM stdin;",
        "COPY a.b (\"c) FROM stdin;",
        "INSERT INTO a",
        "COPY a.b (c) TO stdout;",
    ] {
        assert_eq!(names(odd), None, "{odd}");
    }
    let mut table = Table::new("t".to_owned(), b"COPY odd", Hashes::All);
    table.lines(b"1\n");
    assert_eq!((table.rows.number(), table.record().hash), (1, None));
    // Fewer fields than columns.
    let mut table = Table::new("t".to_owned(), b"COPY t (b, a) FROM stdin;", Hashes::All);
    table.lines(b"1\n");
    assert_eq!(table.record().hash, None);
}

proptest! {
    #[test]
    fn damage_is_an_error_or_harmless(at in 0usize..900, bit in 0u8..8, cuts in 1usize..300, minor in 12u8..=16) {
        let mut bytes = sample(minor);
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        read(&bytes, cuts, Hashes::All).ok();
    }

    #[test]
    fn anything_can_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..300), cuts in 1usize..50) {
        let mut all = sample(15);
        all.truncate(11);
        all.extend(bytes);
        read(&all, cuts, Hashes::All).ok();
    }
}
