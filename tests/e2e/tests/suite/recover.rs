//! The recovery suite: every scenario of `hypctl recover` on every CPU model, and the command itself.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use e2e::{bounded, host, hypctl, on_every_cpu, selftest_images};
use hypctl::recover::SCENARIOS;
use rustix::process::{Pid, Signal, kill_process};

/// For a scenario that hangs.
const PATIENCE: Duration = Duration::from_secs(150);

/// `hypctl recover` with these words.
fn recover(words: &[&str]) -> bounded::Ended {
    selftest_images();
    let _host = host::shared();
    let mut command = Command::new(hypctl());
    command.args(["recover", "--no-build", "--quiet"]).args(words);
    bounded::run(&mut command, b"", PATIENCE).unwrap()
}

fn code(ended: &bounded::Ended) -> Option<i32> {
    ended.status.and_then(|status| status.code())
}

/// One scenario on one model, as its user runs it.
#[track_caller]
fn scenario(name: &str, cpu: &str) {
    let ended = recover(&["--jobs", "1", "--cpu", cpu, name]);
    assert_eq!(code(&ended), Some(0), "{name} on {cpu}\n{}\n{}", ended.stdout, ended.stderr);
    assert!(
        ended.stdout.contains(name) && ended.stdout.contains("1 run, 0 of them"),
        "{}",
        ended.stdout
    );
}

/// A test case for each scenario and model, and the names.
macro_rules! scenarios {
    ($($test:ident $name:literal,)*) => {
        $(on_every_cpu!($test, |cpu| scenario($name, cpu));)*
        const NAMES: &[&str] = &[$($name),*];
    };
}

scenarios! {
    stop_read "stop-read",
    stop_write "stop-write",
    stop_exec "stop-exec",
    stop_walk "stop-walk",
    hole_read "hole-read",
    hole_write "hole-write",
    hole_pair "hole-pair",
    hole_simd "hole-simd",
    hole_exclusive "hole-exclusive",
    hole_lse "hole-lse",
    hole_zva "hole-zva",
    hole_maintenance "hole-maintenance",
    hole_el0 "hole-el0",
    hole_pages "hole-pages",
    hole_ram "hole-ram",
    hole_walk "hole-walk",
    hole_code "hole-code",
    hole_beyond "hole-beyond",
    hole_declared "hole-declared",
    hole_undeclared "hole-undeclared",
    hole_policies "hole-policies",
    hole_crowd "hole-crowd",
    hole_populate "hole-populate",
    hole_release "hole-release",
    hole_protect "hole-protect",
    hole_sizes "hole-sizes",
    hole_shadow "hole-shadow",
    hole_tables "hole-tables",
    hole_storm "hole-storm",
    hole_limit "hole-limit",
    hole_rate "hole-rate",
    hole_secret "hole-secret",
    hole_logged "hole-logged",
    u_boot "u-boot",
    el2_held "el2-held",
    el2_others "el2-others",
    el2_same "el2-same",
    el2_taken "el2-taken",
    el2_buffers "el2-buffers",
    el2_outside "el2-outside",
    el2_refused "el2-refused",
    inject_again "inject-again",
    inject_el1 "inject-el1",
    inject_el0 "inject-el0",
    inject_other "inject-other",
    inject_walk "inject-walk",
}

#[test]
fn every_scenario_is_a_test() {
    let all: Vec<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
    assert_eq!(all, NAMES);
}

#[test]
fn the_json_has_an_entry_a_run_with_its_report_and_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("table.json");
    let words = ["--cpu", "max", "--cpu", "cortex-a53", "--json", path.to_str().unwrap()];
    let ended = recover(&[&words[..], &["hole-lse", "stop-read"]].concat());
    assert_eq!(code(&ended), Some(0), "{}{}", ended.stdout, ended.stderr);
    let text = std::fs::read_to_string(&path).unwrap();
    let table: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&table["schema"], &table["as_expected"]), (&1.into(), &true.into()), "{text}");
    let runs = table["runs"].as_array().unwrap();
    let key = |run: &serde_json::Value| {
        ["scenario", "cpu", "expected", "policy"].map(|name| run[name].as_str().unwrap().to_owned())
    };
    // In the table's order, whatever the order of the words; on a53 there are no such atomics.
    let keys: Vec<_> = runs.iter().map(key).collect();
    assert_eq!(
        keys,
        [
            ["stop-read", "max", "1", "stop"],
            ["stop-read", "cortex-a53", "1", "stop"],
            ["hole-lse", "max", "4", "scratch"],
            ["hole-lse", "cortex-a53", "0", "scratch"]
        ]
    );
    let seen: Vec<_> = runs.iter().map(|run| run["seen"].as_u64()).collect();
    assert_eq!(seen, [Some(1), Some(1), Some(4), Some(0)]);
    for run in runs {
        assert!(
            run["command"].as_str().unwrap().starts_with("./just run wild --selftest"),
            "{run}"
        );
        assert!(run["summary"]["report"]["stats"]["faults"].as_u64() > Some(0), "{run}");
    }
}

