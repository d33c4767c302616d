//! Installs: the walk against a reference map, PEs racing each other, and what is refused.

use super::*;

#[test]
fn a_fault_installs_once_and_is_then_spurious() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let (space, cpu) = (space(&pages, &epochs, 40), epochs.join(0).unwrap());
    let _ = space.arch.take_log();
    let (mut frames, mut tally) = (Counted::new(0x8000_0000, 4096, 2), Tally::default());
    let ipa = Ipa::new(0x4000_1234);
    let mut install =
        || space.install(&cpu.enter(), ipa, &at(&space, PAGE), &mut frames, &mut tally);
    assert_eq!(install(), Ok(Install::Installed(Pa::new(0x8000_0000))));
    let Ok(Install::Present(leaf)) = install() else { panic!("not there") };
    assert_eq!((leaf.pa(), leaf.owner()), (Pa::new(0x8000_0000), Owner::Vm));
    assert_eq!(tally, Tally { installed: 1, tables: 2, ..Tally::default() });
    assert_eq!(frames.left, 1);
    let won = [Event::CompareExchange(true), Event::Dsb(Dsb::IshSt)];
    assert_eq!(
        space.arch.take_log(),
        [won, won, won].concat(),
        "a barrier after each exchange that was won, and nothing flushed"
    );
}

/// A mapping is checked against the tables that make it; others may have other levels, and other bits.
#[test]
fn a_mapping_for_tables_of_another_shape_is_refused() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let cpu = epochs.join(0).unwrap();
    let (large, small) = (space(&pages, &epochs, 39), space(&pages, &epochs, 30));
    let forced = Features { caps: Caps::GRANULE_4K | Caps::FWB, ..features(48) };
    let geometry = Geometry::new(39, &forced, HwUpdate::Off).unwrap();
    let forced = Space::new(geometry, vmids(), epochs.domain(), &pages, Host::new()).unwrap();
    let tables = pages.live();
    let install = |space: &Space<'_, &Pages, Host>, mapping: &Mapping| {
        let (mut frames, mut tally) = (Counted::new(1 << 40, 1 << 30, 1), Tally::default());
        let result = space.install(&cpu.enter(), Ipa::new(0), mapping, &mut frames, &mut tally);
        assert_eq!((frames.left, frames.returned.len()), (1, 0), "no frame was taken");
        result
    };
    for level in [Level::L1, Level::L2, PAGE] {
        let mapping = at(&large, level);
        assert_eq!(install(&small, &mapping), Err(InstallError::ForeignMapping));
        assert_eq!(install(&forced, &mapping), Err(InstallError::ForeignMapping));
    }
    assert_eq!(install(&large, &at(&forced, PAGE)), Err(InstallError::ForeignMapping));
    assert_eq!(pages.live(), tables);
}

/// What this PE published is observable only after its own DSB, however the walk ends.
#[test]
fn tables_linked_on_the_way_to_an_error_are_made_visible() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let (space, cpu) = (space(&pages, &epochs, 40), epochs.join(0).unwrap());
    let _ = space.arch.take_log();
    let (mut none, mut tally) = (Counted::new(0, 4096, 0), Tally::default());
    let result = space.install(&cpu.enter(), Ipa::new(0), &at(&space, PAGE), &mut none, &mut tally);
    assert_eq!(result, Err(InstallError::OutOfFrames));
    let won = [Event::CompareExchange(true), Event::Dsb(Dsb::IshSt)];
    assert_eq!(space.arch.take_log(), [won, won].concat());
}

#[test]
fn a_vm_runs_with_its_root_after_everything_was_flushed() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let space = space(&pages, &epochs, 40);
    let vttbr = 1 << 48 | space.root().get();
    assert_eq!(space.arch.vttbr(), vttbr, "CnP is 0");
    let log = space.arch.take_log();
    let at = |event| log.iter().position(|logged| *logged == event).expect("it is there");
    assert!(at(Event::Tlbi(Tlbi::Alle1Is, 0)) < at(Event::SetVttbr(vttbr)));
}

#[test]
fn a_vmid_that_the_machine_cannot_tell_apart_is_refused() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let wide = Vmid::new(0x101, 16).unwrap();
    let vmids = Vmids::<1>::only(wide);
    let result = Space::new(geometry(40), &vmids, epochs.domain(), &pages, Host::new());
    assert_eq!(result.err(), Some(NewSpaceError::VmidTooWide { vmid: wide, bits: 8 }));
    assert_eq!(pages.live(), 0);
}

