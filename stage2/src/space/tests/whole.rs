//! Notes, visits, and the end.

use super::map::{extent, map};
use super::unmap::{Released, range};
use super::*;
use crate::space::{Batch, Census, MapError, NotClaimed, Progress, UnmapError};

fn note(payload: u64) -> Note {
    Note::new(payload).unwrap()
}

fn annotate(
    space: &Space<'_, &Pages, Host>,
    epochs: &Epochs<1>,
    at: IpaRange,
    payload: u64,
    budget: usize,
) -> Result<(), MapError> {
    let cpu = epochs.join(0).unwrap();
    let mut claim = space.claim(at).unwrap();
    let mut from = at.start();
    while let Progress::Until(next) =
        space.annotate(&cpu, &mut claim, Batch { from, slots: budget }, note(payload))?
    {
        from = next;
    }
    Ok(())
}

fn notes(space: &Space<'_, &Pages, Host>, epochs: &Epochs<1>) -> Vec<(u64, u8, u64)> {
    let cpu = epochs.join(0).unwrap();
    let guard = cpu.enter();
    let found = space.visit(&guard, range(0, 1 << 40));
    found
        .map(|(ipa, lookup)| match lookup.view() {
            View::Note(note) => (ipa.get(), lookup.level as u8, note.get()),
            other => panic!("{other:?}"),
        })
        .collect()
}

fn deannotate(
    space: &Space<'_, &Pages, Host>,
    epochs: &Epochs<1>,
    at: IpaRange,
    budget: usize,
) -> Result<Vec<(u64, u64, u64)>, UnmapError> {
    let cpu = epochs.join(0).unwrap();
    let mut claim = space.claim(at).unwrap();
    let (mut from, mut gone) = (at.start(), Vec::new());
    let mut removed = |ipa: Ipa, bytes, note: Note| gone.push((ipa.get(), bytes, note.get()));
    while let Progress::Until(next) =
        space.deannotate(&cpu, &mut claim, Batch { from, slots: budget }, &mut removed)?
    {
        assert!(next > from);
        from = next;
    }
    Ok(gone)
}

#[test]
fn a_range_is_noted_by_the_largest_slots_and_un_noted() {
    for budget in [1, 3, usize::MAX] {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let space = space(&pages, &epochs, 40);
        let at = range((1 << 30) - 4096, 4096 + (1 << 30) + (2 << 20) + 4096);
        annotate(&space, &epochs, at, 7, budget).unwrap();
        let expected = [
            ((1 << 30) - 4096, 3, 7),
            (1 << 30, 1, 7),
            (2 << 30, 2, 7),
            ((2 << 30) + (2 << 20), 3, 7),
        ];
        assert_eq!(notes(&space, &epochs), expected);
        let gone = deannotate(&space, &epochs, at, budget).unwrap();
        let bytes = |level: u8| [0, 1 << 30, 2 << 20, 4096][usize::from(level)];
        assert_eq!(gone, expected.map(|(ipa, level, payload)| (ipa, bytes(level), payload)));
        assert_eq!(notes(&space, &epochs), []);
    }
}

#[test]
fn a_second_note_and_a_mapped_page_are_occupied_and_nothing_changes() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let space = space(&pages, &epochs, 40);
    annotate(&space, &epochs, range(0x3000, 0x1000), 7, 9).unwrap();
    let tables = pages.live();
    for payload in [7, 8] {
        let error = annotate(&space, &epochs, range(0x1000, 0x4000), payload, 9).unwrap_err();
        let seen = Descriptor::note(note(7));
        assert_eq!(error, MapError::Occupied { ipa: Ipa::new(0x3000), level: PAGE, seen });
        assert_eq!(notes(&space, &epochs), [(0x3000, 3, 7)]);
    }
    let over = map(&space, &epochs, range(0x2000, 0x2000), &extent(0x9000, PAGE), 9);
    assert!(matches!(over, Err(MapError::Occupied { .. })));
    assert_eq!(notes(&space, &epochs), [(0x3000, 3, 7)]);
    assert_eq!(pages.live(), tables);
}

#[test]
fn a_note_over_the_edge_stays() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let space = space(&pages, &epochs, 40);
    annotate(&space, &epochs, range(2 << 20, 2 << 20), 7, 9).unwrap();
    let edge = UnmapError::Straddles { ipa: Ipa::new(2 << 20), level: Level::L2 };
    assert_eq!(deannotate(&space, &epochs, range(2 << 20, 4096), 9), Err(edge));
    assert_eq!(notes(&space, &epochs), [(2 << 20, 2, 7)]);
}

/// In a release build the CPU would wait for itself.
#[test]
fn a_holder_of_the_lock_cannot_take_notes_out() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let space = space(&pages, &epochs, 40);
    annotate(&space, &epochs, range(0x3000, 0x1000), 7, 9).unwrap();
    let cpu = epochs.join(0).unwrap();
    let mut claim = space.claim(range(0x3000, 0x1000)).unwrap();
    let all = Batch::all_of(&claim);
    let guard = cpu.enter();
    let held = space.lookup_rw(&guard, Ipa::new(0x3000)).unwrap().lock().unwrap();
    let gone = space.deannotate(&cpu, &mut claim, all, |_, _, _| panic!("it stays"));
    assert_eq!(gone, Err(UnmapError::NotQuiescent));
    drop(held);
    drop(guard);
    let gone = space.deannotate(&cpu, &mut claim, all, |ipa, _, _| assert_eq!(ipa.get(), 0x3000));
    assert_eq!(gone, Ok(Progress::Done));
}

