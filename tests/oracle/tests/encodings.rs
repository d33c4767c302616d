//! Every invalidation by IPA that `by_ipa` makes, decoded by the letter of the Arm ARM (C5.5, the fields of
//! `IPAS2E1IS` and `RIPAS2E1IS`) and by nothing of crate `stage2`: together they cover a range, once.

use stage2::tlbi::{LeafLevel, Tlbi, by_ipa};
use stage2::{Caps, Ipa, IpaRange};

const PAGE: u64 = 4096;
const CAPS: [Caps; 4] =
    [Caps::empty(), Caps::TTL, Caps::TLBI_RANGE, Caps::TLBI_RANGE.union(Caps::TTL)];

/// What an operand says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Says {
    /// First page, by number.
    start: u64,
    pages: u64,
    /// Level hint; `None` is any level.
    level: Option<u64>,
    is_range: bool,
}

fn decode(op: Tlbi) -> Says {
    match op {
        // IPA[47:12] in bits 35:0, TTL in 47:44: 0b00xx is none, 0b01 is the granule of 4 KiB.
        Tlbi::Ipas2e1Is(operand) => {
            let bits = operand.bits();
            let level = match bits >> 44 & 0xf {
                0b0000 => None,
                ttl => {
                    assert_eq!(ttl >> 2, 0b01, "the granule in {ttl:#06b}");
                    assert_ne!(ttl & 0b11, 0, "0b0100 is no level without FEAT_LPA2");
                    Some(ttl & 0b11)
                }
            };
            assert_eq!(bits & !(0xf << 44 | ((1 << 36) - 1)), 0, "RES0, or another security state");
            Says { start: bits & ((1 << 36) - 1), pages: 1, level, is_range: false }
        }
        // BaseADDR in bits 36:0, TTL in 38:37, NUM in 43:39, SCALE in 45:44, TG in 47:46.
        Tlbi::Ripas2e1Is(operand) => {
            let bits = operand.bits();
            assert_eq!(bits >> 46 & 0b11, 0b01, "TG is that of the 4 KiB granule");
            assert_eq!(bits >> 48, 0, "RES0, or another security state");
            let (num, scale) = (bits >> 39 & 0x1f, bits >> 44 & 0b11);
            let level = Some(bits >> 37 & 0b11).filter(|level| *level != 0);
            let start = bits & ((1 << 37) - 1);
            // C5.5.22: with a hint the base is aligned to its level, or the range is UNPREDICTABLE.
            let aligned = [1, 1 << 18, 1 << 9, 1][level.unwrap_or(0) as usize];
            assert_eq!(start % aligned, 0, "the base {start:#x} for level {level:?}");
            Says { start, pages: (num + 1) << (5 * scale + 1), level, is_range: true }
        }
        other => panic!("{other:?} is not by IPA"),
    }
}

fn operations(start: u64, pages: u64, level: LeafLevel, caps: Caps) -> Vec<Says> {
    let range = IpaRange::new(Ipa::new(start * PAGE), pages * PAGE).unwrap();
    by_ipa(range, level, caps).map(decode).collect()
}

/// Pages of the range are covered one after another, each once, and none outside.
#[track_caller]
fn covers(start: u64, pages: u64, level: LeafLevel, caps: Caps) -> usize {
    let ops = operations(start, pages, level, caps);
    let hint = match level {
        LeafLevel::L3 if caps.contains(Caps::TTL) => Some(3),
        _ => None,
    };
    let mut next = start;
    for says in &ops {
        assert_eq!(says.start, next, "{start:#x}+{pages} {level:?} {caps:?}");
        assert_eq!(says.level, hint, "{start:#x}+{pages} {level:?} {caps:?}");
        assert!(says.pages < 1 << 20, "4 GiB or more in one");
        assert!(!says.is_range || caps.contains(Caps::TLBI_RANGE), "UNDEFINED here");
        next += says.pages;
    }
    assert_eq!(next, start + pages, "{start:#x}+{pages} {level:?} {caps:?}");
    ops.len()
}

#[test]
fn every_length_at_every_alignment_is_covered_once() {
    let starts = [0, 1, 2, 3, 31, 32, 33, 63, 64, 511, 512, 513, 1023, 0x4_0000, (1 << 36) - 5000];
    for caps in CAPS {
        // Without ranges a page is a page, whatever the length.
        let most = if caps.contains(Caps::TLBI_RANGE) { 4300 } else { 600 };
        for start in starts {
            for pages in 1..=most {
                for level in [LeafLevel::Unknown, LeafLevel::L3] {
                    let count = covers(start, pages, level, caps);
                    if caps.contains(Caps::TLBI_RANGE) {
                        assert!(count <= 5, "one for each scale and an odd page: {count}");
                    }
                }
            }
        }
    }
}

/// Each pair of SCALE and NUM, and what lies on both sides of the pages that it covers.
#[test]
fn every_scale_and_number_covers_what_its_formula_says() {
    let caps = Caps::TLBI_RANGE | Caps::TTL;
    for scale in 0..=3 {
        for num in 0..=31u64 {
            let pages = (num + 1) << (5 * scale + 1);
            for near in [pages - 1, pages, pages + 1].into_iter().filter(|pages| *pages > 0) {
                for start in [0, 7, 512] {
                    let count = covers(start, near, LeafLevel::Unknown, caps);
                    let one = near == pages && pages < 1 << 20;
                    assert!(!one || count == 1, "SCALE {scale}, NUM {num} in one: {count}");
                }
            }
        }
    }
}

/// Of blocks, each that the range meets gets an invalidation of its level, or is inside a range.
#[test]
fn every_block_is_hit_with_its_level() {
    for (level, hint, block) in [(LeafLevel::L2, 2, 512), (LeafLevel::L1, 1, 1 << 18)] {
        for caps in CAPS {
            for first in [0, 1, 3] {
                for blocks in 1..=70 {
                    let (start, pages) = (first * block, blocks * block);
                    let ops = operations(start, pages, level, caps);
                    let wanted = caps.contains(Caps::TTL).then_some(hint);
                    // Split below 4 GiB a range may begin inside a block: then it has no hint.
                    let inside = |says: &Says| says.is_range && !says.start.is_multiple_of(block);
                    let right = |says: &Says| says.level == wanted.filter(|_| !inside(says));
                    assert!(ops.iter().all(right), "{level:?} {caps:?}");
                    for number in first..first + blocks {
                        let hit = |says: &&Says| {
                            says.start < (number + 1) * block
                                && number * block < says.start + says.pages
                        };
                        assert!(ops.iter().any(|says| hit(&says)), "block {number}");
                    }
                    let outside = |says: &&Says| {
                        says.start < start || says.start + says.pages > start + pages
                    };
                    assert_eq!(ops.iter().find(outside), None);
                }
            }
        }
    }
}
