//! The guest's tree, read back by the reader that the hypervisor uses itself.

use std::string::ToString;

use proptest::prelude::*;

use super::*;
use crate::fdt::{self, Conduit};
use crate::range::PaRange;

fn guest() -> GuestTree<'static> {
    GuestTree {
        vcpus: 2,
        ram: IpaRange { start: map::RAM_BASE, end: map::RAM_BASE + (64 << 20) },
        ramdisk: None,
        bootargs: "console=ttyAMA0",
        flash: false,
    }
}

fn contains(blob: &[u8], wanted: &[u8]) -> bool {
    blob.windows(wanted.len()).any(|window| window == wanted)
}

#[test]
fn a_guest_finds_what_it_has() {
    let blob = build(&guest()).unwrap();
    let platform = fdt::parse(&blob).unwrap();
    assert_eq!(platform.ram, [PaRange { start: 0x4000_0000, end: 0x4400_0000 }]);
    assert_eq!(platform.uart, PaRange { start: 0x900_0000, end: 0x900_1000 });
    assert_eq!(platform.psci, Conduit::Hvc);
    assert_eq!(platform.cpus.iter().map(|cpu| cpu.mpidr).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(platform.bootargs, "console=ttyAMA0");
    assert_eq!((platform.reserved.len(), platform.modules.len()), (0, 0));
    assert!(contains(&blob, b"/pl011@9000000\0"), "stdout-path");
    assert!(contains(&blob, b"arm,armv8-timer\0"));
}

/// Cells of a property, as they lie in the blob.
fn property(cells: &[u32]) -> Vec<u8> {
    cells.iter().flat_map(|cell| cell.to_be_bytes()).collect()
}

#[test]
fn each_vcpu_has_a_redistributor() {
    for vcpus in 1..=MAX_VCPUS {
        let blob = build(&GuestTree { vcpus, ..guest() }).unwrap();
        let gic = fdt::parse(&blob).unwrap().gic.unwrap();
        assert_eq!(gic.dist, PaRange { start: 0x800_0000, end: 0x801_0000 });
        assert_eq!(gic.redist.start, 0x80a_0000);
        assert_eq!(gic.redist.len(), vcpus as u64 * 0x2_0000);
        assert!(!contains(&blob, b"arm,gic-v3-its\0") && contains(&blob, b"arm,gic-v3\0"));
    }
}

/// The numbers are those of QEMU's `virt`: `dtc` on its `dumpdtb` shows them.
#[test]
fn interrupts_are_where_drivers_of_virt_expect_them() {
    let blob = build(&guest()).unwrap();
    // Kind (1: PPI), number, level-sensitive and active high: secure, physical and virtual timer of EL1.
    let timer = property(&[1, 13, 4, 1, 14, 4, 1, 11, 4]);
    assert!(contains(&blob, &timer));
    // SPI 1.
    assert!(contains(&blob, &property(&[0, 1, 4])));
}

#[test]
fn ramdisk_and_flash_are_told_only_when_they_are_there() {
    let plain = build(&guest()).unwrap();
    assert!(!contains(&plain, b"linux,initrd-start") && !contains(&plain, b"cfi-flash"));
    let ramdisk = IpaRange { start: 0x4200_0000, end: 0x4200_1234 };
    let full = build(&GuestTree { ramdisk: Some(ramdisk), flash: true, ..guest() }).unwrap();
    assert!(contains(&full, &ramdisk.start.to_be_bytes()));
    assert!(contains(&full, &ramdisk.end.to_be_bytes()));
    assert!(contains(&full, b"flash@0\0") && contains(&full, b"cfi-flash\0"));
}

#[test]
fn what_cannot_be_told_is_refused() {
    let refusal = |guest: GuestTree<'_>| build(&guest).unwrap_err().to_string();
    assert_eq!(refusal(GuestTree { vcpus: 0, ..guest() }), "a guest has 1 to 8 vCPUs, not 0");
    assert_eq!(refusal(GuestTree { vcpus: 9, ..guest() }), "a guest has 1 to 8 vCPUs, not 9");
    let long = "x".repeat(MAX_BOOTARGS + 1);
    let error = refusal(GuestTree { bootargs: &long, ..guest() });
    assert!(error.contains("2049 bytes; at most 2048"), "{error}");
    assert!(matches!(
        build(&GuestTree { bootargs: "a\0b", ..guest() }),
        Err(GuestTreeError::Write(_))
    ));
}

proptest! {
    #[test]
    fn every_guest_fits_and_reads_back(
        vcpus in 1..=MAX_VCPUS, mem in 1..1_u64 << 38, bootargs in "[ -~]{0,2048}", flash: bool,
    ) {
        let ram = IpaRange { start: map::RAM_BASE, end: map::RAM_BASE + mem };
        let blob = build(&GuestTree { vcpus, ram, bootargs: &bootargs, flash, ..guest() }).unwrap();
        prop_assert!(blob.len() as u64 <= map::DTB_SPACE);
        let platform = fdt::parse(&blob).unwrap();
        prop_assert_eq!(platform.cpus.len(), vcpus);
        prop_assert_eq!(platform.bootargs, bootargs);
        prop_assert_eq!(platform.ram[0].len(), mem);
    }
}