#[test]
fn a_census_counts_what_is_there() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let space = space(&pages, &epochs, 40);
    map(&space, &epochs, range(0, (1 << 30) + (4 << 20) + 0x3000), &extent(0, Level::L1), 9)
        .unwrap();
    annotate(&space, &epochs, range(8 << 30, 4096), 1, 1).unwrap();
    let cpu = epochs.join(0).unwrap();
    let count = |at| space.census(&cpu.enter(), at);
    let all = Census { leaves: [1, 2, 3], members: 0, not_owned: 0, notes: 1, others: 0 };
    assert_eq!(count(range(0, 1 << 40)), all);
    assert_eq!(count(range((1 << 30) + (2 << 20), 2 << 20)).leaves, [0, 1, 0]);
    assert_eq!(count(range(16 << 30, 1 << 30)), Census::default());
}

#[test]
fn destroy_gives_every_frame_and_every_table_back() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let space = space(&pages, &epochs, 40);
    map(&space, &epochs, range(0, (1 << 30) + (4 << 20) + 0x3000), &extent(0, Level::L1), 9)
        .unwrap();
    annotate(&space, &epochs, range(8 << 30, 4096), 1, 1).unwrap();
    let cpu = epochs.join(0).unwrap();
    let mut released = Released::default();
    // SAFETY: (1) no guest runs on the host.
    unsafe { space.destroy(&cpu, || {}, &mut released) }.unwrap();
    let bytes: u64 = released.0.values().map(|(_, bytes)| bytes).sum();
    assert_eq!(bytes, (1 << 30) + (4 << 20) + 0x3000);
    assert_eq!(pages.live(), 0, "the root was given back, too");
}

#[test]
fn what_cannot_be_taken_down_is_handed_back_with_the_reason() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let space = space(&pages, &epochs, 40);
    std::mem::forget(space.claim(range(0, 4096)).unwrap());
    let cpu = epochs.join(0).unwrap();
    // SAFETY: (1) no guest runs on the host.
    let error = unsafe { space.destroy(&cpu, || {}, &mut Released::default()) }.unwrap_err();
    assert!(matches!(error.why, Leak::Claim(_)), "{}", error.why);
    assert!(error.space.claim(range(4096, 4096)).is_ok(), "still usable");
}

#[test]
fn claims_beyond_the_ipa_size_are_refused() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let (space, cpu) = (space(&pages, &epochs, 40), epochs.join(0).unwrap());
    let wanted = range((1 << 40) - 4096, 8192);
    let error = space.claim(wanted).unwrap_err();
    assert_eq!(error, crate::ClaimError::BeyondIpaSize { wanted, bits: 40 });
    let mut claim = space.claim(range(0x1000, 0x1000)).unwrap();
    let result = space.annotate(&cpu, &mut claim, Batch { from: Ipa::new(0), slots: 1 }, note(1));
    let NotClaimed::From { from, .. } = (match result {
        Err(MapError::Claim(error)) => error,
        other => panic!("{other:?}"),
    }) else {
        panic!()
    };
    assert_eq!(from, Ipa::new(0));
}

#[test]
fn an_account_balances_when_all_is_gone() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let space = space(&pages, &epochs, 40);
    // Two pages, a block of 2 MiB, one of 1 GiB, one more page; two tables of level 2 and 3 each.
    let at = range((1 << 30) - (2 << 20) - 0x2000, 0x2000 + (2 << 20) + (1 << 30) + 0x1000);
    map(&space, &epochs, at, &extent((1 << 30) - (2 << 20) - 0x2000, Level::L1), 3).unwrap();
    annotate(&space, &epochs, range(5 << 30, 0x1000), 7, 9).unwrap();
    {
        let cpu = epochs.join(0).unwrap();
        let (mut frames, mut tally) = (Counted::new(0x8000_0000, 4096, 1), Tally::default());
        let ipa = Ipa::new((5 << 30) + 0x1000);
        let page = super::at(&space, PAGE);
        space.install(&cpu.enter(), ipa, &page, &mut frames, &mut tally).unwrap();
        space.credit(&tally);
    }
    let account = space.account();
    assert_eq!((account.mapped, account.installed), ([1, 1, 3], 1));
    assert_eq!(
        account.tables,
        3 + 1 + 2,
        "for the range: 2 tables below 0 GiB, 2 below 2 GiB; for the note: 2"
    );
    assert_eq!(account.leaves_now(), 6);
    assert_eq!(account.tables_now(), linked_tables(&space) as u64 - 2, "the root is two pages");

    let cpu = epochs.join(0).unwrap();
    let mut released = Released::default();
    // SAFETY: (1) nobody runs it.
    let closing = unsafe { space.destroy(&cpu, || {}, &mut released) }.unwrap();
    assert_eq!((closing.leaves_now(), closing.tables_now()), (0, 0));
    assert_eq!(closing.unmapped, [1, 1, 4]);
    assert_eq!(pages.live(), 0);
}
