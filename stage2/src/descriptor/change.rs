//! What a protection transaction changes in a leaf: permissions, and what is recorded. Never the address, the memory
//! type or the shareability: those would need a break on any machine \[RWHZWS\].
//!
//! With DBM, S2AP\[1\] is the dirty record of a leaf; without, it is a permission. One change therefore says two
//! things, for leaves of which the dirty state is managed and for the others:
//!
//! | change | DBM = 1 | DBM = 0 |
//! | --- | --- | --- |
//! | [`protect`](Change::protect), writable | S2AP\[0\], XN; DBM and the dirty state stay | S2AP\[1:0\], XN |
//! | [`protect`](Change::protect), not writable | S2AP, XN; DBM = 0 | S2AP\[1:0\], XN |
//! | [`WRITE_PROTECT`](Change::WRITE_PROTECT) | S2AP\[1\] = DBM = 0 | S2AP\[1\] = 0 |
//! | [`CLEAN`](Change::CLEAN) | S2AP\[1\] = 0: writable-clean | writable becomes writable-clean: DBM = 1, S2AP\[1\] = 0 |
//! | [`UNMANAGED`](Change::UNMANAGED) | S2AP\[1\] = 1, DBM = 0: writable | none |
//! | [`UNACCESSED`](Change::UNACCESSED) | AF = 0 | AF = 0 |

use super::resize::{ACCESSED, DIRTY_MODIFIER, WRITABLE};
use super::{ADDRESS, Descriptor, Leaf, VALID};
use crate::arch::Alteration;
use crate::attr::{AttributeError, Attributes, Encoding, MemType, Prot};

const MODIFIER_ABOVE_WRITABLE: u32 = DIRTY_MODIFIER.trailing_zeros() - WRITABLE.trailing_zeros();
const READABLE: u64 = 1 << 6;
const EXECUTE_NEVER: u64 = 0b11 << 53;
/// Permissions of a leaf without dirty management.
const PERMISSIONS: u64 = READABLE | WRITABLE | EXECUTE_NEVER;

/// A change of permissions or records, the same for many leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// With DBM = 0.
    plain: Masks,
    /// With DBM = 1.
    managed: Masks,
    /// DBM, if it is set in what is writable without.
    manages: u64,
}

/// Bits to clear, and then bits to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Masks {
    clear: u64,
    set: u64,
}

impl Change {
    /// Takes the permission to write. What the leaf said of writes before is in what it was.
    pub const WRITE_PROTECT: Self = Self::both(WRITABLE | DIRTY_MODIFIER);
    /// What is writable or writable-dirty becomes writable-clean: from then on its dirty state is managed.
    pub const CLEAN: Self = Self { manages: DIRTY_MODIFIER, ..Self::both(WRITABLE) };
    /// Writable-clean and writable-dirty become writable: the dirty state is managed no more.
    pub const UNMANAGED: Self =
        Self { managed: Masks { clear: DIRTY_MODIFIER, set: WRITABLE }, ..Self::both(0) };
    /// Takes the access flag.
    pub const UNACCESSED: Self = Self::both(ACCESSED);

    const fn both(clear: u64) -> Self {
        let masks = Masks { clear, set: 0 };
        Self { plain: masks, managed: masks, manages: 0 }
    }

    /// Allows what `prot` says, and no more. A writable leaf of which the dirty state is managed keeps that.
    ///
    /// # Errors
    /// [`AttributeError`]: this machine has no encoding for it.
    pub const fn protect(prot: Prot, encoding: Encoding) -> Result<Self, AttributeError> {
        let bits = match Attributes::new(prot, MemType::Normal).encode(encoding) {
            Ok(bits) => bits & PERMISSIONS,
            Err(error) => return Err(error),
        };
        let managed = if prot.contains(Prot::WRITE) {
            Masks { clear: READABLE | EXECUTE_NEVER, set: bits & !WRITABLE }
        } else {
            Masks { clear: PERMISSIONS | DIRTY_MODIFIER, set: bits }
        };
        Ok(Self { plain: Masks { clear: PERMISSIONS, set: bits }, managed, manages: 0 })
    }
}

