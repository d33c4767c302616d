//! QEMU and the linker: found, too old, or installed by apt.

use std::fs;
use std::io::Result;

use setup_tests::Machine;

const OLD: (&str, &str, &str) = ("qemu-system-arm", "1:7.2+dfsg-7+deb12u1", "bookworm");
const NEW: (&str, &str, &str) = ("qemu-system-arm", "1:10.0.2+ds-2~bpo12+1", "bookworm-backports");

fn without_qemu() -> Result<Machine> {
    let machine = Machine::equipped()?;
    machine.remove("qemu-system-aarch64")?;
    Ok(machine)
}

#[test]
fn older_than_7_2_is_refused_with_its_place_and_version() -> Result<()> {
    let machine = Machine::equipped()?;
    machine.switch("qemu-version", "6.2.0")?;
    let place = machine.path("bin/qemu-system-aarch64");
    machine.ensure()?.expect(
        12,
        &[
            "qemu-system-aarch64 7.2 or newer",
            "version 6.2.0",
            &place.display().to_string(),
            "Upgrade",
        ],
    );
    Ok(())
}

#[test]
fn an_installed_7_2_stays_and_its_missing_models_are_named() -> Result<()> {
    let machine = Machine::equipped()?;
    machine.apt(&[NEW])?;
    machine.switch("qemu-version", "7.2.9")?;
    machine.switch("qemu-models", "max cortex-a76 cortex-a53")?;
    machine.ensure()?.expect(0, &["lacks neoverse-n2", "8.2 or newer"]);
    assert_eq!(machine.count("apt-get"), 0);
    Ok(())
}

#[test]
fn a_machine_without_it_gets_the_suite_that_has_all_models() -> Result<()> {
    let machine = without_qemu()?;
    machine.apt(&[NEW, OLD])?;
    machine.apt_installs("qemu-system-aarch64")?;
    machine.ensure()?.expect(0, &["installing qemu-system-arm from bookworm-backports", "12 MB"]);
    assert_eq!(machine.count("-t bookworm-backports --no-install-recommends install -y"), 2);
    Ok(())
}

#[test]
fn the_systems_own_suite_is_preferred_when_it_is_new_enough() -> Result<()> {
    let machine = without_qemu()?;
    machine.apt(&[NEW, ("qemu-system-arm", "1:9.0.1+ds-1", "bookworm")])?;
    machine.apt_installs("qemu-system-aarch64")?;
    machine.ensure()?.expect(0, &["installing qemu-system-arm from bookworm ("]);
    Ok(())
}

#[test]
fn a_mirror_with_only_an_old_one_is_refused_with_what_it_has() -> Result<()> {
    let machine = without_qemu()?;
    machine.apt(&[("qemu-system-arm", "1:5.2+dfsg-11", "bullseye")])?;
    machine.ensure()?.expect(12, &["7.2 or newer", "5.2", "bookworm-backports", "by hand"]);
    assert_eq!(machine.count(" install -y"), 0);
    Ok(())
}

#[test]
fn no_network_is_told_from_a_package_that_does_not_exist() -> Result<()> {
    let machine = without_qemu()?;
    machine.apt(&[NEW])?;
    machine.switch("apt-offline", "")?;
    machine.ensure()?.expect(11, &["7.2 or newer", "does not answer", "Connect this machine"]);

    let machine = without_qemu()?;
    machine.apt(&[])?;
    machine.ensure()?.expect(18, &["No qemu-system-arm in bookworm", "apt-get update"]);
    Ok(())
}

#[test]
fn a_failing_installation_shows_apts_last_words() -> Result<()> {
    let machine = without_qemu()?;
    machine.apt(&[NEW])?;
    machine.switch("apt-broken", "")?;
    machine.ensure()?.expect(18, &["failed", "| E: dpkg was interrupted"]);
    Ok(())
}

