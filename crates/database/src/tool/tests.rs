//! Real children: shells that do what a tool might.

use std::time::Instant;

use super::*;

fn limits() -> Limits {
    Limits { cancel: Cancel::new(), idle: Duration::from_secs(30) }
}

fn shell(script: &str) -> Program {
    let mut program = Program::new("/bin/sh");
    program.args(["-c", script]);
    program
}

fn explain() -> Explain {
    Box::new(|ended| {
        Error::new(Code::DatabaseFailed, format!("{}: {}", ended.status_text(), ended.stderr.trim()))
    })
}

fn read(script: &str) -> (Vec<u8>, Option<Error>) {
    let mut output = shell(script).output(&limits(), explain()).unwrap();
    let mut bytes = Vec::new();
    let error = output.read_to_end(&mut bytes).err().map(inner);
    (bytes, error)
}

/// Whether a process of that number still runs.
fn runs(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).is_ok_and(|stat| !stat.contains(") Z "))
}

fn gone(pid: &str) -> bool {
    let begin = Instant::now();
    while runs(pid) && begin.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(5));
    }
    !runs(pid)
}

#[test]
fn the_end_comes_only_after_status_0() {
    let (bytes, error) = read("echo all; exit 0");
    assert_eq!((bytes.as_slice(), error.is_none()), (&b"all\n"[..], true));
    let (bytes, error) = read("echo half; echo 'the disk is full' >&2; exit 3");
    assert_eq!(bytes, b"half\n");
    assert_eq!(error.unwrap().message(), "status 3: the disk is full");
    let (_, error) = read("echo half; kill -9 $$");
    assert_eq!(error.unwrap().message(), "signal 9: ");
    // The stream is closed long before the end; the status counts all the same.
    let (_, error) = read("exec >&-; sleep 0.2; exit 4");
    assert_eq!(error.unwrap().message(), "status 4: ");
}

#[test]
fn an_error_stays_one_however_often_it_is_asked_for() {
    let mut output = shell("exit 1").output(&limits(), explain()).unwrap();
    for _ in 0..3 {
        assert!(output.read(&mut [0; 8]).is_err());
    }
}

#[test]
fn the_environment_is_ours_and_no_file_but_the_secrets_is_inherited() {
    let mut secret = Program::new("/bin/true");
    secret.secret(b"of another child").unwrap();
    let mut program =
        shell("env | cut -d= -f1 | sort | tr '\\n' ' '; ls -l /proc/self/fd | grep -c memfd; cat");
    program.secret(b"its own").unwrap();
    let said = program.said(&limits(), explain()).unwrap();
    assert_eq!(said, "HOME LC_ALL PATH PWD TZ 1\n");
}

#[test]
fn a_secret_is_a_sealed_file_of_the_child_alone() {
    let mut program = Program::new("/bin/sh");
    let path = program.secret(b"s3cret").unwrap();
    let script = format!(
        "cat {path}; stat -L -c ' %a %F' {path}; (echo more > {path}) 2>/dev/null || echo sealed; cat {path}"
    );
    program.args(["-c", &script]);
    // Somebody else's child, started while the secret exists, has nothing of it.
    let mut other = shell(&format!("cat {path} 2>/dev/null; exit 0"));
    other.arg("x");
    assert_eq!(other.said(&limits(), explain()).unwrap(), "");
    assert_eq!(program.said(&limits(), explain()).unwrap(), "s3cret 600 regular file\nsealed\ns3cret");
}

#[test]
fn a_dropped_handle_ends_the_whole_group() {
    let mut output = shell("sleep 600 & echo $!; sleep 600").output(&limits(), explain()).unwrap();
    let mut pid = [0; 16];
    let read = output.read(&mut pid).unwrap();
    let pid = String::from_utf8_lossy(&pid[..read]).into_owned();
    assert!(runs(&pid));
    drop(output);
    assert!(gone(&pid));
}

#[test]
fn whoever_is_left_of_the_group_goes_with_its_leader() {
    let said = shell("sleep 600 >/dev/null 2>&1 & echo $!").said(&limits(), explain()).unwrap();
    assert!(gone(&said));
}

