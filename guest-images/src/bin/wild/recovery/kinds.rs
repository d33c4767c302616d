//! Every kind of access. Each begins on a page that nobody has touched, is recovered once, and then works as on memory.

use core::arch::asm;

use guest_rt::promises::PROMISES;
use guest_rt::{Args, Machine, cache, check, check_eq, el0, say};

use super::{Hole, PATTERN, recovers};
use crate::devices::load;

/// Instructions on the window.
macro_rules! window {
    ($($asm:tt)*) => {
        // SAFETY: the window holds nothing that this program uses, and the compiler uses no SIMD register.
        unsafe { asm!($($asm)*, options(nostack)) }
    };
}

/// The low bytes of a value.
const fn low(value: u64, bytes: usize) -> u64 {
    if bytes == 8 { value } else { value & ((1 << (8 * bytes)) - 1) }
}

/// A store of 1, 2, 4 or 8 bytes.
fn store(at: usize, bytes: usize, value: u64) {
    match bytes {
        1 => window!("strb {v:w}, [{a}]", v = in(reg) value, a = in(reg) at),
        2 => window!("strh {v:w}, [{a}]", v = in(reg) value, a = in(reg) at),
        4 => window!("str {v:w}, [{a}]", v = in(reg) value, a = in(reg) at),
        _ => window!("str {v}, [{a}]", v = in(reg) value, a = in(reg) at),
    }
}

const SIZES: [usize; 4] = [1, 2, 4, 8];

pub(crate) fn read(machine: &Machine, _: Args) {
    let mut hole = Hole::of(machine);
    for bytes in SIZES {
        let at = hole.take(1) + 0x128;
        let found = recovers("a load", 1, || load(at, bytes));
        check_eq!(found, low(PATTERN, bytes), "{bytes} bytes of the scratch page");
        // It is there now.
        check_eq!(recovers("a load again", 0, || load(at + 8, 8)), PATTERN, "what is beside it");
    }
    let at = hole.take(1);
    let signed = recovers("a load with its sign", 1, || {
        let value: u64;
        window!("ldrsw {v}, [{a}]", v = out(reg) value, a = in(reg) at);
        value
    });
    check_eq!(signed, low(PATTERN, 4), "a word with its sign");
}

pub(crate) fn write(machine: &Machine, _: Args) {
    let mut hole = Hole::of(machine);
    for (number, bytes) in SIZES.into_iter().enumerate() {
        let at = hole.take(1) + 0x200 * (1 + number);
        let value = 0xa1b2_c3d4_e5f6_0718;
        recovers("a store", 1, || store(at, bytes, value));
        check_eq!(load(at, bytes), low(value, bytes), "{bytes} bytes that were stored");
        check_eq!(load(at + bytes, 1), low(PATTERN, 1), "the byte behind them");
    }
}

pub(crate) fn pair(machine: &Machine, _: Args) {
    let mut hole = Hole::of(machine);
    let [loaded, stored, before, behind] = [(); 4].map(|()| hole.take(1) + 0x40);
    let found = recovers("LDP", 1, || {
        let (first, second): (u64, u64);
        window!("ldp {v}, {w}, [{a}]", v = out(reg) first, w = out(reg) second, a = in(reg) loaded);
        [first, second]
    });
    check_eq!(found, [PATTERN; 2], "a pair");
    recovers("STP", 1, || {
        window!("stp {v}, {w}, [{a}]", v = in(reg) 1u64, w = in(reg) 2u64, a = in(reg) stored);
    });
    check_eq!([load(stored, 8), load(stored + 8, 8)], [1, 2], "a pair that was stored");
    // The base register is written once, however often the instruction is begun.
    let mut base = before;
    recovers("STP with its base before", 1, || {
        window!("stp {v}, {v}, [{a}, #16]!", v = in(reg) 3u64, a = inout(reg) base);
    });
    check_eq!(base, before + 16, "the base of STP");
    let mut base = behind;
    let found = recovers("LDR with its base behind", 1, || {
        let value: u64;
        window!("ldr {v}, [{a}], #-24", v = out(reg) value, a = inout(reg) base);
        value
    });
    check_eq!((base, found), (behind - 24, 1), "the base of LDR, and what it loads");
}

pub(crate) fn simd(machine: &Machine, _: Args) {
    let mut hole = Hole::of(machine);
    let [one, two, four, stored] = [(); 4].map(|()| hole.take(1) + 0x80);
    let found = recovers("LDR of a SIMD register", 1, || {
        let (low, high): (u64, u64);
        window!(".arch_extension simd", "ldr q0, [{a}]", "umov {v}, v0.d[0]", "umov {w}, v0.d[1]",
                v = out(reg) low, w = out(reg) high, a = in(reg) one);
        [low, high]
    });
    check_eq!(found, [PATTERN; 2], "a SIMD register");
    let found = recovers("LDP of SIMD registers", 1, || {
        let value: u64;
        window!(".arch_extension simd", "ldp q2, q3, [{a}]", "umov {v}, v3.d[1]",
                v = out(reg) value, a = in(reg) two);
        value
    });
    check_eq!(found, PATTERN, "the second SIMD register");
    let found = recovers("LD4", 1, || {
        let value: u64;
        window!(".arch_extension simd", "ld4 {{v4.16b, v5.16b, v6.16b, v7.16b}}, [{a}]",
                "umov {v}, v6.d[0]", v = out(reg) value, a = in(reg) four);
        value
    });
    check_eq!(found, PATTERN, "a register of four");
    recovers("ST1 of two registers", 1, || {
        window!(".arch_extension simd", "movi v0.16b, #7", "movi v1.16b, #9",
                "st1 {{v0.16b, v1.16b}}, [{a}]", a = in(reg) stored);
    });
    let found = [load(stored, 8), load(stored + 24, 8)];
    check_eq!(found, [0x0707_0707_0707_0707, 0x0909_0909_0909_0909], "two registers");
}

