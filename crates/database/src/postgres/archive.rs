//! Reads along with a dump in `pg_dump`'s custom form: counts and hashes the rows of each table, and sees the end.
//!
//! Why from the dump's own bytes: what is counted there is of the dump's snapshot by construction, it is what a restore will
//! get, and the server does not read every table twice.
//!
//! The form (`pg_backup_archiver.c` and `pg_backup_custom.c` of PostgreSQL, archive versions 1.12 to 1.16; the real
//! `pg_dump` of our tests is that of 15, which writes 1.14): a head; a table of contents, in which each entry with data has a number; then, for each of these, a block of chunks that a
//! chunk of length 0 ends. Rows are lines as `COPY` writes them, up to a line `\.`. There is no end mark: the dump is whole
//! when each entry with data had its block.
//!
//! Invariants:
//! * The hash of a table does not depend on the order of its rows or of its columns: fields are hashed in the order of the
//!   columns' names, as `COPY` of these columns in that order writes them.
//! * At most one row ([`ROW`]) and one text of the table of contents ([`TEXT`]) are held.
//! * A version that is not known is no error: nothing is counted then, and the caller is told.

use std::collections::BTreeMap;

use backstay_model::{Code, Error, Result};

use crate::adapter::{Hashes, TableRecord};
use crate::rows::Rows;

/// The longest row that is hashed. A table with a longer one has no hash.
const ROW: usize = 16 << 20;
/// The longest text of the table of contents.
const TEXT: usize = 256 << 20;
/// Versions of the form.
const KNOWN: std::ops::RangeInclusive<(u8, u8)> = (1, 12)..=(1, 16);
/// An entry that has no data.
const NO_DATA: u8 = 3;
/// A block of rows.
const ROWS: u8 = 1;
/// A block of large objects.
const OBJECTS: u8 = 3;

/// The reader.
pub(super) struct Archive {
    hashes: Hashes,
    state: State,
    /// What was read of something that is not complete yet.
    held: Vec<u8>,
    form: Form,
    /// Entries with data whose blocks have not come yet; tables among them.
    waiting: BTreeMap<u32, Option<Box<Table>>>,
    tables: Vec<Table>,
}

/// How numbers are written.
#[derive(Clone, Copy, Default)]
struct Form {
    version: (u8, u8),
    int: usize,
    offset: usize,
}

enum State {
    Head,
    /// So many entries of the table of contents are to come.
    Entries(u32),
    /// Between blocks.
    Between,
    /// In the block of rows of a table, or of something else with lines.
    Rows(Option<Box<Table>>, Part),
    /// In a block of large objects; inside of one.
    Objects(bool, Part),
    /// A version that is not known.
    Unknown,
}

/// Where in a block.
#[derive(Clone, Copy)]
enum Part {
    Length,
    Bytes(usize),
}

/// A table whose rows pass by.
pub(super) struct Table {
    name: String,
    /// The positions of its columns in the order of their names; none where that is the order they are in.
    order: Option<Vec<usize>>,
    rows: Rows,
    line: Vec<u8>,
    /// The line is longer than what is held.
    long: bool,
    /// The rows can have no hash.
    odd: bool,
    ended: bool,
    sorted: Vec<u8>,
}

impl Archive {
    /// At the beginning of a dump.
    pub(super) fn new(hashes: Hashes) -> Self {
        Archive {
            hashes,
            state: State::Head,
            held: Vec::new(),
            form: Form::default(),
            waiting: BTreeMap::new(),
            tables: Vec::new(),
        }
    }

