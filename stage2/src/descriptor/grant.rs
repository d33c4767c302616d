//! What a fault adds to a leaf: the access flag, and what the access needs. Never takes anything away.
//!
//! A leaf that hardware could still write into must not be changed without a break \[IGXGZY, RRTBRL\], and a fault
//! handler breaks nothing. So what it makes is settled: accessed, and where hardware manages the dirty state not
//! writable-clean. What hardware recorded in between can be neither lost nor made up then, as all of it is set.
//!
//! | DBM | S2AP\[1\] | a write, HD = 0 | another access or AF, HD = 0 | any of these, HD = 1 |
//! | --- | --- | --- | --- | --- |
//! | 0 | 0 | writable | stays not writable | as with HD = 0 |
//! | 1 | 0 (writable-clean) | writable-dirty | stays writable-clean | writable-dirty |
//! | 0 or 1 | 1 | is there | stays | stays |
//!
//! With HD = 0, or without FEAT_HAFDBS, DBM says nothing to hardware: the Effective value of HD is 0 then, and only a leaf
//! with DBM *under dirty management* is writable-clean to it \[RXZFQH, RXSTDV\]; S2AP\[1\] = 0 is a Permission fault, as
//! the function `AArch64.S2DirectBasePermissions` of chapter J1.1 has it. So it is a fault that makes it dirty.

use super::Leaf;
use super::resize::{ACCESSED, DIRTY_MODIFIER, WRITABLE};
use crate::attr::Prot;
use crate::geometry::HwUpdate;

const READABLE: u64 = 1 << 6;
const XN0: u64 = 1 << 53;
const XN1: u64 = 1 << 54;

/// What a leaf comes to for an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grant {
    /// It allows the access as it is.
    Present,
    /// It becomes this.
    Becomes(Leaf),
    /// The access is not allowed.
    Denied,
    /// Hardware may write into it, and would be allowed more than the policy says if it were settled.
    Unsettled,
}

impl Leaf {
    /// What this leaf comes to for an `access`, where the policy is `allowed`, on a machine that tells EL1 from EL0
    /// (`xnx`) or not.
    #[inline(always)]
    pub(crate) const fn grant(
        &self,
        access: Prot,
        allowed: Prot,
        xnx: bool,
        hw_update: HwUpdate,
    ) -> Grant {
        if !allowed.contains(access) {
            return Grant::Denied;
        }
        let mut bits = self.bits | ACCESSED;
        if access.contains(Prot::READ) {
            bits |= READABLE;
        }
        if access.contains(Prot::WRITE) {
            bits |= WRITABLE;
        }
        if access.intersects(Prot::EXEC) {
            if !xnx && !allowed.contains(Prot::EXEC) {
                return Grant::Denied;
            }
            bits = executable(bits, access, xnx);
        }
        if bits == self.bits {
            return Grant::Present;
        }
        let managed = bits & DIRTY_MODIFIER != 0 && matches!(hw_update, HwUpdate::AccessAndDirty);
        if managed && bits & WRITABLE == 0 {
            if !allowed.contains(Prot::WRITE) {
                return Grant::Unsettled;
            }
            bits |= WRITABLE;
        }
        Grant::Becomes(Self { bits, level: self.level })
    }
}

