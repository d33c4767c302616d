//! Sets of a VM's virtual CPUs.

use hyp_abi::MAX_VCPUS;

const _: () = assert!(MAX_VCPUS <= 32, "a set is one word");

/// Some of a VM's virtual CPUs, by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "these vCPUs have something to look at"]
pub struct VcpuSet(u32);

impl VcpuSet {
    /// None.
    pub const EMPTY: Self = Self(0);

    /// This one; none if there cannot be a vCPU of that number.
    pub const fn one(vcpu: usize) -> Self {
        if vcpu < MAX_VCPUS { Self(1 << vcpu) } else { Self(0) }
    }

    /// The first `count`, at most as many as a VM can have.
    pub const fn first(count: usize) -> Self {
        if count < 32 { Self(!(u32::MAX << count)) } else { Self(u32::MAX) }
    }

    /// Those whose bits are set: bit n is vCPU n.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// Bit n is vCPU n.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether this one is among them.
    #[must_use]
    pub const fn contains(self, vcpu: usize) -> bool {
        self.0 & Self::one(vcpu).0 != 0
    }

    /// All of both.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// All but this one.
    pub const fn without(self, vcpu: usize) -> Self {
        Self(self.0 & !Self::one(vcpu).0)
    }

    /// Those that are in both.
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Adds those of another set.
    pub const fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// Their numbers, ascending.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        bits(self.0)
    }
}

/// The numbers of the bits that are set, ascending.
pub(super) fn bits(mask: u32) -> impl Iterator<Item = usize> {
    let mut left = mask;
    core::iter::from_fn(move || {
        let bit = left.trailing_zeros();
        // Takes the lowest bit away; of none, nothing.
        left &= left.wrapping_sub(1);
        (bit < u32::BITS).then_some(bit as usize)
    })
}