    /// Reads on.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<()> {
        match self.state {
            State::Unknown => Ok(()),
            State::Head | State::Entries(_) => {
                self.held.extend_from_slice(bytes);
                let held = std::mem::take(&mut self.held);
                let mut rest = held.as_slice();
                while self.contents(&mut rest)? {}
                match self.state {
                    State::Head | State::Entries(_) => self.held = rest.to_vec(),
                    _ => self.blocks(rest)?,
                }
                Ok(())
            }
            _ => self.blocks(bytes),
        }
    }

    /// The tables, if the version was known. An error where the dump is not whole.
    pub(super) fn finish(self) -> Result<Option<Vec<TableRecord>>> {
        match self.state {
            State::Unknown => return Ok(None),
            State::Between if self.held.is_empty() && self.waiting.is_empty() => {}
            _ => return Err(Error::new(Code::DatabaseInterrupted, "The dump ends in the middle")),
        }
        Ok(Some(self.tables.into_iter().map(Table::record).collect()))
    }

    /// Reads the head or an entry of the table of contents, if it is there as a whole.
    fn contents(&mut self, rest: &mut &[u8]) -> Result<bool> {
        let mut cursor = Cursor { rest, form: self.form };
        match self.state {
            State::Head => match head(&mut cursor)? {
                None => Ok(false),
                Some(Head::Unknown) => {
                    self.state = State::Unknown;
                    Ok(false)
                }
                Some(Head::Known(form, entries)) => {
                    *rest = cursor.rest;
                    self.form = form;
                    self.next_entry(entries);
                    Ok(entries > 0)
                }
            },
            State::Entries(left) => {
                let Some(entry) = entry(&mut cursor)? else { return Ok(false) };
                *rest = cursor.rest;
                if entry.has_data {
                    let table =
                        entry.table.map(|(name, copy)| Box::new(Table::new(name, &copy, self.hashes)));
                    self.waiting.insert(entry.number, table);
                }
                self.next_entry(left - 1);
                Ok(left > 1)
            }
            _ => Ok(false),
        }
    }

    fn next_entry(&mut self, left: u32) {
        self.state = if left == 0 { State::Between } else { State::Entries(left) };
    }

    /// Reads what follows the table of contents.
    fn blocks(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Between => {
                    let Some(head) = self.whole(&mut bytes, 1 + 1 + self.form.int) else { return Ok(()) };
                    self.begin_block(head)?;
                }
                State::Rows(_, Part::Length) | State::Objects(_, Part::Length) => {
                    let Some(length) = self.whole(&mut bytes, 1 + self.form.int) else { return Ok(()) };
                    self.begin_chunk(length.number(0, self.form)?)?;
                }
                State::Rows(table, part @ Part::Bytes(_)) => {
                    let data = part.take(&mut bytes);
                    if let Some(table) = table {
                        table.lines(data);
                    }
                }
                State::Objects(_, part @ Part::Bytes(_)) => {
                    part.take(&mut bytes);
                }
                State::Head | State::Entries(_) | State::Unknown => return Ok(()),
            }
        }
        Ok(())
    }

    /// So many bytes, once they are there.
    fn whole(&mut self, bytes: &mut &[u8], wanted: usize) -> Option<Few> {
        let missing = wanted.saturating_sub(self.held.len()).min(bytes.len());
        let (now, later) = bytes.split_at(missing);
        *bytes = later;
        self.held.extend_from_slice(now);
        if self.held.len() < wanted {
            return None;
        }
        let mut few = Few::default();
        few.0.iter_mut().zip(self.held.drain(..)).for_each(|(to, from)| *to = from);
        Some(few)
    }

    fn begin_block(&mut self, head: Few) -> Result<()> {
        let number = u32::try_from(head.number(1, self.form)?).map_err(|_negative| damaged())?;
        let table = self.waiting.remove(&number).ok_or_else(damaged)?;
        self.state = match head.0.first() {
            Some(&ROWS) => State::Rows(table, Part::Length),
            Some(&OBJECTS) => State::Objects(false, Part::Length),
            _ => return Err(damaged()),
        };
        Ok(())
    }

    /// A length was read; among large objects also the number of one.
    fn begin_chunk(&mut self, length: i64) -> Result<()> {
        let next = || usize::try_from(length).map(Part::Bytes).map_err(|_negative| damaged());
        self.state = match (std::mem::replace(&mut self.state, State::Between), length) {
            (State::Rows(Some(table), _), 0) => {
                self.tables.push(*table);
                State::Between
            }
            (State::Rows(None, _), 0) | (State::Objects(false, _), 0) => State::Between,
            (State::Rows(table, _), _) => State::Rows(table, next()?),
            // The number of an object may be one that looks negative.
            (State::Objects(false, _), _) => State::Objects(true, Part::Length),
            (State::Objects(true, _), 0) => State::Objects(false, Part::Length),
            (State::Objects(true, _), _) => State::Objects(true, next()?),
            (other, _) => other,
        };
        Ok(())
    }
}

