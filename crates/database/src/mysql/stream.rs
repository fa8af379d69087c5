//! Reads along with a dump: counts and hashes rows, hashes the structure, sees the end mark, and changes the few lines that must
//! be another where the dump is loaded into a database of another name.
//!
//! Why from the dump itself: MySQL has no snapshot that two connections share. A second transaction begun beside the
//! tool's sees another moment, a lock over both needs a right that users of one database rarely have, and counting
//! again costs a second pass over everything. What is counted in the dump's own bytes is of its snapshot by construction,
//! and costs one pass over bytes that are in hand. After a load the staged database is dumped by the same tool through the
//! same reader, and the two must agree.
//!
//! Invariants:
//! * A row is hashed from its `(` to its `)`, so its hash is the same whether the tool writes one row a line or many; the
//!   hashes are added up, so that the order of rows does not matter.
//! * Lines that differ without a difference in the structure (versions, times, counters, definers, whether an event is on)
//!   are left out of the structure's hash or made equal.
//! * Rows are never held as a whole; other lines are, up to [`LINE`] bytes.

mod trigger;

use std::collections::BTreeMap;

use backstay_model::{Code, Error, Result};
use ring::digest::{Context, SHA256};

use crate::adapter::{Hashes, TableRecord};
use crate::rows::{Rows, hex};

/// The longest line that is no row.
const LINE: usize = 64 << 20;

/// How an event stood in the dump: on or off, and whether it stays when it is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EventState(pub String);

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub tables: Vec<TableRecord>,
    pub schema_hash: String,
    /// Name of the log, place in it, and the global transaction id where it is known.
    pub position: Option<String>,
    pub events: BTreeMap<String, EventState>,
    /// Accounts that objects were defined by.
    pub definers: Vec<String>,
}

/// What is changed on the way into another database.
#[derive(Clone, Debug, Default)]
pub(super) struct Changes {
    /// The name of the database that is filled.
    pub database: String,
    /// Whether objects are made as the user that loads them.
    pub without_definers: bool,
}

enum State {
    /// Lines of SQL.
    Text,
    /// Behind `VALUES`: what follows tells the form.
    Values,
    /// A row a line.
    Lines,
    /// Rows anyhow, up to a semicolon.
    Tuples(Tuple),
}

/// Where in a row of the second form.
#[derive(Clone, Copy)]
enum Tuple {
    Between,
    Inside,
    Quoted,
    Escaped,
}

/// A table as far as it was read.
struct Table {
    name: String,
    rows: Rows,
}

/// The reader.
pub(super) struct Along {
    hashes: Hashes,
    changes: Option<Changes>,
    state: State,
    line: Vec<u8>,
    /// The last byte of a row's line, which may be its separator.
    held: Option<u8>,
    body: bool,
    ended: bool,
    begun: bool,
    tables: Vec<Table>,
    current: usize,
    schema: Context,
    log: Option<String>,
    gtid: Option<String>,
    events: BTreeMap<String, EventState>,
    definers: Vec<String>,
    out: Vec<u8>,
}

impl Along {
    /// A reader that changes nothing.
    pub(super) fn new(hashes: Hashes) -> Self {
        Along {
            hashes,
            changes: None,
            state: State::Text,
            line: Vec::new(),
            held: None,
            body: false,
            ended: false,
            begun: false,
            tables: Vec::new(),
            current: 0,
            schema: Context::new(&SHA256),
            log: None,
            gtid: None,
            events: BTreeMap::new(),
            definers: Vec::new(),
            out: Vec::new(),
        }
    }

    /// One that gives the bytes to load in [`Along::take`].
    pub(super) fn changing(changes: Changes) -> Self {
        Along { changes: Some(changes), ..Self::new(Hashes::All) }
    }

    /// Whether the dump is past its header: its snapshot stands.
    pub(super) fn has_begun(&self) -> bool {
        self.begun
    }

