//! Maps against what they should give, refused ones, and what is left of those that fail.

use super::install::unsettled;
use super::unmap::{Released, range};
use super::*;
use crate::space::{Batch, Extent, MapError, Notes, Progress};

pub(super) fn extent(pa: u64, coarsest: Level) -> Extent {
    Extent { pa: Pa::new(pa), attributes: ram(), owner: Owner::Vm, coarsest }
}

pub(super) fn map<const CPUS: usize>(
    space: &Space<'_, &Pages, Host>,
    epochs: &Epochs<CPUS>,
    range: IpaRange,
    extent: &Extent,
    budget: usize,
) -> Result<(), MapError> {
    let cpu = epochs.join(0).unwrap();
    let mut claim = space.claim(range).unwrap();
    let mut from = range.start();
    while let Progress::Until(next) =
        // SAFETY: (1, 2) no guest runs on the host.
        unsafe { space.map(&cpu, &mut claim, Batch { from, slots: budget }, extent) }?
    {
        assert!(next > from, "a batch makes progress");
        from = next;
    }
    Ok(())
}

/// Every leaf of the tables: IPA, address, level.
pub(super) fn leaves(
    space: &Space<'_, &Pages, Host>,
    epochs: &Epochs<1>,
    within: IpaRange,
) -> Vec<(u64, u64, u8)> {
    let cpu = epochs.join(0).unwrap();
    let guard = cpu.enter();
    let (mut ipa, mut found) = (within.start().get(), Vec::new());
    while ipa < within.end().get() {
        let lookup = space.lookup(&guard, Ipa::new(ipa)).unwrap();
        match lookup.view() {
            View::Leaf(leaf) => found.push((ipa, leaf.pa().get(), lookup.level as u8)),
            View::Empty => {}
            other => panic!("{ipa:#x}: {other:?}"),
        }
        ipa = Ipa::new(ipa).align_down(lookup.level.slot_bytes()).get() + lookup.level.slot_bytes();
    }
    found
}

#[test]
fn the_largest_leaves_that_fit_are_used() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let space = space(&pages, &epochs, 40);
    // From one page below 1 GiB to one page above 2 GiB + 4 MiB, congruent addresses.
    let start = (1 << 30) - 4096;
    let wanted = range(start, 4096 + (1 << 30) + (4 << 20) + 4096);
    map(&space, &epochs, wanted, &extent(start + (8 << 30), Level::L1), usize::MAX).unwrap();
    let pa = |ipa| ipa + (8u64 << 30);
    let expected = [
        (start, pa(start), 3),
        (1 << 30, pa(1 << 30), 1),
        (2 << 30, pa(2 << 30), 2),
        ((2 << 30) + (2 << 20), pa((2 << 30) + (2 << 20)), 2),
        ((2 << 30) + (4 << 20), pa((2 << 30) + (4 << 20)), 3),
    ];
    assert_eq!(leaves(&space, &epochs, range(0, 4 << 30)), expected);
    // Addresses that do not lie alike, or a wish for small leaves, give pages.
    for (pa, coarsest, level, count) in [
        (0x1000, Level::L1, 3, 1024),
        (0x20_0000, Level::L3, 3, 1024),
        (0x20_0000, Level::L2, 2, 2),
    ] {
        let at = range(16 << 30, 4 << 20);
        map(&space, &epochs, at, &extent(pa, coarsest), usize::MAX).unwrap();
        let found = leaves(&space, &epochs, at);
        assert_eq!(found.len(), count);
        assert!(found.iter().all(|(ipa, to, l)| *l == level && to - pa == ipa - (16 << 30)));
        let cpu = epochs.join(0).unwrap();
        let mut claim = space.claim(at).unwrap();
        let all = Batch::all_of(&claim);
        let done = space.unmap(&cpu, &mut claim, all, Notes::Keep, || {}, &mut Released::default());
        assert_eq!(done, Ok(Progress::Done));
    }
}

#[test]
fn overmap_changes_nothing_and_names_the_slot() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let space = space(&pages, &epochs, 40);
    let all = range(0, 8 << 30);
    map(&space, &epochs, range(0x40_3000, 0x1000), &extent(0x7000, Level::L1), 9).unwrap();
    let (before, tables) = (leaves(&space, &epochs, all), pages.live());
    for (start, bytes) in [(0, 6 << 20), (0x40_2000, 0x2000), (0x40_3000, 0x1000), (0, 5 << 30)] {
        let error = map(&space, &epochs, range(start, bytes), &extent(0, Level::L1), usize::MAX);
        let Err(MapError::Occupied { ipa, .. }) = error else { panic!("{error:?}") };
        assert_eq!(ipa, Ipa::new(0x40_3000));
        assert_eq!(leaves(&space, &epochs, all), before, "nothing was mapped");
        assert_eq!(pages.live(), tables, "no table is left of it");
    }
}