impl Part {
    /// What of these bytes is still the chunk's.
    fn take<'b>(&mut self, bytes: &mut &'b [u8]) -> &'b [u8] {
        let Part::Bytes(left) = *self else { return &[] };
        let (now, later) = bytes.split_at(left.min(bytes.len()));
        *bytes = later;
        *self = match left - now.len() {
            0 => Part::Length,
            left => Part::Bytes(left),
        };
        now
    }
}

impl Table {
    fn new(name: String, copy: &[u8], hashes: Hashes) -> Self {
        let columns = columns(copy);
        let mut order: Vec<usize> = (0..columns.as_ref().map_or(0, Vec::len)).collect();
        order.sort_by(|a, b| columns.as_ref().map(|c| c.get(*a).cmp(&c.get(*b))).unwrap_or(a.cmp(b)));
        let sorted = order.is_sorted();
        Table {
            name,
            order: (!sorted).then_some(order),
            rows: Rows::new(hashes),
            line: Vec::new(),
            long: false,
            odd: columns.is_none(),
            ended: false,
            sorted: Vec::new(),
        }
    }

    /// One whose columns come in the order of their names.
    pub(super) fn sorted(name: String) -> Self {
        Self::new(name, b"COPY x FROM stdin;", Hashes::All)
    }

    /// A part of the lines.
    pub(super) fn lines(&mut self, mut bytes: &[u8]) {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (now, later) = bytes.split_at(end);
            bytes = later.get(1..).unwrap_or_default();
            if self.line.is_empty() && !self.long {
                self.row(now);
            } else {
                self.hold(now);
                let mut line = std::mem::take(&mut self.line);
                self.row(&line);
                line.clear();
                self.line = line;
            }
            self.long = false;
        }
        self.hold(bytes);
    }

    fn hold(&mut self, bytes: &[u8]) {
        if self.line.len() + bytes.len() > ROW {
            self.long = true;
            self.odd = true;
            self.line.clear();
        }
        if !self.long {
            self.line.extend_from_slice(bytes);
        }
    }

    fn row(&mut self, row: &[u8]) {
        self.odd |= row.len() > ROW;
        if self.ended || (row == b"\\." && !self.long) {
            self.ended = true;
        } else if let (Some(order), true) = (&self.order, self.rows.wanted() && !self.odd) {
            self.odd |= !arrange(row, order, &mut self.sorted);
            self.rows.whole(&self.sorted);
        } else {
            self.rows.whole(row);
        }
    }

    pub(super) fn record(self) -> TableRecord {
        let hash = self.rows.hash().filter(|_| !self.odd);
        TableRecord {
            name: self.name,
            rows: self.rows.number(),
            hash: hash.map(|hash| format!("{MARK}{hash}")),
        }
    }
}

/// What a hash of lines of `COPY` begins with in a record: earlier ones were of something else.
pub(super) const MARK: &str = "copy:";