    /// The position so far.
    pub(super) fn position(&self) -> Option<String> {
        let gtid = self.gtid.as_ref().map(|gtid| format!(" gtid {gtid}")).unwrap_or_default();
        self.log.as_ref().map(|log| format!("{log}{gtid}"))
    }

    /// What is to be loaded since the last call.
    pub(super) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// Reads on.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let used = match self.state {
                State::Text => self.text(bytes)?,
                State::Values => self.values(bytes),
                State::Lines => self.lines(bytes),
                State::Tuples(at) => self.tuples(at, bytes),
            };
            bytes = bytes.get(used..).unwrap_or_default();
        }
        Ok(())
    }

    /// What was read. An error where the end mark did not come.
    pub(super) fn finish(mut self) -> Result<Seen> {
        if !self.line.is_empty() && matches!(self.state, State::Text) {
            let line = std::mem::take(&mut self.line);
            self.whole_line(&line)?;
        }
        if !self.ended {
            return Err(Error::new(Code::DatabaseInterrupted, "The dump has no end mark"));
        }
        let position = self.position();
        let mut tables: Vec<TableRecord> = self.tables.into_iter().map(Table::record).collect();
        tables.sort_by(|a, b| a.name.cmp(&b.name));
        self.definers.sort();
        self.definers.dedup();
        let schema_hash = hex(self.schema.finish().as_ref());
        Ok(Seen { tables, schema_hash, position, events: self.events, definers: self.definers })
    }

    fn pass(&mut self, bytes: &[u8]) {
        if self.changes.is_some() {
            self.out.extend_from_slice(bytes);
        }
    }

    fn text(&mut self, bytes: &[u8]) -> Result<usize> {
        let end = bytes.iter().position(|b| *b == b'\n');
        let used = end.map_or(bytes.len(), |end| end + 1);
        let part = bytes.get(..used).unwrap_or_default();
        self.line.extend_from_slice(part);
        // Rows may begin in a line whose end is far away: look for them as soon as there is something to see.
        if let Some(head) = self.head() {
            let rest = self.line.split_off(head);
            let line = std::mem::take(&mut self.line);
            self.pass(&line);
            self.state = State::Values;
            return Ok(used.saturating_sub(rest.len()));
        }
        if self.line.len() > LINE {
            return Err(Error::new(
                Code::LimitExceeded,
                "A line of the dump that is no row has more than 64 MB",
            ));
        }
        if end.is_some() {
            let line = std::mem::take(&mut self.line);
            let open = if self.body { trigger::is_unfinished(&line) } else { is_open(&line) };
            match open {
                false => self.whole_line(&line)?,
                // What has to be seen at once goes on in the next line.
                true => self.line = line,
            }
        }
        Ok(used)
    }

    /// Where the head of an `INSERT` ends, once the line holds all of it. Makes its table the current one.
    fn head(&mut self) -> Option<usize> {
        const INSERT: &[u8] = b"INSERT INTO ";
        const VALUES: &[u8] = b" VALUES";
        if self.body || !self.line.starts_with(INSERT) {
            return None;
        }
        let rest = self.line.get(INSERT.len()..)?;
        let (table, used) = identifier(rest)?;
        let mut at = INSERT.len() + used;
        if self.line.get(at..)?.starts_with(b" (") {
            at += 2 + columns(self.line.get(at + 2..)?)?;
        }
        self.line.get(at..)?.starts_with(VALUES).then_some(())?;
        self.current = self.table(&table);
        Some(at + VALUES.len())
    }

    fn table(&mut self, name: &str) -> usize {
        match self.tables.iter().rposition(|table| table.name == name) {
            Some(at) => at,
            None => {
                self.tables.push(Table { name: name.to_owned(), rows: Rows::new(self.hashes) });
                self.tables.len() - 1
            }
        }
    }

    fn values(&mut self, bytes: &[u8]) -> usize {
        match bytes.first() {
            Some(b'\n') => {
                self.state = State::Lines;
                self.pass(b"\n");
                1
            }
            _ => {
                self.state = State::Tuples(Tuple::Between);
                0
            }
        }
    }

    fn lines(&mut self, bytes: &[u8]) -> usize {
        let end = bytes.iter().position(|b| *b == b'\n');
        let part = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
        if let Some((last, before)) = part.split_last() {
            if let Some(held) = self.held.replace(*last) {
                self.hash(&[held]);
            }
            self.hash(before);
        }
        self.pass(part);
        match end {
            None => part.len(),
            Some(end) => {
                self.pass(b"\n");
                self.end_row();
                if self.held.take() == Some(b';') {
                    self.state = State::Text;
                }
                end + 1
            }
        }
    }

    fn tuples(&mut self, mut at: Tuple, bytes: &[u8]) -> usize {
        let mut used = 0;
        let mut from = 0;
        for byte in bytes {
            used += 1;
            at = match (at, byte) {
                (Tuple::Between, b'(') => {
                    from = used - 1;
                    Tuple::Inside
                }
                (Tuple::Between, b';') => {
                    self.pass(bytes.get(..used).unwrap_or_default());
                    self.state = State::Text;
                    return used;
                }
                (Tuple::Between, _) => Tuple::Between,
                (Tuple::Inside, b'\'') => Tuple::Quoted,
                (Tuple::Inside, b')') => {
                    self.hash(bytes.get(from..used).unwrap_or_default());
                    self.end_row();
                    from = used;
                    Tuple::Between
                }
                (Tuple::Inside, _) => Tuple::Inside,
                (Tuple::Quoted, b'\\') => Tuple::Escaped,
                (Tuple::Quoted, b'\'') => Tuple::Inside,
                (Tuple::Quoted | Tuple::Escaped, _) => Tuple::Quoted,
            };
        }
        if !matches!(at, Tuple::Between) {
            self.hash(bytes.get(from..used).unwrap_or_default());
        }
        self.pass(bytes);
        self.state = State::Tuples(at);
        used
    }

    fn hash(&mut self, bytes: &[u8]) {
        if let Some(table) = self.tables.get_mut(self.current) {
            table.rows.part(bytes);
        }
    }

    fn end_row(&mut self) {
        if let Some(table) = self.tables.get_mut(self.current) {
            table.rows.end();
        }
    }

    fn whole_line(&mut self, line: &[u8]) -> Result<()> {
        let words = line.trim_ascii_end();
        match words {
            b"DELIMITER ;;" => self.body = true,
            b"DELIMITER ;" => self.body = false,
            _ => {}
        }
        if !self.body {
            self.outside(words);
        }
        let (line, definer) = without_definer(line);
        self.definers.extend(definer.as_ref().map(|(_, definer)| definer.clone()));
        let (structure, event) = event(&line);
        if let Some((name, state)) = event {
            self.events.insert(name, state);
        }
        if counts(words, self.body) {
            self.schema.update(&trigger::unqualified(without_counter(&structure)));
        }
        if let Some(changes) = &self.changes {
            let loaded = match (definer, changes.without_definers) {
                (Some((whole, _)), false) => self::event(&whole).0,
                _ => structure,
            };
            let loaded = trigger::unqualified(renamed(loaded, &changes.database));
            self.out.extend_from_slice(&loaded);
        }
        Ok(())
    }

    /// What lines outside of bodies say.
    fn outside(&mut self, words: &[u8]) {
        const CREATE: &[u8] = b"CREATE TABLE ";
        if let Some((name, _)) = words.strip_prefix(CREATE).and_then(identifier) {
            self.table(&name);
        } else if let Some(rest) = words.strip_prefix(b"-- CHANGE MASTER TO MASTER_LOG_FILE='") {
            let rest = String::from_utf8_lossy(rest);
            let (file, place) = rest.split_once("', MASTER_LOG_POS=").unwrap_or((&rest, ""));
            self.log = Some(format!("{file}:{}", place.trim_end_matches(';')));
        } else if let Some(rest) = words.strip_prefix(b"-- SET GLOBAL gtid_slave_pos='") {
            self.gtid = Some(String::from_utf8_lossy(rest).trim_end_matches("';").to_owned());
        } else if words.starts_with(b"-- Dump completed") {
            self.ended = true;
            self.begun = true;
        }
        const SECTIONS: [&[u8]; 6] = [
            b"-- Table structure for",
            b"-- Temporary ",
            b"-- Sequence structure for",
            b"-- Dumping ",
            b"DROP TABLE IF EXISTS ",
            b"DROP SEQUENCE IF EXISTS ",
        ];
        self.begun |= SECTIONS.iter().any(|section| words.starts_with(section));
    }
}

