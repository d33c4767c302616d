//! What Linux is run with, what is refused, and what a run comes to.

use clap::Parser;

use super::marks::{End, Up};
use super::*;
use crate::cli::{Cli, Command};

pub(super) fn parsed(words: &[&str]) -> LinuxArgs {
    let line = ["hypctl", "linux"].iter().chain(words);
    match Cli::try_parse_from(line).unwrap().command {
        Command::Linux(linux) => *linux,
        _ => unreachable!(),
    }
}

fn judged(exit: Exit, up: u32, end: Option<(u8, u64)>) -> (u8, String) {
    let boot = Boot {
        up: Some(Up { release: "6.12".to_owned(), cpus: up }),
        end: end.map(|(status, complaints)| End { status, complaints }),
        ..Boot::default()
    };
    let mut summary = Summary::default();
    judge(exit, Ok(boot), 2, &mut summary);
    (summary.exit_code, summary.message.unwrap_or_default())
}

#[test]
fn the_verdict_is_the_scripts_the_cpus_and_the_kernels() {
    assert_eq!(judged(Exit::OK, 2, Some((0, 0))), (0, String::new()));
    for (up, end, why) in [
        (2, None, "before its script did"),
        (2, Some((7, 0)), "status is 7"),
        (1, Some((0, 0)), "1 of 2 CPUs"),
        (2, Some((0, 3)), "complained: 3 lines"),
    ] {
        let (code, message) = judged(Exit::OK, up, end);
        assert!(code == 1 && message.contains(why), "{code} {message}");
    }
    assert_eq!(judged(Exit::STOPPED, 2, Some((1, 0))).0, 3, "the run's own end comes first");
    assert_eq!(judged(Exit::TIMEOUT, 2, None), (124, String::new()));
}

#[test]
fn it_is_a_run_with_what_linux_needs_filled_in() {
    let run = run_arguments(&parsed(&[]), Path::new("i"));
    assert_eq!(
        (run.guest.as_str(), run.vcpus, run.guest_mem),
        ("linux-6.12", Some(2), Some(512 << 20))
    );
    assert_eq!(run.append.as_deref(), Some(APPEND));
    assert!(!run.no_reboot);
    let words = ["--kernel", "6.1", "--script", "-x", "--vcpus", "4", "--smp", "2", "--mem", "1G"];
    let run = run_arguments(&parsed(&words), Path::new("i"));
    assert_eq!((run.guest.as_str(), run.vcpus, run.smp), ("linux-6.1", Some(4), Some(2)));
    assert_eq!((run.append.as_deref(), run.guest_mem), (Some(QUIET), Some(1 << 30)));
    assert!(run.no_reboot, "a panic must not start over");
}

#[test]
fn a_kernel_of_ones_own_is_a_path_and_no_name() {
    for (typed, path) in [("Image", "./Image"), ("/a/Image", "/a/Image"), ("hello", "./hello")] {
        let run = run_arguments(&parsed(&["--kernel", typed]), Path::new("i"));
        assert_eq!(run.guest, path);
    }
}

#[test]
fn what_cannot_go_together_is_refused() {
    for words in [
        &["--script", "true", "--initrd", "i"][..],
        &["--plain", "--blocks"],
        &["--plain", "--smp", "2"],
        &["--plain", "--selftest"],
        &["--all", "--plain"],
        &["--all", "--cpu", "max"],
        &["--all", "--kernel", "6.1"],
    ] {
        let line = ["hypctl", "linux"].iter().chain(words);
        assert!(Cli::try_parse_from(line).is_err(), "{words:?}");
    }
}
