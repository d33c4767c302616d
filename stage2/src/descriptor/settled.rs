//! Leaves that hardware has nothing more to write into.
//!
//! Where VTCR_EL2.HA is set, hardware sets AF in a leaf that is accessed; where HD is set, too, S2AP\[1\] in one with DBM
//! that is written. What can still be set may get lost, or be set where nobody wrote, if the leaf changes without a
//! break \[IGXGZY, RRTBRL\]. Once both stand, or cannot be set, there is nothing to lose.

use super::Leaf;
use crate::geometry::HwUpdate;

const WRITABLE: u64 = 1 << 7;
const ACCESSED: u64 = 1 << 10;
const DIRTY_MODIFIER: u64 = 1 << 51;

impl Leaf {
    /// Whether a machine that updates this by itself has nothing more to set in it.
    pub(crate) const fn is_settled(&self, hw_update: HwUpdate) -> bool {
        let accessed = self.bits() & ACCESSED != 0;
        let clean = self.bits() & (DIRTY_MODIFIER | WRITABLE) == DIRTY_MODIFIER;
        match hw_update {
            HwUpdate::Off => true,
            HwUpdate::Access => accessed,
            HwUpdate::AccessAndDirty => accessed && !clean,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{Level, Pa};
    use crate::attr::{Attributes, Encoding, MemType, Prot, Write};
    use crate::descriptor::{Descriptor, Owner};

    #[test]
    fn a_leaf_is_settled_once_hardware_can_set_nothing_in_it() {
        let settled = |write, accessed, hw_update| {
            let attributes =
                Attributes { write, accessed, ..Attributes::new(Prot::RWX, MemType::Normal) };
            let encoding = Encoding { fwb: false, xnx: false };
            let block = Descriptor::leaf(Level::L2, Pa::new(0), &attributes, encoding, Owner::Vm);
            block.unwrap().as_leaf(Level::L2).unwrap().is_settled(hw_update)
        };
        for write in [Write::Denied, Write::Allowed, Write::Clean, Write::Dirty] {
            for accessed in [false, true] {
                assert!(settled(write, accessed, HwUpdate::Off));
                assert_eq!(settled(write, accessed, HwUpdate::Access), accessed);
                let expected = accessed && write != Write::Clean;
                assert_eq!(settled(write, accessed, HwUpdate::AccessAndDirty), expected);
            }
        }
    }
}
