//! What caches need when memory changes hands between the hypervisor and a guest: decided here, as data;
//! done by the hypervisor, which knows how it reaches memory.
//!
//! A hypervisor writes and reads memory through its caches. A guest may not: with its MMU or its caches off,
//! or by its own stage 1, its accesses are Device or Non-cacheable and pass the caches by, whatever write-back
//! memory stage 2 says, because the weaker of both stages wins (D8.6.5). So a frame's bytes must be in memory, and
//! no line of it in a cache, when it is given to a guest; and what a guest wrote may be in memory behind a line
//! that the hypervisor's own speculation has fetched.
//!
//! FEAT_S2FWB ends that. With HCR_EL2.FWB and MemAttr `0b0110`, which [`Encoding`] uses for
//! [`MemType::Normal`], the result is Normal Write-Back whatever stage 1 says (table D8-101). A leaf of another
//! memory type gets nothing from it.
//!
//! Instruction fetch has caches of its own, in two steps \[D24.2.42\]:
//!
//! | | data cache clean to the point of unification | instruction cache invalidation |
//! | --- | --- | --- |
//! | needed unless | the Effective value of CTR_EL0.IDC is 1 ([`Caps::IDC`]) | CTR_EL0.DIC is 1 ([`Caps::DIC`]) |
//! | done anyway by | a clean to the point of coherency, which lies behind | |
//!
//! The invalidation is of all instruction caches of the Inner Shareable domain (`IC IALLUIS`), once for many frames:
//! by address it would miss the other indices of a virtually indexed cache (D7.5.9.13), as the guest's
//! addresses are not the hypervisor's.
//!
//! Who needs both: frames populated on demand (zeroed or filled: who had the memory before may have run from
//! it), content that is moved to another frame, and whatever is written into a mapped page later.

use crate::attr::{Attributes, Encoding, MemType};
use crate::features::{Caps, Features};

/// How far a data cache operation reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DataCache {
    /// Nothing to do.
    Nothing,
    /// Clean to the point of unification (`DC CVAU`): instruction fetch sees what was written.
    CleanToUnification,
    /// Clean and invalidate to the point of coherency (`DC CIVAC`): an access past the caches sees what was
    /// written, and no line is left to hide what it writes.
    CleanAndInvalidateToCoherency,
}

/// What a frame needs before a guest has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Upkeep {
    /// For each line, then a DSB.
    pub data: DataCache,
    /// All instruction caches are invalidated, then a DSB: after the data, before the install.
    pub instructions: bool,
}

/// What a machine's caches need: see the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Coherency {
    fwb: bool,
    idc: bool,
    dic: bool,
}

impl Coherency {
    /// Of a machine whose leaves are encoded like this; HCR_EL2.FWB is what the encoding says.
    #[must_use]
    pub const fn of(features: &Features, encoding: Encoding) -> Self {
        Self { fwb: encoding.fwb, idc: features.has(Caps::IDC), dic: features.has(Caps::DIC) }
    }

    /// Whether a guest's accesses to memory of this type always look into the caches.
    #[must_use]
    pub const fn forced(self, mem: MemType) -> bool {
        self.fwb && matches!(mem, MemType::Normal)
    }

    /// What a frame needs between the last byte that the hypervisor writes into it and the install of a leaf
    /// with these attributes.
    #[must_use]
    pub const fn before_guest(self, leaf: &Attributes) -> Upkeep {
        let executable = leaf.exec_el1 || leaf.exec_el0;
        let data = if !self.forced(leaf.mem) {
            DataCache::CleanAndInvalidateToCoherency
        } else if executable && !self.idc {
            DataCache::CleanToUnification
        } else {
            DataCache::Nothing
        };
        Upkeep { data, instructions: executable && !self.dic }
    }

    /// What a frame needs before the hypervisor reads what a guest wrote, once the guest cannot write any more.
    ///
    /// Cleaning too, although invalidating would do for a guest that passed the caches by: the same guest
    /// may have written through them, and those lines hold its bytes.
    #[must_use]
    pub const fn before_hypervisor(self, mem: MemType) -> DataCache {
        if self.forced(mem) { DataCache::Nothing } else { DataCache::CleanAndInvalidateToCoherency }
    }
}

#[cfg(test)]
mod tests {
    use super::DataCache::{CleanAndInvalidateToCoherency, CleanToUnification, Nothing};
    use super::*;
    use crate::attr::Prot;