/// With execution as it was, and at the Exception levels of the access.
#[cold]
const fn executable(bits: u64, access: Prot, xnx: bool) -> u64 {
    if !xnx {
        return bits & !XN1;
    }
    // XN[1:0]: 00 both, 01 EL0, 10 none, 11 EL1 (table D8-78).
    let (el1, el0) = match (bits & XN1 != 0, bits & XN0 != 0) {
        (false, false) => (true, true),
        (false, true) => (false, true),
        (true, false) => (false, false),
        (true, true) => (true, false),
    };
    let none = bits & !(XN1 | XN0);
    match (el1 || access.contains(Prot::EXEC_EL1), el0 || access.contains(Prot::EXEC_EL0)) {
        (true, true) => none,
        (false, true) => none | XN0,
        (true, false) => none | XN1 | XN0,
        (false, false) => none | XN1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{Level, Pa};
    use crate::attr::{Attributes, Encoding, MemType, Write};
    use crate::descriptor::{Descriptor, Owner};

    const WRITES: [Write; 4] = [Write::Denied, Write::Allowed, Write::Clean, Write::Dirty];
    const UPDATES: [HwUpdate; 3] = [HwUpdate::Off, HwUpdate::Access, HwUpdate::AccessAndDirty];

    /// Every leaf of a level, on a machine with FEAT_XNX or without.
    fn leaves(encoding: Encoding) -> impl Iterator<Item = Leaf> {
        (0..16_u8 * 4 * 2).filter_map(move |n| {
            let prot = Prot::from_bits_truncate(n % 16);
            let (write, accessed) = (WRITES[usize::from(n / 16 % 4)], n >= 64);
            let attributes =
                Attributes { write, accessed, ..Attributes::new(prot, MemType::NonCacheable) };
            let bits =
                Descriptor::leaf(Level::L3, Pa::new(0x5000), &attributes, encoding, Owner::Other);
            bits.ok()?.as_leaf(Level::L3)
        })
    }

    #[test]
    fn an_access_gets_what_it_needs_and_no_more_and_nothing_is_taken() {
        for xnx in [false, true] {
            let encoding = Encoding { fwb: false, xnx };
            let prots = || (0..16).map(Prot::from_bits_truncate);
            let cases = leaves(encoding).flat_map(|leaf| prots().map(move |access| (leaf, access)));
            for (leaf, access, allowed) in
                cases.flat_map(|(leaf, access)| [Prot::RWX, access].map(|all| (leaf, access, all)))
            {
                for hw_update in UPDATES {
                    let was = leaf.attributes(encoding).unwrap();
                    let half = !xnx && !matches!(allowed & Prot::EXEC, Prot::EXEC);
                    let grant = leaf.grant(access, allowed, xnx, hw_update);
                    if half && access.intersects(Prot::EXEC) {
                        assert_eq!(grant, Grant::Denied, "this machine cannot say so");
                        continue;
                    }
                    let clean = was.write == Write::Clean && !access.contains(Prot::WRITE);
                    let managed = clean && hw_update == HwUpdate::AccessAndDirty;
                    let now = match grant {
                        Grant::Becomes(now) => now,
                        Grant::Present => {
                            assert!(was.accessed && was.prot().contains(access), "{was:?}");
                            assert!(clean || was.write != Write::Clean);
                            continue;
                        }
                        Grant::Unsettled => {
                            assert!(managed && !allowed.contains(Prot::WRITE), "{was:?}");
                            continue;
                        }
                        Grant::Denied => panic!("{was:?}: {access} is allowed"),
                    };
                    let is = now.attributes(encoding).expect("what this crate writes");
                    let exec = if xnx { access } else { access | Prot::EXEC } & Prot::EXEC;
                    let exec = if access.intersects(Prot::EXEC) { exec } else { Prot::empty() };
                    assert!(
                        is.accessed && now.is_settled(hw_update),
                        "nothing is left to hardware"
                    );
                    assert_eq!(is.prot(), was.prot() | access | exec, "{was:?}, {access}");
                    let write = match was.write {
                        Write::Clean if clean && !managed => Write::Clean,
                        Write::Clean => Write::Dirty,
                        Write::Denied if access.contains(Prot::WRITE) => Write::Allowed,
                        other => other,
                    };
                    assert_eq!(is.write, write, "{was:?}, {access}, {hw_update:?}");
                    assert_eq!((now.pa(), now.owner()), (leaf.pa(), leaf.owner()));
                }
            }
        }
    }

    #[test]
    fn what_the_policy_does_not_allow_is_denied_whatever_the_leaf_says() {
        let encoding = Encoding { fwb: false, xnx: true };
        for leaf in leaves(encoding) {
            for (access, allowed) in [
                (Prot::WRITE, Prot::RX),
                (Prot::READ, Prot::empty()),
                (Prot::RW, Prot::WRITE),
                (Prot::EXEC_EL0, Prot::RW | Prot::EXEC_EL1),
            ] {
                let grant = leaf.grant(access, allowed, true, HwUpdate::AccessAndDirty);
                assert_eq!(grant, Grant::Denied);
            }
        }
    }
}
