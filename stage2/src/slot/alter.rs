//! [`Arch::alter_while`](crate::Arch::alter_while) on AArch64: loops over the slots of a table.
//!
//! Which atomic there is, and what is altered, is decided before a loop and not inside. With FEAT_LSE a slot takes a load, the
//! comparison, one `LDCLRAL`, and a second comparison: with what that has found. Where bits are set, too, it takes a
//! `CASAL`, as bits of a permission that are set before others are cleared would allow for a moment what neither
//! descriptor does.

use super::{Slot, native};
use crate::arch::{Alteration, Altered};

/// Slots that a loop takes in one piece: so the test for its end is one for all of them.
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
pub(crate) unsafe fn alter_while_lse(slots: &[Slot], how: &Alteration) -> Altered {
    let Alteration { set, clear, .. } = *how;
    if set == 0 {
        // SAFETY: (1, 2) the caller's clauses.
        each(slots, how, |slot, seen| match unsafe { native::clear_bits_lse(slot, clear) } {
            old if old == seen => Step::On,
            old => Step::Last(old),
        })
    } else {
        // SAFETY: (1, 2) the caller's clauses.
        each(slots, how, |slot, seen| unsafe {
            exchanged(native::compare_exchange_lse(slot, seen, seen & !clear | set))
        })
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
    let end = |slot: &Slot, step: Step| {
        let before = core::ptr::from_ref(slot).addr() - slots.as_ptr().addr();
        let count = before / size_of::<Slot>();
        match step {
            Step::Last(old) => Altered { count: count + 1, last: Some(old) },
            Step::On | Step::Stop => Altered { count, last: None },
        }
    };
    let (pieces, rest) = slots.as_chunks::<PIECE>();
    for piece in pieces {
        for slot in piece {
            match one(slot) {
                Step::On => {}
                step => return end(slot, step),
            }
        }
    }
    for slot in rest {
        match one(slot) {
            Step::On => {}
            step => return end(slot, step),
        }
    }
    Altered { count: slots.len(), last: None }
}
