//! Set/way operations, and a guest that switches its caches on and off: when EL2 cleans the VM's memory.
//!
//! `DC ISW`, `CSW` and `CISW` name a place in one CPU's cache, not memory, so they cannot be given to a guest:
//! its data may be in another CPU's cache, or the line somebody else's. They are trapped (HCR_EL2.TSW), and what
//! guests mean by them is done instead: **everything** that is mapped is cleaned and invalidated to the point of
//! coherency, by address, which reaches the caches of all CPUs.
//!
//! Guests issue them by the thousand, in a loop over a cache, on their way to switch caches off or on. So only
//! the first one cleans; then writes of the virtual memory registers are trapped (HCR_EL2.TVM), and the moment at
//! which the caches change is seen. It is the moment that counts: what was written through the caches
//! must be in memory when they go off, and no stale line may be left when they come on.
//!
//! ```text
//!                 the guest's caches are off ──────────── SCTLR_EL1.M and C become 1 ────────────▶ on
//! TVM is 1        set/way: nothing is in a cache          clean, then write, TVM 0                 TVM is 0
//!   ▲                                                                                               │
//!   │ reset: a vCPU starts with its caches off                 set/way: clean, TVM 1                │
//!   │                                              on, TVM is 1 ◀───────────────────────────────────┘
//!   └──── SCTLR_EL1.M or C becomes 0: clean, then write ────┘ any other trapped write: TVM 0
//! ```
//!
//! TVM is a vCPU's, the memory is the VM's. Each vCPU sees to its own caches: one that switches cleans all of the
//! VM's memory, whoever wrote it, and two that do it at once clean it twice; that is slow, not wrong. A
//! vCPU that switches its caches off by address operations alone, without a set/way operation since they were last
//! switched on, is not seen: it has done itself what the architecture asks of it.
//!
//! Nothing of this happens where stage 2 forces write-back (FEAT_S2FWB): the guest's caches are never off then.
//!
//! This is what Linux' `kvm_set_way_flush` and `kvm_toggle_cache` do. The work is bounded differently: see [`Walk`].

use crate::IpaRange;
use crate::idreg::Encoding;

/// `SCTLR_EL1.M` and `C`.
const CACHES: u64 = 1 | 1 << 2;

/// Whether a vCPU's data accesses are cacheable as far as SCTLR_EL1 goes: the MMU and the cache are on.
#[must_use]
pub const fn are_on(sctlr: u64) -> bool {
    sctlr & CACHES == CACHES
}

/// Whether this is `DC ISW`, `CSW` or `CISW`. Those of FEAT_MTE are not given to guests.
#[must_use]
pub const fn is_set_way(instruction: Encoding) -> bool {
    matches!(instruction, (1, 0, 7, 6 | 10 | 14, 2))
}

/// The registers whose writes HCR_EL2.TVM traps \[D24.2.62\]. Those of later extensions are not given to
/// guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the architecture's, each with _EL1")]
pub enum VmRegister {
    Sctlr,
    Ttbr0,
    Ttbr1,
    Tcr,
    Afsr0,
    Afsr1,
    Esr,
    Far,
    Mair,
    Amair,
    ContextIdr,
}

impl VmRegister {
    /// All of them, with their encodings.
    pub const ALL: [(Self, Encoding); 11] = [
        (Self::Sctlr, (3, 0, 1, 0, 0)),
        (Self::Ttbr0, (3, 0, 2, 0, 0)),
        (Self::Ttbr1, (3, 0, 2, 0, 1)),
        (Self::Tcr, (3, 0, 2, 0, 2)),
        (Self::Afsr0, (3, 0, 5, 1, 0)),
        (Self::Afsr1, (3, 0, 5, 1, 1)),
        (Self::Esr, (3, 0, 5, 2, 0)),
        (Self::Far, (3, 0, 6, 0, 0)),
        (Self::Mair, (3, 0, 10, 2, 0)),
        (Self::Amair, (3, 0, 10, 3, 0)),
        (Self::ContextIdr, (3, 0, 13, 0, 1)),
    ];

