//! What goes wrong has a code of its own, and leaves nothing behind.

use std::io::Read as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use backstay_database::conformance::Bench as _;
use backstay_database::{ConnectionType, Database, Options, Side, connection};
use backstay_model::{Code, Error};
use backstay_testing::{Postgres, program};

use crate::bench::{PASSWORD, Server, digest, dump, endpoint, role};

fn open(server: &Postgres, user: &str, name: &str, options: Options) -> Box<dyn Database> {
    let password = if user == Postgres::USER { Postgres::PASSWORD } else { PASSWORD };
    backstay_database::open(&endpoint(server, user, password, name), options).unwrap()
}

/// Looking and dumping fail alike.
fn refused(database: &mut dyn Database) -> Error {
    let error = database.probe().unwrap_err();
    assert_eq!(database.dump().map(drop).unwrap_err().code(), error.code());
    error
}

/// Enough rows that no buffer on the way holds them all.
fn fill(server: &Postgres, name: &str) {
    server.psql(
        "postgres",
        &format!("DROP DATABASE IF EXISTS {name} WITH (FORCE); CREATE DATABASE {name} OWNER app"),
    );
    let rows =
        "CREATE TABLE posts AS SELECT i, repeat(md5(i::text), 30) AS body FROM generate_series(1, 20000) i";
    server.psql(name, &format!("SET ROLE app; {rows}"));
}

/// Reads on after something has happened to the dump; the error counts, whoever gives it.
fn read_on(mut dump: Box<dyn backstay_database::Dump + '_>) -> Error {
    match dump.read_to_end(&mut Vec::new()) {
        Err(e) => e.downcast::<Error>().unwrap(),
        Ok(_) => dump.finish().map(drop).unwrap_err(),
    }
}

#[test]
fn who_cannot_come_in_is_told_why() {
    let server = Server::new();
    let postgres = &server.0;
    postgres.psql("postgres", "CREATE DATABASE entry OWNER app");
    let code = |text: &str| {
        let endpoint = connection::parse(text, ConnectionType::PostgreSql).unwrap();
        let error = refused(&mut *backstay_database::open(&endpoint, Options::default()).unwrap());
        assert!(!format!("{error:?}").contains("wr0ng"), "{error:?}");
        error.code()
    };
    let port = postgres.port();
    assert_eq!(code(&format!("postgres://app:wr0ng@127.0.0.1:{port}/entry")), Code::DatabaseLoginFailed);
    assert_eq!(code(&format!("postgres://nobody:wr0ng@127.0.0.1:{port}/entry")), Code::DatabaseLoginFailed);
    assert_eq!(code(&format!("postgres://app@127.0.0.1:{port}/entry")), Code::DatabaseLoginFailed);
    assert_eq!(code("postgres://app:wr0ng@no-such-host.invalid/entry"), Code::DatabaseUnreachable);
    let free = backstay_testing::server::free_port();
    assert_eq!(code(&format!("postgres://app:wr0ng@127.0.0.1:{free}/entry")), Code::DatabaseUnreachable);
    assert_eq!(
        code(&format!("host=/no/such/folder port={port} user=app dbname=entry")),
        Code::DatabaseUnreachable
    );
    let missing = refused(&mut *open(postgres, "app", "no_such_database", Options::default()));
    assert_eq!(missing.code(), Code::DatabaseNotFound);
    assert!(missing.message().contains("no_such_database"));

    role(postgres, "crowd", "CONNECTION LIMIT 0");
    assert_eq!(
        refused(&mut *open(postgres, "crowd", "entry", Options::default())).code(),
        Code::DatabaseBusy
    );
    // The tool finds no place any more.
    role(postgres, "pair", "CONNECTION LIMIT 1");
    let error = open(postgres, "pair", "entry", Options::default()).dump().map(drop).unwrap_err();
    assert_eq!(error.code(), Code::DatabaseBusy, "{error:?}");
    server.remove("entry");
}