impl Descriptor {
    /// Whether another slot of a table of pages holds the same as this one, but for where that lies.
    #[inline(always)]
    pub(crate) const fn is_twin_of(self, other: Self) -> bool {
        (other.0 ^ self.0) & !ADDRESS == 0
    }
}

impl Leaf {
    /// Whether AF is set: a hint.
    #[inline]
    #[must_use]
    pub const fn is_accessed(&self) -> bool {
        self.bits & ACCESSED != 0
    }

    /// Whether it is writable-dirty: its dirty state is managed, and a guest may have written since it was taken last.
    #[inline]
    #[must_use]
    pub const fn is_dirty(&self) -> bool {
        self.bits & (DIRTY_MODIFIER | WRITABLE) == DIRTY_MODIFIER | WRITABLE
    }

    /// Whether S2AP\[1\] is set: a guest may have written by it, be its dirty state managed or not.
    #[inline]
    #[must_use]
    pub const fn may_be_written(&self) -> bool {
        self.bits & WRITABLE != 0
    }

    /// Whether a guest may write by it, or may be let to by who records it: writable, writable-clean or writable-dirty.
    #[inline]
    #[must_use]
    pub const fn is_writable(&self) -> bool {
        self.bits & (WRITABLE | DIRTY_MODIFIER) != 0
    }

    /// The leaf after a write that hardware does not see: writable-clean becomes writable-dirty and accessed, in which
    /// hardware has nothing to update.
    pub(crate) const fn written(&self) -> Self {
        let set = if self.may_be_written() { 0 } else { WRITABLE | ACCESSED };
        Self { bits: self.bits | set, level: self.level }
    }

    /// The leaf after a change.
    #[inline(always)]
    pub(crate) const fn changed(&self, change: &Change) -> Self {
        let plain = self.bits & DIRTY_MODIFIER == 0;
        let Masks { clear, set } = if plain { change.plain } else { change.managed };
        let manage = (self.bits & WRITABLE) << MODIFIER_ABOVE_WRITABLE & change.manages;
        Self { bits: self.bits & !clear | set | manage, level: self.level }
    }

    /// What a change does to each of the leaves that are like this one, wherever they lie. If they are to be `broken`,
    /// they become Busy.
    #[inline]
    pub(crate) const fn alteration(&self, change: &Change, broken: bool) -> Alteration {
        let plain = self.bits & DIRTY_MODIFIER == 0;
        let Masks { clear, set: kept } = if plain { change.plain } else { change.managed };
        let valid = if broken { VALID } else { 0 };
        Alteration {
            mask: !ADDRESS,
            value: self.bits & !ADDRESS,
            // With a permission to execute nothing is cleared alone: a fault handler may be granting one.
            set: self.changed(change).bits & !self.bits | kept & EXECUTE_NEVER,
            // All of them, and not those alone that are set here: what is set meanwhile goes, too.
            clear: clear & !kept | valid,
            // Writable-dirty is between writable and writable-clean, and all else may have to come at once.
            apart: plain && change.manages != 0 && kept == 0,
            watched: false,
        }
    }

