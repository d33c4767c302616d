//! mdBook: only when the book is wanted.

use std::io::Result;

use setup_tests::Machine;

#[test]
fn building_and_testing_do_without() -> Result<()> {
    let machine = Machine::equipped()?;
    machine.ensure()?.expect(0, &[]);
    assert_eq!(machine.count("mdbook"), 0);
    Ok(())
}

#[test]
fn it_is_compiled_once_into_the_cache() -> Result<()> {
    let machine = Machine::equipped()?;
    let outcome = machine.bootstrap(&["book"])?;
    outcome.expect(0, &["compiling mdBook"]);
    assert_eq!(outcome.stdout.trim(), machine.cache("mdbook/bin/mdbook").display().to_string());

    machine.forget_calls()?;
    machine.bootstrap(&["book"])?.expect(0, &[]);
    assert_eq!(machine.calls(), [""; 0]);
    Ok(())
}

#[test]
fn one_on_the_path_is_used_if_it_is_new_enough() -> Result<()> {
    let machine = Machine::equipped()?;
    machine.install("mdbook")?;
    let outcome = machine.bootstrap(&["book"])?;
    assert_eq!(outcome.stdout.trim(), machine.path("bin/mdbook").display().to_string());
    assert_eq!(machine.count("cargo install"), 0);
    Ok(())
}

#[test]
fn no_network_is_told() -> Result<()> {
    let machine = Machine::equipped()?;
    machine.switch("cargo-offline", "")?;
    machine
        .bootstrap(&["book"])?
        .expect(11, &["mdBook 0.5", "no answer from the network", "by hand"]);
    Ok(())
}