    fn machine(fwb: bool, idc: bool, dic: bool) -> Coherency {
        Coherency { fwb, idc, dic }
    }

    /// Each row: FWB, IDC, DIC; then the upkeep of executable RAM, and the data upkeep of RAM that is not.
    /// From D24.2.42 (IDC, DIC) and table D8-101 (FWB).
    #[test]
    fn ram_gets_what_the_manual_asks_and_no_more() {
        const T: bool = true;
        const F: bool = false;
        let all = CleanAndInvalidateToCoherency;
        let table = [
            // The Armv8.0 case: everything.
            ((F, F, F), (all, T), all),
            // IDC: the clean to coherency is still owed to a guest with its caches off.
            ((F, T, F), (all, T), all),
            ((F, T, T), (all, F), all),
            // DIC without IDC does not exist; the fields are still taken one by one.
            ((F, F, T), (all, F), all),
            // FWB: only instruction fetch is left, and its data half needs IDC to be 0.
            ((T, F, F), (CleanToUnification, T), Nothing),
            ((T, T, F), (Nothing, T), Nothing),
            ((T, T, T), (Nothing, F), Nothing),
            ((T, F, T), (CleanToUnification, F), Nothing),
        ];
        for ((fwb, idc, dic), (data, instructions), plain) in table {
            let machine = machine(fwb, idc, dic);
            let name = std::format!("FWB {fwb}, IDC {idc}, DIC {dic}");
            let code = Attributes::new(Prot::RWX, MemType::Normal);
            assert_eq!(machine.before_guest(&code), Upkeep { data, instructions }, "{name}");
            let heap = Attributes::new(Prot::RW, MemType::Normal);
            let expected = Upkeep { data: plain, instructions: false };
            assert_eq!(machine.before_guest(&heap), expected, "{name}, never executed");
        }
    }

    #[test]
    fn code_for_one_exception_level_is_code() {
        for prot in [Prot::READ | Prot::EXEC_EL1, Prot::READ | Prot::EXEC_EL0] {
            let leaf = Attributes::new(prot, MemType::Normal);
            let upkeep = machine(true, false, false).before_guest(&leaf);
            assert_eq!(upkeep, Upkeep { data: CleanToUnification, instructions: true }, "{prot}");
        }
    }

    /// Table D8-101 forces write-back for MemAttr 0b0110 alone.
    #[test]
    fn forced_write_back_is_for_normal_memory_only() {
        let machine = machine(true, true, true);
        assert!(machine.forced(MemType::Normal));
        for mem in [MemType::NonCacheable, MemType::Device] {
            let leaf = Attributes::new(Prot::RW, mem);
            assert_eq!(machine.before_guest(&leaf).data, CleanAndInvalidateToCoherency, "{mem:?}");
            assert_eq!(machine.before_hypervisor(mem), CleanAndInvalidateToCoherency, "{mem:?}");
        }
    }

    #[test]
    fn the_hypervisor_reads_past_stale_lines_only_where_guests_pass_the_caches() {
        assert_eq!(machine(true, false, false).before_hypervisor(MemType::Normal), Nothing);
        for (idc, dic) in [(false, false), (true, false), (true, true)] {
            let machine = machine(false, idc, dic);
            let data = machine.before_hypervisor(MemType::Normal);
            assert_eq!(data, CleanAndInvalidateToCoherency, "whatever IDC and DIC say");
        }
    }

    /// From ID registers to upkeep, for the machines that the tests run on.
    #[test]
    fn the_encoding_in_use_decides_and_not_what_the_machine_could() {
        let has = |caps| Features {
            caps,
            bbm: crate::Bbm::Level0,
            pa_bits: 40,
            errata: crate::Errata::empty(),
        };
        let able = has(Caps::FWB | Caps::IDC | Caps::DIC);
        let code = Attributes::new(Prot::RWX, MemType::Normal);
        let on = Coherency::of(&able, Encoding::of(&able));
        assert_eq!(on.before_guest(&code), Upkeep { data: Nothing, instructions: false });
        let off = Coherency::of(&able, Encoding { fwb: false, xnx: false });
        assert_eq!(off.before_guest(&code).data, CleanAndInvalidateToCoherency, "FWB is not on");
        // An erratum that takes DIC away asks for the invalidation.
        let n1 = able.with_errata(crate::Errata::NO_DIC);
        let upkeep = Coherency::of(&n1, Encoding::of(&n1)).before_guest(&code);
        assert_eq!(upkeep, Upkeep { data: Nothing, instructions: true });
    }
}