#[test]
fn the_work_is_cancelled_in_the_middle_of_a_wait() {
    let limits = limits();
    let mut output = shell("echo ready; sleep 600").output(&limits, explain()).unwrap();
    assert_eq!(output.read(&mut [0; 64]).unwrap(), 6);
    let cancel = limits.cancel.clone();
    std::thread::spawn(move || cancel.cancel());
    let error = inner(output.read(&mut [0; 64]).unwrap_err());
    assert_eq!(error.code(), Code::Cancelled);
}

#[test]
fn silence_ends_it_only_while_it_is_waited_for() {
    let short = Limits { cancel: Cancel::new(), idle: Duration::from_millis(200) };
    let mut output = shell("echo ready; sleep 600").output(&short, explain()).unwrap();
    assert_eq!(output.read(&mut [0; 64]).unwrap(), 6);
    let error = inner(output.read(&mut [0; 64]).unwrap_err());
    assert_eq!(error.code(), Code::DatabaseInterrupted);
    // A reader that takes its time is no silence.
    let mut output = shell("echo a; echo b").output(&short, explain()).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert_eq!(text, "a\nb\n");
}

#[test]
fn one_that_does_not_take_what_it_is_fed_is_stopped_too() {
    let short = Limits { cancel: Cancel::new(), idle: Duration::from_millis(200) };
    let mut input = shell("sleep 600").input(&short, explain()).unwrap();
    let error = inner(input.write_all(&vec![0; 1 << 20]).unwrap_err());
    assert_eq!(error.code(), Code::DatabaseInterrupted);
}

#[test]
fn what_is_fed_arrives_and_a_failure_tells_why() {
    let mut input = shell("test \"$(wc -c)\" = 300000 && echo well >&2").input(&limits(), explain()).unwrap();
    input.write_all(&vec![b'x'; 300_000]).unwrap();
    assert_eq!(input.finish().unwrap(), "well\n");

    let mut input =
        shell("head -c 10 >/dev/null; echo 'out of space' >&2; exit 1").input(&limits(), explain()).unwrap();
    let error = inner(input.write_all(&vec![b'x'; 3_000_000]).unwrap_err());
    assert_eq!(error.message(), "status 1: out of space");
}

#[test]
fn the_last_64_kb_of_the_complaints_are_kept() {
    let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done >&2; exit 1";
    let (_, error) = read(script);
    let message = error.unwrap().message().to_owned();
    assert!(message.ends_with("line 19999"));
    assert!(message.len() <= (64 << 10) + 16);
}

#[test]
fn a_program_that_is_not_there_is_told_with_its_package() {
    let error = find(&["no-such-dump"], &[], &["/usr/lib/no-such/*/bin"], "no-such-client", &limits());
    let error = error.unwrap_err();
    assert_eq!(error.code(), Code::DatabaseToolMissing);
    assert_eq!(error.advice(), "Install the package no-such-client.");
    assert_eq!(
        Program::new("/no/such/program").output(&limits(), explain()).err().unwrap().code(),
        Code::DatabaseToolMissing
    );
}

/// Set in the process that the next test kills.
const VICTIM: &str = "BACKSTAY_TEST_VICTIM";

#[test]
fn nobody_outlives_us() {
    if std::env::var_os(VICTIM).is_some() {
        // The thread that asks for the tool is gone long before the process is; the tool stays until then.
        let output =
            std::thread::spawn(|| shell("echo $$; exec sleep 600").output(&limits(), explain()).unwrap());
        let mut output = output.join().unwrap();
        let mut pid = [0; 16];
        let read = output.read(&mut pid).unwrap();
        println!("\ntool {}", String::from_utf8_lossy(&pid[..read]).trim());
        std::thread::sleep(Duration::from_secs(600));
    }
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tool::tests::nobody_outlives_us", "--nocapture"])
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(victim.stdout.take().unwrap()));
    let pid =
        lines.map_while(|line| line.ok()).find_map(|line| line.strip_prefix("tool ").map(str::to_owned));
    let pid = pid.unwrap();
    assert!(runs(&pid));
    victim.kill().unwrap();
    victim.wait().unwrap();
    assert!(gone(&pid));
}
