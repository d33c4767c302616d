//! Splits without a break: what is left of the guest's view, which way each block takes, locks, and batches.

use super::map::{extent, leaves, map};
use super::unmap::range;
use super::*;
use crate::arch::Observation;
use crate::arch::host::Event;
use crate::attr::Write;
use crate::space::{Batch, Progress, SplitError};
use crate::tlbi::Tlbi;

const GIB: u64 = 1 << 30;
const MIB2: u64 = 2 << 20;
const LEVELS: [Bbm; 3] = [Bbm::Level0, Bbm::Level1, Bbm::Level2];

/// A VM that the host runs, on a machine with this level of FEAT_BBM whose hardware updates A/D.
fn space_at<'t>(bbm: Bbm, pages: &'t Pages, epochs: &'t Epochs<1>) -> Space<'t, &'t Pages, Host> {
    let caps = Caps::GRANULE_4K | Caps::HW_ACCESS | Caps::HW_DIRTY;
    let features = Features { caps, bbm, ..features(48) };
    let geometry = Geometry::new(40, &features, HwUpdate::AccessAndDirty).unwrap();
    let vmids = vmids();
    let space = Space::new(geometry, vmids, epochs.domain(), pages, Host::new()).unwrap();
    let mut cpu = vmids.join(0).unwrap();
    // SAFETY: (1, 2) no guest runs on the host.
    core::mem::forget(unsafe { space.enter(&mut cpu, 0) }.unwrap());
    space
}

/// One batch.
fn split(
    space: &Space<'_, &Pages, Host>,
    epochs: &Epochs<1>,
    at: IpaRange,
) -> Result<Progress, SplitError> {
    let cpu = epochs.join(0).unwrap();
    let mut claim = space.claim(at).unwrap();
    let all = Batch::all_of(&claim);
    let _ = space.arch.take_log();
    let done = space.split(&cpu, &mut claim, all, Level::L3);
    assert!(cpu.is_quiescent(), "every lock and guard is given back");
    done
}

#[test]
fn every_way_gives_the_same_pages() {
    for bbm in LEVELS {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let space = space_at(bbm, &pages, &epochs);
        let at = range(GIB, 10 * MIB2);
        map(&space, &epochs, at, &extent(8 * GIB, Level::L2), 99).unwrap();
        assert_eq!(split(&space, &epochs, at), Ok(Progress::Done));
        let found = leaves(&space, &epochs, at);
        assert_eq!(found.len(), 10 * 512);
        assert!(found.iter().all(|(ipa, pa, level)| *level == 3 && pa - ipa == 7 * GIB), "{bbm:?}");
        let account = space.account();
        let live = [[0, 0], [10, 0], [0, 10]][bbm as usize];
        assert_eq!((account.split, account.split_live), (10, live), "{bbm:?}");
        assert_eq!((account.leaves_now(), account.tables_now()), (5120, 11));
    }
}

/// A break has one flush by address, nT one and one of everything, and the third way that alone: for any number of blocks.
#[test]
fn a_live_batch_has_as_many_flushes_as_a_block() {
    for blocks in [1, 40] {
        for (bbm, flushes) in LEVELS.into_iter().zip([(1, 0), (1, 1), (0, 1)]) {
            let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
            let space = space_at(bbm, &pages, &epochs);
            let at = range(GIB, blocks * MIB2);
            map(&space, &epochs, at, &extent(8 * GIB, Level::L2), 99).unwrap();
            assert_eq!(split(&space, &epochs, at), Ok(Progress::Done));
            let account = space.account();
            assert_eq!((account.flushes, account.whole_flushes), flushes, "{bbm:?}, {blocks}");
            let stores =
                |event: &&Event| matches!(event, Event::Store(bits) if bits & 0b11 == 0b11);
            let linked = space.arch.take_log();
            let later = linked.iter().rev().take_while(|event| !matches!(event, Event::Tlbi(..)));
            let expected = if bbm == Bbm::Level0 { blocks as usize } else { 0 };
            assert_eq!(later.filter(stores).count(), expected, "no slot is invalid but by a break");
        }
    }
}

/// A live table's lock is taken before it is linked, by ascending IPA, and given back after the last flush; the lock of
/// the blocks' table is not held through a flush.
#[test]
fn tables_are_locked_from_before_they_are_linked_until_they_are_flushed() {
    for bbm in [Bbm::Level1, Bbm::Level2] {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let space = space_at(bbm, &pages, &epochs);
        let at = range(GIB, 2 * MIB2);
        map(&space, &epochs, at, &extent(8 * GIB, Level::L2), 99).unwrap();
        assert_eq!(split(&space, &epochs, at), Ok(Progress::Done));
        let table_of = |ipa| {
            let cpu = epochs.join(0).unwrap();
            let bits = space.lookup_rw(&cpu.enter(), Ipa::new(ipa)).unwrap().parent().unwrap();
            bits.bits() & 0xffff_ffff_f000
        };
        let children = [table_of(GIB), table_of(GIB + MIB2)];
        let (mut steps, mut held) = (Vec::new(), Vec::new());
        for event in space.arch.take_log() {
            match event {
                Event::Observe(Observation::Locked { table }) => held.push(table.get()),
                Event::Observe(Observation::Unlocked { table }) => {
                    held.retain(|held| *held != table.get());
                }
                Event::CompareExchange(won) => {
                    assert!(won, "nobody else is there");
                    steps.push(held.iter().filter(|held| children.contains(*held)).count());
                    assert_eq!(held.len(), steps.last().unwrap() + 1, "the blocks' table, too");
                }
                Event::Tlbi(op, _) => {
                    let last = op == Tlbi::Vmalls12e1Is;
                    assert_eq!(held, if last { &children[..] } else { &[] }, "{bbm:?}: {op:?}");
                }
                _ => {}
            }
        }
        assert_eq!(held, [0_u64; 0]);
        let expected: &[usize] = if bbm == Bbm::Level1 { &[0, 0, 1, 2] } else { &[1, 2] };
        assert_eq!(steps, expected, "{bbm:?}: one more is locked before each is linked");
    }
}

