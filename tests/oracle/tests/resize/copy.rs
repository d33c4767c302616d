//! Copy-collapses on the same machine. A page whose bytes are copied counts as freed from that moment on: whoever can
//! still reach it could write what nobody will read.

use stage2::space::{Blocks, CopyCollapse, CopyObstacle, Notes, Release};
use stage2::{Flushed, Former, Memory};

use super::*;

/// Where fresh blocks come from.
const FRESH: u64 = 0xc000_0000;

/// Copies no bytes, but tells the machine when it would.
struct Fresh<'m> {
    machine: &'m OracleMachine,
    shaken: Option<Shaken<'m>>,
    next: u64,
    copied: Vec<u64>,
    released: Vec<u64>,
    told: Vec<CopyCollapse>,
}

impl<'m> Fresh<'m> {
    fn new(machine: &'m OracleMachine) -> Self {
        let (copied, released, told) = (vec![], vec![], vec![]);
        Self { machine, shaken: None, next: FRESH, copied, released, told }
    }

    fn free(&self, frame: u64, bytes: u64) {
        self.machine.note(|pe| Event::FreeFrame { pe, frame, bytes });
    }
}

impl Release for Fresh<'_> {
    fn frame(&mut self, _: Ipa, former: &Former, _: &Flushed) {
        self.released.push(former.pa().get());
    }
}

// SAFETY: (1, 2) no guest runs: nothing is ever reached through these tables.
unsafe impl Blocks for Fresh<'_> {
    fn take(&mut self) -> Option<Pa> {
        self.next += MIB2;
        Some(Pa::new(self.next))
    }

    fn give_back(&mut self, block: Pa) {
        self.free(block.get(), MIB2);
    }

    fn copy(&mut self, _: Ipa, from: Pa, _: Pa) {
        self.free(from.get(), 0x1000);
        if self.copied.len().is_multiple_of(64)
            && let Some(shaken) = self.shaken
        {
            // Hardware has its chance while bytes are copied, too.
            let _ = shaken.machine();
        }
        self.copied.push(from.get());
    }

    fn fill(&mut self, _: Ipa, _: Pa) {}

    fn finish(&mut self, _: Ipa, block: Pa) {
        // Nobody knows it before it is complete.
        self.free(block.get(), MIB2);
    }

    fn heard(&mut self, _: Ipa, what: CopyCollapse) {
        self.machine.note(|pe| Event::Published { pe });
        self.told.push(what);
    }
}

fn copy<A: Arch>(
    space: &Space<'_, &OracleMachine, A>,
    cpu: &Cpu<'_>,
    at: IpaRange,
    holes: usize,
    fresh: &mut Fresh<'_>,
) {
    let mut claim = space.claim(at).unwrap();
    let all = Batch::all_of(&claim);
    let done = space.copy_collapse(cpu, &mut claim, all, holes, fresh, || {});
    assert_eq!(done, Ok(Progress::Done));
}

/// To pages, some of which go; to fresh blocks; and the same again.
fn there_and_back(space: &ShakenSpace<'_>, cpu: &Cpu<'_>) {
    let mut fresh = Fresh { shaken: Some(*space.arch()), ..Fresh::new(space.memory()) };
    for _ in 0..2 {
        let all = range(BASE, 2 * MIB2);
        split(space, cpu, all);
        for at in [BASE + 0x3000, BASE + MIB2 + 0x1f_f000] {
            let mut claim = space.claim(range(at, 0x1000)).unwrap();
            let batch = Batch::all_of(&claim);
            let done = space.unmap(cpu, &mut claim, batch, Notes::Keep, || {}, &mut fresh);
            assert_eq!(done, Ok(Progress::Done));
        }
        fresh.released.clear();
        copy(space, cpu, all, 1, &mut fresh);
        assert_eq!(fresh.told, [CopyCollapse::Made { filled: 1 }; 2]);
        assert_eq!(fresh.released, fresh.copied, "what was copied is given back, and nothing else");
        (fresh.told, fresh.copied) = (vec![], vec![]);
    }
}

#[test]
fn pages_move_under_hardware_updates_and_no_write_is_lost() {
    let all = sound_and_complete(there_and_back);
    println!("{all:?}");
    assert!(all.done > 200 && all.again > 10 && all.by_held > 100, "{all:?}");
}

