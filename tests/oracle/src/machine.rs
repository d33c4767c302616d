//! A machine for crate `stage2` whose every step the model judges.
//!
//! [`OracleMachine`] has table pages in host memory and implements the crate's two traits, so the real
//! code runs on it unchanged. Each atomic access, barrier and invalidation becomes an [`Event`]; the
//! access and its event happen under one lock, so the trace is in the order in which things took
//! effect. Which PE executes is a property of the thread: see [`OracleMachine::on_pe`].

use std::cell::Cell;
use std::sync::{Mutex, MutexGuard, PoisonError};

use stage2::arch::Dsb as ArchDsb;
use stage2::slot::native;
use stage2::tlbi::Tlbi;
use stage2::{Arch, Memory, PAGE_SIZE, Pa, Slot, Table};

use crate::event::{Aim, Dsb, Event, Pe, Scope};
use crate::model::{Machine, Model};
use crate::verdict::Verdict;

thread_local! {
    static PE: Cell<Pe> = const { Cell::new(0) };
}

/// Physical address of the first table page: anything but 0, which VTTBR_EL2 reads as "no root".
const BASE: u64 = 0x10_0000;

struct State {
    model: Model,
    trace: Vec<Event>,
    vttbr: Vec<u64>,
    next: usize,
    free: Vec<Pa>,
    /// Allocations that still succeed.
    budget: usize,
}

/// The machine.
pub struct OracleMachine {
    arena: Box<[Table]>,
    state: Mutex<State>,
}

impl core::fmt::Debug for OracleMachine {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("OracleMachine").field("pages", &self.arena.len()).finish_non_exhaustive()
    }
}

impl OracleMachine {
    /// A machine with `pages` pages for tables.
    #[must_use]
    pub fn new(machine: Machine, pages: usize) -> Self {
        Self {
            arena: (0..pages).map(|_| Table::empty()).collect(),
            state: Mutex::new(State {
                model: Model::new(machine),
                trace: Vec::new(),
                vttbr: vec![0; machine.pes],
                next: 0,
                free: Vec::new(),
                budget: usize::MAX,
            }),
        }
    }

    /// Runs `work` as PE `pe`.
    pub fn on_pe<T>(&self, pe: Pe, work: impl FnOnce() -> T) -> T {
        let before = PE.replace(pe);
        let result = work();
        PE.set(before);
        result
    }

    /// Lets `count` more allocations succeed.
    pub fn limit_allocations(&self, count: usize) {
        self.state().budget = count;
    }

    /// Adds an event of the executing PE that no trait method stands for.
    pub fn note(&self, event: impl FnOnce(Pe) -> Event) {
        self.state().apply(event(PE.get()));
    }

    /// What was wrong so far.
    #[must_use]
    pub fn verdicts(&self) -> Vec<Verdict> {
        self.state().model.verdicts().to_vec()
    }

    /// What happened so far.
    #[must_use]
    pub fn trace(&self) -> Vec<Event> {
        self.state().trace.clone()
    }

    /// The table page at `pa`: [`Memory::table`] without a borrow of a temporary.
    ///
    /// # Safety
    /// 1. As of [`Memory::table`].
    #[must_use]
    pub unsafe fn table_at(&self, pa: Pa) -> &Table {
        self.page(pa)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The address that a slot of the arena stands for.
    fn address(&self, slot: &Slot) -> u64 {
        let offset = core::ptr::from_ref(slot) as usize - self.arena.as_ptr() as usize;
        BASE + offset as u64
    }

    fn page(&self, pa: Pa) -> &Table {
        &self.arena[((pa.get() - BASE) / PAGE_SIZE) as usize]
    }

    fn write(&self, slot: &Slot, atomic: bool, work: impl FnOnce() -> u64) -> u64 {
        let mut state = self.state();
        let old = work();
        let event = Event::Write {
            pe: PE.get(),
            slot: self.address(slot),
            new: native::load(slot),
            atomic,
            relaxed: false,
        };
        state.apply(event);
        old
    }
}

impl State {
    fn apply(&mut self, event: Event) {
        self.model.apply(&event);
        self.trace.push(event);
    }
}

// SAFETY: (1) each page is Empty and in one pair of hands: new, or given back and cleared. (2) The
// arena does not move. (3) A page given back is reused by a later call only.
unsafe impl Memory for &OracleMachine {
    fn alloc_table(&self, pages: usize) -> Option<Pa> {
        let mut state = self.state();
        state.budget = state.budget.checked_sub(1)?;
        let pa = match state.free.pop().filter(|_| pages == 1) {
            Some(pa) => pa,
            None => {
                let start = state.next.next_multiple_of(pages);
                if start + pages > self.arena.len() {
                    return None;
                }
                state.next = start + pages;
                Pa::new(BASE + start as u64 * PAGE_SIZE)
            }
        };
        for page in 0..pages as u64 {
            let table = pa.get() + page * PAGE_SIZE;
            state.apply(Event::AllocTable { pe: PE.get(), table });
        }
        Some(pa)
    }

