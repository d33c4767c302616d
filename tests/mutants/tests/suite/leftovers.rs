//! Ctrl-C ends everything that was started.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::fixture::Fixture;

/// Processes whose program lies below `folder`.
fn running(folder: &Path) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let program = |process: std::fs::DirEntry| std::fs::read_link(process.path().join("exe")).ok();
    let inside = processes.filter_map(program).filter(|program| program.starts_with(folder));
    inside.map(|program| program.display().to_string()).collect()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "{what} within a minute");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_signal_ends_the_tests_that_run() {
    for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
        let fixture = Fixture::new();
        let endless = "true || at < n && { at = 0; sum = 0; true }";
        fixture.seed(&[["endless", "sum", "at < n", endless, "sums", "the sum to three"]]);
        let mut command = fixture.command(&["--timeout", "600"]);
        let mut mutants =
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        let deps = fixture.target().canonicalize().unwrap_or(fixture.target()).join("debug/deps");
        // The baseline runs the same program, for an instant; the mutant stays.
        let mut seen = 0;
        until("the mutant runs", || {
            seen = if running(&deps).is_empty() { 0 } else { seen + 1 };
            seen > 25
        });
        let pid = Pid::from_raw(i32::try_from(mutants.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
        let status = mutants.wait().unwrap();
        let code = if signal == Signal::KILL { None } else { Some(130) };
        assert_eq!(status.code(), code, "{signal:?}");
        until("nothing is left", || running(&deps).is_empty());
    }
}
