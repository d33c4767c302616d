//! The machine's device tree, read once at boot into a [`Platform`].
//!
//! Two steps. [`check`] proves the blob well-formed, within bounds, before any other code walks it (the
//! `fdt` crate panics on trees that are not). Then the nodes are read with that crate, and every value
//! decoded with its length checked ([`node`]). A malformed tree, or one without what the hypervisor needs,
//! is an [`FdtError`] and never a panic.
//!
//! What is read: RAM, reserved memory (both kinds), CPUs, the console's PL011 (`/chosen/stdout-path`, or
//! else the first one), the GICv3, the PSCI conduit, boot arguments, and the modules that QEMU's
//! guest-loader describes. Nodes that carry a `status` other than `okay` do not exist.
//!
//! Module nodes have their own habits: `reg` is written in 2+2 cells although `/chosen` carries no
//! `#address-cells`, and the two strings of `compatible` come in either order, so they are read as a set.

mod check;
mod error;
mod node;
#[cfg(test)]
mod tests;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

pub use check::{MAX_DEPTH, MAX_NAME, MAX_SIZE, MAX_TOKENS, claimed_size};
pub use error::{FdtError, StructureFault};
use node::{Cells, Node};

use crate::range::{Named, PaRange};

/// The most CPUs, RAM ranges, reserved ranges and modules that are read.
pub const MAX_ENTRIES: usize = 64;

/// Affinity fields of MPIDR_EL1: Aff3 in bits 39:32, Aff2 to Aff0 in 23:0.
const MPIDR_AFFINITY: u64 = 0xff_00ff_ffff;

/// What the device tree says about the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// RAM: sorted, apart, not empty.
    pub ram: Vec<PaRange>,
    /// Memory that must be left alone, as the tree lists it: in any order, possibly outside RAM.
    pub reserved: Vec<Named<PaRange>>,
    /// CPUs, in the tree's order.
    pub cpus: Vec<Cpu>,
    /// Registers of the console's PL011.
    pub uart: PaRange,
    /// The GICv3, if there is one.
    pub gic: Option<Gic>,
    /// How PSCI is called.
    pub psci: Conduit,
    /// Blobs that the loader put into memory, in the tree's order (QEMU: last on the command line first).
    pub modules: Vec<Module>,
    /// `/chosen/bootargs`; empty when there is none.
    pub bootargs: String,
}

impl Platform {
    /// The module of this kind, if there is one.
    ///
    /// # Errors
    /// [`FdtError::DuplicateModule`] when there are two: nothing says which kernel a ramdisk belongs to.
    pub fn module(&self, kind: ModuleKind) -> Result<Option<&Module>, FdtError> {
        let mut of_kind = self.modules.iter().filter(|module| module.kind == kind);
        match (of_kind.next(), of_kind.next()) {
            (Some(first), Some(second)) => Err(FdtError::DuplicateModule {
                kind,
                first: first.range,
                second: second.range,
            }),
            (module, _) => Ok(module),
        }
    }
}

/// A CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Affinity fields of its MPIDR_EL1: what PSCI CPU_ON takes.
    pub mpidr: u64,
}

/// The interrupt controller: a GICv3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gic {
    /// The distributor's registers.
    pub dist: PaRange,
    /// The first redistributor region.
    pub redist: PaRange,
}

/// The instruction that reaches firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// `SMC #0`.
    Smc,
    /// `HVC #0`.
    Hvc,
}

impl fmt::Display for Conduit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Smc => "SMC",
            Self::Hvc => "HVC",
        })
    }
}

/// What a module is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuleKind {
    /// The guest's image.
    Kernel,
    /// The guest's initial ramdisk.
    Ramdisk,
}

impl fmt::Display for ModuleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Ramdisk => "ramdisk",
        })
    }
}

/// A blob that the loader put into memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// What it is.
    pub kind: ModuleKind,
    /// Where it lies.
    pub range: PaRange,
    /// Its `bootargs`; empty when there are none.
    pub bootargs: String,
}