    unsafe fn free_table(&self, pa: Pa, pages: usize) {
        let mut state = self.state();
        for page in 0..pages as u64 {
            let table = pa.get() + page * PAGE_SIZE;
            state.apply(Event::FreeTable { pe: PE.get(), table });
            let dirty =
                self.page(Pa::new(table)).slots().iter().any(|slot| native::load(slot) != 0);
            assert!(!dirty, "clause 3 of free_table: every slot is zero");
            state.free.push(Pa::new(table));
        }
    }

    unsafe fn table(&self, pa: Pa) -> &Table {
        self.page(pa)
    }
}

// SAFETY: the atomics are the host's; maintenance is an event for the model.
unsafe impl Arch for &OracleMachine {
    fn load(&self, slot: &Slot) -> u64 {
        native::load(slot)
    }

    unsafe fn store(&self, slot: &Slot, bits: u64) {
        self.write(slot, false, || {
            // SAFETY: the caller's clauses.
            unsafe { native::store(slot, bits) };
            bits
        });
    }

    unsafe fn swap(&self, slot: &Slot, bits: u64) -> u64 {
        // SAFETY: the caller's clauses.
        self.write(slot, true, || unsafe { native::swap(slot, bits) })
    }

    unsafe fn compare_exchange(&self, slot: &Slot, old: u64, new: u64) -> Option<Result<u64, u64>> {
        let mut state = self.state();
        // SAFETY: the caller's clause.
        let result = unsafe { native::compare_exchange(slot, old, new) };
        if result.is_ok() {
            let slot = self.address(slot);
            state.apply(Event::Write { pe: PE.get(), slot, new, atomic: true, relaxed: false });
        }
        Some(result)
    }

    fn dsb(&self, kind: ArchDsb) {
        let kind = match kind {
            ArchDsb::IshSt => Dsb::IshSt,
            ArchDsb::Ish => Dsb::Ish,
            ArchDsb::Nsh => Dsb::Nsh,
        };
        self.note(|pe| Event::Dsb { pe, kind });
    }

    fn isb(&self) {
        self.note(|pe| Event::Isb { pe });
    }

    fn tlbi(&self, op: Tlbi) {
        let (scope, aim) = match op {
            Tlbi::Ipas2e1Is(operand) => (Scope::Is, Aim::Ipa(operand.bits())),
            Tlbi::Ripas2e1Is(operand) => (Scope::Is, Aim::IpaRange(operand.bits())),
            Tlbi::Ipas2e1(operand) => (Scope::Local, Aim::Ipa(operand.bits())),
            Tlbi::Vmalle1Is => (Scope::Is, Aim::VmStage1),
            Tlbi::Vmalle1 => (Scope::Local, Aim::VmStage1),
            Tlbi::Vmalls12e1Is => (Scope::Is, Aim::Vm),
            Tlbi::Alle1Is => (Scope::Is, Aim::All),
        };
        self.note(|pe| Event::Tlbi { pe, scope, aim });
    }

    fn vttbr(&self) -> u64 {
        self.state().vttbr[PE.get()]
    }

    unsafe fn set_vttbr(&self, value: u64) {
        let mut state = self.state();
        state.vttbr[PE.get()] = value;
        state.apply(Event::SetVttbr { pe: PE.get(), value });
    }
}
