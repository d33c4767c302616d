//! Blobs that mean harm. What is promised of each: an answer, an error or a platform, and no panic.

use std::vec::Vec;

use proptest::prelude::*;
use proptest::sample::Index;

use super::trees::{self, Tree, virt};
use crate::fdt::{FdtError, MAX_DEPTH, MAX_TOKENS, StructureFault, parse, salvage};

const BEGIN: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;

/// A tree that has everything, so that a change anywhere hits something.
fn full() -> Vec<u8> {
    let tree = Tree {
        memreserve: [(0x4800_0000, 0x10_0000)].into(),
        reserved_memory: [("secmon@40000000", 0x4000_0000, 0x20_0000)].into(),
        modules: [
            trees::module(0x5000_0000, 16, &["multiboot,module", "multiboot,kernel"], Some("x=1")),
            trees::module(0x5100_0000, 16, &["multiboot,module", "multiboot,ramdisk"], None),
        ]
        .into(),
        ..virt()
    };
    trees::blank(&tree.build(), "cpu-map")
}

/// A blob around these words of structure; the strings block is `reg`, `#address-cells`, `compatible`.
fn blob(structure: &[u32], strings: &[u8]) -> Vec<u8> {
    let start = 40 + 16;
    let size = structure.len() * 4;
    let total = start + size + strings.len();
    let header = [0xd00d_feed, total, start, start + size, 40, 17, 16, 0, strings.len(), size]
        .map(|word| word as u32);
    let mut blob: Vec<u8> = header.iter().flat_map(|word| word.to_be_bytes()).collect();
    blob.extend_from_slice(&[0; 16]);
    blob.extend(structure.iter().flat_map(|word| word.to_be_bytes()));
    blob.extend_from_slice(strings);
    blob
}

const STRINGS: &[u8] =
    b"reg\0#address-cells\0#size-cells\0compatible\0ranges\0status\0device_type\0method\0";

fn fault(structure: &[u32]) -> StructureFault {
    match parse(&blob(structure, STRINGS)) {
        Err(FdtError::Structure { what, .. }) => what,
        other => panic!("no structure fault but {other:?}"),
    }
}

#[test]
fn every_structure_fault_is_told() {
    let name = u32::from_be_bytes(*b"a\0\0\0");
    assert_eq!(fault(&[]), StructureFault::EndsEarly);
    assert_eq!(fault(&[BEGIN, 0, END_NODE]), StructureFault::EndsEarly, "no end token");
    assert_eq!(fault(&[END]), StructureFault::EndInside, "no root");
    assert_eq!(fault(&[BEGIN, 0, END]), StructureFault::EndInside);
    assert_eq!(fault(&[END_NODE]), StructureFault::Unbalanced);
    assert_eq!(fault(&[BEGIN, 0, END_NODE, BEGIN, 0, END_NODE, END]), StructureFault::SecondRoot);
    assert_eq!(fault(&[PROP, 0, 0, END]), StructureFault::StrayProperty);
    let after_child = [BEGIN, 0, BEGIN, name, END_NODE, PROP, 0, 0, END_NODE, END];
    assert_eq!(fault(&after_child), StructureFault::StrayProperty);
    assert_eq!(fault(&[BEGIN, 0, PROP, 0, 4096, END_NODE, END]), StructureFault::NameOffset(4096));
    let longer = [BEGIN, 0, PROP, u32::MAX, 0, END_NODE, END];
    assert_eq!(fault(&longer), StructureFault::PropertyLength(u32::MAX));
    let one_too_many = [BEGIN, 0, PROP, 9, 0, END_NODE, END];
    assert_eq!(fault(&one_too_many), StructureFault::PropertyLength(9));
    assert_eq!(fault(&[7]), StructureFault::Token(7));
    assert_eq!(
        fault(&[BEGIN, 0, BEGIN, 0, END_NODE, END_NODE, END]),
        StructureFault::Name,
        "empty"
    );
    assert_eq!(fault(&[BEGIN, u32::MAX, 0, END_NODE, END]), StructureFault::Name, "not printable");
    let unterminated = blob(&[BEGIN, 0, PROP, 0, 0, END_NODE, END], b"reg");
    assert!(matches!(parse(&unterminated), Err(FdtError::Structure { .. })));
}

#[test]
fn nesting_is_bounded() {
    let nested = |depth: usize| {
        let name = u32::from_be_bytes(*b"a\0\0\0");
        let mut words = [BEGIN, 0].to_vec();
        words.extend([BEGIN, name].repeat(depth - 1));
        words.extend([END_NODE].repeat(depth));
        words.push(END);
        parse(&blob(&words, STRINGS))
    };
    assert!(matches!(nested(MAX_DEPTH), Err(FdtError::MissingNode(_))));
    let refused = nested(MAX_DEPTH + 1);
    let too_deep = StructureFault::TooDeep(MAX_DEPTH);
    assert!(matches!(refused, Err(FdtError::Structure { what, .. }) if what == too_deep));
    assert!(nested(200_000).is_err(), "no recursion to run out of stack");
}

