//! Every state as 64 bits, there and back.

use proptest::prelude::*;

use super::*;
use crate::attr::{MemType, Prot};

/// Bits that are 0 in all that this crate writes: 63:58, 55 and 50:48.
const NEVER: u64 = 0xfc87_0000_0000_0000;

const PLAIN: Encoding = Encoding { fwb: false, xnx: false };
const LEVELS: [Level; 4] = [Level::L0, Level::L1, Level::L2, Level::L3];

fn ram(level: Level, pa: u64, owner: Owner) -> Result<Descriptor, DescriptorError> {
    let attributes = Attributes::new(Prot::RWX, MemType::Normal);
    Descriptor::leaf(level, Pa::new(pa), &attributes, PLAIN, owner)
}

/// The six states as 64 bits, written out.
#[test]
fn every_state_is_what_the_table_spells() {
    let bits = |level, pa| ram(level, pa, Owner::Vm).unwrap().bits();
    assert_eq!(bits(Level::L3, 0x4020_1000), 0x0100_0000_4020_17ff);
    assert_eq!(bits(Level::L2, 0x4020_0000), 0x0100_0000_4020_07fd);
    let scratch = ram(Level::L3, 0x4020_1000, Owner::Other).unwrap();
    assert_eq!(scratch.bits(), 0x0300_0000_4020_17ff);
    let table = Descriptor::table(Level::L2, Pa::new(0x8000)).unwrap();
    assert_eq!(table.bits(), 0x0100_0000_0000_8003);
    assert_eq!(table.to_busy().unwrap().bits(), 0x0100_0000_0000_8002);
    assert_eq!(Descriptor::EMPTY.bits(), 0);
    let drain = |live: Descriptor, level| live.to_drain(level).unwrap().bits();
    assert_eq!(drain(scratch, Level::L3), 0x0200_0000_4020_1482);
    assert_eq!(drain(table, Level::L2), 0x8012);
    assert_eq!(Descriptor::note(Note::new(1).unwrap()).bits(), 0b1_0100);
    assert_eq!(Descriptor::note(Note::new(Note::MAX).unwrap()).bits(), (1 << 55) - 16 + 0b0100);
    assert_eq!(Descriptor::DEAD.bits(), 0b0110);
}

#[test]
fn leaves_round_trip_at_every_level() {
    for (level, pa) in
        [(Level::L1, 0xffff_c000_0000), (Level::L2, 0x4020_0000), (Level::L3, 0x4020_1000)]
    {
        for owner in [Owner::Vm, Owner::Other] {
            let descriptor = ram(level, pa, owner).unwrap();
            let View::Leaf(leaf) = descriptor.view(level) else { panic!("{descriptor:?}") };
            assert_eq!((leaf.pa(), leaf.level(), leaf.owner()), (Pa::new(pa), level, owner));
            let attributes = Attributes::new(Prot::RWX, MemType::Normal);
            assert_eq!(leaf.attributes(PLAIN), Some(attributes));
        }
    }
}

#[test]
fn a_page_and_a_table_differ_only_by_their_level() {
    let table = Descriptor::table(Level::L2, Pa::new(0x8000)).unwrap();
    assert_eq!(table.view(Level::L2), View::Table(Pa::new(0x8000)));
    let page = ram(Level::L3, 0x8000, Owner::Vm).unwrap();
    assert!(matches!(page.view(Level::L3), View::Leaf(_)));
    assert!(matches!(page.view(Level::L2), View::Foreign(_)), "attribute bits in a table");
}

#[test]
fn no_translation_belongs_to_blocks() {
    let block = ram(Level::L2, 0x4020_0000, Owner::Vm).unwrap();
    let set = block.with_no_translation(Level::L2, true).unwrap();
    assert_eq!(set.bits(), block.bits() | 1 << 16);
    let View::Leaf(leaf) = set.view(Level::L2) else { panic!("{set:?}") };
    assert!(leaf.has_no_translation());
    assert_eq!(leaf.pa(), Pa::new(0x4020_0000));
    assert_eq!(set.with_no_translation(Level::L2, false), Some(block));
    let page = ram(Level::L3, 0x4021_0000, Owner::Vm).unwrap();
    assert_eq!(page.with_no_translation(Level::L3, true), None);
    let View::Leaf(leaf) = page.view(Level::L3) else { panic!("{page:?}") };
    assert!(!leaf.has_no_translation(), "bit 16 of a page is its address");
    assert_eq!(leaf.pa(), Pa::new(0x4021_0000));
}

#[test]
fn wrong_levels_and_addresses_are_refused() {
    let ram = |level, pa| ram(level, pa, Owner::Vm);
    assert_eq!(ram(Level::L0, 0), Err(DescriptorError::Level { level: Level::L0 }));
    assert!(matches!(ram(Level::L2, 0x1000), Err(DescriptorError::Address { .. })));
    assert!(matches!(ram(Level::L3, 1 << 48), Err(DescriptorError::Address { .. })));
    assert!(matches!(ram(Level::L3, 0x800), Err(DescriptorError::Address { .. })));
    assert!(Descriptor::table(Level::L3, Pa::new(0x1000)).is_err());
    assert!(Descriptor::table(Level::L2, Pa::new(0x1008)).is_err());
}

#[test]
fn busy_remembers_what_it_was() {
    for level in LEVELS {
        let live = match level {
            Level::L0 => Descriptor::table(level, Pa::new(0x7000)).unwrap(),
            _ => ram(level, 0x4000_0000, Owner::Other).unwrap(),
        };
        let busy = live.to_busy().unwrap();
        assert!(!busy.is_valid());
        assert_eq!(busy.view(level), View::Busy(live));
    }
    assert_eq!(Descriptor::EMPTY.to_busy(), None);
    assert_eq!(Descriptor::from_bits(0x8003).to_busy(), None, "not ours");
}

