//! The interpreter: runs a program on the real code, beside the reference, with the oracle underneath.
//!
//! ```text
//!             ┌─ stage2 ──▶ OracleMachine ──▶ verdicts: none
//!  operation ─┤                 tables  ──▶ an independent walk ─┐
//!             └─ Reference ───────────────────────────────────── = ──▶ both say the same
//! ```
//!
//! After each operation: what it answered is what the reference expects, and there is no verdict. After the
//! program: what was begun is finished, the tables say what the reference says at every slot, every table page and
//! every frame is where it should be. Then every VM is taken down, and nothing is left.

mod begin;
mod compare;
mod fill;
mod guests;
mod install;
mod leaves;
mod ranges;
mod refused;
mod resize;
mod slots;
mod take;

use std::collections::BTreeMap;
use std::sync::Arc;

use guests::Flight;
use mmu_oracle::{Machine, OracleMachine};
use stage2::slot::Drained;
use stage2::vmid::Vmids;
use stage2::{Epochs, Level, Space, Vmid};

use crate::format;
use crate::memory::{Count, Store};
use crate::program::{Fault, Op, PES, Program, Size, Who};
use crate::reference::{Leaf, Reference};
use crate::walk::Tables;

/// Table pages of the machine: enough for any program, so that only made failures happen.
const PAGES: usize = 320;
/// Tables that a program gives back at the most: each costs a thousand events.
const UNLINKS: usize = 2;
/// What stands in the slots of a table that goes away: Dead.
const DEAD: u64 = 0b0110;

type VmSpace<'m> = Space<'m, &'m Store<'m>, &'m OracleMachine>;

/// What a run came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Allocations of tables and frames.
    pub allocations: usize,
    /// Whether the race came to pass.
    pub raced: bool,
    /// Installs that mapped something, the other PE's included.
    pub installed: usize,
    /// Races that were lost, of frames and of tables.
    pub lost: usize,
    /// Access flags and dirty states that hardware set.
    pub recorded: usize,
    /// Tables that unmaps of ranges gave back.
    pub tables_back: usize,
    /// Blocks that were split and made again.
    pub resized: usize,
    /// Those of them that were made by copying.
    pub copied: usize,
    /// Wrong calls that were refused.
    pub refused: usize,
}

/// A slot in Drain that a PE owes a flush for.
struct Owed<'m> {
    pe: usize,
    start: u64,
    leaf: Leaf,
    /// Address of the slot.
    slot: u64,
    drained: Drained<'m>,
}

/// A slot that a PE made Busy.
struct Held {
    pe: usize,
    start: u64,
    level: usize,
    bits: u64,
}

/// A VM and what is expected of it.
struct Vm<'m> {
    space: Arc<VmSpace<'m>>,
    tables: Tables<'m>,
    reference: Reference,
    owed: Vec<Owed<'m>>,
    held: Vec<Held>,
}

/// The race of an operation: what the other PE does, before which compare-exchange.
#[derive(Clone, Copy)]
struct Rival {
    n: usize,
    size: Size,
}

/// What all PEs share.
#[derive(Clone, Copy)]
struct Ground<'m> {
    machine: &'m OracleMachine,
    store: &'m Store<'m>,
    epochs: &'m Epochs<PES>,
    vmids: &'m Vmids<PES>,
}

/// Everything.
struct World<'m> {
    setup: crate::program::Setup,
    ground: Ground<'m>,
    vms: BTreeMap<usize, Vm<'m>>,
    /// Which VM each PE runs.
    running: [Option<usize>; PES],
    /// Walks that are under way.
    flying: [Option<Flight<'m>>; PES],
    rival: Option<Rival>,
    unlinked: usize,
    report: Report,
}

