//! A policy ends: published, waited for, and only then swept. What was decided under the old one is in
//! the sweep, or was never done.

use std::sync::Arc;

use stage2::space::{Notes, Progress};
use stage2::{Descriptor, InstallError, Level, View};

use super::clear::populate;
use crate::guest::Access;
use crate::outcome::reached;
use crate::ranges::{note, pages};
use crate::sched::atomic::{AtomicU64, Ordering};
use crate::world::{Pe, Shape, World, page};

/// The policy, as a word: 1 says that a page is RAM, 0 that it is not.
type Policy = Arc<AtomicU64>;

/// A fault handler: decides by the policy and installs, under one guard. Whether it installed.
fn handle(pe: &Pe<'_>, policy: &AtomicU64) -> bool {
    let _guard = pe.cpu.enter();
    if policy.load(Ordering::Relaxed) == 0 {
        return false;
    }
    match pe.install(page(0), Level::L3) {
        Ok(_) => true,
        Err(InstallError::Retry { .. } | InstallError::Note { .. }) => {
            panic!("the sweep began while a guard was open under the old policy")
        }
        Err(error) => panic!("an install failed: {error:?}"),
    }
}

/// A page stops being RAM: it is unmapped, and a note says whose it is now. A handler that decided before
/// has its page swept; none decides afterwards.
pub fn a_page_is_given_away() {
    let world = World::new(Shape::small(3, 2));
    let policy: Policy = Arc::new(AtomicU64::new(1));
    let _ = world.pe(0, &[1], |pe| populate(pe, 3));
    let handler = {
        let policy = Arc::clone(&policy);
        world.spawn(1, &[0], move |pe| (handle(pe, &policy), pe.at_hand()))
    };
    let guest = world.thread(|world| world.guest_reads_meanwhile(page(0)));
    let swept = world.pe(0, &[], |pe| {
        policy.store(0, Ordering::Relaxed);
        pe.cpu.wait(pe.world.patience()).expect("outside a guard");
        let swept = pe.unmap_all(pages(0, 2), Notes::Keep);
        let noted = pe.annotate(&mut pe.claim(pages(0, 2)).0, 9);
        assert_eq!(noted, Ok(Progress::Done), "nothing comes after the sweep");
        swept
    });
    let (installed, at_hand) = handler.join().unwrap();
    assert_eq!(swept.len(), usize::from(installed), "what an old decision installed is swept");
    assert_eq!(at_hand, usize::from(!installed));
    assert_eq!(world.walk(page(0)).view(), View::Note(note(9)));
    reached(if installed { "installed, then swept" } else { "refused" });
    reached(match guest.join().unwrap() {
        Access::Fault => "guest faulted",
        Access::Read(..) => "guest read",
    });
    world.settle();
}

/// A page becomes RAM again: who sees the new policy finds no remains of the old one.
pub fn a_page_is_taken_back() {
    let world = World::new(Shape::small(2, 2));
    let policy: Policy = Arc::new(AtomicU64::new(0));
    world.pe(0, &[1], |pe| {
        populate(pe, 3);
        assert_eq!(pe.annotate(&mut pe.claim(pages(0, 1)).0, 9), Ok(Progress::Done));
    });
    let handler = {
        let policy = Arc::clone(&policy);
        world.spawn(1, &[0], move |pe| {
            let guard = pe.cpu.enter();
            let may = policy.load(Ordering::Acquire) == 1;
            let result = may.then(|| pe.install(page(0), Level::L3));
            drop(guard);
            result
        })
    };
    world.pe(0, &[], |pe| {
        let gone = pe.deannotate(&mut pe.claim(pages(0, 1)).0);
        assert_eq!(gone, [(page(0), 9)]);
        policy.store(1, Ordering::Release);
    });
    let last = world.walk(page(0)).seen;
    match handler.join().unwrap() {
        None => {
            assert_eq!(last, Descriptor::EMPTY);
            reached("refused");
        }
        Some(result) => {
            result.expect("the note is gone before the policy says RAM");
            reached("installed");
        }
    }
    world.settle();
}