/// Puts the fields of a row into another order; false where it has not so many.
fn arrange(row: &[u8], order: &[usize], sorted: &mut Vec<u8>) -> bool {
    sorted.clear();
    let mut fields: Vec<&[u8]> = Vec::with_capacity(order.len());
    let mut begin = 0;
    for tab in memchr::memchr_iter(b'\t', row).chain([row.len()]) {
        fields.push(row.get(begin..tab).unwrap_or_default());
        begin = tab + 1;
    }
    for (at, place) in order.iter().enumerate() {
        if at > 0 {
            sorted.push(b'\t');
        }
        sorted.extend_from_slice(fields.get(*place).copied().unwrap_or_default());
    }
    fields.len() == order.len()
}

/// The columns in `COPY name (columns) FROM stdin;`; none where that is not understood.
fn columns(copy: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut rest = copy.strip_prefix(b"COPY ")?;
    loop {
        identifier(&mut rest)?;
        match rest.strip_prefix(b".") {
            Some(after) => rest = after,
            None => break,
        }
    }
    rest = rest.strip_prefix(b" ")?;
    let mut columns = Vec::new();
    if let Some(after) = rest.strip_prefix(b"(") {
        rest = after;
        loop {
            columns.push(identifier(&mut rest)?);
            match rest.strip_prefix(b", ") {
                Some(after) => rest = after,
                None => break,
            }
        }
        rest = rest.strip_prefix(b")")?;
    }
    rest.trim_ascii().starts_with(b"FROM stdin;").then_some(columns)
}

/// A name at the beginning, quoted or not.
fn identifier(rest: &mut &[u8]) -> Option<Vec<u8>> {
    let mut name = Vec::new();
    let Some(mut quoted) = rest.strip_prefix(b"\"") else {
        let end = rest.iter().position(|b| !(b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$' | 128..)));
        let (plain, after) = rest.split_at(end.unwrap_or(rest.len()));
        name.extend_from_slice(plain);
        *rest = after;
        return (!name.is_empty()).then_some(name);
    };
    loop {
        let end = memchr::memchr(b'"', quoted)?;
        name.extend_from_slice(quoted.get(..end)?);
        quoted = quoted.get(end + 1..)?;
        match quoted.strip_prefix(b"\"") {
            Some(after) => {
                name.push(b'"');
                quoted = after;
            }
            None => {
                *rest = quoted;
                return Some(name);
            }
        }
    }
}

fn damaged() -> Error {
    Error::new(Code::DatabaseInterrupted, "What `pg_dump` wrote is not understood")
}

/// A few bytes: at most the head of a block.
#[derive(Clone, Copy, Default)]
struct Few([u8; 10]);

impl Few {
    /// The number at a place.
    fn number(&self, at: usize, form: Form) -> Result<i64> {
        Cursor { rest: self.0.get(at..).unwrap_or_default(), form }.number().ok_or_else(damaged)
    }
}

enum Head {
    Known(Form, u32),
    Unknown,
}

/// The head with the number of entries; none where it is not there as a whole.
fn head(cursor: &mut Cursor<'_>) -> Result<Option<Head>> {
    let Some(first) = cursor.bytes(11) else { return Ok(None) };
    let &[b'P', b'G', b'D', b'M', b'P', major, minor, _, int, offset, _] = first else {
        return Err(Error::new(Code::DatabaseInterrupted, "What `pg_dump` wrote is no dump"));
    };
    let form = Form { version: (major, minor), int: int.into(), offset: offset.into() };
    if !KNOWN.contains(&form.version) || !matches!(form.int, 4 | 8) || form.offset > 16 {
        return Ok(Some(Head::Unknown));
    }
    cursor.form = form;
    let compression = if form.version < (1, 15) { cursor.number() } else { cursor.byte().map(i64::from) };
    // Seven numbers of the time, then the names of the database and of both versions.
    let skipped = compression.and_then(|_| (0..7).try_for_each(|_| cursor.number().map(drop)));
    if skipped.is_none() {
        return Ok(None);
    }
    for _ in 0..3 {
        if cursor.text()?.is_none() {
            return Ok(None);
        }
    }
    let Some(entries) = cursor.number() else { return Ok(None) };
    let entries = u32::try_from(entries).map_err(|_negative| damaged())?;
    Ok(Some(Head::Known(form, entries)))
}

/// An entry of the table of contents.
struct Entry {
    number: u32,
    has_data: bool,
    /// The name and the `COPY` statement of a table with rows.
    table: Option<(String, Vec<u8>)>,
}

/// The entry at the beginning; none where it is not there as a whole.
fn entry(cursor: &mut Cursor<'_>) -> Result<Option<Entry>> {
    let (Some(number), Some(_)) = (cursor.number(), cursor.number()) else { return Ok(None) };
    let number = u32::try_from(number).map_err(|_negative| damaged())?;
    let mut texts = Texts { cursor, complete: true };
    let [_, _, tag, description] = texts.some()?;
    texts.number();
    let [_, _, copy, schema, _] = texts.some()?;
    if texts.cursor.form.version >= (1, 14) {
        texts.some::<1>()?;
    }
    if texts.cursor.form.version >= (1, 16) {
        texts.number();
    }
    let [_owner, _] = texts.some()?;
    // What it depends on, up to a text that is none.
    while texts.complete && texts.next()?.is_some() {}
    if !texts.complete {
        return Ok(None);
    }
    let Some(state) = cursor.byte() else { return Ok(None) };
    if cursor.bytes(cursor.form.offset).is_none() {
        return Ok(None);
    }
    let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
    let is_table = description == Some(b"TABLE DATA");
    let name = || format!("{}.{}", text(schema), text(tag));
    let table = is_table.then(|| (name(), copy.unwrap_or_default().to_vec()));
    Ok(Some(Entry { number, has_data: state != NO_DATA, table }))
}

/// Texts one after the other, until one is not there as a whole.
struct Texts<'c, 'b> {
    cursor: &'c mut Cursor<'b>,
    complete: bool,
}

impl<'b> Texts<'_, 'b> {
    fn next(&mut self) -> Result<Option<&'b [u8]>> {
        let text = if self.complete { self.cursor.text()? } else { None };
        self.complete &= text.is_some();
        Ok(text.flatten())
    }

    fn some<const N: usize>(&mut self) -> Result<[Option<&'b [u8]>; N]> {
        let mut all = [None; N];
        for text in &mut all {
            *text = self.next()?;
        }
        Ok(all)
    }

    fn number(&mut self) {
        self.complete = self.complete && self.cursor.number().is_some();
    }
}