pub(crate) fn exclusive(machine: &Machine, _: Args) {
    let mut hole = Hole::of(machine);
    let [added, released, pair] = [(); 3].map(|()| hole.take(1) + 0x300);
    recovers("LDXR and STXR", 1, || {
        window!("2: ldxr {v}, [{a}]", "add {v}, {v}, #1", "stxr {s:w}, {v}, [{a}]", "cbnz {s:w}, 2b",
                v = out(reg) _, s = out(reg) _, a = in(reg) added);
    });
    check_eq!(load(added, 8), PATTERN + 1, "a sum by exclusives");
    recovers("STLR", 1, || {
        window!("stlr {v}, [{a}]", "ldar {v}, [{a}]", v = inout(reg) 77u64 => _, a = in(reg) released);
    });
    let found = recovers("LDXP and STXP", 1, || {
        let first: u64;
        window!("2: ldaxp {v}, {w}, [{a}]", "stlxp {s:w}, {a}, {w}, [{a}]", "cbnz {s:w}, 2b",
                v = out(reg) first, w = out(reg) _, s = out(reg) _, a = in(reg) pair);
        first
    });
    // The page is the VM's one: what STLR has left is found here, at the same offset.
    check_eq!((found, load(pair, 8)), (77, pair as u64), "a pair by exclusives");
}

/// Instructions of FEAT_LSE, where the CPU has them.
pub(crate) fn lse(machine: &Machine, _: Args) {
    if !PROMISES.iter().any(|promise| promise.feature == "LSE atomics" && promise.is_made()) {
        say!("wild: no LSE atomics here");
        return;
    }
    let mut hole = Hole::of(machine);
    let [added, swapped, compared, pair] = [0x10, 0x20, 0x30, 0x40].map(|at| hole.take(1) + at);
    let old = recovers("LDADD", 1, || {
        let old: u64;
        window!(".arch_extension lse", "ldadd {n}, {v}, [{a}]", n = in(reg) 5u64, v = out(reg) old,
                a = in(reg) added);
        old
    });
    check_eq!((old, load(added, 8)), (PATTERN, PATTERN + 5), "LDADD");
    let old = recovers("SWPAL", 1, || {
        let old: u64;
        window!(".arch_extension lse", "swpal {n:w}, {v:w}, [{a}]", n = in(reg) 6u64, v = out(reg) old,
                a = in(reg) swapped);
        old
    });
    check_eq!((old, load(swapped, 4)), (low(PATTERN, 4), 6), "SWPAL of a word");
    let old = recovers("CAS", 1, || {
        let mut old = PATTERN;
        window!(".arch_extension lse", "cas {v}, {n}, [{a}]", v = inout(reg) old, n = in(reg) 7u64,
                a = in(reg) compared);
        old
    });
    check_eq!((old, load(compared, 8)), (PATTERN, 7), "CAS");
    recovers("CASP", 1, || {
        window!(".arch_extension lse", "caspal x2, x3, x4, x5, [{a}]", a = in(reg) pair,
                inout("x2") PATTERN => _, inout("x3") PATTERN => _, in("x4") 8u64, in("x5") 9u64);
    });
    check_eq!([load(pair, 8), load(pair + 8, 8)], [8, 9], "CASPAL");
}

pub(crate) fn zva(machine: &Machine, _: Args) {
    let Some(block) = cache::zva_block() else {
        say!("wild: no DC ZVA here");
        return;
    };
    let mut hole = Hole::of(machine);
    let at = hole.take(1) + 0x800;
    recovers("DC ZVA", 1, || window!("dc zva, {}", in(reg) at + 9));
    check_eq!(load(at, 8), 0, "what was zeroed");
    check_eq!(load(at + block - 8, 8), 0, "the end of what was zeroed");
    check_eq!([load(at - 8, 8), load(at + block, 8)], [PATTERN; 2], "what lies around it");
}

/// Whether maintenance by address faults is up to the CPU's caches, and QEMU has none: it does not, but for DC CVAP.
pub(crate) fn maintenance(machine: &Machine, _: Args) {
    let mut hole = Hole::of(machine);
    let pages: [usize; 5] = core::array::from_fn(|_| hole.take(1) + 0x40);
    window!("dc civac, {}", in(reg) pages[0]);
    window!("dc cvac, {}", in(reg) pages[1]);
    window!("dc cvau, {}", in(reg) pages[2]);
    window!("dc ivac, {}", in(reg) pages[3]);
    if PROMISES.iter().any(|promise| promise.feature == "DC CVAP" && promise.is_made()) {
        window!("sys #3, c7, c12, #1, {}", in(reg) pages[4]);
    }
    window!("dsb sy");
    for at in pages {
        check_eq!(load(at, 8), PATTERN, "what was maintained");
    }
    let counts = super::Counts::now();
    check!(counts.recovered == 5 && counts.scratched == 5, "not once a page: {counts:?}");
}

/// At EL0, with the window in an alias.
pub(crate) fn at_el0(machine: &Machine, _: Args) {
    el0::prepare();
    let mut hole = Hole::of(machine);
    let [loaded, stored] = [(); 2].map(|()| hole.take(1) + 0x18);
    let found = recovers("a load at EL0", 1, || el0::read(el0::data(loaded)));
    check_eq!(found, Ok(PATTERN), "a load at EL0");
    // SAFETY: the window holds nothing.
    let done = recovers("a store at EL0", 1, || unsafe { el0::write(el0::data(stored), 12) });
    check_eq!((done, load(stored, 8)), (Ok(()), 12), "a store at EL0");
}