/// Each step of its flush is needed: without it some defect shows.
#[test]
fn each_step_of_a_copy_is_needed() {
    let run = run(1, Caps::TTL, |space, cpu| {
        split(space, cpu, range(BASE, MIB2));
        space.memory().note(|pe| Event::Published { pe });
        copy(space, cpu, range(BASE, MIB2), 0, &mut Fresh::new(space.memory()));
    });
    let trace = run.machine.trace();
    // The second flush is that of the copy, the last DSB that after the block was made.
    let copied = trace.iter().position(|event| matches!(event, Event::Published { .. })).unwrap();
    let (mut model, mut needed) = (Model::new(run.machine.setup()), 0);
    for (at, event) in trace.iter().enumerate() {
        let step = matches!(event, Event::Tlbi { pe: 0, .. } | Event::Dsb { pe: 0, .. });
        if step && at > copied {
            let mut without = model.clone();
            let shows = |event| {
                without.apply(event);
                !without.verdicts().is_empty()
            };
            assert!(trace[at + 1..].iter().any(shows), "event {at} is not needed: {event:?}");
            needed += 1;
        }
        model.apply(event);
    }
    assert!(needed >= 6, "{needed}");
}

/// A fault handler that found the table before fills a hole with memory that is not the VM's, after the break:
/// the table is linked again before anybody hears of it.
#[test]
fn a_copy_that_fails_after_the_break_links_the_table_again() {
    let machine = OracleMachine::new(Machine { pes: 3, ..Machine::default() }, 16);
    let features =
        Features { caps: Caps::GRANULE_4K, bbm: Bbm::Level0, pa_bits: 40, errata: Errata::empty() };
    let geometry = Geometry::new(39, &features, HwUpdate::Off).unwrap();
    let epochs = Epochs::<3>::new();
    let vmids = vmids();
    let space = Space::new(geometry, &vmids, epochs.domain(), &machine, &machine).unwrap();
    let (cpu, other) = (epochs.join(0).unwrap(), epochs.join(1).unwrap());
    let attributes = Attributes::new(Prot::RWX, MemType::Normal);
    map(&space, &cpu, &Extent { attributes, ..extent() });
    split(&space, &cpu, range(BASE, MIB2));
    let mut fresh = Fresh::new(&machine);
    let hole = Ipa::new(BASE + 0x5000);
    let mut claim = space.claim(range(hole.get(), 0x1000)).unwrap();
    let batch = Batch::all_of(&claim);
    let done = space.unmap(&cpu, &mut claim, batch, Notes::Keep, || {}, &mut fresh);
    assert_eq!(done, Ok(Progress::Done));
    drop(claim);
    let scratch = stage2::Descriptor::leaf(
        Level::L3,
        Pa::new(0x9000_0000),
        &attributes,
        space.encoding(),
        Owner::Other,
    );
    let mut guard = Some(machine.on_pe(1, || other.enter()));
    let found = space.lookup_rw(guard.as_ref().unwrap(), hole).unwrap().parent().unwrap();
    // SAFETY: (1) linked under the guard.
    let table = unsafe { space.memory().table(found.as_table(Level::L2).unwrap()) };
    let relax = || {
        let Some(guard) = guard.take() else { return };
        machine.on_pe(1, || {
            let slot = table.slot(Level::L3.index(hole));
            // SAFETY: (1) found under this guard; (2) a test: nothing is ever reached through it.
            assert_eq!(unsafe { slot.try_set(&&machine, &guard, scratch.unwrap()) }, Ok(()));
            (&machine).dsb(Dsb::IshSt);
            drop(guard);
        });
    };
    let mut claim = space.claim(range(BASE, MIB2)).unwrap();
    let all = Batch::all_of(&claim);
    let done = space.copy_collapse(&cpu, &mut claim, all, 1, &mut fresh, relax);
    assert_eq!(done, Ok(Progress::Done));
    assert_eq!(fresh.told, [CopyCollapse::Stays(CopyObstacle::NotOwned { ipa: hole })]);
    let now = |ipa| space.translate(&cpu.enter(), Ipa::new(ipa)).unwrap();
    assert_eq!(now(hole.get()).pa, Pa::new(0x9000_0000));
    assert_eq!((now(BASE).pa, now(BASE).leaf.level()), (Pa::new(0x8000_0000), Level::L3));
    assert!(machine.verdicts().is_empty(), "{}", machine.verdicts()[0]);
}
