//! System registers that crate `aarch64-cpu` does not have, read and written by name or encoding.
//!
//! The macros are the one place with `mrs` and `msr` in inline assembly. A name that is newer than the
//! Armv8.0 baseline is given as its encoding, `S<op0>_<op1>_C<n>_C<m>_<op2>`.

/// Reads a system register.
///
/// Only for registers whose reading has no effect and that exist at this point.
macro_rules! read {
    ($name:expr) => {{
        let value: u64;
        // SAFETY: (1) the read has no effect; (2) the caller checked that the register exists.
        unsafe {
            core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags));
        }
        value
    }};
}

/// Writes a system register; the effect is there after the next ISB or exception return.
///
/// Only for registers that change neither EL2's translation nor its stack nor what it masks.
macro_rules! write {
    ($name:expr, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: (1) nothing that EL2's own code relies on changes; (2) the caller checked that the
        // register exists.
        unsafe {
            core::arch::asm!(concat!("msr ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags));
        }
    }};
}

pub(crate) use read;
pub(crate) use write;