/// Runs a program with one fault.
///
/// # Panics
/// On any finding.
pub fn run(program: &Program, fault: Fault) -> Report {
    let geometry = program.setup.geometry();
    let machine = OracleMachine::new(
        Machine {
            pes: PES,
            start_level: geometry.start() as u8,
            root_pages: geometry.root_tables() as u64,
            dead: Some(DEAD),
            bbm: program.setup.features().bbm as u8,
            hw_access: program.setup.hw_access(),
            hw_dirty: program.setup.hw_dirty(),
        },
        PAGES,
    );
    let fails = match fault {
        Fault::Allocation(number) => Some(usize::from(number)),
        _ => None,
    };
    let store = Store::new(&machine, fails);
    // As few as can be: VMs come and go, so generations end.
    let vmid = |number: usize| Vmid::new(number as u16, 8).expect("small and not zero");
    let (first, last) = (vmid(1), vmid(program.setup.vm_count()));
    let (epochs, vmids) = (Epochs::new(), Vmids::between(first, last));
    let mut world = World {
        setup: program.setup,
        ground: Ground { machine: &machine, store: &store, epochs: &epochs, vmids: &vmids },
        vms: BTreeMap::new(),
        running: [None; PES],
        flying: [None; PES],
        rival: None,
        unlinked: 0,
        report: Report::default(),
    };
    for vm in 0..program.setup.vm_count() {
        world.begin(vm % PES, vm);
    }
    (0..PES).for_each(|pe| world.enter(pe, Some(pe)));
    for (number, op) in program.ops.iter().enumerate() {
        world.rival = match fault {
            Fault::Race { op, n, size } if usize::from(op) == number => {
                Some(Rival { n: usize::from(n).max(1), size })
            }
            _ => None,
        };
        world.step(*op);
        world.no_verdict(&(number, op));
    }
    world.rival = None;
    world.settle();
    world.compare();
    world.end();
    let mut model = machine.with_model(Clone::clone);
    model.finish();
    assert!(model.verdicts().is_empty(), "at the end: {:?}", model.verdicts());
    let Count { tables, frames, asked, .. } = store.count();
    assert_eq!((tables, frames), (0, 0), "tables and frames that are left over");
    world.report.allocations = asked;
    world.report
}

/// What many runs of a program came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted {
    /// Runs.
    pub runs: usize,
    /// Races that the program lost.
    pub lost: usize,
}

/// Runs a program with nothing wrong, with each allocation failing, and with a race at each compare-exchange.
///
/// # Panics
/// On any finding.
pub fn exhaust(program: &Program) -> Exhausted {
    let plain = run(program, Fault::None);
    let (mut runs, mut lost) = (1, 0);
    for number in 0..plain.allocations as u16 {
        run(program, Fault::Allocation(number));
        runs += 1;
    }
    for (op, what) in (0..).zip(&program.ops) {
        // Giving back a table tries 512 slots; the last step is past them. A map tries each.
        let places: Vec<u16> = match what {
            Op::Unlink { .. } => vec![1, 2, 3, 512],
            Op::UnmapRange { .. } => vec![1, 2, 511, 512, 513],
            Op::MapRange { .. } | Op::AnnotateRange { .. } => vec![1, 2, 3, 40],
            _ => (1..).take(512).collect(),
        };
        for n in places {
            let size = [Size::Page, Size::Block2M, Size::Block1G][usize::from(op + n) % 3];
            let report = run(program, Fault::Race { op, n, size });
            runs += 1;
            lost += report.lost;
            if !report.raced {
                break;
            }
        }
    }
    Exhausted { runs, lost }
}

