//! Trees as QEMU makes them, trees that lack something, and trees that are no trees.

mod hostile;
mod trees;

use std::string::ToString;

use trees::{Tree, virt};

use super::*;
use crate::IpaRange;
use crate::recovery::Recovery;

fn range(start: u64, len: u64) -> PaRange {
    PaRange::from_len(start, len).unwrap()
}

#[test]
fn qemu_virt_is_read() {
    let platform = parse(&virt().build()).unwrap();
    assert_eq!(platform.ram, [range(0x4000_0000, 0x2000_0000)]);
    assert_eq!(platform.reserved, []);
    assert_eq!(platform.cpus, [Cpu { mpidr: 0 }, Cpu { mpidr: 1 }]);
    assert_eq!(platform.uart, range(0x900_0000, 0x1000));
    let gic = Gic { dist: range(0x800_0000, 0x1_0000), redist: range(0x80a_0000, 0xf6_0000) };
    assert_eq!(platform.gic, Some(gic));
    assert_eq!(platform.psci, Conduit::Smc);
    assert_eq!(platform.bootargs, "vcpus=2 mem=64M");
    assert_eq!(platform.modules, []);
}

#[test]
fn modules_are_two_cells_each_and_their_strings_a_set() {
    let tree = Tree {
        modules: [
            trees::module(0x5100_0000, 0x1770, &["multiboot,ramdisk", "multiboot,module"], None),
            trees::module(
                0x5000_0000,
                0x10,
                &["multiboot,module", "multiboot,kernel"],
                Some("a,b=1"),
            ),
        ]
        .into(),
        ..virt()
    };
    let platform = parse(&tree.build()).unwrap();
    let kernel = platform.module(ModuleKind::Kernel).unwrap().unwrap();
    assert_eq!((kernel.range, kernel.bootargs.as_str()), (range(0x5000_0000, 0x10), "a,b=1"));
    let ramdisk = platform.module(ModuleKind::Ramdisk).unwrap().unwrap();
    assert_eq!((ramdisk.range, ramdisk.bootargs.as_str()), (range(0x5100_0000, 0x1770), ""));
}

#[test]
fn a_guest_manages_its_memory_if_its_own_node_says_so() {
    let kinds = ["multiboot,module", "multiboot,kernel"];
    let plain = trees::module(0x5000_0000, 0x1000, &kinds, None);
    for manage in [false, true] {
        let mut kernel = plain.clone();
        kernel.manage = manage;
        let platform = parse(&Tree { modules: [kernel].into(), ..virt() }.build()).unwrap();
        assert_eq!(platform.module(ModuleKind::Kernel).unwrap().unwrap().manage, manage);
    }
}

