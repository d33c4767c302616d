//! Every kind of access as the first one to a never-touched page.
//!
//! Most of these come without a decoded syndrome (ISV = 0), or are not loads or stores at all.
//! Populating a page must not depend on what the access is. Two fresh pages for each: where the access
//! crosses from one into the other, both fault.

use core::arch::asm;

use guest_rt::{Arena, PAGE, check_eq, promises};

use crate::MARK;

/// One access: the address in x9, [`MARK`] in x10, x11-x15 and flags for scratch.
struct Access {
    name: &'static str,
    /// Bytes from the start of the first page to the address.
    offset: usize,
    /// What must be in x10 afterwards.
    register: u64,
    /// What must be in the 8 bytes at the address afterwards.
    memory: u64,
    /// The promise of the ID registers that it needs.
    needs: Option<&'static str>,
    run: fn(usize) -> u64,
}

/// An access that leaves `register` in x10 and `memory` at the address.
macro_rules! access {
    ($name:literal, $offset:expr, $register:expr, $memory:expr, $needs:expr, $($line:literal),+) => {
        Access {
            name: $name, offset: $offset, register: $register, memory: $memory, needs: $needs,
            run: |va| {
                let register: u64;
                // SAFETY: 1. the lines access the 16 bytes at x9 or their block of maintenance, all
                // in pages that the arena gave to this access; 2. they keep to the registers named.
                unsafe {
                    asm!($($line,)+ inout("x9") va => _, inout("x10") MARK => register,
                         out("x11") _, out("x12") _, out("x13") _, out("x14") _, out("x15") _,
                         options(nostack));
                }
                register
            },
        }
    };
}

macro_rules! load {
    ($name:literal, $offset:expr, $($line:literal),+) => {
        access!($name, $offset, 0, 0, None, $($line),+)
    };
}

macro_rules! store {
    ($name:literal, $offset:expr, $memory:expr, $($line:literal),+) => {
        access!($name, $offset, MARK, $memory, None, $($line),+)
    };
}

/// Eight bytes from here lie in both pages.
const ACROSS: usize = PAGE - 3;
const LSE: Option<&str> = Some("LSE atomics");

#[rustfmt::skip]
static ACCESSES: &[Access] = &[
    load!("byte load", 1, "ldrb w10, [x9]"),
    load!("signed half-word load", 2, "ldrsh x10, [x9]"),
    load!("load with post-index", 8, "ldr x10, [x9], #8"),
    load!("load into the zero register", 8, "ldr xzr, [x9]", "mov x10, xzr"),
    load!("load-acquire", 8, "ldar x10, [x9]"),
    load!("load pair", 16, "ldp x10, x11, [x9]", "orr x10, x10, x11"),
    load!("non-temporal load pair", 16, "ldnp x11, x10, [x9]"),
    load!("SIMD load", 16, ".arch_extension simd", "ldr q0, [x9]", "umov x10, v0.d[1]"),
    load!("SIMD structure load", 0, ".arch_extension simd", "ld4 {{v0.16b-v3.16b}}, [x9]", "umov x10, v3.d[1]"),
    load!("unaligned load over two pages", ACROSS, "ldr x10, [x9]"),
    load!("load pair over two pages", PAGE - 8, "ldp x11, x10, [x9]"),
    load!("load-exclusive", 8, "ldaxr x10, [x9]", "clrex"),
    store!("byte store", 1, MARK & 0xff, "strb w10, [x9]"),
    store!("word store", 4, MARK & 0xffff_ffff, "str w10, [x9]"),
    store!("store with pre-index", 8, 0, "str x10, [x9, #8]!"),
    store!("store-release", 8, MARK, "stlr x10, [x9]"),
    store!("store pair", 16, MARK, "stp x10, x10, [x9]"),
    store!("SIMD store", 16, MARK, ".arch_extension simd", "dup v0.2d, x10", "str q0, [x9]"),
    store!("unaligned store over two pages", ACROSS, MARK, "str x10, [x9]"),
    store!("store pair over two pages", PAGE - 8, MARK, "stp x10, x10, [x9]"),
    store!("unaligned SIMD store over two pages", ACROSS, MARK,
        ".arch_extension simd", "dup v0.2d, x10", "str q0, [x9]"),
    store!("exclusive store", 8, MARK,
        "2: ldxr x11, [x9]", "stxr w12, x10, [x9]", "cbnz w12, 2b"),
    store!("exclusive pair", 16, MARK,
        "2: ldaxp x11, x12, [x9]", "stlxp w13, x10, x10, [x9]", "cbnz w13, 2b"),
    access!("atomic add", 8, MARK, MARK, LSE, ".arch_extension lse", "ldaddal x10, x11, [x9]"),
    access!("atomic swap", 8, 0, MARK, LSE, ".arch_extension lse", "swp x10, x10, [x9]"),
    access!("compare and swap", 8, MARK, MARK, LSE,
        ".arch_extension lse", "mov x11, xzr", "casal x11, x10, [x9]"),
    store!("DC ZVA", 0, 0, "dc zva, x9"),
    store!("DC CIVAC", 0, 0, "dc civac, x9", "dsb sy"),
    store!("DC CVAC", 0, 0, "dc cvac, x9", "dsb sy"),
    store!("DC CVAU", 0, 0, "dc cvau, x9", "dsb sy"),
    store!("DC IVAC", 0, 0, "dc ivac, x9", "dsb sy"),
    store!("IC IVAU", 0, 0, "ic ivau, x9", "dsb sy"),
    store!("prefetch", 0, 0, "prfm pldl1keep, [x9]", "prfm pstl1keep, [x9]", "prfm plil1keep, [x9]"),
];

/// Runs them all and says how many there were.
pub(crate) fn check(arena: &mut Arena) -> usize {
    let promised = |feature: &str| {
        promises::PROMISES.iter().any(|promise| promise.feature == feature && promise.is_made())
    };
    let usable = ACCESSES.iter().filter(|access| access.needs.is_none_or(promised));
    usable
        .map(|access| {
            let va = arena.take(2 * PAGE, PAGE) + access.offset;
            check_eq!((access.run)(va), access.register, "{}: the register", access.name);
            // SAFETY: 1. in the two pages of this access; 2. unaligned reads are done in bytes.
            let memory = unsafe { (va as *const u64).read_unaligned() };
            check_eq!(memory, access.memory, "{}: the memory", access.name);
        })
        .count()
}