/// Leaves that the first access, or the first write, would change.
pub(super) fn unsettled() -> [Attributes; 2] {
    [Attributes { accessed: false, ..ram() }, Attributes { write: crate::Write::Clean, ..ram() }]
}

#[test]
fn what_cannot_be_installed_is_refused_with_the_numbers() {
    let (pages, epochs, other) = (Pages::new(usize::MAX), Epochs::<1>::new(), Epochs::<1>::new());
    let (space, cpu, stranger) =
        (space(&pages, &epochs, 32), epochs.join(0).unwrap(), other.join(0).unwrap());
    let mut frames = Counted::new(0, 4096, 1);
    let (guard, zero, beyond) = (cpu.enter(), Ipa::new(0), Ipa::new(1 << 32));
    let page = at(&space, PAGE);
    let mut refusal = |guard: &Guard<'_>, ipa| {
        space.install(guard, ipa, &page, &mut frames, &mut Tally::default()).unwrap_err()
    };
    let too_far = InstallError::BeyondIpaSize { ipa: beyond, bits: 32 };
    assert_eq!(refusal(&guard, beyond), too_far);
    assert_eq!(refusal(&stranger.enter(), zero), InstallError::ForeignGuard);
    assert_eq!(frames.left, 1, "no frame was taken");
    assert_eq!(space.lookup(&guard, beyond), None);
    assert_eq!(space.lookup(&stranger.enter(), zero), None);

    let mapping = |level, attributes| space.mapping(level, &attributes, Owner::Vm).unwrap_err();
    for level in [Level::L0, Level::L1] {
        // 32 bits start at level 2.
        assert_eq!(mapping(level, ram()), MappingError::Level { level, start: Level::L2 });
    }
    let run = Attributes { contiguous: true, ..ram() };
    assert_eq!(mapping(PAGE, run), MappingError::Contiguous);
    for attributes in unsettled() {
        assert!(space.mapping(PAGE, &attributes, Owner::Vm).is_ok());
        let others = space.mapping(PAGE, &attributes, Owner::Other);
        assert_eq!(others, Err(MappingError::Unsettled));
    }
    let apart = Attributes { exec_el0: false, ..ram() };
    assert!(matches!(mapping(PAGE, apart), MappingError::Descriptor(_)), "no FEAT_XNX here");
}

#[test]
fn a_frame_that_fits_no_descriptor_goes_back() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let (space, cpu) = (space(&pages, &epochs, 40), epochs.join(0).unwrap());
    let block = at(&space, Level::L2);
    let (mut frames, mut tally) = (Counted::new(0x1000, 4096, 1), Tally::default());
    let result = space.install(&cpu.enter(), Ipa::new(0), &block, &mut frames, &mut tally);
    let (level, pa) = (Level::L2, Pa::new(0x1000));
    let error = DescriptorError::Address { level, pa };
    assert_eq!(result, Err(InstallError::Descriptor(error)));
    assert_eq!(frames.returned, [pa]);
}

/// Puts `held` into the first slot of the root, as if somebody had come that far.
fn force(space: &Space<'_, &Pages, Host>, guard: &Guard<'_>, held: Descriptor) {
    let slot = space.root_table(guard, Ipa::new(0)).slot(0);
    // SAFETY: (1, 2) nobody else uses these tables.
    unsafe { space.arch.swap(slot, held.bits()) };
}

#[test]
fn every_state_but_empty_stops_an_install_and_a_lookup() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let (space, cpu) = (space(&pages, &epochs, 39), epochs.join(0).unwrap());
    let guard = cpu.enter();
    let note = Note::new(77).unwrap();
    let busy = Descriptor::table(Level::L1, Pa::new(0x1000)).unwrap().to_busy().unwrap();
    let foreign = Descriptor::from_bits(0x1003);
    let retry = |seen| InstallError::Retry { level: Level::L1, seen };
    let live = Descriptor::table(Level::L1, Pa::new(0x1000)).unwrap();
    let drain = live.to_drain(Level::L1).unwrap();
    for (held, expected) in [
        (drain, retry(drain)),
        (Descriptor::DEAD, retry(Descriptor::DEAD)),
        (busy, retry(busy)),
        (Descriptor::note(note), InstallError::Note { level: Level::L1, note }),
        (foreign, InstallError::Occupied { level: Level::L1, seen: foreign }),
    ] {
        force(&space, &guard, held);
        for level in [Level::L1, Level::L2, Level::L3] {
            let mut frames = Counted::new(0, 4096, 1);
            let mut tally = Tally::default();
            let result =
                space.install(&guard, Ipa::new(0), &at(&space, level), &mut frames, &mut tally);
            assert_eq!(result, Err(expected));
            assert_eq!(frames.left, 1, "no frame was taken");
        }
        let lookup = space.lookup(&guard, Ipa::new(0));
        assert_eq!(lookup, Some(Lookup { level: Level::L1, descriptor: held }));
    }
}

