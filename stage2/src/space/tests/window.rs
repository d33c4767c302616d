//! EL2's window where the host's machine can tell: the walk, the flush of EL2's own regime on PEs with errata, and builders that
//! meet.

use super::*;
use crate::arch::Observation;
use crate::claim::Claim;
use crate::descriptor::Former;
use crate::flush::Flushed;
use crate::space::{Batch, Leak, Notes, Progress, Release};
use crate::window::descriptor::DRAIN;
use crate::window::{OpenError, Recovered, Site};

const BASE: u64 = 0x4000_0000;

fn site() -> Site {
    Site::new(1 << 47, 1).unwrap()
}

fn range(start: u64, pages: u64) -> IpaRange {
    IpaRange::new(Ipa::new(start), pages * PAGE_SIZE).unwrap()
}

/// Whoever takes frames back.
struct Nobody;

impl Release for Nobody {
    fn frame(&mut self, _: Ipa, _: &Former, _: &Flushed) {}
}

fn unmap<A: Arch>(
    space: &Space<'_, &Pages, A>,
    cpu: &crate::epoch::Cpu<'_>,
    claim: &mut Claim<'_>,
) {
    let all = Batch::all_of(claim);
    let done = space.unmap(cpu, claim, all, Notes::Keep, || {}, &mut Nobody);
    assert_eq!(done, Ok(Progress::Done));
}

/// What EL2's own maintenance does when two pages go that EL2 had, of three.
fn revocation(errata: Errata) -> Vec<Event> {
    let (pages, epochs, vmids) = (Pages::new(PAGES), Epochs::<1>::new(), vmids());
    let host = Host::with_errata(errata);
    let space = Space::new(geometry(39), vmids, epochs.domain(), &pages, host).unwrap();
    space.open_window(site(), range(BASE, 8)).unwrap();
    let cpu = epochs.join(0).unwrap();
    let (mapping, mut tally) = (at(&space, PAGE), Tally::default());
    let mut frames = Counted::new(0x8000_0000, PAGE_SIZE, 3);
    for page in 0..3 {
        let (ipa, guard) = (Ipa::new(BASE + page * PAGE_SIZE), cpu.enter());
        space.install(&guard, ipa, &mapping, &mut frames, &mut tally).unwrap();
        if page != 1 {
            assert_eq!(space.recover_window(&guard, ipa, true), Recovered::Mapped);
        }
    }
    let _ = space.arch.take_log();
    let mut claim = space.claim(range(BASE, 3)).unwrap();
    unmap(&space, &cpu, &mut claim);
    let log = space.arch.take_log();
    let from = log.iter().position(|event| *event == Event::Store(DRAIN)).unwrap();
    let to = log.iter().position(|e| *e == Event::Observe(Observation::El2Flushed)).unwrap();
    log[from..=to].to_vec()
}

#[test]
fn el2s_entries_go_by_one_sequence_and_once_more_where_a_dsb_may_end_early() {
    let vae2 = |page| {
        let va = (1 << 47) + BASE + page * PAGE_SIZE;
        Event::Tlbi(Tlbi::Vae2Is(crate::tlbi::VaOperand::page(va, Caps::empty())), 0)
    };
    let drain = Event::Store(DRAIN);
    let mut expected = vec![drain, drain, Event::Dsb(Dsb::IshSt), vae2(0), vae2(2)];
    expected.extend([Event::Dsb(Dsb::Ish), Event::Isb, Event::Observe(Observation::El2Flushed)]);
    assert_eq!(revocation(Errata::empty()), expected);
    expected.splice(6..6, [vae2(0), Event::Dsb(Dsb::Ish)]);
    let log = revocation(Errata::REPEAT_TLBI);
    assert_eq!(log, expected, "one more TLBI and DSB at the end, otherwise the same");
}

/// What several PEs build at once is one tree, and nothing is left over.
#[test]
fn builders_that_meet_share_their_tables() {
    const CPUS: usize = 4;
    for _ in 0..20 {
        let pages = Pages { yields: true, ..Pages::new(PAGES) };
        let epochs = Epochs::<CPUS>::new();
        let space = space(&pages, &epochs, 39);
        let built = std::sync::Barrier::new(CPUS);
        std::thread::scope(|scope| {
            for cpu in 0..CPUS as u64 {
                let (space, built) = (&space, &built);
                scope.spawn(move || {
                    built.wait();
                    space.open_window(site(), range(BASE + cpu * 0x1000, 1024)).unwrap();
                });
            }
        });
        // The root of stage 2; of the window a root, one table of blocks and three of pages.
        assert_eq!(pages.live(), 1 + 1 + 1 + 3, "a table that lost its race is given back");
    }
}

