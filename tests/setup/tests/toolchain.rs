//! The toolchain's three ways, and that what the user has stays as it is.

use std::fs;
use std::io::Result;

use setup_tests::{Machine, listing, pin};

const NIGHTLY: &str = "nightly-host";

fn source(version: &'static str) -> (&'static str, &'static str, &'static str) {
    ("rust-src", version, "sid")
}

/// A Debian version of `rust-src` that fits the pin's minor version.
fn fitting() -> &'static str {
    let minor: String = pin("rustc").split('.').take(2).collect::<Vec<_>>().join(".");
    format!("{minor}.1+dfsg1-1").leak()
}

fn record(machine: &Machine) -> Result<String> {
    fs::read_to_string(machine.cache("setup.json"))
}

#[test]
fn an_installed_toolchain_that_is_the_pin_is_used_as_it_is() -> Result<()> {
    let machine = Machine::equipped()?;
    let place = machine.toolchain("some-name", &pin("rustc"), true)?;
    machine.ensure()?.expect(0, &[]);
    assert_eq!(fs::read_link(machine.cache("toolchain"))?, place);
    assert_eq!(machine.count("rustup"), 0);
    Ok(())
}

#[test]
fn an_installed_toolchain_without_core_sources_is_left_alone() -> Result<()> {
    let machine = Machine::equipped()?;
    let place = machine.toolchain(&format!("{}-host", pin("channel")), &pin("rustc"), false)?;
    let before = listing(&place)?;
    machine.ensure()?.expect(0, &["rustup: installing"]);
    assert_eq!(listing(&machine.path("home"))?.len(), before.len() + 3);
    assert_eq!(listing(&place)?, before);
    Ok(())
}

#[test]
fn rustup_installs_into_a_home_of_its_own_and_may_not_update_itself() -> Result<()> {
    let machine = Machine::equipped()?;
    machine.toolchain(NIGHTLY, "1.90.0-nightly (0 2025-01-01)", true)?;
    let before = listing(&machine.path("home"))?;
    machine.ensure()?.expect(0, &[&pin("channel"), "MB to download"]);
    let home = format!("rustup-home {}/", machine.cache("tmp").display());
    assert_eq!(machine.count(&home), 1, "{:?}", machine.calls());
    assert_eq!(
        machine.count("--profile minimal -c rust-src -c clippy -c rustfmt --no-self-update"),
        1
    );
    assert_eq!(listing(&machine.path("home"))?, before);
    assert!(machine.cache("toolchain/lib/rustlib/src/rust/library/core/src/lib.rs").exists());
    Ok(())
}

#[test]
fn without_rustups_servers_debian_sources_join_an_installed_nightly() -> Result<()> {
    let machine = Machine::equipped()?;
    machine.switch("rustup-offline", "")?;
    let base = machine.toolchain(NIGHTLY, &pin("rustc"), false)?;
    let before = listing(&base)?;
    machine.apt(&[source("1.10.0+dfsg1-1"), source(fitting())])?;
    machine.ensure()?.expect(0, &["rust-src", "46 MB", NIGHTLY]);
    assert_eq!(listing(&base)?, before);

    let ours = machine.cache("toolchain");
    let core = fs::read_to_string(ours.join("lib/rustlib/src/rust/library/core/src/lib.rs"))?;
    assert_eq!(core, "// core, from Debian\n");
    // rustc looks for its libraries from where its driver lies: a link would lead it away.
    assert!(!ours.join("lib/librustc_driver-0.so").is_symlink());
    assert!(!ours.join("bin/rustc").is_symlink());
    assert!(ours.join("lib/libLLVM.so").is_symlink());
    assert!(ours.join("lib/rustlib/host/lib/libstd.rlib").exists());
    assert!(record(&machine)?.contains(fitting()));
    Ok(())
}

#[test]
fn sources_of_another_minor_version_are_refused_by_number() -> Result<()> {
    let machine = Machine::equipped()?;
    machine.switch("rustup-offline", "")?;
    machine.toolchain(NIGHTLY, &pin("rustc"), false)?;
    machine.apt(&[source("1.10.0+dfsg1-1"), source("1.11.0+dfsg1-1")])?;
    machine.ensure()?.expect(
        13,
        &[
            "sources of core",
            "no answer from the network",
            "1.10.0+dfsg1-1",
            "forky, sid",
            "rustup toolchain install",
        ],
    );
    assert!(!machine.cache("toolchain").exists());
    Ok(())
}

#[test]
fn no_nightly_to_join_and_no_download_names_both_ways() -> Result<()> {
    let machine = Machine::equipped()?;
    machine.switch("rustup-offline", "")?;
    machine.apt(&[source(fitting())])?;
    machine.ensure()?.expect(
        11,
        &[
            "sources of core",
            "Installed toolchains:",
            "no answer from the network",
            "no such nightly",
            "Connect",
        ],
    );
    Ok(())
}

#[test]
fn no_network_at_all_says_so() -> Result<()> {
    let machine = Machine::equipped()?;
    machine.switch("rustup-offline", "")?;
    machine.toolchain(NIGHTLY, &pin("rustc"), false)?;
    machine.apt(&[source(fitting())])?;
    machine.switch("apt-offline", "")?;
    machine
        .ensure()?
        .expect(11, &["no answer from the network", "mirror", "does not answer", "Connect"]);
    Ok(())
}

#[test]
fn a_download_that_is_not_the_pin_is_not_taken() -> Result<()> {
    let machine = Machine::equipped()?;
    machine.switch("rustup-brings", "1.10.0-nightly (0 2020-01-01)")?;
    machine.ensure()?.expect(13, &["did not bring rustc"]);
    assert!(!machine.cache("toolchain").exists());
    Ok(())
}

#[test]
fn no_rustup_or_no_cargo_is_named() -> Result<()> {
    let machine = Machine::equipped()?;
    machine.remove("rustup")?;
    machine
        .ensure()?
        .expect(15, &["rustup and its cargo", "no rustup on the PATH", "Install rustup"]);
    machine.remove("cargo")?;
    machine.ensure()?.expect(15, &["no rustup and no cargo on the PATH"]);
    Ok(())
}

#[test]
fn a_toolchain_that_the_user_upgrades_is_looked_at_again() -> Result<()> {
    let machine = Machine::equipped()?;
    machine.toolchain(NIGHTLY, &pin("rustc"), true)?;
    machine.ensure()?.expect(0, &[]);
    machine.toolchain(NIGHTLY, "1.99.0-nightly (0 2026-09-09)", true)?;
    machine.ensure()?.expect(0, &["rustup: installing"]);
    assert!(record(&machine)?.contains("into the cache"));
    Ok(())
}

#[test]
fn a_nightly_that_was_joined_and_is_upgraded_is_not_leant_on() -> Result<()> {
    let machine = Machine::equipped()?;
    machine.switch("rustup-offline", "")?;
    machine.toolchain(NIGHTLY, &pin("rustc"), false)?;
    machine.apt(&[source(fitting())])?;
    machine.ensure()?.expect(0, &[]);
    machine.toolchain(NIGHTLY, "1.99.0-nightly (0 2026-09-09)", false)?;
    machine.ensure()?.expect(11, &["no such nightly is installed"]);
    Ok(())
}