#[test]
fn without_pages_at_hand_nothing_is_lost() {
    let epochs = Epochs::<1>::new();
    let cpu = epochs.join(0).unwrap();
    // The root, then 0, 1 or 2 of the two tables that a page needs.
    for (budget, expected) in [
        (1, InstallError::OutOfTables),
        (2, InstallError::OutOfTables),
        (3, InstallError::OutOfFrames),
    ] {
        let pages = Pages::new(budget);
        let space = space(&pages, &epochs, 40);
        let (mut none, mut tally) = (Counted::new(0, 4096, 0), Tally::default());
        let ipa = Ipa::new(0x4000_0000);
        let result = space.install(&cpu.enter(), ipa, &at(&space, PAGE), &mut none, &mut tally);
        assert_eq!(result, Err(expected));
        assert_eq!(pages.live(), linked_tables(&space));
        assert_eq!(tally.tables as usize + space.geometry.root_tables(), pages.live());
    }
    let pages = Pages::new(0);
    let result = Space::new(geometry(40), vmids(), epochs.domain(), &pages, Host::new());
    assert_eq!(result.err(), Some(NewSpaceError::OutOfTables { pages: 2 }));
}

#[test]
fn without_an_atomic_install_the_caller_falls_through() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let cpu = epochs.join(0).unwrap();
    let space =
        Space::new(geometry(40), vmids(), epochs.domain(), &pages, NoAtomicInstall).unwrap();
    let (mut frames, mut tally) = (Counted::new(0, 4096, 1), Tally::default());
    let ipa = Ipa::new(0x4000_0000);
    let result = space.install(&cpu.enter(), ipa, &at(&space, PAGE), &mut frames, &mut tally);
    assert_eq!(result, Err(InstallError::Unsupported));
    assert_eq!(tally, Tally::default());
    assert_eq!(frames.left, 1, "the frame is still the caller's");
    assert_eq!(pages.live(), space.geometry.root_tables(), "so is the table page");
}

/// Each of several PEs installs the same pages, in an order of its own.
#[test]
fn racing_installs_have_one_winner_a_slot_and_lose_no_page() {
    const PES: usize = 4;
    const PAGES: u64 = 1024;
    let (mut races, mut table_races) = (0, 0);
    for round in 0..8 {
        let pages = Pages { yields: true, ..Pages::new(usize::MAX) };
        let epochs = Epochs::<PES>::new();
        let space = space(&pages, &epochs, 40);
        let start = AtomicBool::new(false);
        let tallies: Vec<(Tally, Counted)> = std::thread::scope(|scope| {
            let pes: Vec<_> = (0..PES)
                .map(|pe| {
                    let (space, epochs, start) = (&space, &epochs, &start);
                    scope.spawn(move || {
                        let cpu = epochs.join(pe).unwrap();
                        let mut tally = Tally::default();
                        // Frames of this PE: their bits 47:40 name it.
                        let mut frames = Counted::new((pe as u64 + 1) << 40, 4096, 4096);
                        frames.yields = true;
                        while !start.load(Ordering::Acquire) {
                            std::hint::spin_loop();
                        }
                        for n in 0..PAGES {
                            // Same pages in the same order, forwards, backwards or strided: pages
                            // that meet in one table, and pages that need a table each.
                            let n = match (pe + round) % 3 {
                                0 => n,
                                1 => PAGES - 1 - n,
                                _ => n * 5 % PAGES,
                            };
                            let ipa = Ipa::new((n % 32) << 21 | (n / 32) << 12);
                            let guard = cpu.enter();
                            let got = space.install(
                                &guard,
                                ipa,
                                &at(space, PAGE),
                                &mut frames,
                                &mut tally,
                            );
                            assert!(got.is_ok(), "{got:?}");
                        }
                        (tally, frames)
                    })
                })
                .collect();
            start.store(true, Ordering::Release);
            pes.into_iter().map(|pe| pe.join().unwrap()).collect()
        });

        let sum = |f: fn(&Tally) -> u64| tallies.iter().map(|(t, _)| f(t) as usize).sum::<usize>();
        assert_eq!(sum(|t| t.installed), PAGES as usize, "each slot was won once");
        let linked = linked_tables(&space);
        assert_eq!(sum(|t| t.tables) + space.geometry.root_tables(), linked);
        assert_eq!(pages.live(), linked, "each table page is linked or was given back");
        assert_eq!(pages.freed.lock().unwrap().len(), sum(|t| t.lost_tables));
        races += sum(|t| t.lost_races);
        table_races += sum(|t| t.lost_tables);

        let cpu = epochs.join(0).unwrap();
        let mut mapped = HashSet::new();
        for n in 0..PAGES {
            let ipa = Ipa::new((n % 32) << 21 | (n / 32) << 12);
            let View::Leaf(leaf) = space.lookup(&cpu.enter(), ipa).unwrap().view() else {
                panic!("{ipa} is not mapped");
            };
            assert!(mapped.insert(leaf.pa()), "one frame, two addresses");
        }
        for (tally, frames) in &tallies {
            assert_eq!(frames.returned.len(), tally.lost_races as usize);
            assert!(
                frames.returned.iter().all(|pa| !mapped.contains(pa)),
                "a loser's frame is mapped"
            );
        }
    }
    assert!(races > 0 && table_races > 0, "no two PEs met: the test showed nothing");
}

