//! What takes pages away or moves them takes them from EL2 first, and nothing else.

use mmu_oracle::{Event, OracleMachine};
use stage2::space::{
    Batch, Blocks, CopyCollapse, Engine, Progress, Release, Replaced, Replacements,
};
use stage2::window::Recovered;
use stage2::{
    Attributes, Caps, Flushed, Former, Ipa, Level, MemType, Owner, PAGE_SIZE, Pa, Prot, Tally,
};

use crate::rig::*;

/// As many slots as are gathered for one flush of EL2's, one fewer, one more, and several times that.
#[test]
fn an_unmap_takes_the_pages_from_el2_before_they_are_released() {
    for (caps, pages) in
        CAPS.into_iter().flat_map(|caps| [1, 2, 31, 32, 33, 100].map(|n| (caps, n)))
    {
        let rig = Rig::new(caps);
        let vm = rig.vm();
        let at = range(BASE + MIB2 - 0x4000, pages * PAGE_SIZE);
        map(&rig, &vm, at, &ram(Level::L3));
        let touched = |n: u64| BASE + MIB2 - 0x4000 + n * PAGE_SIZE;
        (0..pages).for_each(|n| assert_eq!(rig.touch(&vm, 1, touched(n), true), Recovered::Mapped));
        assert_eq!(unmap(&rig, &vm, at) as u64, pages);
        rig.assert_sound(&(caps, pages));
        for n in 0..pages {
            let (_, bits) = rig.el2_walk(WINDOW + touched(n)).unwrap();
            let at = touched(n);
            assert_eq!(bits, 0, "{at:#x}: what is released can be filled again");
            assert_eq!(rig.touch(&vm, 0, touched(n), true), Recovered::Fill);
        }
        // Other memory at the same addresses, which EL2 reaches at once.
        let elsewhere = range(BASE + 2 * MIB2, pages * PAGE_SIZE);
        map(&rig, &vm, elsewhere, &ram(Level::L3));
        assert_eq!(rig.touch(&vm, 1, BASE + 2 * MIB2, true), Recovered::Mapped);
        rig.assert_sound(&(caps, pages));
        rig.assert_agrees(&vm);
        assert_eq!(rig.el2_tlbis() as u64, pages, "one for each page that EL2 had");
    }
}

/// Blocks, whole tables that are given back, and parts of tables that stay.
#[test]
fn whatever_is_unmapped_is_gone_from_el2_and_nothing_else() {
    for (level, at) in [
        (Level::L2, range(BASE, 2 * MIB2)),
        (Level::L3, range(BASE, 2 * MIB2)),
        (Level::L3, range(BASE + 0x5000, 0x3000)),
        (Level::L3, range(BASE + MIB2 - 0x1000, 0x2000)),
    ] {
        let rig = Rig::new(Caps::TTL);
        let vm = rig.vm();
        map(&rig, &vm, range(BASE, 3 * MIB2), &ram(level));
        let touched = [0, 0x4000, 0x5000, 0x7000, 0x8000, MIB2 - 0x1000, MIB2, 2 * MIB2];
        let touched = touched.map(|at| BASE + at);
        for ipa in touched {
            assert_eq!(rig.touch(&vm, 1, ipa, false), Recovered::Mapped);
        }
        unmap(&rig, &vm, at);
        rig.assert_sound(&(level, at));
        for ipa in touched {
            let there = (!at.contains(Ipa::new(ipa))).then_some(MEMORY + (ipa - BASE));
            let wanted = "what goes is gone, and what stays is there";
            assert_eq!(rig.el2_reaches(ipa), there, "{level} {at}, {ipa:#x}: {wanted}");
        }
        rig.assert_agrees(&vm);
        let gone = touched.iter().filter(|ipa| at.contains(Ipa::new(**ipa))).count();
        assert_eq!(rig.el2_tlbis(), gone, "{level} {at}: what stays is not invalidated");
    }
}

/// Copies no bytes, but tells the machine when it would: from then on nobody writes to the page.
struct Fresh<'m>(&'m OracleMachine, u64, Option<CopyCollapse>);

impl Release for Fresh<'_> {
    fn frame(&mut self, _: Ipa, former: &Former, _: &Flushed) {
        let frame = former.pa().get();
        self.0.note(|pe| Event::FreeFrame { pe, frame, bytes: PAGE_SIZE });
    }
}

