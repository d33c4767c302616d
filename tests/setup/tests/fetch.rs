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
