//! The command runner, and the wrapper that starts it.

use std::fs;
use std::io::Result;
use std::time::{Duration, Instant};

use setup_tests::{Machine, Outcome};

fn without_runner() -> Result<Machine> {
    let machine = Machine::equipped()?;
    machine.remove("just")?;
    Ok(machine)
}

#[test]
fn one_on_the_path_is_used() -> Result<()> {
    let machine = Machine::equipped()?;
    let outcome = machine.bootstrap(&["runner"])?;
    outcome.expect(0, &[]);
    assert_eq!(outcome.stdout.trim(), machine.path("bin/just").display().to_string());
    assert_eq!(machine.count("pip"), 0);
    Ok(())
}

#[test]
fn none_or_an_old_one_brings_the_pinned_wheel_into_the_cache() -> Result<()> {
    let machine = without_runner()?;
    let outcome = machine.bootstrap(&["runner"])?;
    outcome.expect(0, &["installing the command runner just"]);
    assert_eq!(outcome.stdout.trim(), machine.cache("runner/bin/just").display().to_string());
    assert_eq!(machine.count("rust-just==1."), 1);

    let machine = without_runner()?;
    fs::write(machine.path("bin/just"), "#!/tools/none\n")?;
    machine.bootstrap(&["runner"])?.expect(0, &["installing the command runner just"]);
    Ok(())
}

#[test]
fn a_python_without_pip_borrows_debians_wheel_of_it() -> Result<()> {
    let machine = without_runner()?;
    machine.switch("pip-missing", "")?;
    machine.apt(&[("python3-pip-whl", "23.0.1+dfsg-1", "bookworm")])?;
    machine.bootstrap(&["runner"])?.expect(0, &["fetching python3-pip-whl"]);
    assert_eq!(machine.count("pip-0.whl/pip install --target"), 1);
    Ok(())
}

#[test]
fn no_pip_and_no_apt_says_what_to_install() -> Result<()> {
    let machine = without_runner()?;
    machine.switch("pip-missing", "")?;
    machine.bootstrap(&["runner"])?.expect(
        16,
        &["The command runner `just`", "On the PATH", "there is no pip", "python3-pip", "yourself"],
    );
    Ok(())
}

#[test]
fn pip_without_network_says_so() -> Result<()> {
    let machine = without_runner()?;
    machine.switch("pip-offline", "")?;
    machine
        .bootstrap(&["runner"])?
        .expect(11, &["no answer from the network", "Connect this machine"]);
    assert!(!machine.cache("runner").exists());
    Ok(())
}

#[test]
fn the_wrapper_passes_the_recipe_and_its_words_on() -> Result<()> {
    let machine = Machine::equipped()?;
    let wrapper = machine.path("checkout/just").display().to_string();
    let outcome =
        Outcome::from(machine.command(&[&wrapper, "run", "touch", "--vcpus", "4"]).output()?);
    outcome.expect(0, &[]);
    let call = machine.calls().pop().unwrap_or_default();
    assert!(call.ends_with("run touch --vcpus 4"), "{call}");
    assert!(call.contains("checkout/justfile"), "{call}");
    Ok(())
}

#[test]
fn the_wrapper_does_not_take_itself_for_the_runner() -> Result<()> {
    let machine = without_runner()?;
    let path = format!(
        "{}:{}:{}",
        machine.path("checkout").display(),
        machine.path("bin").display(),
        machine.path("tools").display()
    );
    let start = Instant::now();
    let outcome = Outcome::from(machine.command(&["just"]).env("PATH", path).output()?);
    outcome.expect(0, &["installing the command runner just"]);
    // A wrapper that asks itself for its version waits until it gives up on the answer.
    assert!(start.elapsed() < Duration::from_secs(45));
    Ok(())
}

#[test]
fn the_wrapper_names_a_missing_python() -> Result<()> {
    let machine = Machine::equipped()?;
    machine.remove("python3")?;
    let wrapper = machine.path("checkout/just").display().to_string();
    Outcome::from(machine.command(&[&wrapper]).output()?)
        .expect(19, &["Python 3.9", "PATH", "Install"]);
    Ok(())
}
