//! Zips that other programs made: taken only when somebody says so, and never beyond their folder.

use std::path::Path;
use std::process::Command;

use backstay_engine::{Proof, RestoreRequest, Selector};
use backstay_model::{Cancel, Code, Silent};

use crate::world::{Machine, code};

/// Runs a program in a folder; it must be there and end well.
fn must(folder: &Path, program: &str, args: &[&str]) {
    let out = Command::new(program)
        .args(args)
        .current_dir(folder)
        .output()
        .unwrap_or_else(|e| panic!("{program}, which ./test installs: {e}"));
    let text = [out.stdout, out.stderr].concat();
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&text));
}

const PYTHON: &str = "import sys, zipfile, os
z = zipfile.ZipFile(sys.argv[1], 'w', zipfile.ZIP_DEFLATED)
for folder, _, files in os.walk('.'):
    for name in files:
        z.write(os.path.join(folder, name))
z.close()";

#[test]
fn zips_of_other_programs_come_in_when_they_are_accepted() {
    let machine = Machine::new();
    machine.write("plain/index.html", b"<h1>hello</h1>\n");
    machine.write("plain/img/logo.png", &[0x89; 3000]);
    machine.write("layout/fs/index.html", b"<h1>hello</h1>\n");
    machine.write("layout/fs/img/logo.png", &[0x89; 3000]);
    machine.write("layout/blogdb", b"create table posts;");
    std::fs::create_dir(machine.path("zips")).unwrap();
    for from in ["plain", "layout"] {
        let folder = machine.path(from);
        let zip = |by: &str| machine.path(&format!("zips/{from}-{by}.zip"));
        let text = |by: &str| zip(by).display().to_string();
        must(&folder, "zip", &["-qr", &text("zip"), "."]);
        must(&folder, "7z", &["a", "-tzip", "-bd", &text("7z"), "."]);
        must(&folder, "python3", &["-c", PYTHON, &text("python")]);
        for by in ["zip", "7z", "python"] {
            assert_eq!(code(machine.import(&zip(by), None, false)), Code::ArchiveUnverified);
            let report = machine.import(&zip(by), None, true).unwrap();
            assert_eq!(report.archive.as_ref().unwrap().proof, Proof::Nothing);
            assert_eq!(report.point.point.app.as_str(), format!("{from}-{by}"));
            assert_eq!(report.databases.len(), usize::from(from == "layout"));
            let out = machine.path(&format!("out-{from}-{by}"));
            let request = RestoreRequest {
                app: report.point.point.app.as_str(),
                point: &Selector::Latest(0),
                paths: &[],
            };
            machine.engine.restore_to_directory(&request, &out, &Silent, &Cancel::new()).unwrap();
            assert_eq!(std::fs::read(out.join("index.html")).unwrap(), b"<h1>hello</h1>\n");
            assert_eq!(std::fs::read(out.join("img/logo.png")).unwrap(), [0x89; 3000]);
            assert_eq!(std::fs::read_dir(&out).unwrap().count(), 2, "nothing but the home");
            assert!(machine.import(&zip(by), None, true).unwrap().already);
        }
    }
    machine.check();
}

/// Entries one by one: name, target of a link or content.
const HOSTILE: &str = "import sys, zipfile
z = zipfile.ZipFile(sys.argv[1], 'w')
for pair in sys.argv[2:]:
    name, _, content = pair.partition('=')
    info = zipfile.ZipInfo('x')
    info.filename = name
    if content.startswith('->'):
        info.create_system = 3
        info.external_attr = 0o120777 << 16
        content = content[2:]
    z.writestr(info, content)
z.close()";

#[test]
fn zips_that_would_lead_outside_are_refused() {
    let machine = Machine::new();
    machine.write("blog/page", b"now");
    std::fs::create_dir(machine.path("zips")).unwrap();
    let cases: [&[&str]; 8] = [
        &["../evil=x"],
        &["/evil=x"],
        &["a/../../evil=x"],
        &["a\\..\\evil=x"],
        &["C:/evil=x"],
        &["link=->/etc", "link/evil=x"],
        &["twice=1", "twice=2"],
        &["fs/../evil=x"],
    ];
    for (n, entries) in cases.iter().enumerate() {
        let zip = machine.path(&format!("zips/{n}.zip"));
        let mut args = vec!["-W", "ignore", "-c", HOSTILE, zip.to_str().unwrap()];
        args.extend(*entries);
        must(&machine.path("zips"), "python3", &args);
        assert_eq!(code(machine.import(&zip, Some("blog"), true)), Code::ArchiveDamaged, "{entries:?}");
    }
    assert!(machine.points().is_empty());
    // A bomb: 64 MiB and more of nothing in little.
    let bomb = machine.path("zips/bomb.zip");
    let script = "import sys, zipfile
z = zipfile.ZipFile(sys.argv[1], 'w', zipfile.ZIP_DEFLATED)
z.writestr('zeros', bytes(80 << 20))
z.close()";
    must(&machine.path("zips"), "python3", &["-c", script, bomb.to_str().unwrap()]);
    assert_eq!(code(machine.import(&bomb, Some("blog"), true)), Code::ArchiveDamaged);
    assert!(machine.points().is_empty());
}
