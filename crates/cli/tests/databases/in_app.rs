//! An app with a MariaDB of its own, as a person uses it: a page of PHP that reaches it by what it finds in its environment.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use backstay_testing::server::free_port;
use backstay_testing::temp_dir;

use crate::shop_watch::Watch;
use crate::{Ran, World};

/// Runs the statement that it is sent, as the app's own account, and shows the first column.
const PAGE: &str = r#"<?php
$found = [];
foreach (explode(';', getenv('MYSQLCONNSTR_localdb')) as $pair) {
    [$key, $value] = explode('=', $pair, 2);
    $found[$key] = $value;
}
mysqli_report(MYSQLI_REPORT_ERROR | MYSQLI_REPORT_STRICT);
$db = new mysqli(null, $found['User Id'], $found['Password'], $found['Database'], 0, $found['Data Source']);
$rows = $db->query(file_get_contents('php://input'));
while ($rows !== true && $row = $rows->fetch_row()) echo $row[0], "\n";
"#;

/// The app `blog`.
pub(crate) struct Blog {
    pub(crate) world: World,
    port: u16,
}

impl Blog {
    /// Made by one command, and not started.
    pub(crate) fn new() -> Self {
        let dir = temp_dir();
        // The accounts of the server and of the app must reach what lies in it.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
        let blog = Blog { world: World::within(dir), port: free_port() };
        blog.world.write("blog/index.php", PAGE.as_bytes());
        let command = format!("exec php -S 127.0.0.1:{}", blog.port);
        let home = blog.world.path("blog");
        let mut words = vec!["app", "add", "blog", home.to_str().unwrap(), "--in-app-mysql", "on"];
        words.extend(["--command", &command]);
        if rustix::process::geteuid().is_root() {
            words.extend(["--run-as", "www-data"]);
        }
        let added = blog.world.run(&words).ok();
        assert!(added.stderr.contains("finds it as MYSQLCONNSTR_localdb"), "{added:?}");
        blog
    }

    /// Made, started, and at version `A`.
    pub(crate) fn started() -> Self {
        let blog = Blog::new();
        blog.world.ok(&["app", "start", "blog"]);
        blog.page("CREATE TABLE version (v VARCHAR(10))");
        blog.page("INSERT INTO version VALUES ('')");
        blog.page("CREATE TABLE posts (id INT PRIMARY KEY AUTO_INCREMENT, body VARCHAR(100))");
        blog.page("INSERT INTO posts (body) SELECT CONCAT('post ', seq) FROM seq_1_to_200");
        blog.page("CREATE VIEW long_posts AS SELECT * FROM posts WHERE LENGTH(body) > 5");
        blog.set("A");
        blog
    }

    /// What the app's page says to a statement.
    #[track_caller]
    pub(crate) fn page(&self, sql: &str) -> String {
        let (status, text) = self.asked(sql);
        assert!(status.contains(" 200 "), "{sql}: {status} {text}");
        text
    }

