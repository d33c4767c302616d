//! Bringing any two vCPUs together at the same moment, time after time.
//!
//! A race needs two vCPUs that really run at the same time, while the host may have fewer CPUs than
//! the guest and other work for them. So only two vCPUs are awake: vCPU 0 and one of the others in
//! turn, and they make pair after pair. Who finds no partner for a while goes home, to sleep in PSCI
//! CPU_OFF; vCPU 0 then wakes the next, and a host runs at once what it wakes.
//!
//! Two habits of QEMU are made use of; on hardware both are correct and without effect. It stops all
//! vCPUs for a broadcast TLBI and lets them go together, so each half of a pair makes one before it
//! acts. And it forgets all translations of a CPU, EL2's too, when TCR_EL1 is written, so the
//! hypervisor is slow between its look at a slot and its install. Measured with both: one pair in ten
//! loses a leaf race, one in thirty to a hundred a table race; without, one in three hundred or fewer.

use core::arch::asm;
use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::smp::{self, Vcpu};
use crate::{Machine, mmu};

/// How often a vCPU looks for a partner before it goes home, at first.
const PATIENCE: usize = 1 << 14;
/// Most pairs from one wake-up to the next.
const TURN: usize = 64;
/// Fewer pairs than this from one wake-up to the next, and patience is doubled: without end on a host
/// with one CPU.
const FEW: usize = 8;

/// One vCPU's half of a pair.
#[derive(Clone, Copy)]
pub struct Meeting {
    /// Which pair.
    pub pair: usize,
    /// 0 for who came first, 1 for who came second.
    pub half: usize,
}

/// Makes the pairs `pairs` among `count` vCPUs, at least two; each half of a pair calls `act` once, at
/// the same moment as the other as far as that can be done.
pub fn run(
    machine: &Machine,
    count: usize,
    pairs: Range<usize>,
    act: &(dyn Fn(Meeting, Vcpu) + Sync),
) {
    let arrivals = Arrivals(AtomicUsize::new(2 * pairs.start));
    let (mut made, mut patience, mut turn) = (0, PATIENCE, pairs.start / TURN);
    while made < pairs.len() {
        let end = 2 * pairs.end.min(pairs.start + made + TURN);
        let partner = 1 + turn % (count - 1).max(1);
        smp::run_on(machine, partner..partner + 1, &|me| {
            while let Some(meeting) = arrivals.pair_up(end, patience) {
                act(meeting, me);
            }
        });
        // Tickets beyond the end stand for nobody.
        arrivals.0.fetch_min(end, Ordering::Relaxed);
        let now = arrivals.0.load(Ordering::Relaxed) / 2 - pairs.start;
        if now - made < FEW {
            patience = patience.saturating_mul(2);
        }
        (made, turn) = (now, turn + 1);
    }
}

/// The next ticket. An even one waits for the next, which is its partner's.
struct Arrivals(AtomicUsize);

impl Arrivals {
    /// Waits for a partner; `None` when none came or ticket `end` is reached.
    fn pair_up(&self, end: usize, patience: usize) -> Option<Meeting> {
        forget_translations();
        let ticket = self.0.fetch_add(1, Ordering::AcqRel);
        if ticket >= end {
            return None;
        }
        let meeting = Meeting { pair: ticket / 2, half: ticket % 2 };
        let alone = || self.0.load(Ordering::Acquire) == ticket + 1;
        if meeting.half == 0 && (0..patience).all(|_| alone()) {
            // Nobody came. Giving the ticket back fails if somebody comes just now.
            let back =
                self.0.compare_exchange(ticket + 1, ticket, Ordering::AcqRel, Ordering::Acquire);
            if back.is_ok() {
                return None;
            }
        }
        mmu::invalidate();
        Some(meeting)
    }
}

/// Writes TCR_EL1 back as it is.
fn forget_translations() {
    // SAFETY: the register keeps its value.
    unsafe {
        asm!("mrs {t}, tcr_el1", "msr tcr_el1, {t}", "isb", t = out(reg) _, options(nostack))
    };
}