#[test]
fn nodes_and_properties_are_bounded_and_nops_are_not() {
    let with = |middle: &[u32]| {
        let mut words = [BEGIN, 0].to_vec();
        words.extend_from_slice(middle);
        words.extend([END_NODE, END]);
        parse(&blob(&words, STRINGS))
    };
    assert!(matches!(with(&[NOP].repeat(4 * MAX_TOKENS)), Err(FdtError::MissingNode(_))));
    let refused = with(&[PROP, 0, 0].repeat(MAX_TOKENS));
    let too_many = StructureFault::TooMany(MAX_TOKENS);
    assert!(matches!(refused, Err(FdtError::Structure { what, .. }) if what == too_many));
}

#[test]
fn a_cells_property_of_two_bytes_is_an_error() {
    // The fdt crate's own reader panics on this one.
    let mut words = [BEGIN, 0, PROP, 2, 4, 0x0002_0000].to_vec();
    words.extend([BEGIN, u32::from_be_bytes(*b"a\0\0\0"), END_NODE, END_NODE, END]);
    let error = parse(&blob(&words, STRINGS)).unwrap_err();
    assert!(
        matches!(error, FdtError::BadProperty { property: "#address-cells", len: 2, .. }),
        "{error}"
    );
}

#[test]
fn blocks_outside_the_blob_are_refused() {
    for field in [2, 3, 4, 8, 9] {
        for value in [u32::MAX, u32::MAX - 3, 1 << 31, 1 << 20] {
            let mut blob = full();
            blob[field * 4..field * 4 + 4].copy_from_slice(&value.to_be_bytes());
            assert!(
                matches!(parse(&blob), Err(FdtError::Block { .. })),
                "field {field} = {value:#x}"
            );
        }
    }
}

#[test]
fn any_byte_may_change() {
    let mut blob = full();
    for at in 0..blob.len() {
        let was = blob[at];
        for value in [0, 1, 2, 3, 4, 9, 0x7f, 0x80, 0xff, was ^ 0x20, was.wrapping_add(1)] {
            blob[at] = value;
            let _ = parse(&blob);
        }
        blob[at] = was;
    }
}

#[test]
fn the_tree_may_end_anywhere() {
    let blob = full();
    for len in 0..blob.len() {
        assert!(parse(&blob[..len]).is_err(), "{len} bytes");
        // The same with a header that claims no more than is there.
        let mut cut = blob[..len].to_vec();
        if len >= 8 {
            cut[4..8].copy_from_slice(&(len as u32).to_be_bytes());
        }
        let _ = parse(&cut);
    }
}

/// Pieces of structure: right, nearly right, and wrong.
fn piece() -> impl Strategy<Value = Vec<u32>> {
    let name = prop_oneof![
        Just(*b"chos"),
        Just(*b"cpus"),
        Just(*b"a@1\0"),
        Just([0; 4]),
        any::<[u8; 4]>()
    ];
    let begin = name.prop_map(|name| [BEGIN, u32::from_be_bytes(name), 0].to_vec());
    let offsets = prop_oneof![Just(0), Just(4), Just(19), Just(31), Just(42), 0..90_u32];
    let property = (offsets, proptest::collection::vec(any::<u32>(), 0..5), 0..4_u32).prop_map(
        |(name, value, short)| {
            let len = (value.len() as u32 * 4).saturating_sub(short);
            let mut words = [PROP, len, name].to_vec();
            words.extend(value);
            words
        },
    );
    prop_oneof![
        3 => begin,
        4 => property,
        3 => Just([END_NODE].to_vec()),
        1 => Just([NOP].to_vec()),
        1 => any::<u32>().prop_map(|word| [word].to_vec()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn random_structure_never_panics(pieces in proptest::collection::vec(piece(), 0..40)) {
        let mut words = [BEGIN, 0].to_vec();
        words.extend(pieces.concat());
        words.extend([END_NODE, END]);
        let blob = blob(&words, STRINGS);
        let _ = (parse(&blob), salvage(&blob));
    }

    #[test]
    fn several_changes_at_once_never_panic(
        changes in proptest::collection::vec((any::<Index>(), any::<u32>(), 0..6_u32), 1..8)
    ) {
        let mut blob = full();
        let words = blob.len() / 4;
        for (place, random, kind) in changes {
            let at = place.index(words) * 4;
            let value = match kind {
                0 => random,
                1 => random % 10,
                2 => u32::MAX - random % 16,
                3 => random % 4096,
                _ => NOP,
            };
            blob[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        let _ = (parse(&blob), salvage(&blob));
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), magic: bool) {
        let mut bytes = bytes;
        if magic && bytes.len() >= 4 {
            bytes[..4].copy_from_slice(&0xd00d_feed_u32.to_be_bytes());
        }
        let _ = parse(&bytes);
    }
}