impl Table {
    fn record(self) -> TableRecord {
        TableRecord { rows: self.rows.number(), hash: self.rows.hash(), name: self.name }
    }
}

/// A name between backticks at the beginning, and how many bytes it takes with them.
fn identifier(bytes: &[u8]) -> Option<(String, usize)> {
    let inner = bytes.strip_prefix(b"`")?;
    let mut name = Vec::new();
    let mut rest = inner.iter().enumerate().peekable();
    while let Some((at, byte)) = rest.next() {
        if *byte != b'`' {
            name.push(*byte);
        } else if rest.next_if(|(_, next)| **next == b'`').is_some() {
            name.push(b'`');
        } else {
            return Some((String::from_utf8_lossy(&name).into_owned(), at + 2));
        }
    }
    None
}

/// How many bytes a list of names takes with the bracket that closes it.
fn columns(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += identifier(bytes.get(at..)?)?.1;
        let rest = bytes.get(at..)?;
        if rest.starts_with(b")") {
            return Some(at + 1);
        }
        at += rest.starts_with(b", ").then_some(2)?;
    }
}

/// Whether a line begins with a name that it does not end.
fn is_open(line: &[u8]) -> bool {
    [&b"INSERT INTO "[..], b"CREATE TABLE "].iter().any(|word| {
        line.strip_prefix(*word).is_some_and(|rest| rest.starts_with(b"`") && identifier(rest).is_none())
    })
}