/// By what hardware may still record in a block, on a machine that could split all of them live.
#[test]
fn only_what_is_settled_is_split_live() {
    let kinds = [Write::Denied, Write::Allowed, Write::Clean, Write::Dirty];
    for (index, write) in kinds.into_iter().enumerate() {
        for accessed in [false, true] {
            let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
            let space = space_at(Bbm::Level2, &pages, &epochs);
            let at = range(GIB, MIB2);
            let attributes = Attributes { write, accessed, ..ram() };
            let extent = Extent { attributes, ..extent(8 * GIB, Level::L2) };
            map(&space, &epochs, at, &extent, 99).unwrap();
            assert_eq!(split(&space, &epochs, at), Ok(Progress::Done));
            let live = u64::from(accessed && index != 2);
            assert_eq!(space.account().split_live, [0, live], "{write:?}, accessed: {accessed}");
        }
    }
}

/// Its lock could not be taken while those of the first one's pages are held.
#[test]
fn a_live_batch_ends_where_another_tables_blocks_begin() {
    for bbm in LEVELS {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let space = space_at(bbm, &pages, &epochs);
        let at = range(2 * GIB - 2 * MIB2, 4 * MIB2);
        map(&space, &epochs, at, &extent(8 * GIB, Level::L2), 99).unwrap();
        let expected = match bbm {
            Bbm::Level0 => Progress::Done,
            _ => Progress::Until(Ipa::new(2 * GIB)),
        };
        assert_eq!(split(&space, &epochs, at), Ok(expected), "{bbm:?}");
        assert_eq!(
            space.account().whole_flushes + space.account().flushes,
            1 + u64::from(bbm == Bbm::Level1)
        );
    }
}

/// 1 GiB, 2 MiB, 4 KiB: with a hole, blocks of both sizes and pages side by side.
#[test]
fn a_range_of_all_sizes_is_split_live_in_batches() {
    for bbm in LEVELS {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let space = space_at(bbm, &pages, &epochs);
        let parts = [
            range(GIB, GIB),
            range(2 * GIB, 3 * MIB2),
            range(3 * GIB, 0x3000),
            range(4 * GIB, GIB),
        ];
        for part in parts {
            map(&space, &epochs, part, &extent(8 * GIB + part.start().get(), Level::L1), 99999)
                .unwrap();
        }
        let (cpu, whole) = (epochs.join(0).unwrap(), range(GIB, 4 * GIB));
        let mut claim = space.claim(whole).unwrap();
        let (mut from, mut batches) = (whole.start(), 0);
        while let Progress::Until(next) =
            space.split(&cpu, &mut claim, Batch { from, slots: usize::MAX }, Level::L3).unwrap()
        {
            assert!(next >= from && batches < 100, "it ends");
            (from, batches) = (next, batches + 1);
        }
        drop((claim, cpu));
        let found = leaves(&space, &epochs, whole);
        assert_eq!(found.len(), 512 * 512 + 3 * 512 + 3 + 512 * 512, "{bbm:?}");
        assert!(found.iter().all(|(ipa, pa, level)| *level == 3 && pa - ipa == 8 * GIB));
        let live: u64 = space.account().split_live.iter().sum();
        assert_eq!(live, if bbm == Bbm::Level0 { 0 } else { 2 * 513 + 3 });
    }
}

#[test]
fn out_of_tables_ends_a_live_batch_before_the_block() {
    for (bbm, tables) in LEVELS.into_iter().flat_map(|bbm| [0, 1, 2].map(|tables| (bbm, tables))) {
        let (pages, epochs) = (Pages::new(2 + tables), Epochs::<1>::new());
        let space = space_at(bbm, &pages, &epochs);
        let at = range(GIB, 3 * MIB2);
        map(&space, &epochs, at, &extent(8 * GIB, Level::L2), 9).unwrap();
        let ipa = Ipa::new(GIB + tables as u64 * MIB2);
        let expected = match tables {
            0 => Err(SplitError::OutOfTables { ipa }),
            _ => Ok(Progress::Until(ipa)),
        };
        assert_eq!(split(&space, &epochs, at), expected, "{bbm:?}");
        assert_eq!(leaves(&space, &epochs, at).len(), tables * 512 + 3 - tables);
    }
}

#[test]
fn a_pin_takes_away_and_adds_nothing() {
    for has in LEVELS {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let space = space_at(has, &pages, &epochs);
        let at = range(GIB, 4 * MIB2);
        map(&space, &epochs, at, &extent(8 * GIB, Level::L2), 99).unwrap();
        let pins = LEVELS.map(Some).into_iter().chain([None]);
        let mut expected = [0, 0];
        for (block, pin) in pins.enumerate() {
            space.pin_bbm(pin);
            assert_eq!(
                split(&space, &epochs, range(GIB + block as u64 * MIB2, MIB2)),
                Ok(Progress::Done)
            );
            match pin.map_or(has, |most| most.min(has)) {
                Bbm::Level0 => {}
                Bbm::Level1 => expected[0] += 1,
                Bbm::Level2 => expected[1] += 1,
            }
            assert_eq!(space.account().split_live, expected, "{has:?}, pinned to {pin:?}");
        }
    }
}
