//! Free memory: what is refused, and what is never handed out.

use std::string::{String, ToString};
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::fdt::{Conduit, Cpu, Module, ModuleKind};
use crate::range::PAGE_SIZE;
use crate::recovery::Asked;

fn range(start: u64, end: u64) -> PaRange {
    PaRange::new(start, end).unwrap()
}

/// 256 MiB of RAM at 1 GiB, nothing reserved, no modules.
fn machine() -> Platform {
    Platform {
        ram: [range(0x4000_0000, 0x5000_0000)].into(),
        reserved: Vec::new(),
        cpus: [Cpu { mpidr: 0 }].into(),
        uart: range(0x900_0000, 0x900_1000),
        gic: None,
        psci: Conduit::Smc,
        modules: Vec::new(),
        bootargs: String::new(),
    }
}

fn kernel(start: u64, end: u64) -> Module {
    Module {
        kind: ModuleKind::Kernel,
        range: range(start, end),
        bootargs: String::new(),
        manage: false,
        recovery: Asked::default(),
    }
}

const IMAGE: PaRange = PaRange { start: 0x4020_0000, end: 0x4040_0000 };
const TREE: PaRange = PaRange { start: 0x4800_0000, end: 0x4810_0000 };

#[test]
fn what_is_left_is_free() {
    let mut platform = machine();
    platform.modules.push(kernel(0x4900_0000, 0x4900_0010));
    let layout = plan(&platform, IMAGE, TREE).unwrap();
    let free = [
        range(0x4000_0000, 0x4020_0000),
        range(0x4040_0000, 0x4800_0000),
        range(0x4810_0000, 0x4900_0000),
        range(0x4900_1000, 0x5000_0000),
    ];
    assert_eq!(layout.free, free);
    assert_eq!(layout.free_bytes(), free.iter().map(PaRange::len).sum::<u64>());
    let used: Vec<_> = layout.used.iter().map(ToString::to_string).collect();
    let expected = [
        "the hypervisor's image at 0x40200000-0x403fffff",
        "the device tree at 0x48000000-0x480fffff",
        "the kernel module at 0x49000000-0x4900000f",
    ];
    assert_eq!(used, expected);
}

#[test]
fn an_overlap_names_both() {
    let refused = |module: Module| {
        let mut platform = machine();
        platform.modules.push(kernel(0x4a00_0000, 0x4a00_1000));
        platform.modules.push(module);
        platform.reserved.push(Named::new("secmon", range(0x4c00_0000, 0x4c10_0000)));
        plan(&platform, IMAGE, TREE).unwrap_err().to_string()
    };
    assert_eq!(
        refused(kernel(0x403f_ffff, 0x4050_0000)),
        "the hypervisor's image at 0x40200000-0x403fffff overlaps the kernel module at 0x403fffff-0x404fffff"
    );
    assert_eq!(
        refused(kernel(0x4700_0000, 0x4800_0001)),
        "the device tree at 0x48000000-0x480fffff overlaps the kernel module at 0x47000000-0x48000000"
    );
    assert_eq!(
        refused(kernel(0x4a00_0fff, 0x4a00_2000)),
        "the kernel module at 0x4a000000-0x4a000fff overlaps the kernel module at 0x4a000fff-0x4a001fff"
    );
    assert_eq!(
        refused(kernel(0x4c0f_0000, 0x4c20_0000)),
        "the kernel module at 0x4c0f0000-0x4c1fffff overlaps secmon at 0x4c000000-0x4c0fffff"
    );
    assert_eq!(
        refused(kernel(0x4b00_0000, 0x4b00_0000)),
        "the kernel module at 0x4b000000 (empty) holds nothing"
    );
}

#[test]
fn a_module_outside_ram_names_ram() {
    for module in [kernel(0x6000_0000, 0x6000_1000), kernel(0x4fff_f000, 0x5000_0001)] {
        let mut platform = machine();
        platform.modules.push(module.clone());
        let error = plan(&platform, IMAGE, TREE).unwrap_err().to_string();
        let expected = std::format!(
            "the kernel module at {} is not inside RAM (0x40000000-0x4fffffff)",
            module.range
        );
        assert_eq!(error, expected);
    }
}

