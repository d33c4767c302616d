//! Ageing: what is found and what is changed, pages, blocks and runs, in batches; and what is refused.

use super::prot::{ACCESSED, CONTIGUOUS, DIRTY, DIRTY_MODIFIER, ENGINES, GIB, MIB2, page, vm_with};
use super::unmap::range;
use super::*;
use crate::space::{AgeError, Aged, Batch, IdlePages, Progress, ProtError};

const NON_OWNED: u64 = 1 << 57;
const UPDATES: [HwUpdate; 3] = [HwUpdate::Off, HwUpdate::Access, HwUpdate::AccessAndDirty];

/// Each page is accessed or idle as its leaf said, in batches of any size; afterwards none is accessed, and nothing else has
/// changed; a second pass finds all idle and flushes nothing.
#[test]
fn a_pass_says_what_was_accessed_and_the_next_one_what_was_since() {
    for (hw_update, budget) in
        UPDATES.into_iter().flat_map(|hw| [1, 63, 500, usize::MAX].map(|budget| (hw, budget)))
    {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let vm = vm_with(hw_update, &pages, &epochs);
        vm.lay(range(GIB, MIB2), Level::L3);
        vm.lay(range(GIB + MIB2, 2 * MIB2), Level::L2);
        let idle = |n: u64| n.is_multiple_of(3);
        (0..512).filter(|n| idle(*n)).for_each(|n| vm.alter(page(n), ACCESSED, 0));
        (0..512).step_by(5).for_each(|n| vm.alter(page(n), DIRTY, DIRTY_MODIFIER));
        vm.put(page(100), Descriptor::EMPTY);
        vm.alter(page(101), 0, NON_OWNED);
        vm.alter(GIB + MIB2, ACCESSED, 0);
        let before: Vec<u64> = (0..512).map(|n| vm.held(page(n))).collect();
        let all = range(GIB, 3 * MIB2);
        let mut claim = vm.space.claim(all).unwrap();
        let mut words = vec![u64::MAX; IdlePages::words(all)];
        let mut pass = |expected: &dyn Fn(u64) -> bool| {
            let mut bitmap = IdlePages::new(all, &mut words).unwrap();
            let (mut from, mut found) = (all.start(), (0, 0));
            loop {
                let batch = Batch { from, slots: budget };
                let aged = vm.space.age(&vm.cpu, &mut claim, batch, Some(&mut bitmap)).unwrap();
                found = (found.0 + aged.accessed, found.1 + aged.idle);
                match aged.progress {
                    Progress::Done => break,
                    Progress::Until(next) => from = next,
                }
            }
            for n in 0..3 * 512 {
                let marked = bitmap.is_idle(Ipa::new(page(n)));
                assert_eq!(
                    marked,
                    !matches!(n, 100 | 101) && expected(n),
                    "page {n}, {hw_update:?}"
                );
            }
            assert!(vm.cpu.is_quiescent());
            found
        };
        let (accessed, idle_pages) = pass(&|n| if n < 512 { idle(n) } else { n < 1024 });
        // Of the first 512 a third is idle, 171; two more do not count, of which none is.
        let wanted = (512 - 171 - 2 + 512, 171 + 512);
        assert_eq!((accessed, idle_pages), wanted, "accessed and idle, and no others");
        for n in (0..512).filter(|n| !matches!(n, 100 | 101)) {
            let taken = before[n as usize] & !ACCESSED;
            assert_eq!(vm.held(page(n)), taken, "the flag is taken, page {n}");
        }
        assert_eq!(vm.held(page(101)), before[101], "it is not the VM's");
        let _ = vm.space.arch.take_log();
        assert_eq!(pass(&|_| true), (0, 510 + 1024));
        let log = vm.space.arch.take_log();
        assert!(!log.iter().any(|event| matches!(event, Event::Tlbi(..))), "nothing to flush");
    }
}

/// However many tables: what is taken in a batch is flushed once.
#[test]
fn a_batch_is_flushed_once() {
    for engine in ENGINES {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let vm = vm_with(HwUpdate::AccessAndDirty, &pages, &epochs);
        vm.space.pin_engine(Some(engine));
        vm.lay(range(GIB, 4 * MIB2), Level::L3);
        let before = vm.space.account();
        let mut claim = vm.space.claim(range(GIB, 4 * MIB2)).unwrap();
        let all = Batch::all_of(&claim);
        let aged = vm.space.age(&vm.cpu, &mut claim, all, None).unwrap();
        assert_eq!(aged, Aged { progress: Progress::Done, accessed: 2048, idle: 0 });
        let flushes = |account: &crate::Account| account.flushes + account.whole_flushes;
        assert_eq!(flushes(&vm.space.account()) - flushes(&before), 1, "{engine:?}");
    }
}

/// A run whose flags are taken is no run any more: no fault has to set one in it.
#[test]
fn a_run_that_is_aged_is_dissolved() {
    for hw_update in UPDATES {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let vm = vm_with(hw_update, &pages, &epochs);
        vm.lay(range(GIB, MIB2), Level::L3);
        (16..32).for_each(|n| vm.alter(page(n), 0, CONTIGUOUS));
        let mut claim = vm.space.claim(range(GIB, MIB2)).unwrap();
        let all = Batch::all_of(&claim);
        let aged = vm.space.age(&vm.cpu, &mut claim, all, None).unwrap();
        assert_eq!((aged.accessed, aged.idle), (512, 0));
        (0..512).for_each(|n| assert_eq!(vm.held(page(n)) & (ACCESSED | CONTIGUOUS), 0, "{n}"));
        let guard = vm.cpu.enter();
        let fault = vm.space.relax(&guard, Ipa::new(page(20)), Prot::READ, Prot::RWX);
        assert!(matches!(fault, Ok(crate::Relaxed::Granted(_))), "{fault:?}");
    }
}

#[test]
fn a_bitmap_of_another_size_or_range_is_refused_with_the_numbers() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = vm_with(HwUpdate::Off, &pages, &epochs);
    vm.lay(range(GIB, MIB2), Level::L3);
    let odd = range(GIB, 65 * PAGE_SIZE);
    for given in [0, 1, 3] {
        let refused = IdlePages::new(odd, &mut vec![0; given]).map(|_| ());
        assert_eq!(refused, Err(AgeError::Words { given, wanted: 2 }));
    }
    let mut words = vec![0; IdlePages::words(odd)];
    let mut bitmap = IdlePages::new(odd, &mut words).unwrap();
    let mut claim = vm.space.claim(range(GIB, 64 * PAGE_SIZE)).unwrap();
    let (all, claimed) = (Batch::all_of(&claim), claim.range());
    let refused = vm.space.age(&vm.cpu, &mut claim, all, Some(&mut bitmap));
    assert_eq!(refused, Err(AgeError::Bitmap { bitmap: odd, claimed }));
    assert_ne!(vm.held(page(0)) & ACCESSED, 0, "nothing was aged");
    drop(claim);
    vm.lay(range(GIB + MIB2, MIB2), Level::L2);
    let mut claim = vm.space.claim(range(GIB + MIB2, PAGE_SIZE)).unwrap();
    let all = Batch::all_of(&claim);
    let straddles = ProtError::Straddles { ipa: Ipa::new(GIB + MIB2), level: Level::L2 };
    let refused = vm.space.age(&vm.cpu, &mut claim, all, None);
    assert_eq!(refused, Err(AgeError::Prot(straddles)));
}
