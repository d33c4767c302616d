//! How many events a second the model judges: `cargo run --release -p mmu-oracle --example rate`.
//!
//! The trace is that of two PEs on one VM with 64 pages: each is installed by one PE, made visible, and
//! taken away again by the other with a flush of its own; then all are, with one flush by range.

use std::time::Instant;

use mmu_oracle::event::{Aim, Dsb, Scope};
use mmu_oracle::{Event, Machine, Model};

const PAGES: u64 = 64;
const ROOT: u64 = 0x1000;
const LEAVES: u64 = 0x3000;

fn page(n: u64) -> u64 {
    (0x8000_0000 + n * 0x1000) | 0x7ff
}

fn write(pe: usize, slot: u64, new: u64) -> Event {
    Event::Write { pe, slot, new, atomic: true, relaxed: false }
}

fn flush(trace: &mut Vec<Event>, pe: usize, aim: Aim) {
    trace.push(Event::Dsb { pe, kind: Dsb::IshSt });
    for aim in [aim, Aim::VmStage1] {
        trace.push(Event::Tlbi { pe, scope: Scope::Is, aim });
        trace.push(Event::Dsb { pe, kind: Dsb::Ish });
    }
    trace.push(Event::Isb { pe });
}

fn trace() -> Vec<Event> {
    let mut trace: Vec<Event> =
        [ROOT, 0x2000, LEAVES].map(|table| Event::AllocTable { pe: 0, table }).into();
    trace.push(write(0, 0x2000, LEAVES | 3));
    trace.push(write(0, ROOT, 0x2003));
    trace.push(Event::Dsb { pe: 0, kind: Dsb::Ish });
    for pe in 0..2 {
        trace.push(Event::SetVttbr { pe, value: (1 << 48) | ROOT });
        trace.push(Event::Isb { pe });
    }
    for round in 0..2 {
        for n in 0..PAGES {
            trace.push(write(0, LEAVES + n * 8, page(n)));
            trace.push(Event::Dsb { pe: 0, kind: Dsb::IshSt });
        }
        for n in 0..PAGES {
            trace.push(write(1, LEAVES + n * 8, 2));
            if round == 0 {
                flush(&mut trace, 1, Aim::Ipa(n));
                trace.push(write(1, LEAVES + n * 8, 0));
            }
        }
        if round == 1 {
            // 64 pages from IPA 0: (0 + 1) << (5 * 1 + 1).
            flush(&mut trace, 1, Aim::IpaRange((1 << 46) | (1 << 44)));
        }
        for n in 0..PAGES {
            trace.push(write(1, LEAVES + n * 8, 0));
            trace.push(Event::FreeFrame { pe: 1, frame: page(n) & !0xfff, bytes: 0x1000 });
        }
    }
    trace
}

fn main() {
    let trace = trace();
    let rounds = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(200);
    let start = Instant::now();
    for _ in 0..rounds {
        let mut model = Model::new(Machine::default());
        trace.iter().for_each(|event| model.apply(event));
        assert!(model.verdicts().is_empty(), "{}", model.verdicts()[0]);
    }
    let seconds = start.elapsed().as_secs_f64();
    let events = trace.len() * rounds;
    println!("{events} events in {seconds:.2} s: {:.0} events/s", events as f64 / seconds);
}
