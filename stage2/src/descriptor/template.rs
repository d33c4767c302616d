//! Leaves that differ in their address alone: what an install fills in.

use super::{
    ADDRESS, BLOCK, Descriptor, DescriptorError, MANAGED, NON_OWNED, Owner, TABLE_OR_PAGE,
};
use crate::addr::{Level, Pa};
use crate::attr::{Attributes, Encoding};

/// Everything of a leaf but its address, encoded once for the many leaves that are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafTemplate {
    level: Level,
    bits: u64,
}

impl LeafTemplate {
    /// For blocks or pages of `level`.
    ///
    /// # Errors
    /// [`DescriptorError`]: level 0, or attributes without encoding.
    pub const fn new(
        level: Level,
        attributes: &Attributes,
        encoding: Encoding,
        owner: Owner,
    ) -> Result<Self, DescriptorError> {
        if !level.has_leaves() {
            return Err(DescriptorError::Level { level });
        }
        let attributes = match attributes.encode(encoding) {
            Ok(bits) => bits,
            Err(error) => return Err(DescriptorError::Attributes(error)),
        };
        let kind = if matches!(level, Level::L3) { TABLE_OR_PAGE } else { BLOCK };
        let owner = match owner {
            Owner::Vm => 0,
            Owner::Other => NON_OWNED,
        };
        Ok(Self { level, bits: attributes | kind | MANAGED | owner })
    }

    /// Level of the leaves.
    #[must_use]
    pub const fn level(&self) -> Level {
        self.level
    }

    /// The leaf that points to `pa`.
    ///
    /// # Errors
    /// [`DescriptorError::Address`]: unaligned for the level, or above 48 bits.
    #[inline]
    pub const fn at(&self, pa: Pa) -> Result<Descriptor, DescriptorError> {
        // Alignment to a block implies alignment to a page.
        if pa.get() & !(ADDRESS & !(self.level.slot_bytes() - 1)) != 0 {
            return Err(DescriptorError::Address { level: self.level, pa });
        }
        Ok(Descriptor(self.bits | pa.get()))
    }
}
