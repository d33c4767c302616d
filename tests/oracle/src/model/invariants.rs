//! The model against itself: after any events, what it keeps step by step is what a walk of everything
//! finds.

use std::collections::BTreeSet;

use super::{Machine, Model};
use crate::descriptor::{Kind, LEAF_LEVEL, accessed};
use crate::event::{Aim, Dsb, Event, Scope};
use crate::tlb::Place;

const TABLES: [u64; 5] = [0x1000, 0x2000, 0x3000, 0x4000, 0x5000];
const PES: usize = 2;

struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }

    fn of<T: Copy>(&mut self, these: &[T]) -> T {
        these[self.below(these.len() as u64) as usize]
    }
}

/// Anything: tables linked crosswise and into themselves, blocks over tables, flushes at the wrong time.
fn event(dice: &mut Dice) -> Event {
    let pe = dice.below(PES as u64) as usize;
    let slot = dice.of(&TABLES) + dice.below(3) * 8;
    let table = dice.of(&TABLES);
    let leaf =
        (0x20_0000 * dice.below(3)) | 0x77c | dice.of(&[0b01, 0b11]) | dice.of(&[0, 1 << 52]);
    let new = dice.of(&[0, 2, table | 3, table | 3, leaf, leaf & !(1 << 10)]);
    let ipa = dice.below(3) << dice.of(&[12, 21, 30]) >> 12;
    let page = dice.of(&[0, 0, 0b0110 << 44, 0b0111 << 44]) | ipa;
    let range = dice.of(&[1, 1, 2]) << 46 | dice.below(2) << 44 | dice.below(4) << 37 | ipa;
    match dice.below(16) {
        0..6 => Event::Write { pe, slot, new, atomic: true, relaxed: false },
        6..10 => Event::Dsb {
            pe,
            kind: dice.of(&[Dsb::Ish, Dsb::Ish, Dsb::IshSt, Dsb::Nsh, Dsb::NshSt, Dsb::IshLd]),
        },
        10..13 => Event::Tlbi {
            pe,
            scope: dice.of(&[Scope::Is, Scope::Is, Scope::Local]),
            aim: dice.of(&[
                Aim::Ipa(page),
                Aim::IpaLast(page),
                Aim::IpaRange(range),
                Aim::IpaRangeLast(range),
                Aim::VmStage1,
                Aim::Vm,
                Aim::All,
            ]),
        },
        13 => Event::SetVttbr {
            pe,
            value: dice.below(3) << 48 | dice.of(&[0, 0x1000, 0x1000, 0x2000]),
        },
        14 => Event::Isb { pe },
        _ => dice
            .of(&[
                &Event::FreeTable { pe, table },
                &Event::AllocTable { pe, table },
                &Event::HwUpdate { pe, slot, new, inferred: true },
            ])
            .clone(),
    }
}

/// Every place that `pe` may walk: from its roots, and from intermediate entries that it may hold.
fn walked(model: &Model, pe: usize) -> BTreeSet<Place> {
    let roots = model.pes[pe].vttbr.iter().flat_map(|vttbr| model.root_places(*vttbr));
    let held = model.tlb.all().filter(|(_, held)| held.stage2 >> pe & 1 != 0);
    let mut todo: Vec<Place> = roots.chain(held.filter_map(|(entry, _)| entry.below())).collect();
    let mut places = BTreeSet::new();
    while let Some(place) = todo.pop() {
        if place.level > LEAF_LEVEL || !places.insert(place) {
            continue;
        }
        for slot in model.memory.slots_of(place.table) {
            let values = model.memory.readable(pe, slot);
            todo.extend(values.filter_map(|bits| place.entry(slot, bits).below()));
        }
    }
    places
}

fn check(model: &Model) {
    for pe in 0..PES {
        let places = walked(model, pe);
        let open = model.places.iter().filter(|(_, mask)| *mask >> pe & 1 != 0);
        assert_eq!(open.map(|(place, _)| *place).collect::<BTreeSet<_>>(), places);
        for place in places {
            for slot in model.memory.slots_of(place.table) {
                for bits in model.memory.readable(pe, slot) {
                    let entry = place.entry(slot, bits);
                    let kept = match entry.kind() {
                        Kind::Fault => false,
                        Kind::Table(_) => true,
                        Kind::Leaf(_) => accessed(bits) || model.machine.hw_access,
                    };
                    let held = model.tlb.held(&entry).stage2 >> pe & 1 != 0;
                    assert!(held || !kept, "PE {pe} reads {entry:x?}, and does not hold it");
                }
            }
        }
    }
    let orphans: Vec<_> = model.tlb.orphans().collect();
    let found = model.tlb.all().filter(|(_, held)| held.combined & !held.stage2 != 0);
    assert_eq!(orphans, found.collect::<Vec<_>>());
}

#[test]
fn what_is_kept_by_steps_is_what_a_walk_of_everything_finds() {
    let mut held = 0;
    for seed in 1..=150 {
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15 ^ seed << 32);
        let hw_access = dice.below(2) == 0;
        let mut model = Model::new(Machine { pes: PES, hw_access, ..Machine::default() });
        for table in TABLES {
            model.apply(&Event::AllocTable { pe: 0, table });
        }
        for _ in 0..120 {
            model.apply(&event(&mut dice));
            check(&model);
            held += model.tlb.all().count();
        }
    }
    assert!(held > 50_000, "{held}: hardly anything was ever held");
}