/// What the node of a guest's image asks for that has these cells.
fn recovery(cells: &[(&'static str, &[u32])]) -> Result<Asked, FdtError> {
    let kinds = ["multiboot,module", "multiboot,kernel"];
    let mut kernel = trees::module(0x5000_0000, 0x1000, &kinds, None);
    kernel.cells = cells.iter().map(|(property, cells)| (*property, cells.to_vec())).collect();
    let platform = parse(&Tree { modules: [kernel].into(), ..virt() }.build())?;
    Ok(platform.module(ModuleKind::Kernel)?.unwrap().recovery.clone())
}

#[test]
fn a_guests_node_says_where_it_has_no_memory() {
    assert_eq!(recovery(&[]).unwrap(), Asked::default());
    let asked = recovery(&[
        ("stage2,recovery", &[1, 0x2000_0000, 0, 0x3000, 1, 0, 0x4000_1000, 2, 0x1000, 3]),
        ("stage2,recovery-default", &[2]),
        ("stage2,recovery-limit", &[7]),
        ("stage2,recovery-rate", &[0xffff_ffff]),
    ]);
    let windows = [
        (IpaRange { start: 0x1_2000_0000, end: 0x1_2000_3000 }, Recovery::Scratch),
        (IpaRange { start: 0x4000_1000, end: 0x2_4000_2000 }, Recovery::Stop),
    ];
    let default = Some(Recovery::Inject);
    let (limit, rate) = (Some(7), Some(u32::MAX));
    assert_eq!(asked.unwrap(), Asked { default, windows: windows.into(), limit, rate });
}

#[test]
fn what_a_node_says_of_recovery_and_cannot_be_read_is_refused_by_name() {
    let refusal = |property, cells: &[u32]| recovery(&[(property, cells)]).unwrap_err().to_string();
    let node = "device tree node module@0x50000000: ";
    for (property, cells, says) in [
        (
            "stage2,recovery",
            &[0, 0, 0, 0x1000][..],
            "property stage2,recovery (16 bytes) is not entries of five cells",
        ),
        (
            "stage2,recovery",
            &[0, 0, 0, 0x1000, 0],
            "property stage2,recovery has no policy 0: 1 is scratch, 2 inject, 3 stop",
        ),
        (
            "stage2,recovery",
            &[!0, !0, 0, 2, 1],
            "0x2 bytes at 0xffffffffffffffff leave the address space",
        ),
        (
            "stage2,recovery-default",
            &[4],
            "property stage2,recovery-default has no policy 4: 1 is scratch, 2 inject, 3 stop",
        ),
        (
            "stage2,recovery-default",
            &[1, 1],
            "property stage2,recovery-default (8 bytes) is not one cell",
        ),
        (
            "stage2,recovery-limit",
            &[0, 1],
            "property stage2,recovery-limit (8 bytes) is not one cell",
        ),
        ("stage2,recovery-rate", &[], "property stage2,recovery-rate (0 bytes) is not one cell"),
    ] {
        assert_eq!(refusal(property, cells), [node, says].concat());
    }
    let many: Vec<_> = (0..65).flat_map(|_| [0, 0, 0, 0x1000, 1]).collect();
    assert_eq!(
        refusal("stage2,recovery", &many),
        "the device tree has more than 64 recovery windows"
    );
}

#[test]
fn two_kernels_are_refused_by_name() {
    let kernel = |at| trees::module(at, 0x1000, &["multiboot,module", "multiboot,kernel"], None);
    let tree = Tree { modules: [kernel(0x5000_0000), kernel(0x6000_0000)].into(), ..virt() };
    let platform = parse(&tree.build()).unwrap();
    assert_eq!(
        platform.module(ModuleKind::Kernel).unwrap_err().to_string(),
        "two kernel modules, at 0x50000000-0x50000fff and 0x60000000-0x60000fff: one VM takes one"
    );
}

#[test]
fn a_module_of_no_kind_is_refused() {
    let module = trees::module(0x5000_0000, 0x1000, &["multiboot,module"], None);
    let tree = Tree { modules: [module].into(), ..virt() };
    assert_eq!(parse(&tree.build()), Err(FdtError::ModuleKind(range(0x5000_0000, 0x1000))));
}

#[test]
fn a_module_past_the_address_space_is_refused() {
    let module = trees::module(u64::MAX, 2, &["multiboot,module", "multiboot,kernel"], None);
    let tree = Tree { modules: [module].into(), ..virt() };
    let error = parse(&tree.build()).unwrap_err();
    assert!(matches!(error, FdtError::Overflow { start: u64::MAX, size: 2, .. }), "{error}");
}

#[test]
fn ram_is_sorted_and_merged_and_empty_or_disabled_nodes_do_not_count() {
    let tree = Tree {
        memory: [
            (0x8000_0000, 0x1000_0000, None),
            (0x6000_0000, 0x1000_0000, None),
            (0x4000_0000, 0x2000_0000, None),
            (0x0e00_0000, 0x0100_0000, Some("disabled")),
            (0x1_0000_0000, 0, None),
        ]
        .into(),
        ..virt()
    };
    let ram = parse(&tree.build()).unwrap().ram;
    assert_eq!(ram, [range(0x4000_0000, 0x3000_0000), range(0x8000_0000, 0x1000_0000)]);
}

#[test]
fn both_kinds_of_reservation_are_kept() {
    let tree = Tree {
        memreserve: [(0x4800_0000, 0x10_0000)].into(),
        reserved_memory: [("secmon@40000000", 0x4000_0000, 0x20_0000)].into(),
        ..virt()
    };
    let reserved = parse(&tree.build()).unwrap().reserved;
    let shown: Vec<_> = reserved.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        ["memory reservation at 0x48000000-0x480fffff", "secmon@40000000 at 0x40000000-0x401fffff"]
    );
}

#[test]
fn the_console_is_what_stdout_path_names() {
    let uarts = [("pl011@9040000", 0x904_0000), ("pl011@9000000", 0x900_0000)];
    let console = |stdout: Option<&'static str>| {
        let tree = Tree { uarts: uarts.into(), stdout, ..virt() };
        parse(&tree.build()).map(|platform| platform.uart.start)
    };
    assert_eq!(console(Some("/pl011@9000000")), Ok(0x900_0000));
    assert_eq!(console(Some("/pl011@9040000:115200n8")), Ok(0x904_0000));
    assert_eq!(console(Some("serial0")), Ok(0x900_0000), "through /aliases");
    assert_eq!(console(Some("/nothing")), Ok(0x904_0000), "else the first");
    assert_eq!(console(Some("/memory@40000000")), Ok(0x904_0000), "a path to something else");
    assert_eq!(console(None), Ok(0x904_0000));
}

