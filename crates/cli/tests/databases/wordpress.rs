//! A real WordPress: written to while it is backed up, destroyed, and back with the same pages after one command.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use backstay_testing::server::{free_port, tool};
use backstay_testing::{MariaDb, temp_dir};

use crate::World;

/// What makes a site with a page for each upload.
const INSTALL: &str = r#"<?php
define('WP_INSTALLING', true);
require 'wp-load.php';
require 'wp-admin/includes/upgrade.php';
wp_install('Shop of tests', 'admin', 'admin@example.test', true, '', 'not-s3cret');
"#;

/// What uploads, again and again: first the file, then the rows, as WordPress itself does it; some are deleted.
const UPLOAD: &str = r#"<?php
require 'wp-load.php';
for ($n = 0; $n < (int) $argv[1]; $n++) {
    $name = 'up-' . $argv[2] . "-$n.txt";
    $upload = wp_upload_bits($name, null, "upload $name\n" . str_repeat('x', 500));
    if ($upload['error']) { fwrite(STDERR, $upload['error']); exit(1); }
    $id = wp_insert_attachment(['post_title' => $name, 'post_mime_type' => 'text/plain', 'post_status' => 'inherit'], $upload['file']);
    wp_insert_post(['post_title' => "Post $name", 'post_content' => "About $name \u{1F600}", 'post_status' => 'publish']);
    if ($n % 5 == 4) { wp_delete_attachment($id, true); }
}
"#;

struct Site {
    world: World,
    maria: MariaDb,
}

struct Server(Child, u16);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Site {
    fn new(wordpress: &Path) -> Self {
        let site = Site { world: World::within(temp_dir()), maria: MariaDb::start() };
        let home = site.home();
        let copied =
            Command::new("cp").arg("-RL").arg(wordpress).arg(&home).stderr(Stdio::null()).status().unwrap();
        // Links into packages that are not installed are left out; nothing here needs them.
        println!("WordPress is copied: {copied}");
        site.maria.sql(
            "CREATE DATABASE wp CHARACTER SET utf8mb4;
             CREATE USER wp@'%' IDENTIFIED BY 'wp''secret';
             GRANT ALL ON wp.* TO wp@'%'; GRANT ALL ON `wp\\_bs\\_%`.* TO wp@'%'; GRANT SELECT ON mysql.proc TO wp@'%';",
        );
        let config = format!(
            "<?php\ndefine('DB_NAME', 'wp');\ndefine('DB_USER', 'wp');\ndefine('DB_PASSWORD', 'wp\\'secret');\n\
             define('DB_HOST', '127.0.0.1:{}');\ndefine('DB_CHARSET', 'utf8mb4');\n$table_prefix = 'wp_';\n\
             define('DISABLE_WP_CRON', true);\ndefine('WP_HTTP_BLOCK_EXTERNAL', true);\n\
             define('WP_HOME', 'http://127.0.0.1:{}');\ndefine('WP_SITEURL', WP_HOME);\n\
             if (!defined('ABSPATH')) {{ define('ABSPATH', __DIR__ . '/'); }}\nrequire_once ABSPATH . 'wp-settings.php';\n",
            site.maria.port(),
            80
        );
        std::fs::remove_file(home.join("wp-config.php")).ok();
        std::fs::write(home.join("wp-config.php"), config).unwrap();
        let plugins = home.join("wp-content");
        std::fs::create_dir_all(plugins.join("uploads")).unwrap();
        site.php("install.php", INSTALL, &[]);
        site
    }

    fn home(&self) -> std::path::PathBuf {
        self.world.path("blog")
    }

    fn php_command(&self, name: &str, code: &str, args: &[&str]) -> Command {
        self.world.write(name, code.as_bytes());
        let mut php = Command::new("php");
        php.current_dir(self.home()).arg(self.world.path(name)).args(args);
        php
    }

    #[track_caller]
    fn php(&self, name: &str, code: &str, args: &[&str]) {
        let out = self.php_command(name, code, args).output().unwrap();
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr)
        );
    }

    fn serve(&self) -> Server {
        let port = free_port();
        let child = Command::new("php")
            .args(["-S", &format!("127.0.0.1:{port}"), "-t"])
            .arg(self.home())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Server(child, port);
        let begin = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begin.elapsed() < Duration::from_secs(30), "PHP does not serve");
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    /// What the site answers.
    fn page(&self, server: &Server, path: &str) -> String {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", server.1)).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: 127.0.0.1:80\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        format!("{}\n{body}", head.lines().next().unwrap())
    }

    fn pages(&self) -> Vec<String> {
        let server = self.serve();
        ["/", "/?p=1", "/?feed=rss2", "/?s=Post", "/wp-login.php", "/?p=4", "/?p=999999"]
            .iter()
            .map(|path| format!("{path}: {}", self.page(&server, path)))
            .collect()
    }
}

#[test]
fn a_wordpress_that_was_destroyed_serves_the_same_pages_after_one_restore() {
    let Some(wordpress) = tool("WordPress", "wordpress/usr/share/wordpress") else { return };
    let site = Site::new(&wordpress);
    site.php("upload.php", UPLOAD, &["20", "first"]);
    site.world.ok(&["app", "add", "blog", site.home().to_str().unwrap()]);
    let address = format!("mysql://wp:wp%27secret@127.0.0.1:{}/wp", site.maria.port());
    site.world.run_with("home", &["connection", "set", "blog", "wp", "--type", "MySql"], &address).ok();
    // Written to while the point is taken.
    let mut writer = site.php_command("upload.php", UPLOAD, &["60", "second"]).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    site.world.ok(&["backup", "blog"]);
    assert!(writer.wait().unwrap().success());
    // What is to come back: a quiet state.
    site.world.ok(&["backup", "blog"]);
    let points = site.world.points("blog");
    let pages = site.pages();
    assert!(pages[0].contains("200 OK") && pages[0].contains("Shop of tests"), "{}", pages[0]);
    assert!(pages[3].contains("Post up-"), "{}", pages[3]);
    for point in [&points[0], &points[1]] {
        site.maria.sql("DROP DATABASE wp;");
        std::fs::remove_dir_all(site.home().join("wp-content")).unwrap();
        std::fs::write(site.home().join("index.php"), "<?php echo 'defaced';").unwrap();
        let ran = site.world.run(&["restore", "blog", point, "--with-databases", "--yes"]).ok();
        // Nothing is missing that the report does not name; of the quiet point nothing at all.
        if point == &points[0] {
            assert!(!ran.stderr.contains("names are not in"), "{}", ran.stderr);
            assert_eq!(site.pages(), pages);
        } else {
            assert!(site.pages()[0].contains("200 OK"));
        }
    }
}