impl<'m> World<'m> {
    fn step(&mut self, op: Op) {
        match op {
            Op::Install { who, at, size, kind } => self.install(who, at, size, kind),
            Op::Lookup { who, at } => self.lookup(who, at),
            Op::Clear { who, at } => self.clear(who, at),
            Op::Finish { who, hint } => self.finish(who, hint),
            Op::Unmap { who, at, pages, hint } => self.unmap(who, at, pages, hint),
            Op::Replace { who, at, kind, hint } => self.replace(who, at, kind, hint),
            Op::Relax { who, at, hint } => self.relax(who, at, hint),
            Op::Flush { who, at, what } => self.flush(who, at, what),
            Op::Run { who } => self.enter(who.pe(), Some(usize::from(who.vm))),
            Op::Leave { pe } => self.enter(usize::from(pe) % PES, None),
            Op::Access { pe, at, touch } => self.access(usize::from(pe) % PES, at, touch),
            Op::TakeOff { pe, at, touch } => self.take_off(usize::from(pe) % PES, at, touch),
            Op::Land { pe } => self.land(usize::from(pe) % PES),
            Op::Unlink { who, at, level } => self.unlink(who, at, usize::from(level % 3)),
            Op::Hold { who, at, level } => self.hold(who, at, usize::from(level % 4)),
            Op::Thaw { who } => self.thaw(who),
            Op::Annotate { who, at, payload } => self.annotate(who, at, payload),
            Op::Forget { who, at } => self.forget(who, at),
            Op::Rebuild { who } => self.rebuild(who),
            Op::MapRange { who, at, reach, pace, kind, backing } => {
                if let Some(range) = self.range(who, at, reach, pace) {
                    self.map_range(range, kind, backing);
                }
            }
            Op::UnmapRange { who, at, reach, pace, remove } => {
                if let Some(range) = self.range(who, at, reach, pace) {
                    self.unmap_range(range, remove);
                }
            }
            Op::AnnotateRange { who, at, reach, pace, payload } => {
                if let Some(range) = self.range(who, at, reach, pace) {
                    self.annotate_range(range, payload);
                }
            }
            Op::DeannotateRange { who, at, reach, pace } => {
                if let Some(range) = self.range(who, at, reach, pace) {
                    self.deannotate_range(range);
                }
            }
            Op::Resize { who, at, pace } => self.resize(who, at, pace),
            Op::Refused { who, at, reach, wrong } => self.refused(who, at, reach, wrong),
        }
    }

    fn no_verdict(&self, when: &dyn core::fmt::Debug) {
        let verdicts = self.ground.machine.verdicts();
        if let Some(first) = verdicts.first() {
            panic!("after {when:?}: {first}\n{verdicts:#?}");
        }
    }

    /// The number of the VM that an operation is about, if it could be created.
    fn vm(&self, who: Who) -> Option<usize> {
        let vm = usize::from(who.vm) % self.setup.vm_count();
        self.vms.contains_key(&vm).then_some(vm)
    }

    fn ipa(&self, at: crate::program::Place) -> u64 {
        at.ipa(self.setup.ipa_bits()).get()
    }

    fn start_level(&self) -> usize {
        self.setup.geometry().start() as usize
    }

    fn encoding(&self) -> format::Machine {
        let features = self.setup.features();
        format::Machine {
            fwb: features.has(stage2::Caps::FWB),
            xnx: features.has(stage2::Caps::XNX),
        }
    }

    /// The PE leaves its guest and enters another.
    fn enter(&mut self, pe: usize, vm: Option<usize>) {
        let vm = vm.map(|vm| vm % self.setup.vm_count()).filter(|vm| self.vms.contains_key(vm));
        let Ground { machine, vmids, .. } = self.ground;
        machine.on_pe(pe, || {
            let mut cpu = vmids.join(pe).expect("one thread runs these programs");
            let Some(vm) = vm else { return cpu.leave(&machine) };
            // SAFETY: (1, 2) the guest of a PE is who was entered last.
            let running = unsafe { self.vms[&vm].space.enter(&mut cpu, pe as u16) };
            core::mem::forget(running.expect("as many VMIDs as VMs"));
        });
        self.running[pe] = vm;
        self.flying[pe] = None;
    }
}

/// The level as `stage2` has it.
fn level(number: usize) -> Level {
    [Level::L0, Level::L1, Level::L2, Level::L3][number]
}