    /// Whether this leaf allows all that `former` did, and says of accesses and writes what that said or more: a TLB
    /// that holds `former` can only fault too often.
    pub(crate) const fn grants_all_of(&self, former: &Self) -> bool {
        let fewer = former.bits & !self.bits & (READABLE | WRITABLE | ACCESSED);
        let execute = self.bits & EXECUTE_NEVER;
        let managed = (former.bits ^ self.bits) & DIRTY_MODIFIER;
        fewer == 0 && managed == 0 && (execute == 0 || execute == former.bits & EXECUTE_NEVER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{Level, Pa};
    use crate::attr::Write;
    use crate::descriptor::Owner;

    const ENCODING: Encoding = Encoding { fwb: true, xnx: true };
    const WRITES: [Write; 4] = [Write::Denied, Write::Allowed, Write::Clean, Write::Dirty];

    /// Every leaf of a level: what it allows, accessed or not, dirty or not.
    fn leaves() -> impl Iterator<Item = Leaf> {
        (0..16_u8 * 4 * 2).map(|n| {
            let prot = Prot::from_bits_truncate(n % 16);
            let (write, accessed) = (WRITES[usize::from(n / 16 % 4)], n >= 64);
            let attributes =
                Attributes { write, accessed, ..Attributes::new(prot, MemType::NonCacheable) };
            let bits =
                Descriptor::leaf(Level::L3, Pa::new(0x5000), &attributes, ENCODING, Owner::Other);
            bits.unwrap().as_leaf(Level::L3).unwrap()
        })
    }

    fn attributes(leaf: &Leaf) -> Attributes {
        let decoded = leaf.attributes(ENCODING).expect("what this crate writes");
        assert_eq!((leaf.pa().get(), leaf.owner()), (0x5000, Owner::Other), "those stay");
        assert_eq!(decoded.mem, MemType::NonCacheable, "and the memory type");
        assert_eq!(leaf.is_accessed(), decoded.accessed);
        assert_eq!(leaf.is_dirty(), decoded.write == Write::Dirty);
        assert_eq!(leaf.may_be_written(), matches!(decoded.write, Write::Allowed | Write::Dirty));
        decoded
    }

    #[test]
    fn a_leaf_allows_what_it_is_protected_to_and_keeps_its_records() {
        for (leaf, bits) in leaves().flat_map(|leaf| (0..16).map(move |bits| (leaf, bits))) {
            let (before, prot) = (attributes(&leaf), Prot::from_bits_truncate(bits));
            let after = attributes(&leaf.changed(&Change::protect(prot, ENCODING).unwrap()));
            assert_eq!(after.prot(), prot);
            assert_eq!(after.accessed, before.accessed);
            let managed = matches!(before.write, Write::Clean | Write::Dirty);
            if managed && prot.contains(Prot::WRITE) {
                assert_eq!(after.write, before.write, "the dirty state is no permission");
            } else {
                assert!(!matches!(after.write, Write::Clean | Write::Dirty));
            }
        }
        let plain = Encoding { fwb: false, xnx: false };
        let apart = Change::protect(Prot::READ | Prot::EXEC_EL1, plain);
        assert_eq!(apart, Err(AttributeError::ExecuteNeedsXnx));
    }

    #[test]
    fn each_change_takes_what_it_says() {
        for leaf in leaves() {
            let before = attributes(&leaf);
            let after = |change| attributes(&leaf.changed(&change));
            let wanted = Attributes { write: Write::Denied, ..before };
            assert_eq!(after(Change::WRITE_PROTECT), wanted);
            let (clean, plain) = match before.write {
                Write::Denied => (Write::Denied, Write::Denied),
                Write::Allowed => (Write::Clean, Write::Allowed),
                Write::Clean | Write::Dirty => (Write::Clean, Write::Allowed),
            };
            assert_eq!(after(Change::CLEAN), Attributes { write: clean, ..before });
            assert_eq!(after(Change::UNMANAGED), Attributes { write: plain, ..before });
            assert_eq!(after(Change::UNACCESSED), Attributes { accessed: false, ..before });
        }
    }

    #[test]
    fn a_leaf_grants_all_of_another_if_nothing_is_taken() {
        for (leaf, former) in leaves().flat_map(|leaf| leaves().map(move |former| (leaf, former))) {
            let (now, then) = (attributes(&leaf), attributes(&former));
            let managed = |a: Attributes| matches!(a.write, Write::Clean | Write::Dirty);
            let dirty = |a: Attributes| a.write == Write::Dirty;
            let grants = now.prot().contains(then.prot())
                && (now.accessed || !then.accessed)
                && managed(now) == managed(then)
                && (dirty(now) || !dirty(then));
            // XN = 11 and XN = 01 are told apart from 00 only: another change counts as taking something.
            let other = now.prot() & Prot::EXEC != then.prot() & Prot::EXEC
                && !now.prot().contains(Prot::EXEC);
            assert_eq!(leaf.grants_all_of(&former), grants && !other, "{now:?}, {then:?}");
        }
    }
}
