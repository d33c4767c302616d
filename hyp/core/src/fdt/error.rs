//! Everything that can be wrong with a device tree, in words and numbers.

use alloc::string::String;

use crate::range::PaRange;

/// Why a device tree was refused. Offsets are in bytes from the start of the blob.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FdtError {
    /// The blob is shorter than what it has to hold.
    #[error("the device tree needs {need} bytes, but only {have} are there")]
    Truncated {
        /// Bytes wanted.
        need: usize,
        /// Bytes there.
        have: usize,
    },
    /// Not a device tree.
    #[error("no device tree: magic is {0:#010x}, not 0xd00dfeed")]
    Magic(u32),
    /// Larger than anything sensible.
    #[error("the device tree claims {size} bytes; at most {max} are read")]
    TooLarge {
        /// Bytes claimed.
        size: usize,
        /// The bound.
        max: usize,
    },
    /// A format that this reader does not know.
    #[error("device tree version {version} (compatible down to {compatible}); 17 is wanted")]
    Version {
        /// The header's version.
        version: u32,
        /// The header's last compatible version.
        compatible: u32,
    },
    /// A block of the tree lies outside the blob.
    #[error("the {block} block, {size} bytes at {start:#x}, lies outside the tree's {total} bytes")]
    Block {
        /// Which block.
        block: &'static str,
        /// Its offset.
        start: u32,
        /// Its size in bytes.
        size: u32,
        /// The tree's size in bytes.
        total: usize,
    },
    /// The structure block goes wrong.
    #[error("device tree structure at {offset:#x}: {what}")]
    Structure {
        /// Where.
        offset: usize,
        /// What is wrong there.
        what: StructureFault,
    },
    /// A node that has to be there is not.
    #[error("the device tree has no {0}")]
    MissingNode(&'static str),
    /// A property that has to be there is not.
    #[error("device tree node {node}: no property {property}")]
    MissingProperty {
        /// The node.
        node: String,
        /// The property.
        property: &'static str,
    },
    /// A property does not have the form that it should have.
    #[error("device tree node {node}: property {property} ({len} bytes) is not {wanted}")]
    BadProperty {
        /// The node.
        node: String,
        /// The property.
        property: &'static str,
        /// Its length in bytes.
        len: usize,
        /// What it should have been.
        wanted: &'static str,
    },
    /// Address or size cells that 64-bit addresses do not have.
    #[error(
        "device tree node {node}: {address} address cells and {size} size cells cannot be read"
    )]
    Cells {
        /// The node whose children are meant.
        node: String,
        /// `#address-cells`.
        address: u32,
        /// `#size-cells`.
        size: u32,
    },
    /// A range leaves the address space.
    #[error("device tree node {node}: {size:#x} bytes at {start:#x} leave the address space")]
    Overflow {
        /// The node.
        node: String,
        /// First byte.
        start: u64,
        /// Size in bytes.
        size: u64,
    },
    /// More of something than is sensible.
    #[error("the device tree has more than {max} {what}")]
    TooMany {
        /// What.
        what: &'static str,
        /// The bound.
        max: usize,
    },
    /// Two CPUs claim the same affinity.
    #[error("the device tree has two CPUs with MPIDR {0:#x}")]
    DuplicateCpu(u64),
    /// A module is neither kernel nor ramdisk.
    #[error("module at {0} says neither multiboot,kernel nor multiboot,ramdisk")]
    ModuleKind(PaRange),
    /// A recovery policy that there is not.
    #[error(
        "device tree node {node}: property {property} has no policy {number}: 1 is scratch, 2 inject, 3 stop"
    )]
    Policy {
        /// The node.
        node: String,
        /// The property.
        property: &'static str,
        /// What is there for a policy.
        number: u64,
    },
    /// Two modules for one purpose.
    #[error("two {kind} modules, at {first} and {second}: one VM takes one")]
    DuplicateModule {
        /// What both are.
        kind: super::ModuleKind,
        /// One.
        first: PaRange,
        /// The other.
        second: PaRange,
    },
}

/// What is wrong at a place of the structure block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StructureFault {
    /// The block ends in the middle of something, or without an end token.
    #[error("the block ends too early")]
    EndsEarly,
    /// Not one of the five tokens.
    #[error("unknown token {0:#x}")]
    Token(u32),
    /// Deeper than the bound.
    #[error("nodes nest deeper than {0}")]
    TooDeep(usize),
    /// More nodes and properties than the bound.
    #[error("more than {0} nodes and properties")]
    TooMany(usize),
    /// A node ends that never began.
    #[error("a node ends that never began")]
    Unbalanced,
    /// The end token inside a node, or before the root.
    #[error("the tree ends inside a node, or before its root")]
    EndInside,
    /// A second node beside the root.
    #[error("a second root")]
    SecondRoot,
    /// A property outside any node, or after a child node.
    #[error("a property outside a node's head")]
    StrayProperty,
    /// A node or property name that is too long, not terminated or not printable ASCII.
    #[error("a name is empty, too long, not terminated or not printable")]
    Name,
    /// A property's value leaves the block.
    #[error("a property of {0} bytes leaves the block")]
    PropertyLength(u32),
    /// A property's name lies outside the strings block.
    #[error("a property's name at {0:#x} lies outside the strings")]
    NameOffset(u32),
}