    /// The one with this encoding.
    #[must_use]
    pub fn of(register: Encoding) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, encoding)| *encoding == register).map(|(this, _)| this)
    }
}

/// What a vCPU has trapped on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A set/way operation.
    SetWay,
    /// A write of a [`VmRegister`]: SCTLR_EL1 as it is, and as it will be.
    Write {
        /// As it is.
        before: u64,
        /// As it will be; the same for a write of another register.
        after: u64,
    },
}

/// What is done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// First, all that is mapped is cleaned and invalidated.
    pub clean: bool,
    /// Then HCR_EL2.TVM of this vCPU becomes this.
    pub tvm: bool,
}

/// What to do about `event` on a vCPU whose HCR_EL2.TVM is `tvm`, where stage 2 does not force write-back.
#[must_use]
pub const fn answer(tvm: bool, event: Event) -> Answer {
    match event {
        Event::SetWay => Answer { clean: !tvm, tvm: true },
        Event::Write { before, after } => {
            let on = are_on(after);
            Answer { clean: are_on(before) != on, tvm: tvm && !on }
        }
    }
}

/// Bytes of guest memory that are cleaned between two looks at pending interrupts.
pub const BUDGET: u64 = 256 << 10;
/// Bytes of guest-physical addresses that are looked at meanwhile: 4096 pages, mapped or not.
pub const SPAN: u64 = 16 << 20;

/// A cleaning under way, on one vCPU.
///
/// It is bounded like this: the trapped instruction is not stepped over before the cleaning is done, but the guest
/// is entered after each part, traps on the same instruction again, and the next part follows. In between
/// EL2 sees interrupts and a VM that is to stop. For the guest it is one long instruction.
///
/// If another instruction traps meanwhile, the walk starts anew: what was cleaned may have been written
/// since. An interrupt of the guest's may come in between; whoever wants everything in memory masks them, as on hardware.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walk {
    pc: u64,
    next: Option<u64>,
}

impl Walk {
    /// Whether the instruction at `pc` has begun one.
    #[must_use]
    pub fn is_under_way(&self, pc: u64) -> bool {
        self.pc == pc && self.next.is_some()
    }

    /// What the instruction at `pc` looks at next, of `memory`; `None` if there is no more.
    #[must_use]
    pub fn part(&self, pc: u64, memory: IpaRange) -> Option<IpaRange> {
        let start = if self.pc == pc { self.next.unwrap_or(memory.start) } else { memory.start };
        let start = start.max(memory.start);
        let part = IpaRange { start, end: memory.end.min(start.saturating_add(SPAN)) };
        (part.start < part.end).then_some(part)
    }

    /// The instruction at `pc` has cleaned everything below `next`.
    pub fn reached(&mut self, pc: u64, next: u64) {
        *self = Self { pc, next: Some(next) };
    }

