//! Ctrl-C, a kill, and two runs at once: nothing is left half done.

use std::fs;
use std::io::Result;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use setup_tests::{Machine, Outcome};

fn send(signal: &str, child: &Child) -> Result<()> {
    let line = format!("kill -{signal} {}", child.id());
    assert!(Command::new("sh").args(["-c", &line]).status()?.success());
    Ok(())
}

fn is_clean(machine: &Machine) -> bool {
    !machine.cache("tmp").exists()
        && !machine.cache("toolchain").is_symlink()
        && !machine.cache("toolchains").exists()
}

/// Whether a process is gone, or is so before long: whoever adopts it collects it when it likes.
fn has_ended(process: &str) -> bool {
    let gone = || !Path::new("/proc").join(process).exists();
    (0..100).any(|_| {
        gone() || {
            std::thread::sleep(Duration::from_millis(100));
            false
        }
    })
}

#[test]
fn an_interrupt_ends_what_was_started_and_leaves_nothing_half_done() -> Result<()> {
    for signal in ["INT", "TERM", "HUP"] {
        let machine = Machine::equipped()?;
        let child = machine.ensure_until_rustup_is_half_way()?;
        let rustup = fs::read_to_string(machine.path("rustup-process"))?;
        send(signal, &child)?;
        Outcome::from(child.wait_with_output()?).expect(130, &["interrupted"]);
        assert!(is_clean(&machine));
        assert!(has_ended(rustup.trim()), "rustup still runs");

        machine.switch("rustup-slow", "0")?;
        machine.ensure()?.expect(0, &[]);
    }
    Ok(())
}

#[test]
fn after_a_kill_the_next_run_cleans_up_and_finishes() -> Result<()> {
    let machine = Machine::equipped()?;
    let mut child = machine.ensure_until_rustup_is_half_way()?;
    let rustup = fs::read_to_string(machine.path("rustup-process"))?;
    child.kill()?;
    child.wait()?;
    assert!(machine.cache("tmp").exists());
    assert!(!machine.cache("toolchain").exists());
    let line = format!("kill -KILL -{}", rustup.trim());
    assert!(Command::new("sh").args(["-c", &line]).status()?.success());

    machine.switch("rustup-slow", "0")?;
    machine.ensure()?.expect(0, &[]);
    assert!(!machine.cache("tmp").exists());
    assert!(machine.cache("toolchain/bin/rustc").exists());
    Ok(())
}

#[test]
fn two_runs_at_once_wait_for_each_other_and_install_once() -> Result<()> {
    let machine = Machine::equipped()?;
    machine.switch("rustup-slow", "1")?;
    let start = || machine.command(&["python3", "-S", "-m", "bootstrap", "ensure"]).spawn();
    let (one, two) = (start()?, start()?);
    let outcomes: [Outcome; 2] = [one.wait_with_output()?.into(), two.wait_with_output()?.into()];
    for outcome in &outcomes {
        outcome.expect(0, &[]);
    }
    assert!(outcomes.iter().any(|outcome| outcome.stderr.contains("another set-up is at work")));
    assert_eq!(machine.count("toolchain install"), 1);
    Ok(())
}
