//! CPUs that run a guest, and one or two that have all others stand still. There is no VM here: the guest's memory is two words for each CPU,
//! which its guest keeps alike. Whoever pauses the VM finds them alike, and changes them; no change of either is lost.
//!
//! A kick is an interrupt: a flag for each CPU that it waits for in WFI, and in its guest when there is nothing left to do there. A kick that is lost leaves somebody
//! waiting, which the checker calls a deadlock.

use std::sync::Arc;
use std::sync::atomic::AtomicU64 as Tally;

use hyp_core::standstill::{Around, Asked, Standstill};
#[cfg(loom)]
use loom::sync::{Condvar, Mutex};
#[cfg(all(shuttle, not(loom)))]
use shuttle::sync::{Condvar, Mutex};

use crate::outcome::reached;
use crate::sched::atomic::{AtomicU64, Ordering};
use crate::sched::thread;

/// What a pause adds to each word; a step of a guest adds 1.
const PAUSED: u64 = 100;

/// A CPU's interrupt, and its guest's memory.
struct Place {
    pending: Mutex<bool>,
    came: Condvar,
    memory: [AtomicU64; 2],
}

impl Place {
    fn new() -> Self {
        Self {
            pending: Mutex::new(false),
            came: Condvar::new(),
            memory: [AtomicU64::new(0), AtomicU64::new(0)],
        }
    }

    fn kick(&self) {
        *self.pending.lock().unwrap() = true;
        self.came.notify_one();
    }

    fn take(&self) {
        *self.pending.lock().unwrap() = false;
    }

    fn rest(&self) {
        let mut pending = self.pending.lock().unwrap();
        while !*pending {
            pending = self.came.wait(pending).unwrap();
        }
    }

    /// Adds to both words, which are alike.
    fn add(&self, amount: u64, why: &str) {
        let [one, two] = self.memory.each_ref().map(|word| word.load(Ordering::Relaxed));
        assert_eq!(one, two, "{why}");
        self.memory[0].store(one + amount, Ordering::Relaxed);
        self.memory[1].store(one + amount, Ordering::Relaxed);
    }
}

/// The machine: its CPUs are those of the VM.
struct Machine {
    still: Standstill,
    places: Vec<Place>,
    /// How often a CPU looks for what it waits for, before it gives up.
    patience: usize,
    /// CPUs that have done their part, steps of their guests, and pauses. No checker sees these.
    through: Tally,
    steps: Tally,
    pauses: Tally,
}

/// One of its CPUs.
struct Cpu<'m> {
    machine: &'m Machine,
    number: usize,
}

impl Around for &Cpu<'_> {
    fn kick_others(&self) {
        self.others().for_each(Place::kick);
    }

    fn wait_until(&self, done: impl Fn() -> bool) {
        for _ in 0..self.machine.patience {
            if done() {
                return;
            }
            thread::yield_now();
        }
        reached("given up");
    }

    fn take_kick(&self) {
        self.place().take();
    }

    fn rest(&self) {
        self.place().rest();
    }
}

impl Cpu<'_> {
    fn place(&self) -> &Place {
        &self.machine.places[self.number]
    }

    fn others(&self) -> impl Iterator<Item = &Place> {
        let all = self.machine.places.iter().enumerate();
        all.filter(|(number, _)| *number != self.number).map(|(_, place)| place)
    }

    /// The guest does so many steps, if it comes to them before the VM's end. Says whether that has come.
    fn run(&self, steps: usize) -> bool {
        for _ in 0..steps {
            while self.machine.still.is_asked() {
                if self.obeys() == Asked::Leave {
                    return true;
                }
                thread::yield_now();
            }
            self.place().add(1, "the guest sees half of what was done in a pause");
            self.machine.steps.fetch_add(1, Ordering::Relaxed);
        }
        false
    }

    /// Does what it is asked for; EL2 looks at the memory before it enters the guest again.
    fn obeys(&self) -> Asked {
        let asked = self.machine.still.obey(&self);
        self.place().add(0, "EL2 sees half of what was done in a pause");
        asked
    }

    /// Has the others stand still, and changes their memory.
    fn pause(&self) -> bool {
        let others = self.machine.places.len() as u64 - 1;
        let Some(pause) = self.machine.still.pause(others, self) else { return false };
        for other in self.others() {
            other.add(PAUSED, "a guest runs while all stand still");
        }
        self.machine.pauses.fetch_add(1, Ordering::Relaxed);
        drop(pause);
        true
    }

    /// This CPU has done its part; the last one ends the VM.
    fn leave(&self) {
        let all = self.machine.places.len() as u64;
        if self.machine.through.fetch_add(1, Ordering::AcqRel) + 1 == all {
            self.end();
        } else {
            self.leave_at_the_end();
        }
    }

    /// The guest does nothing until somebody ends the VM: only a kick takes it out.
    fn leave_at_the_end(&self) {
        loop {
            self.place().take();
            if self.machine.still.is_asked() && self.obeys() == Asked::Leave {
                return;
            }
            self.place().rest();
        }
    }

    /// Ends the VM.
    fn end(&self) {
        assert!(self.machine.still.end(), "there is one who ends it");
        (&self).kick_others();
    }
}