// SAFETY: (1, 2) no guest runs: nothing is ever reached through these tables.
unsafe impl Blocks for Fresh<'_> {
    fn take(&mut self) -> Option<Pa> {
        Some(Pa::new(self.1))
    }
    fn give_back(&mut self, _: Pa) {}
    fn copy(&mut self, _: Ipa, from: Pa, _: Pa) {
        self.0.note(|pe| Event::FreeFrame { pe, frame: from.get(), bytes: PAGE_SIZE });
    }
    fn fill(&mut self, _: Ipa, _: Pa) {}
    fn finish(&mut self, _: Ipa, _: Pa) {}
    fn heard(&mut self, _: Ipa, what: CopyCollapse) {
        self.2 = Some(what);
    }
}

fn copy(rig: &Rig, vm: &Vm<'_>, holes: usize) -> Option<CopyCollapse> {
    let cpu = rig.epochs.join(0).unwrap();
    let mut claim = vm.claim(range(BASE, MIB2)).unwrap();
    let all = Batch::all_of(&claim);
    let mut fresh = Fresh(&rig.machine, 0xc000_0000, None);
    let done = vm.copy_collapse(&cpu, &mut claim, all, holes, &mut fresh, || {});
    assert_eq!(done, Ok(Progress::Done));
    fresh.2
}

#[test]
fn a_copy_takes_the_pages_from_el2_before_it_reads_them() {
    for caps in CAPS {
        let rig = Rig::new(caps);
        let vm = rig.vm();
        map(&rig, &vm, range(BASE, MIB2), &ram(Level::L3));
        for at in [0, 0x3000, MIB2 - 0x1000] {
            assert_eq!(rig.touch(&vm, 1, BASE + at, true), Recovered::Mapped);
        }
        assert_eq!(copy(&rig, &vm, 0), Some(CopyCollapse::Made { filled: 0 }));
        rig.assert_sound(&caps);
        assert_eq!(rig.el2_reaches(BASE + 0x3000), None);
        assert_eq!(rig.touch(&vm, 1, BASE + 0x3000, true), Recovered::Mapped, "it is open again");
        assert_eq!(rig.el2_tlbis(), 3, "one for each page that EL2 had");
        assert_eq!(rig.el2_reaches(BASE + 0x3000), Some(0xc000_3000), "a page of the block");
        rig.assert_sound(&caps);
        rig.assert_agrees(&vm);
    }
}

/// What changes and stays where it was costs EL2 nothing.
#[test]
fn what_does_not_move_stays_in_el2s_window() {
    let rig = Rig::new(Caps::TTL);
    let vm = rig.vm();
    let all = range(BASE, MIB2);
    map(&rig, &vm, all, &ram(Level::L2));
    assert_eq!(rig.touch(&vm, 1, BASE + 0x3000, true), Recovered::Mapped);
    let cpu = rig.epochs.join(0).unwrap();
    let mut claim = vm.claim(all).unwrap();
    let batch = Batch::all_of(&claim);
    assert_eq!(vm.split(&cpu, &mut claim, batch, Level::L3), Ok(Progress::Done));
    for engine in [Engine::Break, Engine::InPlace] {
        vm.pin_engine(Some(engine));
        for prot in [Prot::RO, Prot::RW] {
            let relax = stage2::space::Relax::Everywhere;
            assert_eq!(vm.protect(&cpu, &mut claim, batch, prot, relax), Ok(Progress::Done));
        }
    }
    let collapsed = vm.collapse(&cpu, &mut claim, batch, Level::L2, || {}, &mut |_, _| {});
    assert_eq!(collapsed, Ok(Progress::Done));
    assert_eq!((rig.el2_tlbis(), rig.el2_reaches(BASE + 0x3000)), (0, Some(MEMORY + 0x3000)));
    rig.assert_sound(&"nothing moved");
}

/// Frames for scratch to be replaced by.
struct Real(u64);

// SAFETY: (1, 2) no guest runs: nothing is ever reached through these tables.
unsafe impl Replacements for Real {
    fn take(&mut self, _: Ipa) -> Option<Pa> {
        self.0 += PAGE_SIZE;
        Some(Pa::new(self.0))
    }
    fn give_back(&mut self, _: Ipa, _: Pa) {}
}