/// Whether a line is part of the structure.
fn counts(words: &[u8], body: bool) -> bool {
    const OTHER: [&[u8]; 12] = [
        b"-- Host: ",
        b"-- Server version",
        b"-- MariaDB dump",
        b"-- MySQL dump",
        b"-- CHANGE MASTER",
        b"-- SET GLOBAL gtid_slave_pos",
        b"-- Dumping events for database",
        b"-- Dumping routines for database",
        b"-- Position to start",
        b"-- Dump completed",
        b"/*M!999999",
        b"ALTER DATABASE ",
    ];
    let notes = !body && words.starts_with(b"--");
    !words.is_empty() && !notes && !OTHER.iter().any(|other| words.starts_with(other))
}

/// The line without the counter of a table: that is no structure.
fn without_counter(line: &[u8]) -> Vec<u8> {
    const COUNTER: &[u8] = b" AUTO_INCREMENT=";
    let found = match line.starts_with(b") ENGINE=") {
        true => line.windows(COUNTER.len()).position(|part| part == COUNTER),
        false => None,
    };
    let Some(at) = found else { return line.to_vec() };
    let (before, after) = line.split_at(at);
    let digits = after.iter().skip(COUNTER.len()).take_while(|byte| byte.is_ascii_digit()).count();
    [before, after.get(COUNTER.len() + digits..).unwrap_or_default()].concat()
}