    fn asked(&self, sql: &str) -> (String, String) {
        let begin = Instant::now();
        let mut stream = loop {
            match TcpStream::connect(("127.0.0.1", self.port)) {
                Ok(stream) => break stream,
                Err(_) if begin.elapsed() < Duration::from_secs(10) => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(e) => return (e.to_string(), String::new()),
            }
        };
        let length = sql.len();
        write!(
            stream,
            "POST / HTTP/1.0\r\nContent-Length: {length}\r\nContent-Type: text/plain\r\n\r\n{sql}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        (head.lines().next().unwrap_or_default().to_owned(), body.to_owned())
    }

    pub(crate) fn set(&self, version: &str) {
        self.world.write("blog/version.txt", version.as_bytes());
        self.page(&format!("UPDATE version SET v = '{version}'"));
    }

    /// The versions of files and database.
    #[track_caller]
    pub(crate) fn versions(&self) -> [String; 2] {
        let file = std::fs::read_to_string(self.world.path("blog/version.txt")).unwrap_or_default();
        [file, self.page("SELECT v FROM version").trim().to_owned()]
    }

    pub(crate) fn backup(&self) -> String {
        self.world.ok(&["backup", "blog"]);
        self.world.points("blog")[0].clone()
    }

    pub(crate) fn folder(&self, app: &str) -> PathBuf {
        self.world.path("home/mysql").join(app)
    }

    /// The number of the server's process; none where it does not run.
    pub(crate) fn server(&self, app: &str) -> Option<String> {
        let pid = std::fs::read_to_string(self.folder(app).join("data/pid")).ok()?.trim().to_owned();
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        line.contains(self.folder(app).to_str().unwrap()).then_some(pid)
    }

    pub(crate) fn kill_server(&self, app: &str) {
        let pid = self.server(app).unwrap();
        assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
        while self.server(app).is_some() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The databases that an exchange has left at the server, which runs.
    pub(crate) fn left(&self) -> String {
        let mut client = Command::new("mariadb");
        client.arg("--no-defaults").arg("--socket").arg(self.folder("blog").join("run/sock"));
        let output = client.args(["-Ne", "SHOW DATABASES LIKE '%\\_bs\\_%'"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn connect(&self, name: &str, value: &str) -> Ran {
        self.world.run_with("home", &["connection", "set", "blog", name, "--type", "MySql"], value).ok()
    }

    /// The connection string as the app finds it.
    fn value(&self) -> String {
        let list = self.world.json(&["connection", "list", "blog", "--reveal"]);
        list["connections"][0]["value"].as_str().unwrap().to_owned()
    }
}

impl Drop for Blog {
    fn drop(&mut self) {
        let folders = std::fs::read_dir(self.world.path("home/mysql")).into_iter().flatten().flatten();
        for app in folders.map(|entry| entry.file_name().into_string().unwrap()) {
            self.world.run(&["app", "stop", &app]);
            if let Some(pid) = self.server(&app) {
                Command::new("kill").args(["-9", &pid]).status().ok();
            }
        }
    }
}

#[test]
fn an_app_gets_a_database_by_a_switch_and_both_come_back_together() {
    let blog = Blog::started();
    let mode = std::fs::metadata(blog.world.path("home/secrets.json")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, 0o600);
    let point = blog.backup();
    let show = blog.world.json(&["show", "blog", &point]);
    assert_eq!(show["manifest"]["databases"][0]["connection"], "localdb", "{show}");
    assert_eq!(show["manifest"]["databases"][0]["in_app"], true);
    let shown = blog.world.ok(&["app", "show", "blog"]);
    assert!(shown.contains("MySQL in-app    running, in "), "{shown}");
    let checked = blog.world.ok(&["connection", "check", "blog"]);
    assert!(
        checked.contains("localdb: well") && checked.contains("the app's own (MySQL in-app)"),
        "{checked}"
    );
    assert!(blog.world.ok(&["status"]).contains("MySQL in-app of blog: running"));

    blog.set("B");
    blog.page("DROP VIEW long_posts");
    blog.page("DROP TABLE posts");
    blog.world.ok(&["restore", "blog", &point, "--with-databases", "--yes"]);
    assert_eq!(blog.versions(), ["A", "A"]);
    assert_eq!(blog.page("SELECT COUNT(*) FROM long_posts"), "200\n");
    blog.world.ok(&["undo", "blog", "--yes"]);
    assert_eq!(blog.versions(), ["B", "B"]);
    assert!(blog.asked("SELECT * FROM posts").0.contains(" 500 "));
    blog.world.ok(&["undo", "blog", "--yes"]);
    assert_eq!(blog.versions(), ["A", "A"]);
    assert_eq!(blog.left(), "");

    // The app's account sees its own database and nothing else of the server.
    assert_eq!(blog.page("SHOW DATABASES"), "information_schema\nlocaldb\n");
    blog.world.ok(&["app", "restart", "blog"]);
    assert_eq!(blog.versions(), ["A", "A"]);
    blog.world.ok(&["app", "stop", "blog"]);
    assert_eq!(blog.server("blog"), None);
}

#[test]
fn a_stopped_app_and_a_killed_server_are_in_each_backup_all_the_same() {
    let blog = Blog::started();
    blog.kill_server("blog");
    assert!(blog.world.run(&["status"]).ends(1).stdout.contains("MySQL in-app of blog: failed"));
    blog.backup();
    assert!(blog.server("blog").is_some(), "it is to run, so it goes on");
    assert_eq!(blog.versions(), ["A", "A"]);
    blog.kill_server("blog");
    blog.world.ok(&["app", "start", "blog"]);
    assert_eq!(blog.versions(), ["A", "A"]);

    blog.world.ok(&["app", "stop", "blog"]);
    let point = blog.backup();
    assert_eq!(blog.server("blog"), None, "it is stopped as it was");
    blog.world.ok(&["connection", "check", "blog"]);
    blog.world.ok(&["restore", "blog", &point, "--with-databases", "--dry-run"]);
    assert_eq!(blog.server("blog"), None);
    blog.world.ok(&["app", "start", "blog"]);
    blog.set("B");
    blog.world.ok(&["app", "stop", "blog"]);
    blog.world.ok(&["restore", "blog", &point, "--with-databases", "--yes"]);
    assert_eq!(blog.server("blog"), None, "nor does a restore start the app");
    blog.world.ok(&["undo", "blog", "--yes"]);
    blog.world.ok(&["undo", "blog", "--yes"]);
    assert_eq!(blog.server("blog"), None);

    // A custom backup holds the dump, and brings it back.
    let containers = blog.world.path("containers");
    std::fs::create_dir(&containers).unwrap();
    blog.world.ok(&["backup", "blog", "--container", containers.to_str().unwrap(), "--name", "one"]);
    let zip = containers.join("one.zip");
    let listed = Command::new("unzip").arg("-l").arg(&zip).output().unwrap();
    assert!(String::from_utf8_lossy(&listed.stdout).contains(" localdb\n"), "{listed:?}");
    let container = containers.to_str().unwrap();
    let from = ["restore", "--container", container, "--name", "one", "--to", "fetched", "--with-databases"];
    blog.world.ok(&from);
    blog.world.ok(&["app", "start", "fetched"]);
    let check = blog.world.json(&["connection", "check", "fetched"]);
    assert_eq!(check["connections"][0]["result"], "well", "{check}");

    // Data that is gone is told, and nothing empty takes its place by itself.
    std::fs::rename(blog.folder("blog").join("data"), blog.world.path("away")).unwrap();
    let partial = blog.world.run(&["backup", "blog"]).ends(3);
    assert!(partial.stderr.contains("The data of the MySQL in-app of `blog` is not in"), "{partial:?}");
    blog.world.run(&["app", "start", "blog"]).fails("DatabaseNotFound", 1);
    blog.world.ok(&["app", "set", "blog", "--in-app-mysql", "on"]);
    blog.world.ok(&["restore", "blog", &point, "--with-databases", "--yes"]);
    blog.world.ok(&["app", "start", "blog"]);
    assert_eq!(blog.versions(), ["A", "A"]);
}

#[test]
fn the_scheduler_brings_a_killed_server_back_and_leaves_a_stopped_one() {
    let blog = Blog::started();
    let state = blog.world.path("home");
    let mode = |path: &std::path::Path| {
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).unwrap().permissions()) & 0o777
    };
    let opened = mode(&state);
    // As a service manager does it that makes the folder at each start.
    std::fs::set_permissions(&state, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    blog.kill_server("blog");
    let mut serve = blog.world.command(["serve"]);
    let mut serve = serve.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begin = Instant::now();
    while blog.asked("SELECT 1").1 != "1\n" {
        assert!(begin.elapsed().as_secs() < 30, "{:?}", blog.asked("SELECT 1"));
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(mode(&state), opened);
    assert_eq!(blog.versions(), ["A", "A"]);
    blog.world.ok(&["app", "stop", "blog"]);
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(blog.server("blog"), None);
    Command::new("kill").arg(serve.id().to_string()).status().unwrap();
    serve.wait().unwrap();
}

#[test]
fn what_was_set_by_hand_is_warned_about_and_dumped_once() {
    const WARNING: &str = "might not work correctly";
    let blog = Blog::started();
    let value = blog.value();
    assert!(blog.connect("mine", &value).stderr.contains(WARNING));
    let point = blog.world.run(&["backup", "blog"]).ok();
    assert!(point.stderr.contains(WARNING), "{point:?}");
    assert_eq!(point.stdout.matches("Database ").count(), 1, "{point:?}");
    let check = blog.world.run(&["connection", "check", "blog"]).ok();
    assert!(check.stdout.contains(&format!("backups {WARNING}")), "{check:?}");
    assert!(blog.world.run(&["connection", "list", "blog"]).ok().stderr.contains(WARNING));
    blog.world.ok(&["restore", "blog", "--with-databases", "--yes"]);

    // Under its name and elsewhere: that one is in no point, so none is whole.
    blog.connect("localdb", "Server=127.0.0.1;Port=1;Database=x;Uid=u;Pwd=p");
    let partial = blog.world.run(&["backup", "blog"]).ends(3);
    assert!(partial.stderr.contains("is in no point") && partial.stdout.contains("Database "), "{partial:?}");
    for name in ["mine", "localdb"] {
        blog.world.ok(&["connection", "delete", "blog", name, "--yes"]);
    }

    // What a person leaves out is left out, and told.
    let left_out = blog.world.run(&["backup", "blog", "--no-databases"]).ok();
    assert!(left_out.stderr.contains("database localdb: ") && !left_out.stdout.contains("Database"));
    for flags in [["--databases", "off"], ["--without-database", "localdb"]] {
        blog.world.ok(&[&["app", "set", "blog"], &flags[..]].concat());
        let left_out = blog.world.run(&["backup", "blog"]).ok();
        assert!(left_out.stderr.contains("database localdb: ") && !left_out.stdout.contains("Database"));
        blog.world.ok(&["app", "set", "blog", "--databases", "on", "--without-database", ""]);
    }
    assert!(blog.world.ok(&["backup", "blog"]).contains("Database `localdb`"));
}

#[test]
fn a_new_app_gets_a_server_of_its_own() {
    let blog = Blog::started();
    let point = blog.backup();
    let plain = blog.world.run(&["restore", "blog", &point, "--to", "plain"]).ok();
    assert!(plain.stderr.contains("is not brought along; with --with-databases"), "{plain:?}");
    assert!(!blog.folder("plain").exists());
    blog.world.ok(&["restore", "blog", &point, "--to", "copy", "--with-databases"]);
    assert_eq!(blog.server("copy"), None);
    blog.set("B");
    let command = format!("exec php -S 127.0.0.1:{}", blog.port);
    blog.world.ok(&["app", "stop", "blog"]);
    blog.world.ok(&["app", "set", "copy", "--command", &command]);
    blog.world.ok(&["app", "start", "copy"]);
    assert_eq!(blog.page("SELECT v FROM version"), "A\n");
    assert_eq!(blog.page("SELECT COUNT(*) FROM long_posts"), "200\n");
    assert!(blog.world.ok(&["backup", "copy"]).contains("Database `localdb`"));
    blog.world.ok(&["app", "stop", "copy"]);

    // What lies in its place is nobody's to take.
    std::fs::create_dir_all(blog.folder("other").join("data")).unwrap();
    blog.world.run(&["restore", "blog", &point, "--to", "other", "--with-databases"]).fails("Conflict", 1);
    assert!(blog.folder("other").join("data").exists());
    // A static app has one too, which is started and stopped by itself.
    blog.world.ok(&["app", "set", "plain", "--in-app-mysql", "on"]);
    assert!(blog.server("plain").is_some());
    assert!(blog.world.ok(&["app", "stop", "plain"]).contains("was stopped"));
    assert_eq!(blog.server("plain"), None);
    blog.world.ok(&["restore", "blog", &point, "--to", "plain", "--with-databases", "--yes"]);
    assert_eq!(blog.server("plain"), None);
    assert!(blog.world.ok(&["backup", "plain"]).contains("2 tables, 201 rows"));
}

#[test]
fn turning_it_off_or_removing_the_app_destroys_nothing() {
    let blog = Blog::started();
    let point = blog.backup();
    let before = blog.value();
    blog.world.run(&["app", "set", "blog", "--in-app-mysql", "off"]).fails("Conflict", 1);
    blog.world.ok(&["app", "stop", "blog"]);
    let off = blog.world.run(&["app", "set", "blog", "--in-app-mysql", "off"]).ok();
    let folder = blog.folder("blog");
    assert!(off.stderr.contains(folder.to_str().unwrap()), "{off:?}");
    assert!(folder.join("data/localdb").exists());
    assert!(!blog.world.ok(&["backup", "blog"]).contains("Database"));
    let refused = blog.world.run(&["restore", "blog", &point, "--with-databases", "--yes"]);
    refused.fails("ConnectionNotFound", 4);
    blog.world.ok(&["app", "set", "blog", "--in-app-mysql", "on"]);
    blog.world.ok(&["app", "start", "blog"]);
    assert_eq!(blog.versions(), ["A", "A"]);
    assert_ne!(blog.value(), before, "the password is a new one");

    blog.world.ok(&["app", "stop", "blog"]);
    let removed = blog.world.run(&["app", "remove", "blog", "--yes"]).ok();
    let told = removed.stdout + &removed.stderr;
    assert!(told.contains(folder.to_str().unwrap()), "{told}");
    blog.world.ok(&["app", "restore-deleted", "blog"]);
    blog.world.ok(&["app", "start", "blog"]);
    assert_eq!(blog.versions(), ["A", "A"]);
}

#[test]
fn the_password_stands_nowhere_but_in_the_environment_of_the_app() {
    let watch = Watch::start();
    let blog = Blog::started();
    let value = blog.value();
    let (_, password) = value.split_once("Password=").unwrap();
    assert_eq!(password.len(), 40);
    let mut said = String::new();
    let point = blog.backup();
    let steps: [&[&str]; 9] = [
        &["status", "--json"],
        &["connection", "check", "blog"],
        &["connection", "list", "blog"],
        &["app", "show", "blog", "--json"],
        &["show", "blog", &point, "--json"],
        &["backup", "blog", "--json"],
        &["restore", "blog", &point, "--with-databases", "--yes", "--json"],
        &["restore", "blog", &point, "--to", "copy", "--with-databases", "--json"],
        &["job", "list", "--json"],
    ];
    for step in steps {
        let ran = blog.world.run(step).ok();
        said += &(ran.stdout + &ran.stderr);
    }
    assert!(!said.contains(password));
    let seen = watch.end();
    assert!(seen.iter().all(|line| !line.contains(password)));
    blog.world.ok(&["app", "stop", "blog"]);
    for entry in walk(&blog.world.path("home")) {
        let bytes = std::fs::read(&entry).unwrap();
        let found = bytes.windows(password.len()).any(|part| part == password.as_bytes());
        assert!(!found, "{}", entry.display());
    }
}

fn walk(folder: &std::path::Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => found.extend(walk(&entry.path())),
            kind if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}
