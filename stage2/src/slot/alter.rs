//! [`Arch::alter_while`](crate::Arch::alter_while) on AArch64: loops over the slots of a table.
//!
//! Which atomics there are, and what is altered, is decided before a loop and not inside. With FEAT_LSE a slot takes
//!
//! | bits are | |
//! | --- | --- |
//! | cleared | a load, the comparison, `LDCLRAL` |
//! | set, and others cleared afterwards | a load, the comparison, `LDSETAL`, `LDCLRAL` |
//! | set and cleared at once | a load, the comparison, `CASAL`, the comparison with what that has found |
//!
//! and where it is watched, a comparison with what `LDCLRAL` has found. Without FEAT_LSE it is a compare-exchange in all
//! cases, by an `LDAXR`/`STLXR` loop.

use super::{Slot, native};
use crate::arch::{Alteration, Altered};

/// Slots that a loop takes in one piece: the test for its end is one for all of them.
const PIECE: usize = 8;

/// What became of one slot.
enum Step {
    /// It was altered.
    On,
    /// It was altered, and had held something else than the moment before.
    Last(u64),
    /// It is not alike.
    Stop,
}

/// With FEAT_LSE.
///
/// # Safety
/// 1. As of [`Arch::alter_while`](crate::Arch::alter_while).
/// 2. Every PE that may run this has FEAT_LSE.
#[cfg(all(target_arch = "aarch64", not(any(loom, shuttle))))]
pub(crate) unsafe fn alter_while_lse(slots: &[Slot], how: &Alteration) -> Altered {
    let Alteration { set, clear, apart, watched, .. } = *how;
    let found = |old, seen| if old == seen { Step::On } else { Step::Last(old) };
    match (set, apart, watched) {
        // SAFETY: (1, 2) the caller's clauses.
        (0, _, false) => each(slots, how, |slot, _| unsafe {
            native::clear_bits_lse(slot, clear);
            Step::On
        }),
        // SAFETY: (1, 2) the caller's clauses.
        (0, _, true) => each(slots, how, |slot, seen| unsafe {
            found(native::clear_bits_lse(slot, clear), seen)
        }),
        // SAFETY: (1, 2) the caller's clauses.
        (_, true, false) => each(slots, how, |slot, _| unsafe {
            native::set_bits_lse(slot, set);
            native::clear_bits_lse(slot, clear);
            Step::On
        }),
        // What is watched is as rare as what is done at once.
        // SAFETY: (1, 2) the caller's clauses.
        _ => each(slots, how, |slot, seen| unsafe {
            exchanged(native::compare_exchange_lse(slot, seen, seen & !clear | set))
        }),
    }
}

/// Without.
///
/// # Safety
/// 1. As of [`Arch::alter_while`](crate::Arch::alter_while).
pub(crate) unsafe fn alter_while(slots: &[Slot], how: &Alteration) -> Altered {
    let Alteration { set, clear, .. } = *how;
    // SAFETY: (1) the caller's clauses.
    each(slots, how, |slot, seen| unsafe {
        exchanged(native::compare_exchange(slot, seen, seen & !clear | set))
    })
}

#[inline(always)]
fn exchanged(result: Result<u64, u64>) -> Step {
    // Whoever is told that it is not alike looks at it again.
    if result.is_ok() { Step::On } else { Step::Stop }
}

/// One after the other, until one ends it.
#[inline(always)]
fn each(slots: &[Slot], how: &Alteration, alter: impl Fn(&Slot, u64) -> Step) -> Altered {
    let how = *how;
    let one = |slot: &Slot| match native::load(slot) {
        seen if how.concerns(seen) => alter(slot, seen),
        _ => Step::Stop,
    };
    let (pieces, rest) = slots.as_chunks::<PIECE>();
    for piece in pieces {
        for slot in in_register(piece) {
            match one(slot) {
                Step::On => {}
                step => return ended(slots, slot, step),
            }
        }
    }
    for slot in rest {
        match one(slot) {
            Step::On => {}
            step => return ended(slots, slot, step),
        }
    }
    Altered { count: slots.len(), last: None }
}

/// Where it ended, and how.
#[inline(never)]
fn ended(slots: &[Slot], slot: &Slot, step: Step) -> Altered {
    let before = core::ptr::from_ref(slot).addr() - slots.as_ptr().addr();
    let count = before / size_of::<Slot>();
    match step {
        Step::Last(old) => Altered { count: count + 1, last: Some(old) },
        Step::On | Step::Stop => Altered { count, last: None },
    }
}

/// The same, as a pointer of which the compiler knows nothing: or it would make each slot's address of two.
#[inline(always)]
#[cfg_attr(
    target_arch = "aarch64",
    expect(clippy::pointers_in_nomem_asm_block, reason = "nothing is done with the pointer")
)]
fn in_register<T>(it: &T) -> &T {
    #[cfg(not(target_arch = "aarch64"))]
    return it;
    // SAFETY: (1) no instruction; (2) the pointer is what it was.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        let mut at = core::ptr::from_ref(it);
        core::arch::asm!("/* {at} */", at = inout(reg) at, options(pure, nomem, nostack, preserves_flags));
        &*at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Arch;
    use crate::arch::host::Host;
    use crate::descriptor::Descriptor;

    /// In pieces and one by one the same becomes of slots, wherever the first lies that is not alike.
    #[test]
    fn slots_are_altered_up_to_the_first_that_is_not_alike() {
        let set = Alteration {
            mask: 0xf0f,
            value: 0x105,
            set: 0xa,
            clear: 0x5,
            apart: false,
            watched: true,
        };
        let clear = Alteration { set: 0, ..set };
        let apart = Alteration { apart: true, ..set };
        for (length, odd) in (0..40).flat_map(|length| (0..=length).map(move |odd| (length, odd))) {
            let table = || -> Vec<Slot> {
                let bits = |n| if n == odd { 0x106 } else { 0x105 | (n as u64) << 12 };
                (0..length).map(|n| Slot::new(Descriptor::from_bits(bits(n)))).collect()
            };
            let host = Host::new();
            let held = |slots: &[Slot]| -> Vec<_> { slots.iter().map(native::load).collect() };
            for how in [set, clear, apart] {
                let (ours, theirs) = (table(), table());
                let before = held(&ours);
                // SAFETY: (1, 2) no table.
                let (altered, by_steps) =
                    unsafe { (alter_while(&ours, &how), host.alter_while(&theirs, &how).unwrap()) };
                assert_eq!(altered, Altered { count: odd, last: None }, "of {length}");
                assert_eq!(by_steps, altered);
                let wanted = before.iter().enumerate();
                let wanted = wanted.map(|(n, &bits)| if n < odd { how.of(bits) } else { bits });
                assert!(wanted.eq(held(&ours)), "{odd} of {length}, {how:?}");
                assert_eq!(held(&theirs), held(&ours));
            }
            let wanted = |n: usize| Altered { count: n + 1, last: Some(0x105 | (n as u64) << 12) };
            for last in 0..odd {
                let ends = |_: &Slot, seen: u64| {
                    if seen >> 12 == last as u64 { Step::Last(seen) } else { Step::On }
                };
                assert_eq!(each(&table(), &set, ends), wanted(last), "of {length}");
            }
        }
    }
}