#[test]
fn what_is_missing_is_named() {
    let cases = [
        (Tree { uarts: [].into(), ..virt() }, "PL011"),
        (Tree { memory: [].into(), ..virt() }, "memory"),
        (Tree { cpus: [].into(), ..virt() }, "CPU"),
        (Tree { psci: None, ..virt() }, "PSCI"),
    ];
    for (tree, missing) in cases {
        let error = parse(&tree.build()).unwrap_err();
        assert!(matches!(error, FdtError::MissingNode(_)), "{error}");
        assert!(error.to_string().contains(missing), "{error}");
    }
    let tree = Tree { psci: Some("mailbox"), ..virt() };
    assert!(matches!(parse(&tree.build()), Err(FdtError::BadProperty { property: "method", .. })));
    assert_eq!(parse(&Tree { gic: false, ..virt() }.build()).unwrap().gic, None);
}

#[test]
fn cpus_are_told_apart() {
    let tree = Tree { cpus: [0, 1, 1].into(), ..virt() };
    assert_eq!(parse(&tree.build()), Err(FdtError::DuplicateCpu(1)));
    let many: Vec<u32> = (0..=MAX_ENTRIES as u32).collect();
    let tree = Tree { cpus: many, ..virt() };
    assert_eq!(parse(&tree.build()), Err(FdtError::TooMany { what: "CPUs", max: MAX_ENTRIES }));
}

#[test]
fn a_tree_with_blanked_nodes_reads_like_one_without_them() {
    // As QEMU does with the memory node of a tree given by -dtb: every token of the node becomes NOP.
    let tree = Tree {
        memory: [(0x1000_0000, 0x1000, None), (0x4000_0000, 0x2000_0000, None)].into(),
        ..virt()
    };
    let blanked = trees::blank(&tree.build(), "memory@10000000");
    assert_eq!(parse(&blanked), parse(&virt().build()));
    let blanked = trees::blank(&virt().build(), "psci");
    assert_eq!(parse(&blanked), Err(FdtError::MissingNode("PSCI node")));
}

#[test]
fn a_blob_may_be_longer_than_its_tree() {
    let mut blob = virt().build();
    blob.resize(blob.len() + 4096, 0xff);
    assert!(parse(&blob).is_ok());
    assert_eq!(claimed_size(&blob), Ok(virt().build().len()));
}

#[test]
fn no_tree_at_all_is_told_by_its_magic() {
    assert_eq!(parse(&[0; 64]), Err(FdtError::Magic(0)));
    assert_eq!(parse(&[]), Err(FdtError::Truncated { need: 40, have: 0 }));
    assert_eq!(claimed_size(&[0; 8]), Err(FdtError::Magic(0)));
    assert_eq!(claimed_size(&[0xd0]), Err(FdtError::Truncated { need: 8, have: 1 }));
    let absurd = [0xd0, 0x0d, 0xfe, 0xed, 0xff, 0xff, 0xff, 0xff];
    assert!(matches!(claimed_size(&absurd), Err(FdtError::TooLarge { .. })));
}

#[test]
fn a_refused_tree_still_says_where_to_print_that() {
    let tree = Tree { memory: [].into(), ..virt() };
    assert!(parse(&tree.build()).is_err());
    let salvage = salvage(&tree.build());
    assert_eq!(salvage.uart, Some(range(0x900_0000, 0x1000)));
    assert_eq!(salvage.psci, Some(Conduit::Smc));
    assert_eq!(salvage.bootargs.as_deref(), Some("vcpus=2 mem=64M"));
    let tree = Tree { psci: None, uarts: [].into(), ..virt() };
    let salvage = super::salvage(&tree.build());
    assert_eq!((salvage.uart, salvage.psci), (None, None));
    assert!(salvage.bootargs.is_some());
    assert_eq!(super::salvage(&[0; 64]), Salvage::default());
}

#[test]
fn text_is_terminated_and_printable() {
    let blob = virt().build();
    let text = b"vcpus=2 mem=64M\0";
    let at = blob.windows(text.len()).position(|window| window == text).unwrap();
    for (place, byte) in [(text.len() - 1, b'x'), (3, 0), (3, 0x1b), (3, 0xff)] {
        let mut blob = blob.clone();
        blob[at + place] = byte;
        let error = parse(&blob).unwrap_err();
        let expected =
            "device tree node chosen: property bootargs (16 bytes) is not a printable string";
        assert_eq!(error.to_string(), expected);
    }
}
