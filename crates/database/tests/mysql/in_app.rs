//! A server of one app's own.

use backstay_database::{ConnectionType, Database as _, InApp, MySql, Side};
use backstay_model::{Code, Secret};
use backstay_testing::temp_dir;

use crate::world::{dump, options};

/// The account that the server runs as; none where the tests do not run as root.
fn account() -> Option<String> {
    std::fs::metadata("/proc/self")
        .is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
        .then(|| "mysql".to_owned())
}

struct App(tempfile::TempDir);

impl App {
    fn new() -> Self {
        let dir = temp_dir();
        // The server's account must reach what lies in it.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
        App(dir)
    }

    fn server(&self) -> InApp {
        InApp::new(self.0.path().join("db"), account(), options())
    }

    fn pid(&self) -> String {
        std::fs::read_to_string(self.0.path().join("db/data/pid")).unwrap().trim().to_owned()
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.server().stop().ok();
    }
}

#[test]
fn it_starts_and_stops_again_and_again_and_survives_a_kill() {
    let app = App::new();
    // What a start that was killed has left.
    std::fs::create_dir_all(app.0.path().join("db/data.new/mysql")).unwrap();
    assert!(!app.server().is_running());
    app.server().stop().unwrap();
    assert_eq!(app.server().start().unwrap_err().code(), Code::DatabaseNotFound, "nothing is made by itself");
    assert!(app.server().make().unwrap() && !app.server().make().unwrap());
    let endpoint = app.server().start().unwrap();
    assert_eq!(app.server().start().unwrap(), endpoint);
    let pid = app.pid();
    assert!(app.server().is_running());

    let mut database = MySql::new(endpoint.clone(), options());
    let mysql = |sql: &str| {
        let backstay_database::Place::Socket(socket, _) = &endpoint.place else { panic!("no socket") };
        let mut client = std::process::Command::new("mariadb");
        client.arg("--no-defaults").arg("--socket").arg(socket).args(["-Ne", sql, InApp::DATABASE]);
        let output = client.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    mysql("CREATE TABLE t (id INT PRIMARY KEY); INSERT INTO t VALUES (1), (2)");
    std::process::Command::new("kill").args(["-9", &pid]).status().unwrap();
    // Whether the system has seen its end already or not.
    let begin = std::time::Instant::now();
    while app.server().is_running() {
        assert!(begin.elapsed().as_secs() < 20);
    }
    app.server().start().unwrap();
    assert_ne!(app.pid(), pid);
    assert_eq!(mysql("SELECT COUNT(*) FROM t"), "2\n");

    // The app is let in with its password, the last that it was given, and with nothing else.
    let let_in = |text: &str| backstay_database::connection::parse(text, ConnectionType::MySql).unwrap();
    let string = |password: &str| app.server().connection_string(&Secret::new(password));
    let probe = |password: &str| {
        MySql::new(let_in(string(password).reveal()), options()).probe().map(|probe| probe.missing)
    };
    assert!(string("s3cret").reveal().ends_with(";User Id=app;Password=s3cret"));
    assert_eq!(probe("s3cret").unwrap_err().code(), Code::DatabaseLoginFailed);
    for password in ["first", "first", "it's another"] {
        app.server().let_app_in(&Secret::new(password)).unwrap();
        probe(password).unwrap();
    }
    assert_eq!(probe("first").unwrap_err().code(), Code::DatabaseLoginFailed);

    // It is backed up and restored as any other.
    let taken = dump(&mut database);
    mysql("DELETE FROM t");
    let exchange = database.exchange_names("0123abcd");
    assert!(!database.check_restore(&taken.1, &exchange).unwrap().is_empty());
    database.stage(&mut taken.0.as_slice(), &taken.1, &exchange).unwrap();
    database.exchange(&exchange, Side::New).unwrap();
    assert_eq!(mysql("SELECT COUNT(*) FROM t"), "2\n");
    database.discard(&exchange).unwrap();

    app.server().stop().unwrap();
    app.server().stop().unwrap();
    assert!(!app.server().is_running());
    assert_eq!(database.probe().unwrap_err().code(), Code::DatabaseUnreachable);
}

#[test]
fn two_that_start_at_once_start_one() {
    let app = App::new();
    std::thread::scope(|scope| {
        let makes: Vec<_> = (0..3).map(|_| scope.spawn(|| app.server().make())).collect();
        let made: Vec<bool> = makes.into_iter().map(|make| make.join().unwrap().unwrap()).collect();
        assert_eq!(made.iter().filter(|made| **made).count(), 1);
        let starts: Vec<_> = (0..3).map(|_| scope.spawn(|| app.server().start().map(drop))).collect();
        for start in starts {
            start.join().unwrap().unwrap();
        }
    });
    let socket = app.0.path().join("db/run/sock");
    let running = std::fs::read_dir("/proc").unwrap().flatten().filter(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&format!("--socket={}", socket.display()))
    });
    assert_eq!(running.count(), 1);
}

#[test]
fn a_server_that_is_ending_for_somebody_who_was_killed_is_started_anew() {
    let app = App::new();
    app.server().make().unwrap();
    for (round, noted) in [true, false, true, false, true, true].into_iter().enumerate() {
        app.server().start().unwrap();
        let pid = app.pid();
        let mark = app.0.path().join("db/stopping");
        if noted {
            // Written before the signal, as `stop` does.
            std::fs::write(&mark, []).unwrap();
        }
        std::process::Command::new("kill").arg(&pid).status().unwrap();
        if !noted {
            // Nobody has noted it: it is known once it lets nobody in.
            std::thread::sleep(std::time::Duration::from_millis(60));
        }
        let endpoint = app.server().start().unwrap();
        assert!(!mark.exists());
        assert_ne!(app.pid(), pid, "round {round}");
        std::thread::sleep(std::time::Duration::from_millis(300));
        let said = MySql::new(endpoint, options()).texts("SELECT 'here'", 1);
        assert_eq!(said.unwrap(), ["here"], "round {round}");
    }
    // A mark alone, of one that has ended.
    app.server().stop().unwrap();
    std::fs::write(app.0.path().join("db/stopping"), []).unwrap();
    app.server().start().unwrap();
    app.server().stop().unwrap();
    assert!(!app.0.path().join("db/stopping").exists());
}

#[test]
fn a_folder_with_a_path_too_long_for_a_socket_is_refused() {
    let error = InApp::new("/".to_owned() + &"x".repeat(120), None, options()).endpoint().unwrap_err();
    assert_eq!(error.code(), Code::InvalidValue);
}

#[test]
fn a_server_that_hangs_is_stopped_all_the_same() {
    let app = App::new();
    app.server().make().unwrap();
    app.server().start().unwrap();
    let pid = app.pid();
    std::process::Command::new("kill").args(["-STOP", &pid]).status().unwrap();
    let begin = std::time::Instant::now();
    app.server().stop().unwrap();
    assert!(!app.server().is_running() && begin.elapsed().as_secs() < 150, "{:?}", begin.elapsed());
    app.server().start().unwrap();
    // Told to stop as soon as it is begun, again and again, it stops each time.
    for _ in 0..5 {
        app.server().stop().unwrap();
        let server = app.server();
        let starting = std::thread::spawn(move || server.start().ok());
        std::thread::sleep(std::time::Duration::from_millis(60));
        app.server().stop().unwrap();
        starting.join().unwrap();
    }
    app.server().stop().unwrap();
}