/// Out of tables at every single allocation: nothing is changed, nothing is lost.
#[test]
fn out_of_tables_changes_nothing() {
    let wanted = range((1 << 30) - (4 << 20), 8 << 20);
    for allocations in 1.. {
        let (pages, epochs) = (Pages::new(allocations), Epochs::<1>::new());
        let space = space(&pages, &epochs, 40);
        let roots = pages.live();
        let result = map(&space, &epochs, wanted, &extent(0x1000, Level::L1), usize::MAX);
        if result.is_ok() {
            assert_eq!(leaves(&space, &epochs, range(0, 4 << 30)).len(), 2048);
            assert_eq!(allocations, 1 + 2 + 4, "a root, two tables of level 2, four of level 3");
            return;
        }
        assert_eq!(result, Err(MapError::OutOfTables));
        assert_eq!(leaves(&space, &epochs, range(0, 4 << 30)), []);
        assert_eq!(pages.live(), roots, "no table is left of it");
    }
}

#[test]
fn wrong_extents_are_refused_with_the_numbers() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let space = space(&pages, &epochs, 40);
    let at = range(0x4000, 0x2000);
    for pa in [0x800, (1 << 48) - 0x1000, u64::MAX - 0xfff] {
        let error = MapError::Pa { pa: Pa::new(pa), bytes: 0x2000, bits: 48 };
        assert_eq!(map(&space, &epochs, at, &extent(pa, Level::L1), 1), Err(error));
    }
    let run = Attributes { contiguous: true, ..ram() };
    let run = Extent { attributes: run, ..extent(0, Level::L1) };
    let error = MapError::Mapping(MappingError::Contiguous);
    assert_eq!(map(&space, &epochs, at, &run, 1), Err(error));
    for attributes in unsettled() {
        let others = Extent { attributes, owner: Owner::Other, ..extent(0, Level::L1) };
        let error = MapError::Mapping(MappingError::Unsettled);
        assert_eq!(map(&space, &epochs, at, &others, 1), Err(error));
    }
    assert_eq!(pages.live(), space.geometry.root_tables());
}

#[test]
fn a_table_is_complete_before_it_can_be_walked_and_one_barrier_ends_a_batch() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let space = space(&pages, &epochs, 40);
    let _ = space.arch.take_log();
    map(&space, &epochs, range(0, 2 << 20), &extent(0x1000, Level::L1), usize::MAX).unwrap();
    let log = space.arch.take_log();
    let [Event::CompareExchange(true), Event::Store(link), Event::Dsb(Dsb::IshSt)] = log[..] else {
        panic!("{log:?}")
    };
    assert!(Descriptor::from_bits(link).as_table(Level::L1).is_some());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Random maps and unmaps against a page-by-page reference.
    #[test]
    fn maps_and_unmaps_agree_with_a_reference(
        steps in prop::collection::vec(
            (any::<bool>(), 0u64..1300, 1u64..900, 0u64..4, 1usize..3, 1usize..1500), 1..12,
        ),
    ) {
        const BASE: u64 = (1 << 30) - (2 << 20);
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let space = space(&pages, &epochs, 40);
        let mut reference: BTreeMap<u64, u64> = BTreeMap::new();
        for (is_map, first, count, offset, coarsest, budget) in steps {
            let at = range(BASE + (first << 12), count << 12);
            let coarsest = [Level::L1, Level::L2, Level::L3][coarsest];
            if is_map {
                // Each offset has its own memory, so that what is mapped twice is seen.
                let pa = at.start().get() + (offset << 36) + if offset == 3 { 4096 } else { 0 };
                let free = reference.range(at.start().get()..at.end().get()).next().is_none();
                let result = map(&space, &epochs, at, &extent(pa, coarsest), usize::MAX);
                prop_assert_eq!(result.is_ok(), free, "{:?}", result);
                if free {
                    let page = |n: u64| (at.start().get() + (n << 12), pa + (n << 12));
                    reference.extend((0..count).map(page));
                }
                continue;
            }
            let cpu = epochs.join(0).unwrap();
            let mut claim = space.claim(at).unwrap();
            let (mut from, mut released) = (at.start(), Released::default());
            let straddles = loop {
                let unmap = space.unmap(
                    &cpu, &mut claim, Batch { from, slots: budget }, Notes::Keep, || {}, &mut released,
                );
                match unmap {
                    Ok(Progress::Done) => break false,
                    Ok(Progress::Until(next)) => from = next,
                    Err(crate::UnmapError::Straddles { .. }) => break true,
                    Err(other) => panic!("{other}"),
                }
            };
            for (ipa, (pa, bytes)) in released.0 {
                for page in (0..bytes).step_by(4096) {
                    prop_assert_eq!(reference.remove(&(ipa + page)), Some(pa + page));
                }
            }
            let left = reference.range(at.start().get()..at.end().get()).next().is_some();
            prop_assert!(straddles || !left);
        }
        let all = range(BASE, 2300 << 12);
        let found: BTreeMap<u64, u64> = leaves(&space, &epochs, all)
            .into_iter()
            .flat_map(|(ipa, pa, level)| {
                let bytes = [0, 1 << 30, 2 << 20, 4096][usize::from(level)];
                (0..bytes).step_by(4096).map(move |page| (ipa + page, pa + page))
            })
            .collect();
        prop_assert_eq!(found, reference);
    }
}
