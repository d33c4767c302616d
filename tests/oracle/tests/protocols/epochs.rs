//! Guards keep waiters waiting, and nobody else.

use core::cell::Cell;
use std::sync::Barrier;
use std::time::Duration;

use stage2::Epochs;

/// A wait that should be over at once.
fn never() {
    panic!("it waits, though nobody is inside a guard that it could wait for");
}

#[test]
fn a_waiter_waits_as_long_as_a_guard_that_it_met_is_open() {
    let epochs = Epochs::<3>::new();
    let (waiter, reader, idle) =
        (epochs.join(0).unwrap(), epochs.join(1).unwrap(), epochs.join(2).unwrap());
    // A guard that came and went leaves nothing to wait for.
    drop((reader.enter(), idle.enter()));
    assert_eq!(waiter.wait(never), Ok(()));
    for nested in [false, true] {
        let (outer, polls) = (Cell::new(Some(reader.enter())), Cell::new(0));
        if nested {
            drop(reader.enter());
        }
        let waited = waiter.wait(|| {
            polls.set(polls.get() + 1);
            assert!(polls.get() <= 3, "it waits for a guard that has closed");
            if polls.get() == 3 {
                // Closed and opened again at once: the new guard is not its concern.
                drop(outer.take());
                outer.set(Some(reader.enter()));
            }
        });
        assert_eq!((waited, polls.get()), (Ok(()), 3), "it did not wait for the open guard");
    }
    assert!(reader.is_quiescent() && waiter.is_quiescent(), "no guard is left");
}

/// The guard belongs to another thread: only there does it close.
#[test]
fn a_waiter_lets_others_run_between_its_polls() {
    let epochs = Epochs::<2>::new();
    let (waiter, entered) = (epochs.join(0).unwrap(), Barrier::new(2));
    let mut polls = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let reader = epochs.join(1).unwrap();
            let _guard = reader.enter();
            entered.wait();
            std::thread::sleep(Duration::from_millis(30));
        });
        entered.wait();
        let waited = waiter.wait(|| {
            polls += 1;
            std::thread::yield_now();
        });
        assert_eq!(waited, Ok(()));
    });
    assert_ne!(polls, 0, "it waits without letting others run");
}

#[test]
fn a_cpu_inside_a_guard_does_not_wait_for_itself() {
    let epochs = Epochs::<2>::new();
    let cpu = epochs.join(0).unwrap();
    let outer = cpu.enter();
    let polls = Cell::new(0);
    let waits = || {
        cpu.wait(|| {
            polls.set(polls.get() + 1);
            assert!(polls.get() < 9, "it would wait for itself for ever");
        })
        .is_ok()
    };
    assert!(!waits(), "a wait inside a guard is refused");
    drop(cpu.enter());
    assert!(!waits(), "an inner guard's end does not end the outer one");
    drop(outer);
    assert!(waits(), "outside of all guards it may wait");
}

#[test]
fn a_cpus_place_has_one_holder() {
    let epochs = Epochs::<2>::new();
    let first = epochs.join(0).unwrap();
    assert!(epochs.join(0).is_none(), "two hold one CPU's place");
    assert!(epochs.join(1).is_some() && epochs.join(2).is_none());
    drop(first);
    assert!(epochs.join(0).is_some(), "a place that was given back is free");
    let cpu = epochs.join(0).unwrap();
    std::mem::forget(cpu.enter());
    drop(cpu);
    assert!(epochs.join(0).is_none(), "a successor would count the parity the wrong way round");
}

#[test]
fn a_domain_knows_its_own_guards() {
    let (mine, other) = (Epochs::<2>::new(), Epochs::<2>::new());
    let cpu = mine.join(0).unwrap();
    let guard = cpu.enter();
    assert!(mine.domain().owns(&guard), "its own guard is refused");
    assert!(!other.domain().owns(&guard), "a stranger's guard is accepted");
}
