//! What may be typed, and what may not.

use std::time::Duration;

use clap::CommandFactory;

use super::*;

fn run(arguments: &[&str]) -> RunArgs {
    let arguments = ["hypctl", "run"].iter().chain(arguments);
    match Cli::try_parse_from(arguments).unwrap().command {
        Command::Run(run) => *run,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn what_follows_the_dashes_is_for_qemu() {
    let run = run(&["touch", "--vcpus", "4", "--mem", "512M", "--", "-d", "int"]);
    assert_eq!((run.guest.as_str(), run.vcpus, run.mem), ("touch", Some(4), Some(512 << 20)));
    assert_eq!(run.hyp.extra, ["-d", "int"]);
}

#[test]
fn cargo_gets_every_argument_as_it_is() {
    let line = "hypctl cargo clippy -p hyp --config a=b -- -D warnings";
    let Command::Cargo(cargo) = Cli::parse_from(line.split(' ')).command else { panic!() };
    assert_eq!(cargo.arguments.join(" ".as_ref()), line["hypctl cargo ".len()..]);
}

#[test]
fn recovery_is_read_before_anything_runs() {
    let value = "inject,scratch@0x50000000+16M";
    let run = run(&["--recover", value, "--recover-limit", "0", "--recover-rate", "7"]);
    assert_eq!(run.hyp.recover.as_deref(), Some(value));
    assert_eq!((run.recover_limit, run.recover_rate), (Some(0), Some(7)));
    for value in ["", "none", "scratch,stop", "scratch@0x1000"] {
        let line = ["hypctl", "run", "--recover", value];
        let refused = Cli::try_parse_from(line).unwrap_err().to_string();
        assert!(refused.contains(WANTED), "{refused}");
    }
}

#[test]
fn numbers_without_sense_are_refused() {
    for arguments in [
        ["--mem", "512"],
        ["--churn", "0"],
        ["--churn", "9,7"],
        ["--mem", "0M"],
        ["--timeout", "0"],
        ["--vcpus", "9"],
    ] {
        let line = ["hypctl", "run"].iter().chain(&arguments);
        assert!(Cli::try_parse_from(line).is_err(), "{arguments:?}");
    }
    assert_eq!(run(&["--timeout", "0.5"]).common.timeout, Some(Duration::from_millis(500)));
}
