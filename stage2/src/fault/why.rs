//! Why a VM is stopped for an abort, in words for who has to find out.

use core::fmt;

/// Why a VM is stopped for an abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// The policy of a place without memory.
    Nothing,
    /// A device, and hardware does not say what access it was.
    NotDecoded,
    /// A fetch from a device.
    FetchFromDevice,
    /// The guest's translation tables are in a device.
    WalkInDevice,
    /// A slot holds what this crate never writes, or an address that does not exist.
    Tables,
    /// Hardware cannot update descriptors where they are.
    HardwareUpdate,
    /// Memory answered with an error.
    Memory,
    /// Memory, or a table, belongs to another world.
    Protected,
    /// A status that EL2 does not take from a guest, or that is not known.
    Unknown,
}

impl fmt::Display for Why {
    /// What to look for.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => {
                "the guest has no memory here: check its memory size and device addresses against its device tree"
            }
            Self::NotDecoded => {
                "the access is not decoded (a pair, writeback or SIMD): use plain loads and stores on devices"
            }
            Self::FetchFromDevice => {
                "the guest jumped into a device: check the branch target and the load address"
            }
            Self::WalkInDevice => {
                "the guest's own translation tables are in a device: check TTBR and table descriptors"
            }
            Self::Tables => "stage 2 holds what nobody writes: suspect the hypervisor, or memory",
            Self::HardwareUpdate => {
                "hardware cannot update descriptors in this memory: manage the access flag and the dirty state by faults"
            }
            Self::Memory => "the machine answered with an error: nothing is there, or it refused",
            Self::Protected => "the memory belongs to another world: check what firmware gave to this one",
            Self::Unknown => {
                "a fault that a guest cannot cause by a plain mistake: suspect the hypervisor"
            }
        })
    }
}
