//! One run, played with a shell in QEMU's place: the event loop without an emulator.

use std::io::{self, Write};
use std::process::Command;
use std::time::{Duration, Instant};

use hypctl::script::parse;
use hypctl::session::{End, Input, Outcome, run};

const NONCE: &str = "0123456789abcdef";
const BOUND: Duration = Duration::from_secs(20);

fn shell(line: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", line]);
    command
}

/// Runs a shell line for at most `timeout`; returns what became of it, and the console.
fn play(line: &str, script: &str, timeout: Duration) -> (Outcome, String) {
    let mut console = Vec::new();
    let input = Input::Script(parse(script).unwrap());
    let outcome = run(&mut shell(line), NONCE, input, Some(timeout), &mut console).unwrap();
    (outcome, String::from_utf8_lossy(&console).into_owned())
}

#[test]
fn the_report_is_taken_out_of_the_console() {
    let line = format!("printf 'hello\\n\\036{NONCE}{{\"a\":1}}\\nbye\\n'");
    let (outcome, console) = play(&line, "", BOUND);
    assert!(matches!(outcome.end, End::Exited(status) if status.success()));
    assert_eq!(outcome.reports, ["{\"a\":1}"]);
    assert_eq!(console, "hello\nbye\n");
}

#[test]
fn a_report_that_comes_in_pieces_is_one() {
    let line = format!(
        "printf 'a\\036{}'; sleep 0.2; printf '{}{{1'; sleep 0.2; printf '}}\\n'",
        &NONCE[..5],
        &NONCE[5..]
    );
    let (outcome, console) = play(&line, "", BOUND);
    assert_eq!((outcome.reports, console.as_str()), (vec!["{1}".to_owned()], "a"));
}

#[test]
fn what_was_printed_last_is_not_lost() {
    // More than a pipe holds, and the program ends at once.
    let (outcome, console) = play("seq 1 40000; printf end", "", BOUND);
    assert!(matches!(outcome.end, End::Exited(_)));
    assert_eq!(console.lines().count(), 40001);
    assert!(console.ends_with("40000\nend") && outcome.console_tail.ends_with("end"));
}

#[test]
fn a_script_talks_with_the_program() {
    let line = "printf '=> '; read a; echo \"got $a\"; printf '=> '; read b; echo \"got $b\"";
    // A terminal would turn the carriage return into a line feed; a pipe does not.
    let script = "expect =>\nsend-raw one\\n\nexpect got one\nexpect =>\nsend-raw two\\n\n";
    let (outcome, console) = play(line, script, BOUND);
    assert_eq!(console, "=> got one\n=> got two\n");
    assert_eq!(outcome.waiting_for, None);
}

#[test]
fn a_script_that_is_not_through_says_where_it_was() {
    let (outcome, _) = play("echo bye", "expect bye\nexpect hello\n", BOUND);
    assert_eq!(outcome.waiting_for.unwrap(), "step 2 of 2: expect \"hello\"");
}

#[test]
fn a_hanging_program_is_ended_with_all_that_it_started() {
    let (outcome, console) = play("sleep 1000 & echo $!; wait", "", Duration::from_secs(1));
    assert!(matches!(outcome.end, End::TimedOut(after) if after < BOUND));
    let stat = format!("/proc/{}/stat", console.trim());
    let deadline = Instant::now() + BOUND;
    let alive = || std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z"));
    while alive() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(!alive(), "the grandchild is left");
}

#[test]
fn a_program_that_floods_the_console_is_ended_in_time() {
    let mut sink = io::sink();
    let input = Input::Script(Vec::new());
    let timeout = Some(Duration::from_secs(1));
    let outcome = run(&mut shell("yes"), NONCE, input, timeout, &mut sink).unwrap();
    assert!(matches!(outcome.end, End::TimedOut(_)));
    assert!(outcome.elapsed < BOUND);
}

#[test]
fn a_program_that_never_reads_does_not_hold_the_script_up() {
    let script = format!("send {}\nexpect end\n", "x".repeat(1 << 20));
    let (outcome, console) = play("sleep 1; echo end", &script, BOUND);
    assert!(matches!(outcome.end, End::Exited(_)), "{:?}", outcome.end);
    assert!(console.contains("end") && outcome.waiting_for.is_none());
}

#[test]
fn a_closed_console_ends_the_run() {
    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut line = shell("echo a; sleep 1000");
    let input = Input::Script(Vec::new());
    let outcome = run(&mut line, NONCE, input, Some(BOUND), &mut Closed).unwrap();
    assert!(matches!(outcome.end, End::ConsoleGone));
}

#[test]
fn the_emulators_own_messages_are_kept() {
    let (outcome, console) = play("echo bad option >&2; exit 1", "", BOUND);
    assert!(matches!(outcome.end, End::Exited(status) if status.code() == Some(1)));
    assert_eq!((outcome.qemu_tail.as_str(), console.as_str()), ("bad option\n", ""));
}
