//! The guest's own translation tables, as far as an abort needs them: at which level a walk met a page.
//!
//! Hardware says which page of tables a walk could not access, and for what address it walked; the level it reports is that
//! of stage 2. The syndrome that the guest is to see has the level of stage 1, so the walk is made again, by software
//! (D8.2.4 for which tables those are, D8.3.1 for descriptors).
//!
//! What is read is the guest's, and may be anything: a walk takes five steps at the most.

#[cfg(test)]
mod tests;

/// The registers that say where the guest's tables are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Regime {
    /// `TCR_EL1`.
    pub tcr: u64,
    /// `TTBR0_EL1`.
    pub ttbr0: u64,
    /// `TTBR1_EL1`.
    pub ttbr1: u64,
}

/// Bits 47:1 of TTBRn_EL1: the first table. Bit 0 is CnP.
const BASE: u64 = (1 << 48) - 2;
/// Bits of a descriptor that say that it is one of a table.
const TABLE: u64 = 0b11;
/// Address bits of which guests here have none.
const ADDRESS: u64 = (1 << 48) - 1;

impl Regime {
    /// The level, -1 to 3, at which a walk for `va` reads or updates a descriptor in the 4 KiB page at `page`. `read` gives the
    /// 8 bytes at an address, if the guest has them there. `None` if a walk does not come there.
    pub fn level_in(
        &self,
        va: u64,
        page: u64,
        mut read: impl FnMut(u64) -> Option<u64>,
    ) -> Option<i8> {
        let upper = va >> 55 & 1 != 0;
        let (base, control) =
            if upper { (self.ttbr1, self.tcr.wrapping_shr(16)) } else { (self.ttbr0, self.tcr) };
        // TG1 is encoded differently from TG0.
        let granule = match (upper, control.wrapping_shr(14) & 0b11) {
            (false, 0b00) | (true, 0b10) => 12_u32,
            (false, 0b10) | (true, 0b01) => 14,
            (false, 0b01) | (true, 0b11) => 16,
            _ => return None,
        };
        // Bits of an index, and of an address that is translated.
        let stride = granule.saturating_sub(3);
        let input = 64_u32.saturating_sub((control & 0x3f) as u32);
        let levels = input.checked_sub(granule)?.div_ceil(stride);
        let start = 4_i8.checked_sub(i8::try_from(levels).ok()?)?;
        let va = va & 1_u64.checked_shl(input)?.checked_sub(1)?;
        let mut table = base & BASE;
        for level in start.max(-1)..=3 {
            let below = stride.saturating_mul(u32::from(3_u8.checked_sub_signed(level)?));
            let shift = granule.saturating_add(below);
            let mask =
                if level == start { u64::MAX } else { 1_u64.wrapping_shl(stride).wrapping_sub(1) };
            let index = va.wrapping_shr(shift) & mask;
            let at = table.wrapping_add(index.wrapping_mul(8));
            if at & !0xfff == page {
                return Some(level);
            }
            let descriptor = read(at)?;
            if descriptor & TABLE != TABLE {
                return None;
            }
            let offset = 1_u64.wrapping_shl(granule).wrapping_sub(1);
            table = descriptor & ADDRESS & !offset;
        }
        None
    }
}