#[test]
fn what_a_user_does_not_see_is_named_with_the_grant_that_shows_it() {
    let server = Server::new();
    let postgres = &server.0;
    role(postgres, "reader", "");
    postgres.psql("postgres", "CREATE DATABASE hidden OWNER app");
    postgres.psql(
        "hidden",
        "CREATE SCHEMA \"closed one\"; CREATE TABLE \"closed one\".t (a int);
         CREATE TABLE posts (id serial PRIMARY KEY, body text); INSERT INTO posts (body) VALUES ('x');
         CREATE TABLE open (a int); GRANT SELECT ON open TO reader;
         CREATE TABLE own (who name); ALTER TABLE own ENABLE ROW LEVEL SECURITY; GRANT SELECT ON own TO reader; INSERT INTO own VALUES ('x');
         CREATE POLICY mine ON own USING (who = current_user); SELECT lo_create(77);",
    );
    let mut database = open(postgres, "reader", "hidden", Options::default());
    let missing = database.probe().unwrap().missing;
    assert_eq!(missing.len(), 6, "{missing:#?}");
    let error = database.dump().map(drop).unwrap_err();
    assert_eq!(error.code(), Code::DatabaseIncomplete);
    assert!(error.message().contains("closed one") && error.message().contains("and 1 more"), "{error:?}");
    // Each of them alone is missed.
    let grants: Vec<&str> = missing.iter().filter_map(|line| line.split_once(": ")).map(|(_, g)| g).collect();
    for (i, grant) in grants.iter().enumerate() {
        assert_eq!(database.dump().map(drop).unwrap_err().code(), Code::DatabaseIncomplete, "before {grant}");
        postgres.psql("hidden", &grant.replace(", …", ""));
        assert_eq!(database.probe().unwrap().missing.len(), grants.len() - i - 1, "after {grant}");
    }
    let (_, record) = dump(&mut *database);
    assert_eq!(record.tables.iter().map(|t| t.rows).sum::<u64>(), 3);
    postgres.psql("postgres", "DROP DATABASE hidden; DROP ROLE reader");
}

/// A session that does something and stays.
struct Staying(Child);

impl Staying {
    fn new(server: &Postgres, database: &str, script: &str) -> Self {
        let mut child = server
            .client("psql")
            .args(["-XAtq", database])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let script = format!("{script};\n\\echo ready\n");
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), script.as_bytes()).unwrap();
        let mut said = String::new();
        while !said.contains("ready\n") {
            let mut byte = [0];
            child.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
            said.push(char::from(byte[0]));
        }
        Staying(child)
    }
}

