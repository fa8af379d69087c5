//! A process that writes to a database and says when a commit is acknowledged.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::only;

/// Bytes of a row beside its number.
const PAYLOAD: usize = 700;
/// Rows that stay, so that a test is short.
const ROWS: i64 = 1000;

/// Makes a database of `rows` commits.
pub fn database(path: &Path, mode: &str, rows: i64) -> Connection {
    let connection = Connection::open(path).unwrap();
    let sql = format!(
        "PRAGMA journal_mode={mode}; PRAGMA synchronous=OFF;
         CREATE TABLE rows (id INTEGER PRIMARY KEY, turn INTEGER, text TEXT);
         CREATE INDEX by_turn ON rows (turn);
         CREATE TABLE total (commits INTEGER, sum INTEGER); INSERT INTO total VALUES (0, 0); BEGIN"
    );
    connection.execute_batch(&sql).unwrap();
    (1..=rows).for_each(|id| insert(&connection, id));
    connection.execute_batch("COMMIT").unwrap();
    connection
}

/// One row more, perhaps one less, some that change, and what they must be together.
pub fn insert(connection: &Connection, id: i64) {
    let text = format!("{id:x>PAYLOAD$}");
    connection.execute("INSERT INTO rows VALUES (?1, ?1, ?2)", (id, text)).unwrap();
    let gone = connection.execute("DELETE FROM rows WHERE id = ?1 - ?2", (id, ROWS)).unwrap();
    let less = if gone == 1 { id - ROWS } else { 0 };
    connection.execute("UPDATE total SET commits = ?1, sum = sum + ?1 - ?2", (id, less)).unwrap();
    connection.execute("UPDATE rows SET turn = turn + 1 WHERE id % 97 = ?1 % 97", [id]).unwrap();
}

/// How many commits it has, after a look at whether it is one state.
pub fn whole(path: &Path) -> Result<i64, String> {
    let said = |e: rusqlite::Error| e.to_string();
    let connection = Connection::open(path).map_err(said)?;
    let check: String = connection.query_row("PRAGMA integrity_check", (), |row| row.get(0)).map_err(said)?;
    if check != "ok" {
        return Err(check);
    }
    let sql = "SELECT commits, sum, (SELECT max(id) FROM rows), (SELECT sum(id) FROM rows), \
               (SELECT count(*) FROM rows) FROM total";
    let found: [i64; 5] = connection
        .query_row(sql, (), |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?]))
        .map_err(said)?;
    match found[0] == found[2] && found[1] == found[3] && found[4] == found[0].min(ROWS) {
        true => Ok(found[0]),
        false => Err(format!("commits, sum, last row, their sum, their number: {found:?}")),
    }
}

/// The child's side. `PATH write` commits row after row and prints the number of each; `PATH hold SQL` does what it is told
/// and then nothing.
pub fn main(words: &[OsString]) {
    let connection = Connection::open(&words[0]).unwrap();
    connection.busy_timeout(Duration::from_secs(30)).unwrap();
    connection.execute_batch("PRAGMA synchronous=OFF; PRAGMA wal_autocheckpoint=200").unwrap();
    let mut out = std::io::stdout();
    if words[1] == "hold" {
        connection.execute_batch(words[2].to_str().unwrap()).unwrap();
        writeln!(out, "\nacknowledged 1").unwrap();
        loop {
            std::thread::park();
        }
    }
    let last: i64 = connection.query_row("SELECT commits FROM total", (), |row| row.get(0)).unwrap();
    for id in last + 1.. {
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        insert(&connection, id);
        connection.execute_batch("COMMIT").unwrap();
        if writeln!(out, "\nacknowledged {id}").is_err() {
            return;
        }
    }
}

/// A writer that is killed when dropped.
pub struct Writer {
    process: Child,
    commits: Arc<AtomicI64>,
}

impl Writer {
    pub fn start(path: &Path, words: &[&str]) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(only("a_writer"))
            .arg(path)
            .args(words)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let commits = Arc::new(AtomicI64::new(0));
        let (lines, count) = (BufReader::new(process.stdout.take().unwrap()), Arc::clone(&commits));
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                if let Some(id) = line.strip_prefix("acknowledged ") {
                    count.store(id.parse().unwrap(), Ordering::SeqCst);
                }
            }
        });
        let writer = Writer { process, commits };
        let begin = Instant::now();
        while writer.acknowledged() == 0 {
            assert!(begin.elapsed() < Duration::from_secs(60), "the writer does not begin");
            std::thread::sleep(Duration::from_millis(2));
        }
        writer
    }

    /// The row whose commit was acknowledged last.
    pub fn acknowledged(&self) -> i64 {
        self.commits.load(Ordering::SeqCst)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}
