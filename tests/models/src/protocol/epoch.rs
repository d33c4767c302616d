//! Guards against a wait: what was published before the wait is seen by every guard that opens later,
//! and what guards did before is seen after it.

use std::sync::Arc;

use stage2::arch::Dsb;
use stage2::{Arch, Guard, Level, View};

use super::clear;
use crate::outcome::reached;
use crate::sched::atomic::{AtomicU64, Ordering};
use crate::world::{Pe, Shape, World, page};

/// The region map, as a word: 1 says that the page is RAM.
type Policy = Arc<AtomicU64>;

/// A fault handler decides by the map and installs; another PE takes the region away, waits, and
/// sweeps. Nothing may be left that the map no longer allows.
fn decide(install: impl FnOnce(&Pe<'_>, Guard<'_>, bool) + Send + 'static) {
    let world = World::new(Shape::small(2, 2));
    let policy: Policy = Arc::new(AtomicU64::new(1));
    let _ = world.pe(0, &[1], |pe| clear::populate(pe, 1));
    let handler = {
        let policy = Arc::clone(&policy);
        world.spawn(1, &[0], move |pe| {
            let guard = pe.cpu.enter();
            let may = policy.load(Ordering::Relaxed) == 1;
            install(pe, guard, may);
            may
        })
    };
    let swept = world.pe(0, &[], |pe| {
        policy.store(0, Ordering::Relaxed);
        pe.cpu.wait(pe.world.patience()).expect("outside a guard");
        let there = matches!(world.walk(page(0)).view(), View::Leaf(_));
        there.then(|| clear::clear(pe, 0));
        there
    });
    let installed = handler.join().unwrap();
    assert_eq!(installed, swept, "what was installed under an old guard is swept after the wait");
    let last = world.walk(page(0)).seen;
    assert!(!last.is_valid(), "the guest keeps memory that was taken away: {last:?}");
    reached(if installed { "installed, then swept" } else { "refused" });
    world.settle();
}

/// The whole walk.
pub fn a_decision_and_its_install() {
    decide(|pe, _guard, may| {
        may.then(|| pe.install(page(0), Level::L3).expect("an Empty slot"));
    });
}

/// The slot alone, and the barrier only when the guard is closed: it is not the barrier that the waiter
/// relies on.
pub fn a_decision_and_its_try_set() {
    decide(|pe, guard, may| {
        let hardware = pe.world.hardware();
        if may {
            let (neighbour, slot) = (pe.world.walk(page(1)), pe.world.walk(page(0)).slot);
            let View::Leaf(leaf) = neighbour.view() else { panic!("the neighbour is mapped") };
            let new = clear::elsewhere(neighbour.seen, leaf.pa(), pe.take());
            // SAFETY: (1) found under the guard. (2) A leaf like its neighbour; the frame was filled.
            unsafe { slot.try_set(hardware, &guard, new) }.expect("an Empty slot");
        }
        drop(guard);
        hardware.dsb(Dsb::IshSt);
    });
}

/// What a retired map points to is used for something else after the wait.
const GONE: u64 = 0x60e;

/// Readers follow a pointer under a guard; a writer publishes another, waits, and reuses the first.
fn readers_against_reuse(readers: usize, rounds: usize) {
    let world = World::new(Shape::small(1, 0));
    let maps: Arc<Vec<AtomicU64>> = Arc::new((0..=rounds).map(|_| AtomicU64::new(0)).collect());
    let current = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (1..=readers)
        .map(|n| {
            let (maps, current) = (Arc::clone(&maps), Arc::clone(&current));
            world.spawn(n, &[], move |pe| {
                let mut seen = 0;
                for _ in 0..rounds {
                    let _guard = pe.cpu.enter();
                    seen = current.load(Ordering::Relaxed);
                    let content = maps[seen as usize].load(Ordering::Relaxed);
                    assert_ne!(content, GONE, "a map was read after it was retired");
                }
                reached(if seen == 0 { "read the old" } else { "read the new" });
            })
        })
        .collect();
    world.pe(0, &[], |pe| {
        for round in 0..rounds {
            current.store(round as u64 + 1, Ordering::Relaxed);
            pe.cpu.wait(pe.world.patience()).expect("outside a guard");
            maps[round].store(GONE, Ordering::Relaxed);
        }
    });
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    world.settle();
}

/// One reader, one retirement.
pub fn a_reader_and_a_retirement() {
    readers_against_reuse(1, 1);
}

/// Two readers, one retirement.
pub fn two_readers_and_a_retirement() {
    readers_against_reuse(2, 1);
}

/// Three readers, several retirements.
pub fn a_crowd() {
    readers_against_reuse(3, 4);
}

/// A handler writes under a guard, without any order of its own; after the wait the write is seen.
pub fn what_a_guard_wrote() {
    let world = World::new(Shape::small(1, 0));
    let policy: Policy = Arc::new(AtomicU64::new(1));
    let written = Arc::new(AtomicU64::new(0));
    let handler = {
        let (policy, written) = (Arc::clone(&policy), Arc::clone(&written));
        world.spawn(1, &[], move |pe| {
            let _guard = pe.cpu.enter();
            let may = policy.load(Ordering::Relaxed) == 1;
            may.then(|| written.store(1, Ordering::Relaxed));
            may
        })
    };
    let seen = world.pe(0, &[], |pe| {
        policy.store(0, Ordering::Relaxed);
        pe.cpu.wait(pe.world.patience()).expect("outside a guard");
        written.load(Ordering::Relaxed) == 1
    });
    let wrote = handler.join().unwrap();
    assert_eq!(wrote, seen, "what an old guard wrote is seen after the wait");
    reached(if wrote { "wrote" } else { "refused" });
    world.settle();
}

/// A CPU's place changes hands while a PE waits: the next holder counts on from where the last stopped, or
/// its guards would look closed.
pub fn a_place_changes_hands() {
    let world = World::new(Shape::small(1, 0));
    let map = Arc::new(AtomicU64::new(0));
    let current = Arc::new(AtomicU64::new(0));
    let first = world.thread(|world| {
        if let Some(cpu) = world.epochs().join(1) {
            drop(cpu.enter());
        }
    });
    let second = {
        let (map, current) = (Arc::clone(&map), Arc::clone(&current));
        world.thread(move |world| {
            let Some(cpu) = world.epochs().join(1) else { return reached("the place was taken") };
            let _guard = cpu.enter();
            if current.load(Ordering::Relaxed) == 0 {
                let content = map.load(Ordering::Relaxed);
                assert_ne!(content, GONE, "a map was read after it was retired");
                reached("read the old");
            } else {
                reached("read the new");
            }
        })
    };
    world.pe(0, &[], |pe| {
        current.store(1, Ordering::Relaxed);
        pe.cpu.wait(pe.world.patience()).expect("outside a guard");
        map.store(GONE, Ordering::Relaxed);
    });
    first.join().unwrap();
    second.join().unwrap();
    world.settle();
}
