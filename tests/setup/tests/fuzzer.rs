//! cargo-fuzz and its C++ compiler: only when there is fuzzing to do.

use std::io::Result;

use setup_tests::Machine;

/// A machine with everything, the C++ compiler too.
fn machine() -> Result<Machine> {
    let machine = Machine::equipped()?;
    machine.install("c++")?;
    Ok(machine)
}

#[test]
fn building_and_testing_do_without() -> Result<()> {
    let machine = Machine::equipped()?;
    machine.ensure()?.expect(0, &[]);
    assert_eq!(machine.count("cargo-fuzz") + machine.count("c++"), 0);
    Ok(())
}

#[test]
fn it_is_compiled_once_into_the_cache() -> Result<()> {
    let machine = machine()?;
    let outcome = machine.bootstrap(&["fuzzer"])?;
    outcome.expect(0, &["compiling cargo-fuzz"]);
    let place = machine.cache("cargo-fuzz/bin/cargo-fuzz");
    assert_eq!(outcome.stdout.trim(), place.display().to_string());

    machine.forget_calls()?;
    machine.bootstrap(&["fuzzer"])?.expect(0, &[]);
    assert_eq!(machine.calls(), [""; 0]);
    Ok(())
}

#[test]
fn a_compiler_is_installed_where_there_is_none() -> Result<()> {
    let machine = Machine::equipped()?;
    machine.apt(&[("g++", "4:12.2.0-3", "bookworm")])?;
    machine.apt_installs("c++")?;
    machine.bootstrap(&["fuzzer"])?.expect(0, &["installing g++ from bookworm"]);
    Ok(())
}

#[test]
fn without_apt_the_compiler_is_asked_for() -> Result<()> {
    let machine = Machine::equipped()?;
    machine.bootstrap(&["fuzzer"])?.expect(10, &["A C++ compiler, `c++`"]);
    assert_eq!(machine.count("cargo install"), 0);
    Ok(())
}

#[test]
fn no_network_is_told() -> Result<()> {
    let machine = machine()?;
    machine.switch("cargo-offline", "")?;
    machine.bootstrap(&["fuzzer"])?.expect(11, &["cargo-fuzz 0.13", "no answer from the network"]);
    Ok(())
}

#[test]
fn one_that_does_not_compile_is_told_and_leaves_nothing() -> Result<()> {
    let machine = machine()?;
    machine.switch("cargo-broken", "")?;
    machine.bootstrap(&["fuzzer"])?.expect(21, &["cargo-fuzz 0.13", "could not compile"]);
    assert!(!machine.cache("cargo-fuzz").exists());
    Ok(())
}

#[test]
fn wrong_words_are_told_before_anything_is_brought() -> Result<()> {
    let machine = machine()?;
    let words = [
        &["nonsense"][..],
        &["--seconds", "0"],
        &["--replay", "absent"],
        &["programs", "--replay", "absent"],
    ];
    for words in words {
        let outcome = machine
            .command(&[&["python3", "-S", "-m", "bootstrap.fuzz"], words].concat())
            .output()?;
        assert_eq!(outcome.status.code(), Some(2), "{words:?}");
    }
    let outcome = machine.command(&["python3", "-S", "-m", "bootstrap.soak", "0"]).output()?;
    assert_eq!(outcome.status.code(), Some(2));
    assert_eq!(machine.count("cargo"), 0);
    Ok(())
}