#[test]
fn a_machine_without_the_exchange_has_no_window() {
    let (pages, epochs, vmids) = (Pages::new(PAGES), Epochs::<1>::new(), vmids());
    let arch = NoAtomicInstall;
    let space = Space::new(geometry(39), vmids, epochs.domain(), &pages, arch).unwrap();
    assert_eq!(space.open_window(site(), range(BASE, 1)), Err(OpenError::Unsupported));
    assert_eq!(pages.live(), 1 + 1, "the root of stage 2, and that of the window");
    let cpu = epochs.join(0).unwrap();
    let answer = space.recover_window(&cpu.enter(), Ipa::new(BASE), false);
    assert_eq!(answer, Recovered::NotCovered);
}

/// EL2 would go on walking tables that are somebody else's.
#[test]
fn tables_are_not_taken_down_while_the_window_is_hooked() {
    let (pages, epochs) = (Pages::new(PAGES), Epochs::<1>::new());
    let (space, cpu) = (space(&pages, &epochs, 39), epochs.join(0).unwrap());
    let mut frames = Counted::new(0x8000_0000, PAGE_SIZE, 1);
    let (mapping, mut tally) = (at(&space, PAGE), Tally::default());
    space.install(&cpu.enter(), Ipa::new(BASE), &mapping, &mut frames, &mut tally).unwrap();
    space.credit(&tally);
    space.open_window(site(), range(BASE, 1)).unwrap();
    let (root, taken): (Table, Table) = (Table::empty(), Table::empty());
    let (slot, other) = (root.slot(256), taken.slot(256));
    // SAFETY: (1) nobody else has this table.
    unsafe { space.arch.store(other, DRAIN) };
    // SAFETY: (1-3) EL2's tables of nobody.
    assert!(unsafe { !space.hook_window(other) && space.hook_window(slot) });

    // SAFETY: (1) no PE runs the VM; (2) hooked above.
    let error = unsafe { space.destroy(&cpu, || {}, &mut Nobody) }.unwrap_err();
    assert_eq!(error.why, Leak::Hooked);
    assert_eq!(error.why.to_string(), "EL2's window is still hooked into EL2's tables");
    let space = error.space;
    assert!(space.translate(&cpu.enter(), Ipa::new(BASE)).is_some(), "nothing was unmapped");
    // SAFETY: (1) never hooked there; nobody accesses it.
    unsafe { space.unhook_window(other) };
    // SAFETY: (1) as above.
    let error = unsafe { space.destroy(&cpu, || {}, &mut Nobody) }.unwrap_err();
    assert_eq!(error.why, Leak::Hooked, "that was another slot");
    let space = error.space;
    // SAFETY: (1) hooked above, and nobody accesses it.
    unsafe { space.unhook_window(slot) };
    // SAFETY: (1) no PE runs the VM; (2) hooked and unhooked above.
    let closing = unsafe { space.destroy(&cpu, || {}, &mut Nobody) }.unwrap();
    assert_eq!((closing.leaves_now(), pages.live()), (0, 0));
}

/// Guards of other epochs keep nobody from taking pages away.
#[test]
fn a_guard_of_other_epochs_recovers_nothing() {
    let (pages, epochs, others) = (Pages::new(PAGES), Epochs::<1>::new(), Epochs::<1>::new());
    let space = space(&pages, &epochs, 39);
    space.open_window(site(), range(BASE, 1)).unwrap();
    let cpu = epochs.join(0).unwrap();
    let (mapping, mut tally) = (at(&space, PAGE), Tally::default());
    let mut frames = Counted::new(0x8000_0000, PAGE_SIZE, 1);
    space.install(&cpu.enter(), Ipa::new(BASE), &mapping, &mut frames, &mut tally).unwrap();
    let stranger = others.join(0).unwrap();
    let answer = space.recover_window(&stranger.enter(), Ipa::new(BASE), false);
    assert_eq!(answer, Recovered::NotCovered);
    let answer = space.recover_window(&cpu.enter(), Ipa::new(BASE), false);
    assert_eq!(answer, Recovered::Mapped);
}