#[test]
fn the_image_may_not_lie_in_reserved_memory_but_the_tree_may() {
    let mut platform = machine();
    platform.reserved.push(Named::new("memory reservation", TREE));
    assert!(plan(&platform, IMAGE, TREE).is_ok());
    platform.reserved.push(Named::new("secmon", IMAGE));
    assert!(matches!(plan(&platform, IMAGE, TREE), Err(LayoutError::Overlap { .. })));
}

#[test]
fn memory_that_is_all_reserved_is_refused() {
    let mut platform = machine();
    platform.reserved.push(Named::new("a", range(0, IMAGE.start)));
    platform.reserved.push(Named::new("b", range(IMAGE.end, u64::MAX)));
    let error = plan(&platform, IMAGE, TREE).unwrap_err();
    assert_eq!(error.to_string(), "no page of RAM is free (0x40000000-0x4fffffff)");
}

/// Ranges in a small space, so that they meet.
fn ranges(most: usize) -> impl Strategy<Value = Vec<PaRange>> {
    let one = (0..0x40_000_u64, 0..0x8000_u64).prop_map(|(start, len)| range(start, start + len));
    proptest::collection::vec(one, 0..most)
}

/// Sorted and apart, as the tree reader gives it.
fn ram() -> impl Strategy<Value = Vec<PaRange>> {
    proptest::collection::btree_set(0..0x40_000_u64, 2..8).prop_map(|edges| {
        let edges: Vec<_> = edges.into_iter().collect();
        edges.chunks_exact(2).map(|pair| range(pair[0], pair[1])).collect()
    })
}

proptest! {
    #[test]
    fn free_memory_is_ram_that_nothing_touches(
        ram in ram(), reserved in ranges(6), modules in ranges(4), image in ranges(2), tree in ranges(2),
    ) {
        let mut platform = machine();
        platform.ram = ram;
        platform.reserved = reserved.into_iter().map(|range| Named::new("reserved", range)).collect();
        platform.modules =
            modules.into_iter().map(|range| kernel(range.start, range.end)).collect();
        let place = |list: Vec<PaRange>| list.first().copied().unwrap_or(platform.ram[0]);
        let (image, tree) = (place(image), place(tree));
        if let Ok(layout) = plan(&platform, image, tree) {
            let taken: Vec<_> = platform.modules.iter().map(|module| module.range)
                .chain(platform.reserved.iter().map(|item| item.value))
                .chain([image, tree])
                .collect();
            let mut end = 0;
            for free in &layout.free {
                prop_assert!(free.start >= end && !free.is_empty(), "sorted, apart, not empty");
                end = free.end;
                prop_assert_eq!((free.start % PAGE_SIZE, free.end % PAGE_SIZE), (0, 0));
                prop_assert!(platform.ram.iter().any(|ram| ram.contains_range(free)));
                prop_assert!(!taken.iter().any(|range| range.overlaps(free)));
            }
            // And nothing is forgotten: each whole page of RAM that nothing touches is free.
            for page in (0..0x48_000).step_by(PAGE_SIZE as usize) {
                let page = range(page, page + PAGE_SIZE);
                let usable = platform.ram.iter().any(|ram| ram.contains_range(&page))
                    && !taken.iter().any(|range| range.overlaps(&page));
                prop_assert_eq!(usable, layout.free.iter().any(|free| free.contains_range(&page)));
            }
        }
    }

    #[test]
    fn reservations_alone_are_never_handed_out(ram in ram(), reserved in ranges(12)) {
        let named: Vec<_> = {
            let mut sorted = reserved.clone();
            sorted.sort_unstable();
            sorted.into_iter().map(|range| Named::new("reserved", range)).collect()
        };
        for free in subtract(&ram, &named) {
            prop_assert!(!reserved.iter().any(|range| range.overlaps(&free)));
        }
    }
}