/// The line as it is loaded by somebody who may not name a definer; and, where it named one, the line as it was, with the
/// definer.
fn without_definer(line: &[u8]) -> (Vec<u8>, Option<(Vec<u8>, String)>) {
    const HEADS: [&[u8]; 5] = [
        b"/*!50003 CREATE*/ /*!",
        b"/*!50106 CREATE*/ /*!",
        b"/*!50013 DEFINER=",
        b"CREATE DEFINER=",
        b"/*!50003 CREATE DEFINER=",
    ];
    const DEFINER: &[u8] = b"DEFINER=";
    let found = match HEADS.iter().any(|head| line.starts_with(head)) {
        true => line.windows(DEFINER.len()).position(|part| part == DEFINER),
        false => None,
    };
    let parsed = found.and_then(|at| {
        let from = at + DEFINER.len();
        let (user, used) = identifier(line.get(from..)?)?;
        let mut end = from + used;
        let mut account = user;
        if let Some(host) = line.get(end..)?.strip_prefix(b"@") {
            let (host, used) = identifier(host)?;
            end += used + 1;
            account = format!("{account}@{host}");
        }
        Some((at, end, account))
    });
    match parsed {
        None => (line.to_vec(), None),
        Some((at, end, account)) => {
            let rest = line.get(end..).unwrap_or_default();
            let rest = rest.strip_prefix(b" ").unwrap_or(rest);
            let without = [line.get(..at).unwrap_or_default(), rest].concat();
            (without, Some((line.to_vec(), account)))
        }
    }
}

/// An event's line with the event switched off and kept when it is over, and how it stood. A staged event must not run, and
/// one whose time is past would be gone at once.
fn event(line: &[u8]) -> (Vec<u8>, Option<(String, EventState)>) {
    let none = || (line.to_vec(), None);
    if !line.starts_with(b"/*!50106 CREATE*/") {
        return none();
    }
    let Ok(text) = std::str::from_utf8(line) else { return none() };
    let parsed = text.find(" EVENT `").and_then(|at| {
        let (name, used) = identifier(text.get(at + " EVENT ".len()..)?.as_bytes())?;
        let (state, end) = event_state(text, at + " EVENT ".len() + used)?;
        Some((name, state, end))
    });
    let Some((name, state, end)) = parsed else { return none() };
    let start = end - state.len();
    let quiet = format!(
        "{}{}{}",
        text.get(..start).unwrap_or_default(),
        " ON COMPLETION PRESERVE DISABLE",
        text.get(end..).unwrap_or_default()
    );
    (quiet.into_bytes(), Some((name, EventState(state))))
}

/// The words ` ON COMPLETION … ENABLE` behind a place in an event's definition, and where they end.
pub(super) fn event_state(text: &str, from: usize) -> Option<(String, usize)> {
    let rest = text.get(from..)?;
    let mut best: Option<(usize, &str)> = None;
    for keep in [" ON COMPLETION NOT PRESERVE", " ON COMPLETION PRESERVE"] {
        for on in [" ENABLE", " DISABLE ON SLAVE", " DISABLE ON REPLICA", " DISABLE"] {
            let words = format!("{keep}{on}");
            let Some(at) = rest.find(&words) else { continue };
            if best.is_none_or(|(first, longest)| at < first || (at == first && words.len() > longest.len()))
            {
                best = Some((at, rest.get(at..at + words.len())?));
            }
        }
    }
    best.map(|(at, words)| (words.to_owned(), from + at + words.len()))
}

/// The line with the database that is filled in the place of the dumped one.
fn renamed(line: Vec<u8>, database: &str) -> Vec<u8> {
    const ALTER: &[u8] = b"ALTER DATABASE ";
    let Some(rest) = line.strip_prefix(ALTER) else { return line };
    match identifier(rest) {
        None => line,
        Some((_, used)) => {
            let name = super::connect::name(database);
            [ALTER, name.as_bytes(), rest.get(used..).unwrap_or_default()].concat()
        }
    }
}

#[cfg(test)]
mod tests;