impl Machine {
    /// Runs a part on each CPU, then looks at the memory. All wait for as long as it takes.
    fn run(parts: &[fn(&Cpu<'_>)]) {
        Self::run_with(usize::MAX, parts);
    }

    /// The same with CPUs of so much patience.
    fn run_with(patience: usize, parts: &[fn(&Cpu<'_>)]) {
        let machine = Arc::new(Self {
            still: Standstill::new(),
            patience,
            places: parts.iter().map(|_| Place::new()).collect(),
            through: Tally::new(0),
            steps: Tally::new(0),
            pauses: Tally::new(0),
        });
        let others = parts.iter().enumerate().skip(1).map(|(number, part)| {
            let (machine, part) = (Arc::clone(&machine), *part);
            thread::spawn(move || part(&Cpu { machine: &machine, number }))
        });
        let others: Vec<_> = others.collect();
        parts[0](&Cpu { machine: &machine, number: 0 });
        others.into_iter().for_each(|other| other.join().unwrap());
        let sum = |which: usize| -> u64 {
            machine.places.iter().map(|place| place.memory[which].load(Ordering::Relaxed)).sum()
        };
        let tally = |tally: &Tally| tally.load(Ordering::Relaxed);
        let paused = tally(&machine.pauses) * (parts.len() as u64 - 1) * PAUSED;
        let done = paused + tally(&machine.steps);
        assert_eq!([sum(0), sum(1)], [done; 2], "what was done in pauses and by guests");
    }
}

/// One pauses twice, as fast as it can; the other's guest works. Who still goes on from the first pause does not count for the second.
pub fn two_pauses_of_a_guest() {
    let pauser = |cpu: &Cpu<'_>| {
        assert!(cpu.pause(), "nobody else wants to");
        assert!(cpu.pause(), "nobody else wants to");
        reached("paused twice");
        cpu.leave();
    };
    let guest = |cpu: &Cpu<'_>| {
        assert!(!cpu.run(2), "nobody ends the VM before");
        cpu.leave();
    };
    Machine::run(&[pauser, guest]);
}

/// Two pause at the same time, each with a guest of its own.
pub fn two_pause_each_other() {
    let part = |cpu: &Cpu<'_>| {
        reached(if cpu.pause() { "paused" } else { "refused" });
        assert!(!cpu.run(1), "nobody ends the VM before");
        cpu.leave();
    };
    Machine::run(&[part, part]);
}

/// One pauses twice, and gives up when the other one does not stand still, or go on, at once. Who has stood still for a pause that was given up does not
/// count for the next.
pub fn two_pauses_that_are_given_up() {
    let pauser = |cpu: &Cpu<'_>| {
        for _ in 0..2 {
            if cpu.pause() {
                reached("paused");
            }
        }
        cpu.leave();
    };
    let guest = |cpu: &Cpu<'_>| {
        assert!(!cpu.run(2), "nobody ends the VM before");
        cpu.leave();
    };
    Machine::run_with(1, &[pauser, guest]);
}

/// Two of four pause as they like, without much patience.
pub fn a_crowd_gives_up() {
    Machine::run_with(4, &[pauses_and_works, pauses_and_works, works, works]);
}

/// One ends the VM while the other one pauses it.
pub fn an_end_against_a_pause() {
    Machine::run(&[pauses_once, ends]);
}

/// The same, with two more whose guests work: they stand still, or not yet, or not any more.
pub fn an_end_against_a_pause_of_four() {
    let guest = |cpu: &Cpu<'_>| {
        cpu.run(2);
        cpu.leave_at_the_end();
    };
    Machine::run(&[pauses_once, ends, guest, guest]);
}

fn pauses_once(cpu: &Cpu<'_>) {
    reached(if cpu.pause() { "paused before" } else { "refused" });
    if !cpu.run(1) {
        reached("a guest worked after it");
    }
    cpu.leave_at_the_end();
}

fn ends(cpu: &Cpu<'_>) {
    if !cpu.run(1) {
        cpu.end();
    }
}

/// Three CPUs that pause and work as they like, and one that works.
pub fn a_crowd_pauses() {
    Machine::run(&[pauses_and_works, pauses_and_works, pauses_and_works, works]);
}

fn pauses_and_works(cpu: &Cpu<'_>) {
    for _ in 0..3 {
        reached(if cpu.pause() { "paused" } else { "refused" });
        assert!(!cpu.run(2), "nobody ends the VM before");
    }
    cpu.leave();
}

fn works(cpu: &Cpu<'_>) {
    assert!(!cpu.run(6), "nobody ends the VM before");
    cpu.leave();
}