    /// The cleaning is complete.
    pub fn end(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: u64 = 1;
    const C: u64 = 1 << 2;
    const I: u64 = 1 << 12;

    const fn write(before: u64, after: u64) -> Event {
        Event::Write { before, after }
    }

    #[test]
    fn the_first_set_way_operation_cleans_and_the_rest_of_the_loop_does_not() {
        assert_eq!(answer(false, Event::SetWay), Answer { clean: true, tvm: true });
        assert_eq!(answer(true, Event::SetWay), Answer { clean: false, tvm: true });
    }

    /// Both caches and MMU are needed for cacheable accesses: each way of having them, before and after.
    #[test]
    fn a_change_of_the_caches_cleans_and_nothing_else_does() {
        for before in [0, M, C, M | C, I, M | C | I] {
            for after in [0, M, C, M | C, I, M | C | I] {
                let (was, is) = (before & (M | C) == M | C, after & (M | C) == M | C);
                let Answer { clean, tvm } = answer(true, write(before, after));
                assert_eq!(clean, was != is, "{before:#x} to {after:#x}");
                assert_eq!(tvm, !is, "{before:#x} to {after:#x}: trapped until the caches are on");
            }
        }
    }

    #[test]
    fn a_guests_way_through_its_caches() {
        // Reset: off, TVM on. Invalidation of the caches by set/way, then MAIR, then on.
        let mut tvm = true;
        let mut cleaned = [0; 5];
        let mut run = |events: &[Event], cleaned: &mut u32| {
            for event in events {
                let answer = answer(tvm, *event);
                *cleaned += u32::from(answer.clean);
                tvm = answer.tvm;
            }
            tvm
        };
        let [boot, flush, off, uncached, again] = &mut cleaned;
        assert!(!run(&[Event::SetWay, Event::SetWay, write(0, 0), write(0, M | C)], boot));
        // A loop of set/way operations with caches on, then off.
        assert!(run(&[Event::SetWay, Event::SetWay, Event::SetWay], flush));
        assert!(run(&[write(M | C, M)], off));
        // More of them with caches off.
        assert!(run(&[Event::SetWay, write(M, 0)], uncached));
        assert!(!run(&[write(0, M | C | I)], again));
        assert_eq!(cleaned, [1, 1, 1, 0, 1], "at boot, in the loop, off, while off, on again");
    }

    #[test]
    fn a_set_way_operation_that_led_to_nothing_is_forgotten_with_the_next_write() {
        let after = answer(true, write(M | C, M | C));
        assert_eq!(after, Answer { clean: false, tvm: false });
        assert!(answer(after.tvm, Event::SetWay).clean, "so the next loop cleans again");
    }

    #[test]
    fn set_way_operations_and_registers_are_known_by_their_encodings() {
        for crm in 0..16 {
            for op2 in 0..8 {
                let expected = op2 == 2 && [6, 10, 14].contains(&crm);
                assert_eq!(is_set_way((1, 0, 7, crm, op2)), expected, "CRm {crm}, op2 {op2}");
            }
        }
        for (register, encoding) in VmRegister::ALL {
            assert_eq!(VmRegister::of(encoding), Some(register));
        }
        // VBAR_EL1, TPIDR_EL1, SCTLR_EL2.
        for other in [(3, 0, 12, 0, 0), (3, 0, 13, 0, 4), (3, 4, 1, 0, 0)] {
            assert_eq!(VmRegister::of(other), None);
        }
    }

    const MEMORY: IpaRange = IpaRange { start: 0x4000_0000, end: 0x4000_0000 + 2 * SPAN + 4096 };

    #[test]
    fn a_walk_reaches_all_memory_once_in_parts() {
        let mut walk = Walk::default();
        let mut seen = MEMORY.start;
        while let Some(part) = walk.part(8, MEMORY) {
            assert_eq!(part.start, seen, "without a gap");
            assert!(part.end - part.start <= SPAN);
            // Half of it, as when the budget is used up.
            seen = part.start + (part.end - part.start).div_ceil(2);
            walk.reached(8, seen);
            assert!(walk.is_under_way(8) && !walk.is_under_way(12));
        }
        assert_eq!(seen, MEMORY.end);
        walk.end();
        assert!(!walk.is_under_way(8));
        assert_eq!(walk.part(8, MEMORY).map(|part| part.start), Some(MEMORY.start), "the next one");
    }

    #[test]
    fn another_instruction_starts_anew() {
        let mut walk = Walk::default();
        walk.reached(8, MEMORY.start + SPAN);
        assert_eq!(walk.part(12, MEMORY).map(|part| part.start), Some(MEMORY.start));
        assert_eq!(walk.part(8, MEMORY).map(|part| part.start), Some(MEMORY.start + SPAN));
    }
}
