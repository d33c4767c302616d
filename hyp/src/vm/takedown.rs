//! Taking a VM down, and the proof that nothing of it is left.
//!
//! Three counts have to agree, each kept by another: what crate `stage2` finds in the tables when it ends
//! them, its account of what was put in and taken out, and what the frame pool and the heap have free,
//! compared with before the first life.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::ToString;

use hyp_abi::call::Stat;
use hyp_core::report::Takedown;
use spin::Once;
use stage2::space::Release;
use stage2::{Flushed, Former, Ipa, Tally};

use super::policy::Policy;
use super::stop::Reason;
use super::{Vm, moving, recovery};
use crate::event::{counters, trace};
use crate::lock::relax;
use crate::mem::{PAGE, frames, heap};
use crate::{cpu, window};

/// How much is free, with all stocks empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Footprint {
    frames: u64,
    heap: usize,
}

/// Before the first life: after each, it has to be the same.
static BEFORE: Once<Footprint> = Once::new();

/// Notes what is free before the first life, on the boot CPU, while all stocks are empty.
pub(super) fn remember() {
    BEFORE.call_once(Footprint::now);
}

impl Footprint {
    fn now() -> Self {
        Self { frames: frames::free() / PAGE, heap: heap::used() }
    }
}

/// What installs of all CPUs have done so far: of memory, and how many scratch leaves.
pub(super) fn tally() -> (Tally, u64) {
    let sum = counters::sum;
    let memory = Tally {
        installed: sum(Stat::Installed),
        lost_races: sum(Stat::LostRaces),
        tables: sum(Stat::Tables),
        lost_tables: sum(Stat::LostTables),
    };
    (memory, sum(Stat::Scratched))
}

/// Where the frames of a VM that ends go: to be [collected](frames::collect).
struct ToThePool(u64);

impl Release for ToThePool {
    fn frame(&mut self, _ipa: Ipa, former: &Former, _flushed: &Flushed) {
        let (frame, bytes) = (former.pa().get(), former.level().slot_bytes());
        trace::frame_given_back(frame, bytes);
        let count = bytes / PAGE;
        // SAFETY: (1) RAM is mapped by pages and blocks from the pool; (2) it was flushed, and nobody maps it.
        unsafe { frames::set_aside(frame, count as usize) };
        self.0 += count;
    }
}

/// Ends a VM that no CPU runs any more.
///
/// # Safety
/// 1. Every CPU has left it, the executing one included: no VTTBR_EL2 holds its value.
pub(super) unsafe fn take_down(
    vm: Vm,
    guards: &stage2::epoch::Cpu<'static>,
    reason: &Reason,
) -> Takedown {
    let Vm { space, scratch, policy, since, scan, shadow, churning, logging, .. } = vm;
    // On the heap, which is counted below, and in frames.
    drop((scan, shadow, churning));
    // SAFETY: (1) from a box; (2) no CPU has the VM, so none has its policy.
    let Policy { moving, limited, windows, .. } = unsafe { *Box::from_raw(policy.into_inner()) };
    drop((limited, windows));
    let mut pool = ToThePool(0);
    if let Some(moving) = moving {
        pool.0 += moving::abandon(moving, &space, guards);
    }
    let ((now, scratched), (since, before)) = (tally(), since);
    space.credit_scratch(scratched - before);
    space.credit(&Tally {
        installed: now.installed - since.installed,
        lost_races: now.lost_races - since.lost_races,
        tables: now.tables - since.tables,
        lost_tables: now.lost_tables - since.lost_tables,
    });
    // SAFETY: (1) the caller's clause.
    unsafe { window::unhook(&space) };
    // SAFETY: (1) the caller's clause; (2) nobody but `window::hook` hooks it.
    let end = unsafe { space.destroy(guards, relax, &mut pool) };
    frames::collect();
    let mut down = Takedown { frames: pool.0, ..Takedown::default() };
    match end {
        Ok(account) => {
            // SAFETY: (1) no table shows it: they are gone. No CPU has the VM, by the caller's clause.
            unsafe { recovery::give_back(&scratch) };
            down.tables = account.tables_freed;
            if (account.tables_now(), account.leaves_now()) != (0, 0) {
                down.wrong = Some(format!("the account does not balance: {account}"));
            }
        }
        Err(error) => down.wrong = Some(error.why.to_string()),
    }
    if let Some(logging) = logging.into_inner() {
        // SAFETY: (1) the space is gone, or nobody will do anything with it any more.
        unsafe { logging.free() };
    }
    // Tables went to this CPU's stock.
    cpu::current().stock.empty();
    let Some(before) = BEFORE.get() else { return down };
    let after = Footprint::now();
    down.leaked_frames = before.frames.abs_diff(after.frames);
    // A diagnosis is on the heap until it is told, measurements until the end.
    if !matches!(reason, Reason::Diagnosis(_)) && !cfg!(feature = "measure") {
        down.leaked_heap = before.heap.abs_diff(after.heap) as u64;
    }
    down
}