#[test]
fn drain_remembers_address_owner_and_the_final_state() {
    let clean = Attributes { accessed: false, ..Attributes::new(Prot::RX, MemType::Normal) };
    for (level, pa) in [(Level::L1, 1 << 30), (Level::L2, 0x4020_0000), (Level::L3, 0x4020_1000)] {
        for owner in [Owner::Vm, Owner::Other] {
            for (attributes, touched) in
                [(clean, false), (Attributes::new(Prot::RWX, MemType::Normal), true)]
            {
                let live = Descriptor::leaf(level, Pa::new(pa), &attributes, PLAIN, owner).unwrap();
                let drain = live.to_drain(level).unwrap();
                assert!(!drain.is_valid());
                let View::Drain(former) = drain.view(level) else { panic!("{drain:?}") };
                assert_eq!((former.pa(), former.level()), (Pa::new(pa), level));
                assert_eq!((former.owner(), former.is_table()), (owner, false));
                assert_eq!((former.accessed(), former.written()), (touched, touched));
                assert_eq!(drain.to_drain(level), None, "it is not live");
                assert_eq!(drain.to_busy(), None);
            }
        }
    }
    for level in [Level::L0, Level::L1, Level::L2] {
        let drain = Descriptor::table(level, Pa::new(0x7000)).unwrap().to_drain(level).unwrap();
        let View::Drain(former) = drain.view(level) else { panic!("{drain:?}") };
        assert_eq!((former.pa(), former.is_table()), (Pa::new(0x7000), true));
    }
    let block = ram(Level::L2, 0x4020_0000, Owner::Vm).unwrap();
    let marked = block.with_no_translation(Level::L2, true).unwrap();
    assert_eq!(marked.to_drain(Level::L2), block.to_drain(Level::L2), "nT is no address");
}

#[test]
fn the_invalid_states_mean_the_same_at_every_level() {
    for level in LEVELS {
        assert_eq!(Descriptor::EMPTY.view(level), View::Empty);
        assert_eq!(Descriptor::DEAD.view(level), View::Dead);
        for payload in [0, 1, Note::MAX] {
            let note = Note::new(payload).unwrap();
            assert_eq!(Descriptor::note(note).view(level), View::Note(note));
            assert!(!Descriptor::note(note).is_valid());
        }
    }
    assert_eq!(Note::new(Note::MAX + 1), None);
}

/// What a view stands for, made again from its parts; `None` for attributes never written.
fn remake(view: View, level: Level) -> Option<Descriptor> {
    Some(match view {
        View::Empty => Descriptor::EMPTY,
        View::Drain(former) => former.descriptor(),
        View::Dead => Descriptor::DEAD,
        View::Note(note) => Descriptor::note(note),
        View::Table(pa) => Descriptor::table(level, pa).unwrap(),
        View::Busy(live) => return remake(live.view(level), level)?.to_busy(),
        View::Leaf(leaf) => {
            let attributes = leaf.attributes(PLAIN)?;
            let made = Descriptor::leaf(level, leaf.pa(), &attributes, PLAIN, leaf.owner());
            let made = made.unwrap();
            match leaf.has_no_translation() {
                true => made.with_no_translation(level, true)?,
                false => made,
            }
        }
        View::Foreign(bits) => Descriptor::from_bits(bits),
    })
}

/// A descriptor of each kind at a level, its address and payload from `seed`.
fn sample(kind: u8, level: Level, seed: u64) -> Option<Descriptor> {
    let pa = seed & ADDRESS & !(level.slot_bytes() - 1);
    let table = Descriptor::table(level, Pa::new(seed & ADDRESS)).ok();
    let leaf = ram(level, pa, if seed & 1 == 0 { Owner::Vm } else { Owner::Other }).ok();
    match kind % 9 {
        0 => leaf,
        1 => table,
        2 => leaf?.to_busy(),
        3 => table?.to_busy(),
        4 => Some(Descriptor::note(Note::new(seed & Note::MAX)?)),
        5 => leaf?.with_no_translation(level, true),
        6 => leaf?.to_drain(level),
        7 => table?.to_drain(level),
        _ => Some([Descriptor::EMPTY, Descriptor::DEAD][seed as usize % 2]),
    }
}

proptest! {
    /// From any state, any single bit flipped: what decodes as ours is exactly what its parts
    /// make, and a bit that this crate never writes is never accepted.
    #[test]
    fn decoding_loses_nothing_one_bit_away_from_any_state(
        kind: u8, seed: u64, bit in 0u32..64, level in 0usize..4,
    ) {
        let level = LEVELS[level];
        if let Some(sound) = sample(kind, level, seed) {
            prop_assert!(!matches!(sound.view(level), View::Foreign(_)));
            prop_assert_eq!(remake(sound.view(level), level), Some(sound));
            let flipped = Descriptor::from_bits(sound.bits() ^ 1 << bit);
            let view = flipped.view(level);
            if let Some(again) = remake(view, level) {
                prop_assert_eq!(again, flipped);
            }
            let live_or_busy = matches!(view, View::Leaf(_) | View::Table(_) | View::Busy(_));
            if NEVER & 1 << bit != 0 || bit == 11 {
                prop_assert!(!live_or_busy || sound.bits() & 1 << bit != 0, "{view:?}");
            }
        }
    }
}