impl Drop for Staying {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn a_lock_that_somebody_holds_is_waited_for_and_then_told() {
    let server = Server::new();
    server.make("locked");
    let options = Options { lock_wait: Duration::from_millis(300), ..Options::default() };
    let mut database = open(&server.0, "app", "locked", options);
    let holder = Staying::new(&server.0, "locked", "BEGIN; LOCK TABLE posts IN ACCESS EXCLUSIVE MODE");
    let error = database.dump().map(drop).unwrap_err();
    assert_eq!(error.code(), Code::DatabaseLockTimeout);
    assert!(error.message().contains("posts"), "{error:?}");
    drop(holder);
    // Somebody who waits for our lock hinders nobody: the dump ends, and then it is theirs.
    let mut running = database.dump().unwrap();
    running.read_exact(&mut [0; 1000]).unwrap();
    let mut truncate =
        server.0.client("psql").args(["-qc", "TRUNCATE posts CASCADE", "locked"]).spawn().unwrap();
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'TRUNCATE%' AND wait_event_type = 'Lock'";
    while server.0.psql("locked", waiting) != "1\n" {
        std::thread::sleep(Duration::from_millis(10));
    }
    running.read_to_end(&mut Vec::new()).unwrap();
    let record = running.finish().unwrap();
    assert_eq!(
        record.tables.iter().map(|t| t.rows).sum::<u64>(),
        3000,
        "what was dumped is what is recorded"
    );
    truncate.wait().unwrap();
    server.remove("locked");
}

#[test]
fn a_connection_that_ends_in_the_middle_of_a_dump() {
    let server = Server::new();
    fill(&server.0, "cut");
    let mut database = open(&server.0, "app", "cut", Options::default());
    let mut running = database.dump().unwrap();
    running.read_exact(&mut [0; 100_000]).unwrap();
    server.0.psql("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'cut'");
    let error = read_on(running);
    assert_eq!(error.code(), Code::DatabaseInterrupted, "{error:?}");

    let mut running = database.dump().unwrap();
    running.read_exact(&mut [0; 100_000]).unwrap();
    let tool = process_with("dbname='cut'");
    for part in ["cmdline", "environ"] {
        let seen = std::fs::read(format!("/proc/{tool}/{part}")).unwrap();
        let seen = String::from_utf8_lossy(&seen).into_owned();
        assert!(seen.len() > 20 && !seen.contains("p:a") && !seen.contains("'w'"), "{seen}");
    }
    program::run(Command::new("kill").args(["-9", &tool])).ok();
    let error = read_on(running);
    assert_eq!(error.code(), Code::DatabaseInterrupted, "{error:?}");
    assert!(error.message().contains("signal 9"), "{error:?}");
    dump(&mut *database);
    server.remove("cut");
}

/// The number of the only process that has those words among its arguments.
fn process_with(words: &str) -> String {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let mut found = all.filter(|entry| {
        let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&arguments).contains(words)
    });
    let one = found.next().expect("a process").file_name().into_string().unwrap();
    assert!(found.next().is_none(), "there are several");
    one
}

#[test]
fn a_server_that_stops_in_the_middle() {
    let mut server = Postgres::start();
    role(&server, "app", "CREATEDB");
    fill(&server, "stopped");
    let mut database = open(&server, "app", "stopped", Options::default());
    let mut running = database.dump().unwrap();
    running.read_exact(&mut [0; 100_000]).unwrap();
    server.stop();
    let error = read_on(running);
    assert_eq!(error.code(), Code::DatabaseInterrupted, "{error:?}");
    assert_eq!(refused(&mut *database).code(), Code::DatabaseUnreachable);
}

