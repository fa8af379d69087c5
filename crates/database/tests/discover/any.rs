//! Files that are anything, and values that are anything.

use std::time::{Duration, Instant};

use backstay_database::connection::parse;
use backstay_database::discover;
use backstay_model::Secret;
use proptest::prelude::*;

use crate::look;

const SAMPLES: [(&str, &str); 6] = [
    (
        ".env",
        "export DATABASE_URL=\"postgres://u:${X:-y}@h/app\" # x\nDB_CONNECTION=mysql\nDB_HOST='h'\nDB_DATABASE=`a`\nDB_PORT=3306\n",
    ),
    (
        "appsettings.json",
        "{ /* x */ \"ConnectionStrings\": { \"a\": \"Server=h;Database=b;Uid=c;Pwd='d'\", }, // y\n}",
    ),
    (
        "web.config",
        "<c><connectionStrings><add name=\"a\" connectionString=\"Server=h;Uid=u&amp;;Pwd=p\" providerName=\"MySql\"/></connectionStrings></c>",
    ),
    (
        "wp-config.php",
        "<?php define('DB_NAME', 'a\\'b'); define(\"DB_USER\", \"u\\x41\"); /* */ define('DB_HOST', 'h:3306'); $table_prefix = 'wp_'; ?>",
    ),
    (
        "settings.py",
        "DATABASES = {'default': {'ENGINE': 'django.db.backends.mysql', 'NAME': \"a\", 'HOST': 'h', 'PORT': 1, 'O': [(1, '''x''')], 'P': BASE_DIR / 'x'}}\n",
    ),
    (
        "config/database.yml",
        "default: &d\n  adapter: mysql2\nproduction:\n  <<: *d\n  database: \"a\"\n  password: 'p''q'\n  host: h\n",
    ),
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_500, ..ProptestConfig::default() })]

    /// Bytes put in, taken out and changed anywhere.
    #[test]
    fn damaged_files(
        n in 0..SAMPLES.len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0..3, prop::sample::select(b"\"'`\\${}<>?*/#:;=,[]()\n\0\xff\xc3 aD0&%-".to_vec())), 0..12),
    ) {
        let (path, text) = SAMPLES[n];
        let mut bytes = text.as_bytes().to_vec();
        for (at, what, byte) in changes {
            let at = at.index(bytes.len());
            match what {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => bytes.truncate(at.max(1)),
            }
        }
        let found = discover::files([path], |_| Some(bytes.clone()));
        for string in &found.strings {
            prop_assert!(parse(string.value.reveal(), string.kind).is_ok());
        }
    }

    #[test]
    fn any_bytes(n in 0..SAMPLES.len(), bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let found = discover::files([SAMPLES[n].0], |_| Some(bytes.clone()));
        prop_assert!(found.strings.len() < 100);
    }

    /// Whatever stands there comes out again as it was meant, or is told.
    #[test]
    fn what_is_built_is_what_was_there(
        user in "[^\\x00\r\n]{1,20}", password in "[^\\x00\r\n]{1,24}", database in "[^\\x00\r\n]{1,20}", host in "[a-z][a-z0-9.-]{0,20}|[a-f0-9:]{1,4}::1|.{1,6}", port in 1u16..,
    ) {
        let php = |text: &str| text.replace('\\', "\\\\").replace('\'', "\\'");
        let wordpress = format!(
            "<?php define('DB_NAME','{}');define('DB_USER','{}');define('DB_PASSWORD','{}');define('DB_HOST','{}');",
            php(&database), php(&user), php(&password), php(&if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }),
        );
        let django = format!(
            "DATABASES = {{'default': {{'ENGINE': 'postgresql', 'NAME': '{}', 'USER': '{}', 'PASSWORD': '{}', 'HOST': '{}', 'PORT': {port}}}}}",
            php(&database), php(&user), php(&password), php(&host),
        );
        let ruby = |text: &str| format!("'{}'", text.replace('\'', "''"));
        let rails = format!(
            "production:\n  adapter: postgresql\n  database: {}\n  username: {}\n  password: {}\n  host: {}\n  port: {port}\n",
            ruby(&database), ruby(&user), ruby(&password), ruby(&host),
        );
        let plain = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('$', "\\$");
        let laravel = format!(
            "DB_CONNECTION=mysql\nDB_HOST=\"{}\"\nDB_PORT={port}\nDB_DATABASE=\"{}\"\nDB_USERNAME=\"{}\"\nDB_PASSWORD=\"{}\"\n",
            plain(&host), plain(&database), plain(&user), plain(&password),
        );
        // For PHP, `p:` before a host is no part of it.
        prop_assume!(host != "p");
        for (path, text) in [("wp-config.php", wordpress), ("settings.py", django), ("config/database.yml", rails), (".env", laravel)] {
            let found = look(&[(path, &text)]);
            prop_assert_eq!(found.strings.len() + found.unread.len(), 1, "{}", path);
            if host.bytes().all(|b| b.is_ascii_lowercase()) && !password.contains("<%") && !user.contains("<%") && !database.contains("<%") {
                prop_assert_eq!(found.strings.len(), 1, "{} {:?}", path, found.unread);
            }
            for string in found.strings {
                let endpoint = parse(string.value.reveal(), string.kind).unwrap();
                prop_assert_eq!(endpoint.user.as_deref(), Some(user.as_str()), "{}", path);
                prop_assert_eq!(endpoint.password.as_ref().map(Secret::reveal), Some(password.as_str()), "{}", path);
                prop_assert_eq!(endpoint.database.as_deref(), Some(database.as_str()), "{}", path);
                if let backstay_database::Place::Hosts(hosts) = endpoint.place {
                    prop_assert_eq!((hosts.len(), hosts[0].port), (1, port));
                    let host = if host.trim().is_empty() { "localhost" } else { host.trim() };
                    prop_assert_eq!(hosts[0].name.as_str(), host, "{}", path);
                }
            }
        }
    }
}

#[test]
fn a_file_that_is_made_to_take_long_does_not() {
    let begin = Instant::now();
    let repeated = [
        "${",
        "${A:-",
        "A=${A}${A}\n",
        "A=\"\n",
        "A='",
        "export ",
        "{",
        "[",
        "/*",
        "{'a':",
        "<a>",
        "<connectionStrings ",
        "define(",
        "define('DB_NAME','",
        "\\",
        "(",
        "'",
        "\"",
        "#",
        " ",
        "production:\n ",
        "a: &a\n",
        "<<: *a\n",
        "x:\n",
        "DATABASES = {",
        "DATABASES = (",
        "BASE_DIR/",
        "?>",
        "\n",
    ];
    for (path, text) in SAMPLES {
        for piece in repeated {
            let all = [text.as_bytes(), &piece.repeat((1 << 20) / piece.len()).into_bytes()].concat();
            discover::files([path], |_| Some(all.clone()));
        }
    }
    assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
}
