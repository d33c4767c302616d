//! Guests from the distribution.

use std::fs;
use std::io::Result;

use setup_tests::Machine;

const U_BOOT: (&str, &str, &str) = ("u-boot-qemu", "2023.01+dfsg-2", "bookworm");

#[test]
fn u_boot_is_downloaded_once() -> Result<()> {
    let machine = Machine::equipped()?;
    machine.apt(&[U_BOOT])?;
    let outcome = machine.bootstrap(&["fetch", "u-boot"])?;
    outcome.expect(0, &["fetching u-boot-qemu 2023.01+dfsg-2"]);
    let place = machine.cache("guests/u-boot.bin");
    assert_eq!(outcome.stdout.trim(), place.display().to_string());
    assert_eq!(fs::read_to_string(place)?, "u-boot\n");

    machine.forget_calls()?;
    machine.bootstrap(&["fetch", "u-boot"])?.expect(0, &[]);
    assert_eq!(machine.calls(), [""; 0]);
    Ok(())
}

#[test]
fn a_kernel_is_the_one_that_the_package_without_files_stands_for() -> Result<()> {
    let machine = Machine::equipped()?;
    machine.apt(&[
        ("linux-image-arm64", "6.12.1-1", "trixie"),
        ("linux-image-6.12.1-arm64", "6.12.1-1+signed", "trixie"),
    ])?;
    let outcome = machine.bootstrap(&["fetch", "linux-6.12"])?;
    outcome.expect(0, &["package lists of trixie", "linux-image-6.12.1-arm64 6.12.1-1+signed"]);
    let place = machine.cache("guests/linux-6.12");
    assert_eq!(outcome.stdout.trim(), place.display().to_string());
    assert_eq!(fs::read_to_string(place)?, "kernel\n");
    let view = fs::read_to_string(machine.cache("apt/arm64/apt.conf"))?;
    assert!(view.contains("APT::Architecture \"arm64\";"), "{view}");
    Ok(())
}

#[test]
fn a_kernel_whose_package_is_not_on_offer_is_named() -> Result<()> {
    let machine = Machine::equipped()?;
    machine.apt(&[("linux-image-arm64", "6.12.1-1", "trixie")])?;
    machine
        .bootstrap(&["fetch", "linux-6.12"])?
        .expect(18, &["No linux-image-6.12.1-arm64 for arm64 in trixie"]);
    Ok(())
}

#[test]
fn busybox_is_found_where_either_layout_of_debian_has_it() -> Result<()> {
    let machine = Machine::equipped()?;
    machine.apt(&[("busybox-static", "1:1.37.0-6", "trixie")])?;
    let outcome = machine.bootstrap(&["fetch", "busybox"])?;
    outcome.expect(0, &["fetching busybox-static 1:1.37.0-6"]);
    assert_eq!(fs::read_to_string(outcome.stdout.trim())?, "busybox\n");
    Ok(())
}

#[test]
fn each_reason_why_there_is_none_has_its_own_code() -> Result<()> {
    let machine = Machine::equipped()?;
    machine.bootstrap(&["fetch", "u-boot"])?.expect(10, &["u-boot-qemu", "no apt-get"]);
    machine.apt(&[])?;
    machine.bootstrap(&["fetch", "u-boot"])?.expect(18, &["No u-boot-qemu in bookworm"]);
    machine.apt(&[U_BOOT])?;
    machine.switch("apt-offline", "")?;
    machine.bootstrap(&["fetch", "u-boot"])?.expect(11, &["u-boot-qemu", "Connect this machine"]);
    Ok(())
}

#[test]
fn a_package_without_the_file_is_reported_and_leaves_nothing() -> Result<()> {
    let machine = Machine::equipped()?;
    machine.apt(&[U_BOOT])?;
    machine.switch("empty-package", "")?;
    machine.bootstrap(&["fetch", "u-boot"])?.expect(18, &["has no file", "u-boot.bin"]);
    assert!(!machine.cache("guests").exists());
    Ok(())
}
