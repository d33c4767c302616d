//! Walks through tables that lie one behind the other.

use std::collections::BTreeMap;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

/// Tables for one address, from `start` to level 3: where each descriptor is, and what it holds.
fn tables(va: u64, granule: u32, bits: u32) -> (Vec<(i8, u64)>, BTreeMap<u64, u64>) {
    let stride = granule - 3;
    let start = 4 - (bits - granule).div_ceil(stride) as i8;
    let (mut places, mut memory) = (Vec::new(), BTreeMap::new());
    for level in start..=3 {
        let table = 0x4000_0000 + (level as i64 + 1) as u64 * 0x10_0000;
        let shift = granule + stride * (3 - level) as u32;
        let top = if level == start { bits } else { shift + stride };
        let index = va >> shift & ((1 << (top - shift)) - 1);
        places.push((level, table + index * 8));
        memory.insert(table + index * 8, (table + 0x10_0000) | 0b11);
    }
    (places, memory)
}

proptest! {
    #[test]
    fn a_walk_has_the_level_of_the_page_that_it_reads(
        va in any::<u64>(), granule in 0..3_usize, bits in 25..=48_u32, upper in any::<bool>(), tag in any::<u8>(),
    ) {
        let bit = |at: u32| 1_u64 << at;
        // 4, 16 and 64 KiB.
        let (granule, tg0, tg1) = [(12, 0, 2), (14, 2, 1), (16, 1, 3)][granule];
        let low = va & (bit(bits) - 1);
        let va = if upper { low | u64::MAX << bits } else { low & !(1 << 55) };
        // With TBI the top byte is anything.
        let va = va & u64::MAX >> 8 | u64::from(tag) << 56;
        let (places, memory) = tables(low, granule, bits);
        let size = u64::from(64 - bits);
        let base = 0x4000_0000 + (places[0].0 as i64 + 1) as u64 * 0x10_0000;
        let regime = Regime {
            tcr: if upper { size << 16 | tg1 << 30 } else { size | tg0 << 14 },
            ttbr0: if upper { 0 } else { base | 1 | 7 << 48 },
            ttbr1: if upper { base | 1 | 7 << 48 } else { 0 },
        };
        for (level, at) in places {
            let found = regime.level_in(va, at & !0xfff, |at| memory.get(&at).copied());
            prop_assert_eq!(found, Some(level));
        }
        prop_assert_eq!(regime.level_in(va, 0x9000_0000, |at| memory.get(&at).copied()), None);
    }

    #[test]
    fn whatever_the_registers_and_tables_say_a_walk_ends(
        tcr in any::<u64>(), ttbr0 in any::<u64>(), ttbr1 in any::<u64>(), va in any::<u64>(), word in any::<u64>(),
    ) {
        let mut reads = 0;
        let regime = Regime { tcr, ttbr0, ttbr1 };
        let level = regime.level_in(va, 0x4000_0000, |_| { reads += 1; Some(word | TABLE) });
        prop_assert!(reads <= 5 && level.is_none_or(|level| (-1..=3).contains(&level)));
    }
}

#[test]
fn a_walk_ends_at_a_block_and_where_nothing_can_be_read() {
    let regime = Regime { tcr: 25, ttbr0: 0x4000_0000, ttbr1: 0 };
    let page = 0x4000_3000;
    assert_eq!(regime.level_in(0, page, |_| Some(0x4000_3001)), None, "a block");
    assert_eq!(regime.level_in(0, page, |_| Some(0x4000_3000)), None, "invalid");
    assert_eq!(regime.level_in(0, page, |_| None), None, "not there");
    assert_eq!(regime.level_in(0, page, |_| Some(0x4000_3003)), Some(2), "a table");
    assert_eq!(
        regime.level_in(0, 0x4000_0000, |_| panic!("the first descriptor is there")),
        Some(1)
    );
}