#[test]
fn no_apt_gets_the_list_of_what_to_install_by_hand() -> Result<()> {
    let channel = setup_tests::pin("channel");
    without_qemu()?.ensure()?.expect(
        10,
        &[
            "7.2 or newer",
            "no apt-get",
            "- a C linker",
            "- QEMU 8.2",
            &channel,
            "- the command runner",
        ],
    );
    Ok(())
}

#[test]
fn another_system_gets_the_list_even_if_it_has_an_apt() -> Result<()> {
    let machine = without_qemu()?;
    machine.apt(&[NEW])?;
    machine.install("uname")?;
    machine.switch("system", "Darwin")?;
    machine.ensure()?.expect(10, &["this is Darwin", "- a C linker", "- QEMU 8.2", "- rustup"]);
    assert_eq!(machine.count("apt-get"), 0);
    Ok(())
}

#[test]
fn a_plain_user_is_told_the_line_to_run_as_root() -> Result<()> {
    for sudo in [false, true] {
        let machine = without_qemu()?;
        machine.apt(&[NEW])?;
        if sudo {
            machine.install("sudo")?;
            machine.switch("sudo-asks", "")?;
        }
        let machine = machine.as_plain_user()?;
        let config = machine.cache("apt/system/apt.conf");
        let line = format!("sudo apt-get -c {} -t bookworm-backports", config.display());
        machine.ensure()?.expect(17, &["takes root", &line, "install -y qemu-system-arm"]);
        assert!(config.exists(), "the line needs this file");
    }
    Ok(())
}

#[test]
fn a_plain_user_with_sudo_needs_to_do_nothing() -> Result<()> {
    let machine = without_qemu()?;
    machine.apt(&[NEW])?;
    machine.apt_installs("qemu-system-aarch64")?;
    machine.install("sudo")?;
    let machine = machine.as_plain_user()?;
    machine.ensure()?.expect(0, &["installing qemu-system-arm"]);
    assert_eq!(machine.count("sudo -n env DEBIAN_FRONTEND=noninteractive apt-get"), 1);
    Ok(())
}

#[test]
fn a_machine_that_never_read_its_package_lists_reads_them_into_our_own() -> Result<()> {
    let machine = without_qemu()?;
    machine.apt(&[NEW])?;
    machine.apt_installs("qemu-system-aarch64")?;
    machine.switch("apt-no-lists", "")?;
    machine.ensure()?.expect(0, &["reading the system's package lists"]);
    Ok(())
}

#[test]
fn apt_works_on_lists_of_ours_and_keeps_its_hands_off_the_systems() -> Result<()> {
    let machine = without_qemu()?;
    machine.apt(&[NEW])?;
    machine.apt_installs("qemu-system-aarch64")?;
    machine.ensure()?.expect(0, &[]);
    let config = machine.cache("apt/system/apt.conf");
    let ours = format!("apt-get -c {}", config.display());
    for call in machine.calls().iter().filter(|call| call.starts_with("apt-get")) {
        assert!(call.starts_with(&ours) || call.starts_with("apt-get indextargets"), "{call}");
    }
    let text = fs::read_to_string(config)?;
    for setting in ["Dir::State::Lists", "Dir::Cache", "Dir::Etc::SourceList"] {
        let line = format!("{setting} \"{}/", machine.cache("apt/system").display());
        assert!(text.contains(&line), "{text}");
    }
    let sources = fs::read_to_string(machine.cache("apt/system/sources.list"))?;
    assert!(sources.contains("http://mirror.test/debian/ bookworm-backports main"), "{sources}");
    assert!(!sources.contains("elsewhere"), "{sources}");
    Ok(())
}

#[test]
fn a_machine_without_a_linker_gets_one() -> Result<()> {
    let machine = Machine::equipped()?;
    machine.remove("cc")?;
    machine.apt(&[("gcc", "4:12.2.0-3", "bookworm")])?;
    machine.apt_installs("cc")?;
    machine.ensure()?.expect(0, &["installing gcc libc6-dev from bookworm"]);

    let machine = Machine::equipped()?;
    machine.remove("cc")?;
    machine.ensure()?.expect(10, &["A C linker", "no apt-get"]);
    Ok(())
}
