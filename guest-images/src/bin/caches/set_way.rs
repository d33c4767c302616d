//! Every data cache, cleaned and invalidated by set and way: the loop that boot loaders have.

use core::arch::asm;

use aarch64_cpu::asm::barrier;

macro_rules! read {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: reading an identification register has no effect.
        unsafe {
            asm!(concat!("mrs {}, ", $name), out(reg) value, options(nostack, preserves_flags))
        };
        value
    }};
}

/// Runs `DC CISW` over all sets and ways of all levels up to the point of coherency; returns how many operations that
/// was.
pub(crate) fn clean_and_invalidate_all() -> u64 {
    let clidr = read!("clidr_el1");
    let coherency = clidr >> 24 & 7;
    // ID_AA64MMFR2_EL1.CCIDX: the wide form of CCSIDR_EL1.
    let wide = read!("S3_0_C0_C7_2") >> 20 & 0xf == 1;
    let mut operations = 0;
    barrier::dsb(barrier::SY);
    for level in 0..coherency {
        // 2 to 4: a data or unified cache.
        if clidr >> (3 * level) & 7 < 2 {
            continue;
        }
        // SAFETY: selects which cache CCSIDR_EL1 is about; nobody else on this vCPU reads it.
        unsafe {
            asm!("msr csselr_el1, {}", in(reg) level << 1, options(nostack, preserves_flags))
        };
        barrier::isb(barrier::SY);
        let ccsidr = read!("ccsidr_el1");
        let (ways, sets) = if wide {
            (ccsidr >> 3 & 0x1f_ffff, ccsidr >> 32 & 0xff_ffff)
        } else {
            (ccsidr >> 3 & 0x3ff, ccsidr >> 13 & 0x7fff)
        };
        let line = (ccsidr & 7) + 4;
        // The way stands in the highest bits that it needs.
        let way_shift = if ways == 0 { 0 } else { (ways as u32).leading_zeros() };
        for way in 0..=ways {
            for set in 0..=sets {
                let operand = way << way_shift | set << line | level << 1;
                // SAFETY: cleaning and invalidating keeps what coherent observers see.
                unsafe { asm!("dc cisw, {}", in(reg) operand, options(nostack, preserves_flags)) };
                operations += 1;
            }
        }
    }
    barrier::dsb(barrier::SY);
    barrier::isb(barrier::SY);
    operations
}
