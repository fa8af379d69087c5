//! The shapes of JSON: names and kinds of all fields. Additive: a field is never taken away nor changed in kind.

use serde_json::Value;

use crate::{World, assert_text};

/// The names and kinds in a value, one line per field.
fn shape(at: &str, value: &Value, lines: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                shape(&format!("{at}.{name}"), value, lines);
            }
        }
        Value::Array(items) => match items.first() {
            Some(first) => shape(&format!("{at}[]"), first, lines),
            None => lines.push(format!("{at}: [] (empty here)")),
        },
        Value::Null => lines.push(format!("{at}: null")),
        Value::Bool(_) => lines.push(format!("{at}: true or false")),
        Value::Number(n) if n.is_f64() => lines.push(format!("{at}: number with fraction")),
        Value::Number(_) => lines.push(format!("{at}: number")),
        Value::String(_) => lines.push(format!("{at}: text")),
    }
}

fn told(words: &str, value: &Value) -> String {
    let mut lines = Vec::new();
    shape("", value, &mut lines);
    format!("{words}\n  {}\n\n", lines.join("\n  "))
}

#[test]
fn every_command_keeps_its_shape() {
    let world = World::with_blog();
    let mut all = String::new();
    all.push_str(&told("backup (first)", &world.json(&["backup", "blog"])));
    world.write("blog/new", b"new");
    let commands = [
        "backup blog",
        "list",
        "show blog",
        "files blog",
        "verify blog",
        "restore blog --directory out",
        "export blog --directory arch --name a",
        "import arch/a.zip --app copy",
        "pin blog latest",
        "unpin blog latest",
        "delete blog latest --yes",
        "status",
        "job list",
        "vault key list",
        "app show blog",
        "app list",
        "app set blog --command true --health http://localhost/ --before-backup true",
        "app pause blog --reason x --for 1h",
        "app add shop",
        "retention simulate",
        "retention apply",
        "container add shelf backups --create",
        "container list",
        "container test shelf",
        "app set blog --before-backup ",
        "backup blog --container shelf --name one",
        "list --container shelf",
        "show blog one",
        "verify blog one",
        "download blog one copy",
        "schedule set blog --every 6h --container shelf",
        "schedule clear blog",
        "container remove shelf --yes",
        "delete blog one --yes",
    ];
    for words in commands {
        let args: Vec<&str> = words.split(' ').collect();
        all.push_str(&told(words, &world.json(&args)));
    }
    let job = world.json(&["job", "list"])["jobs"][0]["id"].as_str().unwrap().to_owned();
    all.push_str(&told("job show ID", &world.json(&["job", "show", &job])));
    all.push_str(&told("job log ID", &world.json(&["job", "log", &job])));
    let passphrase = "correct horse battery\n";
    let parse = |ran: crate::Ran| serde_json::from_str::<Value>(&ran.ok().stdout).unwrap();
    world.write("blog/.env", b"DATABASE_URL=mysql://web:p@db/shop\nDB_URL=${HIDDEN}\n");
    for (words, input) in [
        ("setting set blog A", "x"),
        ("setting list blog", ""),
        ("setting list blog --reveal", ""),
        ("setting delete blog A --yes", ""),
        ("setting rotate-key", ""),
        ("connection set blog DB", "mysql://web:p@db/shop"),
        ("connection list blog", ""),
        ("connection list blog --reveal", ""),
        ("connection delete blog DB --yes", ""),
        ("connection set blog Cache", "redis://cache"),
        ("connection check blog", ""),
        ("connection discover blog", ""),
    ] {
        let args: Vec<&str> = words.split(' ').chain(["--json"]).collect();
        all.push_str(&told(words, &parse(world.run_with("home", &args, input))));
    }
    all.push_str(&told(
        "kit export FILE",
        &parse(world.run_with("home", &["kit", "export", "k", "--json"], passphrase)),
    ));
    all.push_str(&told(
        "kit open FILE",
        &parse(world.run_with("blank", &["kit", "open", "k", "--json"], passphrase)),
    ));
    let failed = world.run(&["list", "nobody", "--json"]).fails("AppNotFound", 4);
    all.push_str(&told("an error", &serde_json::from_str(&failed.stdout).unwrap()));
    let usage = world.run(&["list", "--wrong", "--json"]).fails("Usage", 2);
    all.push_str(&told("a usage error", &serde_json::from_str(&usage.stdout).unwrap()));
    assert_text!("json_shapes", all);
}
