use core::cell::{Cell, RefCell};
use std::boxed::Box;

use super::{Around, Asked, Ordering, STANDS, Standstill};

/// A CPU of a VM, alone on the host: what the others do happens while this one waits, or rests.
#[derive(Default)]
struct Alone<'t> {
    kicks: Cell<usize>,
    rests: Cell<usize>,
    /// What happens, once.
    meanwhile: RefCell<Option<Box<dyn FnOnce() + 't>>>,
}

impl<'t> Alone<'t> {
    fn new(meanwhile: impl FnOnce() + 't) -> Self {
        Self { meanwhile: RefCell::new(Some(Box::new(meanwhile))), ..Self::default() }
    }

    fn others_run(&self) {
        if let Some(meanwhile) = self.meanwhile.take() {
            meanwhile();
        }
    }
}

impl Around for &Alone<'_> {
    fn kick_others(&self) {
        self.kicks.set(self.kicks.get() + 1);
    }

    fn wait_until(&self, done: impl Fn() -> bool) {
        if !done() {
            self.others_run();
        }
    }

    fn take_kick(&self) {}

    fn rest(&self) {
        self.rests.set(self.rests.get() + 1);
        assert!(self.meanwhile.borrow().is_some(), "rests though nobody is going to kick it");
        self.others_run();
    }
}

#[test]
fn a_vm_of_one_cpu_stands_still_at_once() {
    let (still, cpu) = (Standstill::new(), Alone::default());
    let pause = still.pause(0, &cpu);
    assert!(pause.is_some(), "there is nobody to wait for");
    assert!(still.is_asked());
    drop(pause);
    assert!(!still.is_asked());
    assert_eq!(cpu.kicks.get(), 2, "one that asks, one that takes it back");
}

#[test]
fn who_is_asked_stands_still_until_it_is_taken_back() {
    let (still, pauser) = (Standstill::new(), Alone::default());
    let pause = still.pause(0, &pauser);
    let other = Alone::new(|| drop(pause));
    assert_eq!(still.obey(&&other), Asked::LookAgain);
    assert_eq!(other.rests.get(), 1, "it rested as long as it was paused");
    assert!(!still.is_asked(), "the pause is over");
    assert_eq!(still.0.load(Ordering::Relaxed), 0, "nobody is counted any more");
}

#[test]
fn who_still_goes_on_keeps_nobody_from_its_guest_but_from_a_pause() {
    let (still, cpu) = (Standstill::new(), Alone::default());
    still.0.fetch_add(STANDS, Ordering::Relaxed);
    assert!(!still.is_asked());
    assert_eq!(still.obey(&&cpu), Asked::LookAgain);
    assert!(still.pause(1, &cpu).is_none(), "it would count for one that stands still");
    let goes_on = Alone::new(|| {
        still.0.fetch_sub(STANDS, Ordering::Relaxed);
    });
    assert!(still.pause(0, &goes_on).is_some());
}

#[test]
fn who_does_not_come_in_time_is_not_waited_for() {
    let (still, cpu) = (Standstill::new(), Alone::default());
    assert!(still.pause(1, &cpu).is_none(), "the other one has not stood still");
    assert!(!still.is_asked(), "what was asked for is taken back");
    assert_eq!(cpu.kicks.get(), 2, "who stands still is told so");
}

#[test]
fn nobody_pauses_a_vm_that_another_one_pauses() {
    let (still, first, second) = (Standstill::new(), Alone::default(), Alone::default());
    let pause = still.pause(0, &first);
    assert!(still.pause(0, &second).is_none(), "one at a time");
    assert_eq!(second.kicks.get(), 0, "who was refused has asked nobody");
    assert!(still.is_asked(), "the first one's pause goes on");
    drop(pause);
}

#[test]
fn nobody_pauses_a_vm_that_ends() {
    let (still, cpu) = (Standstill::new(), Alone::default());
    assert!(still.end());
    assert!(still.pause(0, &cpu).is_none(), "the end comes first");
    assert!(still.is_over(), "the end stays claimed");
}

#[test]
fn the_end_is_claimed_once() {
    let still = Standstill::new();
    assert!(!still.is_over());
    assert!(still.end(), "the first one");
    assert!(!still.end(), "somebody was before");
    assert_eq!(still.obey(&&Alone::default()), Asked::Leave);
    still.begin();
    assert!(!still.is_asked(), "the next life begins with nothing asked for");
}

#[test]
fn the_end_of_the_vm_is_the_end_of_a_pause() {
    let (still, pauser) = (Standstill::new(), Alone::default());
    let pause = still.pause(0, &pauser);
    let other = Alone::new(|| assert!(still.end()));
    assert_eq!(still.obey(&&other), Asked::Leave);
    drop(pause);
    assert!(still.is_over(), "a pause that is taken back takes nothing else back");
}

#[test]
fn a_pause_that_meets_the_end_is_none() {
    let still = Standstill::new();
    let cpu = Alone::new(|| _ = still.end());
    assert!(still.pause(1, &cpu).is_none(), "the other one leaves");
    assert!(still.is_over());
}
