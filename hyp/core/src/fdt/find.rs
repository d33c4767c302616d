//! Finding each thing in the tree: by its place, its `device_type` or its `compatible`.
//!
//! Devices count only where their addresses are physical ones: in the root, or below buses whose empty
//! `ranges` says so.

use alloc::vec::Vec;

use super::node::{Cells, Node};
use super::{Conduit, Cpu, FdtError, Gic, MAX_ENTRIES, Module, ModuleKind};
use crate::range::{IpaRange, Named, PaRange};
use crate::recovery::{Asked, by_number};

/// Affinity fields of MPIDR_EL1: Aff3 in bits 39:32, Aff2 to Aff0 in 23:0.
const MPIDR_AFFINITY: u64 = 0xff_00ff_ffff;

/// Appends, within [`MAX_ENTRIES`].
fn push<T>(list: &mut Vec<T>, item: T, what: &'static str) -> Result<(), FdtError> {
    if list.len() >= MAX_ENTRIES {
        return Err(FdtError::TooMany { what, max: MAX_ENTRIES });
    }
    list.push(item);
    Ok(())
}

pub(super) fn ram(root: Node<'_, '_>) -> Result<Vec<PaRange>, FdtError> {
    let mut found = Vec::new();
    for node in root.children()? {
        let is_memory = node.value("device_type") == Some(b"memory\0");
        if is_memory && node.is_enabled() {
            for range in node.ranges(Cells::TWO)? {
                if !range.is_empty() {
                    push(&mut found, range, "RAM ranges")?;
                }
            }
        }
    }
    found.sort_unstable();
    let mut merged: Vec<PaRange> = Vec::with_capacity(found.len());
    for range in found {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    if merged.is_empty() { Err(FdtError::MissingNode("memory")) } else { Ok(merged) }
}

pub(super) fn reserved(
    tree: &::fdt::Fdt<'_>,
    root: Node<'_, '_>,
) -> Result<Vec<Named<PaRange>>, FdtError> {
    let mut found = Vec::new();
    for entry in tree.memory_reservations() {
        let (start, size) = (entry.address() as u64, entry.size() as u64);
        let range = PaRange::from_len(start, size).ok_or_else(|| FdtError::Overflow {
            node: "/memreserve/".into(),
            start,
            size,
        })?;
        push(&mut found, Named::new("memory reservation", range), "reserved ranges")?;
    }
    if let Some(parent) = root.child("reserved-memory")? {
        for node in parent.children()? {
            // Without `reg` it asks for memory anywhere: nothing to stay away from.
            if node.is_enabled() && node.value("reg").is_some() {
                for range in node.ranges(Cells::TWO)? {
                    push(&mut found, Named::new(node.name(), range), "reserved ranges")?;
                }
            }
        }
    }
    Ok(found)
}

pub(super) fn cpus(root: Node<'_, '_>) -> Result<Vec<Cpu>, FdtError> {
    let parent = root.child("cpus")?.ok_or(FdtError::MissingNode("/cpus"))?;
    let mut found: Vec<Cpu> = Vec::new();
    for node in parent.children()? {
        let is_cpu = node.value("device_type") == Some(b"cpu\0") || node.base_name() == "cpu";
        if !is_cpu || !node.is_enabled() {
            continue;
        }
        for number in node.identifiers()? {
            let mpidr = number & MPIDR_AFFINITY;
            if found.iter().any(|cpu| cpu.mpidr == mpidr) {
                return Err(FdtError::DuplicateCpu(mpidr));
            }
            push(&mut found, Cpu { mpidr }, "CPUs")?;
        }
    }
    if found.is_empty() { Err(FdtError::MissingNode("CPU")) } else { Ok(found) }
}

pub(super) fn psci(root: Node<'_, '_>) -> Result<Conduit, FdtError> {
    let kinds = ["arm,psci-1.0", "arm,psci-0.2", "arm,psci"];
    let node = root
        .children()?
        .find(|node| kinds.iter().any(|kind| node.is_compatible(kind)))
        .ok_or(FdtError::MissingNode("PSCI node"))?;
    match node.string("method")? {
        Some("smc") => Ok(Conduit::Smc),
        Some("hvc") => Ok(Conduit::Hvc),
        Some(other) => Err(FdtError::BadProperty {
            node: node.name(),
            property: "method",
            len: other.len(),
            wanted: "smc or hvc",
        }),
        None => Err(FdtError::MissingProperty { node: node.name(), property: "method" }),
    }
}

/// Devices that are looked for in the whole tree, by `compatible`; the first of each counts.
#[derive(Default)]
pub(super) struct Devices<'b, 'a> {
    uart: Option<Node<'b, 'a>>,
    pub(super) gic: Option<Node<'b, 'a>>,
}

fn is_uart(node: &Node<'_, '_>) -> bool {
    node.is_mapped() && node.is_enabled() && node.is_compatible("arm,pl011")
}

impl<'b, 'a> Devices<'b, 'a> {
    pub(super) fn find(root: Node<'b, 'a>) -> Result<Self, FdtError> {
        let mut found = Self::default();
        let mut parents = alloc::vec![root];
        // Ends: the tree is finite, and each node is put on the list once. Only buses are searched.
        while let Some(parent) = parents.pop() {
            for node in parent.children()? {
                if is_uart(&node) {
                    found.uart.get_or_insert(node);
                } else if node.is_mapped() && node.is_enabled() && node.is_compatible("arm,gic-v3")
                {
                    found.gic.get_or_insert(node);
                } else if node.value("#address-cells").is_some() {
                    parents.push(node);
                }
            }
        }
        Ok(found)
    }
}

pub(super) fn uart(
    root: Node<'_, '_>,
    chosen: Option<Node<'_, '_>>,
    devices: &Devices<'_, '_>,
) -> Result<PaRange, FdtError> {
    let mut node = devices.uart;
    if let Some(text) = chosen.map_or(Ok(None), |node| node.string("stdout-path"))? {
        // Options such as the baud rate follow a colon.
        let name = text.split(':').next().unwrap_or_default();
        let path = match root.child("aliases")? {
            Some(aliases) if !name.starts_with('/') => alias(&aliases, name),
            _ => Some(name),
        };
        let named = path.map_or(Ok(None), |path| root.at(path))?;
        node = named.filter(is_uart).or(node);
    }
    let node = node.ok_or(FdtError::MissingNode("PL011 (arm,pl011) for the console"))?;
    first(&node)
}

fn alias<'a>(aliases: &Node<'_, 'a>, name: &str) -> Option<&'a str> {
    let (_, path) = aliases.value(name)?.split_last().filter(|(end, _)| **end == 0)?;
    core::str::from_utf8(path).ok()
}

fn first(node: &Node<'_, '_>) -> Result<PaRange, FdtError> {
    let ranges = node.ranges(Cells::TWO)?;
    let range = ranges.first().copied().filter(|range| !range.is_empty());
    range.ok_or_else(|| FdtError::MissingProperty { node: node.name(), property: "reg" })
}

pub(super) fn gic(node: Node<'_, '_>) -> Result<Gic, FdtError> {
    match node.ranges(Cells::TWO)?.as_slice() {
        [dist, redist, ..] if !dist.is_empty() && !redist.is_empty() => {
            Ok(Gic { dist: *dist, redist: *redist })
        }
        ranges => Err(FdtError::BadProperty {
            node: node.name(),
            property: "reg",
            len: ranges.len().saturating_mul(16),
            wanted: "a distributor and a redistributor region",
        }),
    }
}

pub(super) fn modules(chosen: Node<'_, '_>) -> Result<Vec<Module>, FdtError> {
    let mut found = Vec::new();
    for node in chosen.children()? {
        if !node.is_compatible("multiboot,module") {
            continue;
        }
        let range = first(&node)?;
        let kind = if node.is_compatible("multiboot,kernel") {
            ModuleKind::Kernel
        } else if node.is_compatible("multiboot,ramdisk") {
            ModuleKind::Ramdisk
        } else {
            return Err(FdtError::ModuleKind(range));
        };
        let bootargs = node.string("bootargs")?.unwrap_or_default().into();
        let manage = node.value("stage2,manage").is_some();
        let recovery = recovery(&node)?;
        push(&mut found, Module { kind, range, bootargs, manage, recovery }, "modules")?;
    }
    Ok(found)
}

/// What a module's properties `stage2,recovery…` ask for.
fn recovery(node: &Node<'_, '_>) -> Result<Asked, FdtError> {
    const WINDOWS: &str = "stage2,recovery";
    const DEFAULT: &str = "stage2,recovery-default";
    let policy = |property, number: u64| {
        by_number(number).ok_or_else(|| FdtError::Policy { node: node.name(), property, number })
    };
    let default = node.u32(DEFAULT)?.map(|number| policy(DEFAULT, number.into())).transpose()?;
    let mut windows = Vec::new();
    for (start, size, number) in node.windows(WINDOWS)? {
        let policy = policy(WINDOWS, number)?;
        let range = IpaRange::from_len(start, size).ok_or_else(|| FdtError::Overflow {
            node: node.name(),
            start,
            size,
        })?;
        push(&mut windows, (range, policy), "recovery windows")?;
    }
    let limit = node.u32("stage2,recovery-limit")?.map(u64::from);
    Ok(Asked { default, windows, limit, rate: node.u32("stage2,recovery-rate")? })
}
