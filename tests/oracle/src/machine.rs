//! A machine for crate `stage2` whose every step the model judges.
//!
//! [`OracleMachine`] has table pages in host memory and implements the crate's two traits, so the real
//! code runs on it unchanged. Each atomic access, barrier and invalidation becomes an [`Event`], and
//! the trace is in the order in which the accesses took effect: see `machine/order.rs` for how,
//! on real threads and under two model checkers. Which PE executes is a property of the thread: see
//! [`OracleMachine::on_pe`].
//!
//! Failures are made to order: [`OracleMachine::limit_allocations`] for memory that runs out,
//! [`OracleMachine::race_at`] for a compare-exchange that loses.

mod order;
mod traits;

use std::sync::PoisonError;

use order::{Guard, Mutex};
use stage2::slot::native;
use stage2::{PAGE_SIZE, Pa, Slot, Table, TableMeta};

#[cfg(not(loom))]
use crate::descriptor;
use crate::event::{Aim, Dsb, Event, Pe, Scope};
use crate::model::{Machine, Model};
use crate::verdict::Verdict;

/// Physical address of the first table page: anything but 0, which VTTBR_EL2 reads as "no root".
const BASE: u64 = 0x10_0000;

struct State {
    model: Model,
    vttbr: Vec<u64>,
    next: usize,
    free: Vec<Pa>,
    /// Allocations that still succeed.
    budget: usize,
    #[cfg(not(loom))]
    /// Stores of guests that were made, and whose record in a descriptor is on its way.
    owed: Vec<(Pe, u64)>,
}

/// Another PE's work, to run at a given moment.
struct Race {
    /// Atomic accesses that compare, set or clear until then, this one included.
    left: usize,
    work: Box<dyn FnOnce() + Send>,
}

/// The machine.
pub struct OracleMachine {
    arena: Box<[Table]>,
    metas: Box<[TableMeta]>,
    state: Mutex<State>,
    /// Of the standard library in every build: it is never held while anything else is called.
    race: std::sync::Mutex<Option<Race>>,
}

impl core::fmt::Debug for OracleMachine {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("OracleMachine").field("pages", &self.arena.len()).finish_non_exhaustive()
    }
}

impl OracleMachine {
    /// A machine with `pages` pages for tables. Under loom and shuttle: to be made inside the model.
    #[must_use]
    pub fn new(machine: Machine, pages: usize) -> Self {
        Self {
            arena: (0..pages).map(|_| Table::empty()).collect(),
            metas: (0..pages).map(|_| TableMeta::new()).collect(),
            state: Mutex::new(State {
                model: Model::new(machine),
                vttbr: vec![0; machine.pes],
                next: 0,
                free: Vec::new(),
                budget: usize::MAX,
                #[cfg(not(loom))]
                owed: Vec::new(),
            }),
            race: std::sync::Mutex::new(None),
        }
    }

    /// Runs `work` as PE `pe`.
    pub fn on_pe<T>(&self, pe: Pe, work: impl FnOnce() -> T) -> T {
        struct Restore(Pe);
        impl Drop for Restore {
            fn drop(&mut self) {
                order::become_pe(self.0);
            }
        }
        let _before = Restore(order::become_pe(pe));
        work()
    }

    /// Lets `count` more allocations succeed.
    pub fn limit_allocations(&self, count: usize) {
        self.state().budget = count;
    }

