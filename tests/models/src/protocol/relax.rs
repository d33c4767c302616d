//! Faults on leaves that are there, against those who take away what they grant.

use std::sync::Arc;

use stage2::space::{Batch, Progress};
use stage2::{Change, Prot, Relaxed};

use super::alike::map;
use super::prot::{bits, modify};
use crate::outcome::reached;
use crate::ranges::pages;
use crate::sched::atomic::{AtomicU64, Ordering};
use crate::world::{Shape, World, page};

const WRITABLE: u64 = 1 << 7;
const ACCESSED: u64 = 1 << 10;

/// A handler decides by the policy that a page may be written, and grants it; another PE forbids that, waits, and sweeps.
/// Nothing is writable in the end.
pub fn a_protect_against_a_write_fault() {
    let world = World::new(Shape::small(2, 1));
    map(&world);
    world.pe(0, &[], |pe| modify(pe, |_, _| Some(Change::WRITE_PROTECT)));
    let policy = Arc::new(AtomicU64::new(1));
    let handler = {
        let policy = Arc::clone(&policy);
        world.spawn(1, &[], move |pe| {
            let guard = pe.cpu.enter();
            if policy.load(Ordering::Relaxed) == 0 {
                return false;
            }
            let granted = pe.world.space().relax(&guard, page(1), Prot::WRITE, Prot::RWX);
            assert!(matches!(granted, Ok(Relaxed::Granted(_))), "nobody sweeps yet: {granted:?}");
            true
        })
    };
    let modified = world.pe(0, &[], |pe| {
        policy.store(0, Ordering::Relaxed);
        pe.cpu.wait(pe.world.patience()).expect("outside a guard");
        modify(pe, |_, _| Some(Change::WRITE_PROTECT))
    });
    let granted = handler.join().unwrap();
    assert_eq!(bits(&world, 1) & WRITABLE, 0, "the guest writes to what is protected");
    assert_eq!(modified.changed, u64::from(granted));
    reached(if granted { "granted, then swept" } else { "refused" });
    world.settle();
}

/// A fault sets the access flag of a page while it is taken from it and its neighbours: it says of the page what came last.
pub fn an_access_fault_against_ageing() {
    let world = World::new(Shape::small(2, 1));
    map(&world);
    let handler = world.spawn(1, &[], |pe| {
        let guard = pe.cpu.enter();
        match pe.world.space().relax(&guard, page(1), Prot::READ, Prot::RWX) {
            Ok(Relaxed::Granted(_)) => true,
            Ok(Relaxed::Spurious(_)) => false,
            Err(error) => panic!("nothing is broken: {error}"),
        }
    });
    let aged = world.pe(0, &[], |pe| {
        let (mut claim, _) = pe.claim(pages(0, 3));
        let all = Batch::all_of(&claim);
        pe.world.space().age(&pe.cpu, &mut claim, all, None).expect("claimed")
    });
    assert_eq!((aged.progress, aged.accessed, aged.idle), (Progress::Done, 3, 0));
    let granted = handler.join().unwrap();
    for number in 0..3 {
        let accessed = bits(&world, number) & ACCESSED != 0;
        assert_eq!(accessed, granted && number == 1, "an access flag is lost, or made up");
    }
    reached(if granted { "set after it was taken" } else { "was set still" });
    world.settle();
}