/// Reads what is there.
struct Cursor<'b> {
    rest: &'b [u8],
    form: Form,
}

impl<'b> Cursor<'b> {
    fn bytes(&mut self, count: usize) -> Option<&'b [u8]> {
        let (now, later) = self.rest.split_at_checked(count)?;
        self.rest = later;
        Some(now)
    }

    fn byte(&mut self) -> Option<u8> {
        self.bytes(1)?.first().copied()
    }

    /// A sign and a size, the lowest byte first. What does not fit into 63 bits comes as -1.
    fn number(&mut self) -> Option<i64> {
        let (sign, size) = self.bytes(1 + self.form.int)?.split_first()?;
        let size = size.iter().rev().fold(0u64, |all, byte| (all << 8) | u64::from(*byte));
        let size = i64::try_from(size).unwrap_or(-1);
        Some(if *sign == 0 { size } else { -size.abs() })
    }

    /// A text, which may be none. Outside: none where it is not there as a whole.
    fn text(&mut self) -> Result<Option<Option<&'b [u8]>>> {
        let Some(length) = self.number() else { return Ok(None) };
        match usize::try_from(length) {
            Err(_negative) => Ok(Some(None)),
            Ok(length) if length > TEXT => Err(damaged()),
            Ok(length) => Ok(self.bytes(length).map(Some)),
        }
    }
}

#[cfg(test)]
mod tests;