proptest! {
    /// Any sequence of installs at any level leaves what a map of ranges would.
    #[test]
    fn installs_match_a_reference_map(
        ipa_bits in 30u32..=48,
        requests in prop::collection::vec((any::<u64>(), 1u8..=3), 1..60),
    ) {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let (space, cpu) = (space(&pages, &epochs, ipa_bits), epochs.join(0).unwrap());
        // Start of each mapped range -> (end, frame).
        let mut reference: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        let covering = |map: &BTreeMap<u64, (u64, u64)>, at: u64| {
            map.range(..=at).next_back().filter(|(_, (end, _))| at < *end).map(|(s, (_, pa))| (*s, *pa))
        };
        let mut frames = Counted::new(1 << 30, 1 << 30, usize::MAX);
        for (seed, level) in requests {
            // Few distinct addresses, so that they meet; all levels of the tree take part.
            let level = [Level::L1, Level::L2, Level::L3][usize::from(level) - 1];
            if level < space.geometry.start() {
                continue;
            }
            let spread = (seed & 3) << 12 | (seed >> 2 & 3) << 21 | (seed >> 4 & 1) << 30
                | (seed >> 5 & 1) << (ipa_bits - 1);
            let ipa = Ipa::new(spread & ((1 << ipa_bits) - 1));
            let start = ipa.align_down(level.slot_bytes()).get();
            let end = start + level.slot_bytes();
            let mut tally = Tally::default();
            frames.next = frames.next.next_multiple_of(level.slot_bytes());
            let frame = frames.next;
            let result = space.install(&cpu.enter(), ipa, &at(&space, level), &mut frames, &mut tally);
            if let Some((from, pa)) = covering(&reference, ipa.get()) {
                let larger_or_same = reference[&from].0 - from >= level.slot_bytes();
                match result {
                    Ok(Install::Present(leaf)) => prop_assert_eq!(leaf.pa().get(), pa),
                    // A block was wanted, and a page of its span is mapped.
                    other => prop_assert!(
                        !larger_or_same && matches!(other, Err(InstallError::Occupied { .. })),
                        "{other:?}"
                    ),
                }
            } else if reference.range(start..end).next().is_some()
                || matches!(result, Err(InstallError::Occupied { .. })) {
                // A table of smaller pages stands in the way of a block.
                prop_assert!(matches!(result, Err(InstallError::Occupied { .. })), "{result:?}");
                prop_assert!(reference.range(start..end).next().is_some());
            } else {
                prop_assert_eq!(result, Ok(Install::Installed(Pa::new(frame))));
                reference.insert(start, (end, frame));
            }
        }
        for (start, (end, frame)) in &reference {
            for ipa in [*start, end - 4096] {
                let lookup = space.lookup(&cpu.enter(), Ipa::new(ipa)).unwrap();
                let View::Leaf(leaf) = lookup.view() else { panic!("{lookup:?}") };
                prop_assert_eq!(leaf.pa().get(), *frame);
                prop_assert_eq!(leaf.attributes(space.encoding()), Some(ram()));
            }
            let before = start.checked_sub(4096).map(Ipa::new);
            if let Some(before) = before.filter(|ipa| covering(&reference, ipa.get()).is_none()) {
                let view = space.lookup(&cpu.enter(), before).unwrap().view();
                prop_assert_eq!(view, View::Empty);
            }
        }
        prop_assert_eq!(pages.live(), linked_tables(&space));
    }
}
