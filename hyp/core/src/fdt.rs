//! The machine's device tree, read once at boot into a [`Platform`].
//!
//! Two steps. `check` proves the blob well-formed, within bounds, before any other code walks it (the
//! `fdt` crate panics on trees that are not). Then the nodes are read with that crate, and every value
//! decoded with its length checked (`node`). A malformed tree, or one without what the hypervisor needs,
//! is an [`FdtError`] and never a panic.
//!
//! What is read: RAM, reserved memory (both kinds), CPUs, the console's PL011 (`/chosen/stdout-path`, or
//! else the first one), the GICv3, the PSCI conduit, boot arguments, and the modules that QEMU's
//! guest-loader describes. Nodes that carry a `status` other than `okay` do not exist.
//!
//! Of the guest's image, the node may have properties of ours:
//!
//! | property | value |
//! | --- | --- |
//! | `stage2,manage` | empty: the guest may make the calls that change its memory |
//! | `stage2,recovery` | [recovery windows](crate::recovery): five cells each, two for the first address, two for the bytes, one for the policy, numbered as in the call `RECOVER` |
//! | `stage2,recovery-default` | one cell: the policy of addresses that are nothing |
//! | `stage2,recovery-limit`, `stage2,recovery-rate` | one cell each: violations that are recovered, in all and in a second |
//!
//! Module nodes have their own habits: `reg` is written in 2+2 cells although `/chosen` carries no
//! `#address-cells`, and the two strings of `compatible` come in either order, so they are read as a set.

mod check;
mod error;
mod find;
mod node;
#[cfg(test)]
mod tests;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

pub use check::{MAX_DEPTH, MAX_NAME, MAX_SIZE, MAX_TOKENS, claimed_size};
pub use error::{FdtError, StructureFault};
use node::Node;

use crate::range::{Named, PaRange};
use crate::recovery::Asked;

/// The most CPUs, RAM ranges, reserved ranges and modules that are read.
pub const MAX_ENTRIES: usize = 64;

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
            (Some(first), Some(second)) => {
                Err(FdtError::DuplicateModule { kind, first: first.range, second: second.range })
            }
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
    /// It has the property `stage2,manage`: the guest may make the calls that change its memory.
    pub manage: bool,
    /// What its properties `stage2,recovery…` ask for.
    pub recovery: Asked,
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
    let tree = ::fdt::Fdt::new(bytes)
        .map_err(|_| FdtError::Truncated { need: bytes.len(), have: bytes.len() })?;
    let root = Node::root(&tree).ok_or(FdtError::MissingNode("root node"))?;
    let chosen = root.child("chosen")?;
    let devices = find::Devices::find(root)?;
    Ok(Platform {
        ram: find::ram(root)?,
        reserved: find::reserved(&tree, root)?,
        cpus: find::cpus(root)?,
        uart: find::uart(root, chosen, &devices)?,
        gic: devices.gic.map(find::gic).transpose()?,
        psci: find::psci(root)?,
        modules: chosen.map_or(Ok(Vec::new()), find::modules)?,
        bootargs: chosen
            .map_or(Ok(""), |node| node.string("bootargs").map(Option::unwrap_or_default))?
            .into(),
    })
}

/// What a refusal needs: where to print it, with what mark, and how to end the machine. All of it is best
/// effort; what the tree does not say clearly is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Salvage {
    /// Registers of the console's PL011.
    pub uart: Option<PaRange>,
    /// How PSCI is called.
    pub psci: Option<Conduit>,
    /// `/chosen/bootargs`.
    pub bootargs: Option<String>,
}

/// Reads what can be read of a tree that [`parse`] refused, or of any blob. Bounded like [`parse`].
#[must_use]
pub fn salvage(blob: &[u8]) -> Salvage {
    let Ok(checked) = check::check(blob) else {
        return Salvage::default();
    };
    let Ok(tree) = ::fdt::Fdt::new(checked.bytes()) else {
        return Salvage::default();
    };
    let Some(root) = Node::root(&tree) else {
        return Salvage::default();
    };
    let chosen = root.child("chosen").ok().flatten();
    let devices = find::Devices::find(root).unwrap_or_default();
    let bootargs = chosen.and_then(|node| node.string("bootargs").ok().flatten());
    Salvage {
        uart: find::uart(root, chosen, &devices).ok(),
        psci: find::psci(root).ok(),
        bootargs: bootargs.map(String::from),
    }
}