fn script(folder: &Path, name: &str, version: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, format!("#!/bin/sh\necho '{name} (PostgreSQL) {version}'\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn tools_that_are_missing_or_too_old_and_the_one_that_is_taken() {
    let server = Server::new();
    server.make("tooled");
    let folders = [backstay_testing::temp_dir(), backstay_testing::temp_dir()];
    let tools: Vec<PathBuf> = folders.iter().map(|f| f.path().to_owned()).collect();
    let mut database =
        open(&server.0, "app", "tooled", Options { tools: tools.clone(), ..Options::default() });
    let error = refused(&mut *database);
    assert_eq!(error.code(), Code::DatabaseToolMissing);
    assert!(error.advice().contains("postgresql-client-1"), "{}", error.advice());
    script(&tools[0], "pg_dump", "9.6.24");
    let error = refused(&mut *database);
    assert_eq!(error.code(), Code::DatabaseToolTooOld);
    assert!(error.message().contains("9.6.24"), "{error:?}");
    // The oldest that is new enough: not a newer one that stands first.
    script(&tools[0], "pg_dump", "99.1");
    symlink(Postgres::program("pg_dump"), tools[1].join("pg_dump")).unwrap();
    assert_eq!(database.probe().unwrap().tool.path, tools[1].join("pg_dump").display().to_string());
    let (bytes, mut record) = dump(&mut *database);
    // A dump of a newer tool is for a newer tool.
    let exchange = database.exchange_names("00000000");
    symlink(Postgres::program("pg_restore"), tools[1].join("pg_restore")).unwrap();
    database.check_restore(&record, &exchange).unwrap();
    record.tool.version = "99.1".to_owned();
    let error = database.check_restore(&record, &exchange).unwrap_err();
    assert_eq!(error.code(), Code::DatabaseToolTooOld);
    let names = server.names();
    let error = database.stage(&mut bytes.as_slice(), &record, &exchange).unwrap_err();
    assert_eq!((error.code(), server.names()), (Code::DatabaseToolTooOld, names));
    server.remove("tooled");
}

#[test]
fn rights_that_a_restore_needs() {
    let server = Server::new();
    let postgres = &server.0;
    server.make("theirs");
    role(postgres, "modest", "");
    role(postgres, "stranger", "CREATEDB");
    let mut database = open(postgres, "app", "theirs", Options::default());
    let exchange = database.exchange_names("0000000a");
    let (bytes, record) = dump(&mut *database);
    for (user, advice) in
        [("modest", "ALTER ROLE \"modest\" CREATEDB"), ("stranger", "OWNER TO \"stranger\"")]
    {
        let mut other = open(postgres, user, "theirs", Options::default());
        let error = other.check_restore(&record, &exchange).unwrap_err();
        assert_eq!(error.code(), Code::DatabasePrivileges);
        assert!(error.advice().contains(advice), "{}", error.advice());
    }
    // A stranger's exchange changes nothing.
    let mut stranger = open(postgres, "stranger", "theirs", Options::default());
    let words = stranger.stage(&mut bytes.as_slice(), &record, &exchange).unwrap();
    assert!(words.iter().any(|w| w.contains("Owners are not restored")), "{words:?}");
    assert_eq!(stranger.exchange(&exchange, Side::New).unwrap_err().code(), Code::DatabasePrivileges);
    assert_eq!(stranger.side(&exchange).unwrap(), Side::Old);
    stranger.discard(&exchange).unwrap();

    postgres.psql("theirs", "CREATE EXTENSION file_fdw");
    let mut superuser = open(postgres, Postgres::USER, "theirs", Options::default());
    let probe = superuser.probe().unwrap();
    assert!(probe.notes.iter().any(|n| n.contains("file_fdw")), "{:?}", probe.notes);
    let (bytes, record) = dump(&mut *superuser);
    let error = database.stage(&mut bytes.as_slice(), &record, &exchange).unwrap_err();
    assert_eq!(error.code(), Code::DatabasePrivileges, "{error:?}");
    assert!(error.advice().contains("file_fdw"), "{}", error.advice());
    server.remove("theirs");
}

#[test]
fn a_full_disk_of_the_server_leaves_nothing_behind() {
    // Others on the same server would not survive it.
    let postgres = Postgres::start();
    role(&postgres, "app", "CREATEDB");
    let folder = postgres.socket().join("small");
    std::fs::create_dir(&folder).unwrap();
    let mounted =
        program::run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=26m", "tmpfs"]).arg(&folder));
    if !mounted.is_ok() {
        println!("no file system can be mounted here, this part is left out: {}", mounted.stderr.trim());
        return;
    }
    let _unmount = Unmount(folder.clone());
    program::run(Command::new("chown").arg("postgres").arg(&folder)).ok();
    postgres.psql("postgres", &format!("CREATE TABLESPACE small LOCATION '{}'", folder.display()));
    postgres.psql("postgres", "CREATE DATABASE filled OWNER app TABLESPACE small");
    postgres.psql(
        "filled",
        "CREATE TABLE posts AS SELECT i, gen_random_uuid()::text || repeat(md5(i::text), 20) AS body FROM generate_series(1, 12000) i; CHECKPOINT",
    );
    let mut database = open(&postgres, Postgres::USER, "filled", Options::default());
    let (bytes, record) = dump(&mut *database);
    let exchange = database.exchange_names("0000000f");
    println!("{}", program::run(Command::new("df").arg(&folder)).stdout);
    let error = database.stage(&mut bytes.as_slice(), &record, &exchange).unwrap_err();
    assert_eq!(error.code(), Code::DatabaseFull, "{error:?}");
    assert!(digest(&postgres, &exchange.staged).is_none());
    assert!(digest(&postgres, "filled").is_some());
}

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        // In use, it goes when the server does.
        program::run(Command::new("umount").arg("-l").arg(&self.0));
    }
}