/// Reads a device tree. `blob` may be longer than the tree.
///
/// Time is linear in the tree's size times its depth; allocations are bounded by the tree's size.
///
/// # Errors
/// [`FdtError`]: the blob is no well-formed tree, or lacks RAM, CPUs, PSCI or a PL011.
pub fn parse(blob: &[u8]) -> Result<Platform, FdtError> {
    let checked = check::check(blob)?;
    let bytes = checked.bytes();
    // It looks at the header only, which was checked.
    let tree = ::fdt::Fdt::new(bytes).map_err(|_| FdtError::Truncated {
        need: bytes.len(),
        have: bytes.len(),
    })?;
    let root = Node::root(&tree).ok_or(FdtError::MissingNode("root node"))?;
    let chosen = root.child("chosen")?;
    let devices = Devices::find(root)?;
    Ok(Platform {
        ram: ram(root)?,
        reserved: reserved(&tree, root)?,
        cpus: cpus(root)?,
        uart: uart(root, chosen, &devices)?,
        gic: devices.gic.map(gic).transpose()?,
        psci: psci(root)?,
        modules: chosen.map_or(Ok(Vec::new()), modules)?,
        bootargs: chosen
            .map_or(Ok(""), |node| {
                node.string("bootargs").map(Option::unwrap_or_default)
            })?
            .into(),
    })
}

/// Appends, within [`MAX_ENTRIES`].
fn push<T>(list: &mut Vec<T>, item: T, what: &'static str) -> Result<(), FdtError> {
    if list.len() >= MAX_ENTRIES {
        return Err(FdtError::TooMany {
            what,
            max: MAX_ENTRIES,
        });
    }
    list.push(item);
    Ok(())
}

fn ram(root: Node<'_, '_>) -> Result<Vec<PaRange>, FdtError> {
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
    if merged.is_empty() {
        Err(FdtError::MissingNode("memory"))
    } else {
        Ok(merged)
    }
}

fn reserved(tree: &::fdt::Fdt<'_>, root: Node<'_, '_>) -> Result<Vec<Named<PaRange>>, FdtError> {
    let mut found = Vec::new();
    for entry in tree.memory_reservations() {
        let (start, size) = (entry.address() as u64, entry.size() as u64);
        let range = PaRange::from_len(start, size).ok_or_else(|| FdtError::Overflow {
            node: "/memreserve/".into(),
            start,
            size,
        })?;
        push(
            &mut found,
            Named::new("memory reservation", range),
            "reserved ranges",
        )?;
    }
    if let Some(parent) = root.child("reserved-memory")? {
        for node in parent.children()? {
            // Without `reg` it asks for memory anywhere: nothing to stay away from.
            if node.is_enabled() && node.value("reg").is_some() {
                for range in node.ranges(Cells::TWO)? {
                    push(
                        &mut found,
                        Named::new(node.name(), range),
                        "reserved ranges",
                    )?;
                }
            }
        }
    }
    Ok(found)
}

fn cpus(root: Node<'_, '_>) -> Result<Vec<Cpu>, FdtError> {
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
    if found.is_empty() {
        Err(FdtError::MissingNode("CPU"))
    } else {
        Ok(found)
    }
}

fn psci(root: Node<'_, '_>) -> Result<Conduit, FdtError> {
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
        None => Err(FdtError::MissingProperty {
            node: node.name(),
            property: "method",
        }),
    }
}

/// Devices that are looked for in the whole tree, by `compatible`; the first of each counts.
#[derive(Default)]
struct Devices<'b, 'a> {
    uart: Option<Node<'b, 'a>>,
    gic: Option<Node<'b, 'a>>,
}

fn is_uart(node: &Node<'_, '_>) -> bool {
    node.is_mapped() && node.is_enabled() && node.is_compatible("arm,pl011")
}

impl<'b, 'a> Devices<'b, 'a> {
    fn find(root: Node<'b, 'a>) -> Result<Self, FdtError> {
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

fn uart(
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
    let (_, path) = aliases
        .value(name)?
        .split_last()
        .filter(|(end, _)| **end == 0)?;
    core::str::from_utf8(path).ok()
}

fn first(node: &Node<'_, '_>) -> Result<PaRange, FdtError> {
    let ranges = node.ranges(Cells::TWO)?;
    let range = ranges.first().copied().filter(|range| !range.is_empty());
    range.ok_or_else(|| FdtError::MissingProperty {
        node: node.name(),
        property: "reg",
    })
}

fn gic(node: Node<'_, '_>) -> Result<Gic, FdtError> {
    match node.ranges(Cells::TWO)?.as_slice() {
        [dist, redist, ..] if !dist.is_empty() && !redist.is_empty() => Ok(Gic {
            dist: *dist,
            redist: *redist,
        }),
        ranges => Err(FdtError::BadProperty {
            node: node.name(),
            property: "reg",
            len: ranges.len().saturating_mul(16),
            wanted: "a distributor and a redistributor region",
        }),
    }
}

fn modules(chosen: Node<'_, '_>) -> Result<Vec<Module>, FdtError> {
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
        push(
            &mut found,
            Module {
                kind,
                range,
                bootargs,
            },
            "modules",
        )?;
    }
    Ok(found)
}