    /// Runs `work`; before the `n`th compare-exchange that it comes to, counted from 1, runs `race`: what
    /// a competing PE does just there. Returns what `work` returned, and whether it came that far.
    ///
    /// To try every place, count `n` up until it did not. Accesses of `race` itself are not counted.
    ///
    /// # Panics
    /// If `n` is 0, or inside the `work` of another `race_at` of this machine.
    pub fn race_at<T>(
        &self,
        n: usize,
        race: impl FnOnce() + Send,
        work: impl FnOnce() -> T,
    ) -> (T, bool) {
        struct Disarm<'m>(&'m OracleMachine);
        impl Drop for Disarm<'_> {
            fn drop(&mut self) {
                drop(self.0.take_race(|_| true));
            }
        }
        assert_ne!(n, 0, "compare-exchanges are counted from 1");
        let race: Box<dyn FnOnce() + Send + '_> = Box::new(race);
        // SAFETY: (1) only the lifetime changes. (2) The closure is called or dropped before this
        // function returns, or unwinds, by `disarm` at the latest.
        let race: Box<dyn FnOnce() + Send> = unsafe { core::mem::transmute(race) };
        let armed = Race { left: n, work: race };
        let before = self.race().replace(armed);
        let disarm = Disarm(self);
        assert!(before.is_none(), "one race at a time");
        let result = work();
        let ran = self.race().is_none();
        drop(disarm);
        (result, ran)
    }

    /// Adds an event of the executing PE that no trait method stands for.
    pub fn note(&self, event: impl FnOnce(Pe) -> Event) {
        let event = event(order::pe());
        self.state().model.apply(&event);
    }

    /// What was wrong so far.
    #[must_use]
    pub fn verdicts(&self) -> Vec<Verdict> {
        self.state().model.verdicts().to_vec()
    }

    /// The run is over: what is still open, a lock or a transaction, is a defect.
    pub fn finish(&self) {
        self.state().model.finish();
    }

    /// What happened so far.
    #[must_use]
    pub fn trace(&self) -> Vec<Event> {
        self.state().model.trace().to_vec()
    }

    /// The machine that is modelled.
    #[must_use]
    pub fn setup(&self) -> Machine {
        self.state().model.machine()
    }

    /// Runs `look` on the model as it is now. It must not use the machine, nor, under loom, loom.
    pub fn with_model<T>(&self, look: impl FnOnce(&Model) -> T) -> T {
        look(&self.state().model)
    }

    /// The metadata of the table page at `pa`: [`Memory::meta`](stage2::Memory::meta) without a
    /// borrow of a temporary.
    ///
    /// # Safety
    /// 1. As of [`Memory::table`](stage2::Memory::table).
    #[must_use]
    pub unsafe fn meta_at(&self, pa: Pa) -> &TableMeta {
        &self.metas[((pa.get() - BASE) / PAGE_SIZE) as usize]
    }

    /// The table page at `pa`: [`stage2::Memory::table`] without a borrow of a temporary.
    ///
    /// # Safety
    /// 1. As of [`stage2::Memory::table`].
    #[must_use]
    pub unsafe fn table_at(&self, pa: Pa) -> &Table {
        self.page(pa)
    }

    fn state(&self) -> Guard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn race(&self) -> std::sync::MutexGuard<'_, Option<Race>> {
        self.race.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the race out if `due` says so.
    fn take_race(&self, due: impl FnOnce(&mut Race) -> bool) -> Option<Race> {
        let mut race = self.race();
        if race.as_mut().is_some_and(due) { race.take() } else { None }
    }

    /// Runs the race if it is due before this atomic access.
    fn before_exchange(&self) {
        let due = |race: &mut Race| {
            race.left -= 1;
            race.left == 0
        };
        if let Some(race) = self.take_race(due) {
            (race.work)();
        }
    }

    /// An access and what is recorded of it, at one place of the trace: see `order.rs`.
    fn access<T>(
        &self,
        slot: &Slot,
        work: impl FnOnce() -> T,
        record: impl FnOnce(&T, u64, &mut Model),
    ) -> T {
        let address = self.address(slot);
        #[cfg(not(loom))]
        let mut state = {
            let mut state = self.state();
            // Whatever software does to the descriptor comes before or after a hardware update of it.
            self.make_records(&mut state, |_, owed| owed == address);
            state
        };
        let result = work();
        #[cfg(loom)]
        let mut state = self.state();
        record(&result, address, &mut state.model);
        result
    }

    /// A hardware update: `new` for `old`, if that is what the descriptor holds. With `stored`, it is
    /// the record of a guest's store, which is performed if and only if the update is.
    pub(crate) fn hardware_exchange(
        &self,
        pe: Pe,
        address: u64,
        old: u64,
        new: u64,
        stored: bool,
    ) -> Result<u64, u64> {
        let slot = self.slot_at(address);
        // SAFETY: (1) what hardware may do to a live descriptor: it sets the access flag or S2AP[1].
        let exchange = || unsafe { native::compare_exchange(slot, old, new) };
        self.access(slot, exchange, |result, slot, model| {
            if result.is_ok() {
                if stored {
                    model.apply(&Event::GuestStore { pe, slot });
                }
                model.apply(&Event::HwUpdate { pe, slot, new, inferred: false });
            }
        })
    }

    /// A store was made, and its record is on its way: see [`Walk::store_first`](crate::walker::Walk).
    #[cfg(not(loom))]
    pub(crate) fn owe_record(&self, pe: Pe, slot: u64) {
        let mut state = self.state();
        state.model.apply(&Event::GuestStore { pe, slot });
        state.owed.push((pe, slot));
    }

    /// An invalidation of the executing PE. What it completes includes the records of all stores that used what is
    /// invalidated: this machine makes all of them before it begins. Between it and its DSB would be possible, too.
    fn invalidate(&self, scope: Scope, aim: Aim) {
        let mut state = self.state();
        #[cfg(not(loom))]
        if scope == Scope::Is {
            self.make_records(&mut state, |_, _| true);
        }
        state.model.apply(&Event::Tlbi { pe: order::pe(), scope, aim });
    }

    /// A barrier of the executing PE. One that waits for loads and stores waits for the records of
    /// the PE's own stores, too \[RMKHJS\].
    fn barrier(&self, kind: Dsb) {
        let pe = order::pe();
        let mut state = self.state();
        #[cfg(not(loom))]
        if kind == Dsb::Ish {
            self.make_records(&mut state, |by, _| by == pe);
        }
        state.model.apply(&Event::Dsb { pe, kind });
    }

    /// Hardware makes the records that it owes and `which` names.
    #[cfg(not(loom))]
    fn make_records(&self, state: &mut State, which: impl Fn(Pe, u64) -> bool) {
        let (due, later): (Vec<_>, Vec<_>) =
            state.owed.drain(..).partition(|(pe, slot)| which(*pe, *slot));
        state.owed = later;
        for (pe, address) in due {
            let slot = self.slot_at(address);
            let old = native::load(slot);
            let new = old | descriptor::RECORD;
            if old != new {
                // SAFETY: (1) as of `hardware_exchange`; the lock is held, so nobody came between.
                let made = unsafe { native::compare_exchange(slot, old, new) };
                assert_eq!(made, Ok(old), "every write of this machine is under the lock");
                state.model.apply(&Event::HwUpdate { pe, slot: address, new, inferred: false });
            }
        }
    }

    /// The slot at a physical address, for hardware to walk.
    pub(crate) fn slot_at(&self, address: u64) -> &Slot {
        let page = address & !(PAGE_SIZE - 1);
        self.page(Pa::new(page)).slot(((address - page) / 8) as usize)
    }

    /// The newest VTTBR_EL2 of a PE.
    pub(crate) fn vttbr_of(&self, pe: Pe) -> u64 {
        self.state().vttbr[pe]
    }

    /// The physical address that a slot of the arena stands for. Under the model checkers a slot is
    /// larger than a descriptor and a table has fewer of them: counted, not measured.
    fn address(&self, slot: &Slot) -> u64 {
        let offset = core::ptr::from_ref(slot) as usize - self.arena.as_ptr() as usize;
        let (page, inside) = (offset / size_of::<Table>(), offset % size_of::<Table>());
        BASE + page as u64 * PAGE_SIZE + (inside / size_of::<Slot>()) as u64 * 8
    }

    fn page(&self, pa: Pa) -> &Table {
        &self.arena[((pa.get() - BASE) / PAGE_SIZE) as usize]
    }
}