/// The scratch page is behind two addresses; one gets memory. From then on nobody writes to scratch by that one.
#[test]
fn memory_takes_the_place_of_scratch_in_el2s_window_too() {
    let rig = Rig::new(Caps::TTL);
    let vm = rig.vm();
    // SAFETY: (1, 2) no guest runs: nothing is ever reached through these tables; (3) not kept beyond the space.
    let scratch = unsafe { vm.scratch(Pa::new(0xd000_0000)) }.unwrap();
    let hole = [BASE + 0x1000, BASE + 0x9000];
    {
        let cpu = rig.epochs.join(1).unwrap();
        for ipa in hole {
            let mut tally = Tally::default();
            vm.install_scratch(&cpu.enter(), Ipa::new(ipa), &scratch, &mut tally).unwrap();
        }
    }
    for ipa in hole {
        assert_eq!(rig.touch(&vm, 1, ipa, true), Recovered::Mapped);
        assert_eq!(rig.el2_reaches(ipa), Some(0xd000_0000));
    }
    let cpu = rig.epochs.join(0).unwrap();
    let mut claim = vm.claim(range(hole[0], PAGE_SIZE)).unwrap();
    let batch = Batch::all_of(&claim);
    let mapping = vm.mapping(Level::L3, &Attributes::new(Prot::RW, MemType::Normal), Owner::Vm);
    let mut real = Real(0xe000_0000);
    let Replaced { replaced, .. } = vm
        .replace_scratch(&cpu, &mut claim, batch, &scratch, &mapping.unwrap(), &mut real, || {})
        .unwrap();
    drop(cpu);
    assert_eq!(rig.el2_reaches(hole[0]), None, "EL2 reaches scratch there no more");
    assert_eq!(rig.touch(&vm, 1, hole[0], true), Recovered::Mapped, "it is open again");
    let reached = hole.map(|ipa| rig.el2_reaches(ipa));
    assert_eq!(reached, [Some(0xe000_1000), Some(0xd000_0000)]);
    rig.assert_sound(&"scratch was replaced");
    assert_eq!((replaced, rig.el2_tlbis()), (1, 1));
}

/// Scratch between pages of memory, more often than a flush keeps ranges apart: what lies between is flushed with it in stage 2,
/// but stays, and EL2 goes on reaching it.
#[test]
fn scratch_that_is_removed_leaves_the_memory_between_to_el2() {
    const HOLES: u64 = 12;
    let rig = Rig::new(Caps::TTL);
    let vm = rig.vm();
    // SAFETY: (1, 2) no guest runs: nothing is ever reached through these tables; (3) not kept beyond the space.
    let scratch = unsafe { vm.scratch(Pa::new(0xd000_0000)) }.unwrap();
    let (hole, memory) = (|n: u64| BASE + n * 0x2000, |n: u64| BASE + n * 0x2000 + 0x1000);
    for n in 0..HOLES {
        map(&rig, &vm, range(memory(n), PAGE_SIZE), &ram(Level::L3));
        let cpu = rig.epochs.join(1).unwrap();
        let mut tally = Tally::default();
        vm.install_scratch(&cpu.enter(), Ipa::new(hole(n)), &scratch, &mut tally).unwrap();
        drop(cpu);
        for ipa in [hole(n), memory(n)] {
            assert_eq!(rig.touch(&vm, 1, ipa, true), Recovered::Mapped);
        }
    }
    let cpu = rig.epochs.join(0).unwrap();
    let mut claim = vm.claim(range(BASE, MIB2)).unwrap();
    let (all, mut back) = (Batch::all_of(&claim), Back(&rig.machine, vec![]));
    let done = vm.remove_scratch(&cpu, &mut claim, all, &scratch, || {}, &mut back);
    assert_eq!((done, back.1.len()), (Ok(Progress::Done), 0));
    drop(cpu);
    for n in 0..HOLES {
        assert_eq!(rig.el2_reaches(hole(n)), None);
        let wanted = Some(MEMORY + (memory(n) - BASE));
        assert_eq!(rig.el2_reaches(memory(n)), wanted, "what stays, EL2 goes on reaching");
    }
    // The scratch page can serve somebody else now.
    rig.machine.note(|pe| Event::FreeFrame { pe, frame: scratch.pa().get(), bytes: PAGE_SIZE });
    rig.assert_sound(&"scratch was removed");
    rig.assert_agrees(&vm);
}