#[test]
fn mistakes_are_sentences_and_nothing_is_run() {
    for (words, said) in [
        (&["hole-raed"][..], "there is no scenario `hole-raed`; known: stop-read, "),
        (&["--cpu", "pentium"], "no CPU model `pentium`"),
        (&["--json", "/nowhere/table.json", "stop-read"], "there is no folder /nowhere"),
        (&["--jobs", "0"], "0 is not in 1..=64"),
    ] {
        let ended = recover(words);
        assert_eq!(code(&ended), Some(2), "{words:?}: {}{}", ended.stdout, ended.stderr);
        assert!(ended.stderr.contains(said), "{words:?}: {}", ended.stderr);
        assert_eq!(ended.stdout, "", "{words:?}");
    }
}

/// An emulator that hands on another policy than it was told: the guest finds that out, and so does the table.
#[test]
fn what_is_not_as_expected_is_told_and_is_an_exit_code() {
    use std::os::unix::fs::PermissionsExt;
    selftest_images();
    let folder = tempfile::tempdir().unwrap();
    let emulator = folder.path().join("qemu");
    let script = "#!/bin/bash\nexec qemu-system-aarch64 \"${@/scratch@/inject@}\"\n";
    std::fs::write(&emulator, script).unwrap();
    std::fs::set_permissions(&emulator, PermissionsExt::from_mode(0o755)).unwrap();
    let _host = host::shared();
    let mut command = Command::new(hypctl());
    command.args(["recover", "--no-build", "--quiet", "--cpu", "max", "hole-read", "stop-read"]);
    command.env("HYPCTL_QEMU", &emulator);
    let ended = bounded::run(&mut command, b"", PATIENCE).unwrap();
    assert_eq!(code(&ended), Some(1), "{}{}", ended.stdout, ended.stderr);
    let text = &ended.stdout;
    for said in
        ["\nhole-read on max is not as expected:", "!1 ", "FAIL", "2 runs, 1 of them not as"]
    {
        assert!(text.contains(said), "no {said:?} in {text}");
    }
}

#[test]
fn the_list_names_every_scenario_and_runs_none() {
    let ended = recover(&["--list"]);
    assert_eq!(code(&ended), Some(0), "{}", ended.stderr);
    let lines = ended.stdout.matches("\n    ./just run ").count();
    assert_eq!(lines, SCENARIOS.len(), "{}", ended.stdout);
}

#[test]
fn ctrl_c_ends_it_with_the_table_and_leaves_no_qemu() {
    selftest_images();
    let _host = host::shared();
    let mut suite = Command::new(hypctl())
        .args(["recover", "--no-build", "--cpu", "max", "--jobs", "2"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut emulators = Vec::new();
    while emulators.is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
        // Not one that is asked for its version.
        emulators = crate::leftovers::children(suite.id());
        emulators.retain(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.windows(8).any(|word| word == b"\0-kernel")
        });
    }
    assert!(!emulators.is_empty(), "nothing was started");
    let pid = i32::try_from(suite.id()).ok().and_then(Pid::from_raw).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    let mut table = String::new();
    suite.stdout.take().unwrap().read_to_string(&mut table).unwrap();
    let ended = suite.wait().unwrap();
    assert_eq!(ended.code(), Some(130), "{table}");
    assert!(table.starts_with("scenario"), "{table}");
    for emulator in emulators {
        assert!(!crate::leftovers::alive(emulator), "{emulator} is left behind");
    }
}
