//! What is done, in which batches, with how much memory for tables.

use super::*;

#[derive(Clone, Debug)]
pub(super) enum Op {
    Install { page: u64, block: bool },
    Reach { page: u64 },
    RemoveScratch { first: u64, count: u64 },
    ReplaceScratch { first: u64, count: u64, pages: usize },
    Map { first: u64, count: u64, to: u64, coarsest: usize },
    Unmap { first: u64, count: u64, notes: bool },
    Annotate { first: u64, count: u64, payload: u64 },
    Deannotate { first: u64, count: u64 },
    Split { first: u64, count: u64 },
    Collapse { first: u64, count: u64 },
    MakeContiguous { first: u64, count: u64, blocks: bool },
    Dissolve { first: u64, count: u64 },
    CopyCollapse { first: u64, count: u64, holes: usize, blocks: usize },
}

/// How an operation is run: pages of its range that are left out at the beginning, slots a batch, and the
/// allocations that succeed.
#[derive(Clone, Debug)]
pub(super) struct How {
    pub(super) skipped: u64,
    pub(super) slots: usize,
    pub(super) tables: usize,
}

/// Pages of the window in which everything happens: a run of blocks.
pub(super) const WINDOW: u64 = 8192;

pub(super) fn ops() -> impl Strategy<Value = Vec<(Op, How)>> {
    let edges = prop_oneof![0..WINDOW, (0..WINDOW / 512).prop_map(|n| n * 512)];
    let counts = prop_oneof![1u64..1100, (1u64..4).prop_map(|n| n * 512), Just(1u64), Just(WINDOW)];
    let span = (edges, counts).prop_map(|(first, count)| (first, count.min(WINDOW - first)));
    // Few ranges, at edges of blocks and of runs, so that what one operation has made another finds.
    let edges = prop_oneof![4 => (0..3u64).prop_map(|n| n * 512), 2 => (0..96u64).prop_map(|n| n * 16), 1 => 0..1536u64];
    let counts = prop_oneof![4 => (1..4u64).prop_map(|n| n * 512), 2 => (1..40u64).prop_map(|n| n * 16), 1 => 1..80u64];
    let near = prop_oneof![8 => (edges, counts), 1 => Just((0, WINDOW))];
    let op = prop_oneof![
        (0..WINDOW, any::<bool>()).prop_map(|(page, block)| Op::Install { page, block }),
        (0..WINDOW).prop_map(|page| Op::Reach { page }),
        span.clone().prop_map(|(first, count)| Op::RemoveScratch { first, count }),
        (span.clone(), prop_oneof![1 => 0..3usize, 3 => Just(99)])
            .prop_map(|((first, count), pages)| Op::ReplaceScratch { first, count, pages }),
        (span.clone(), 0u64..3, 0usize..3).prop_map(|((first, count), to, coarsest)| Op::Map {
            first,
            count,
            to,
            coarsest
        }),
        (span.clone(), any::<bool>()).prop_map(|((first, count), notes)| Op::Unmap {
            first,
            count,
            notes
        }),
        (span.clone(), 1u64..4).prop_map(|((first, count), payload)| Op::Annotate {
            first,
            count,
            payload
        }),
        span.prop_map(|(first, count)| Op::Deannotate { first, count }),
    ];
    let near_op = prop_oneof![
        3 => (0..1536u64).prop_map(|page| Op::Reach { page }),
        1 => near.clone().prop_map(|(first, count)| Op::RemoveScratch { first, count }),
        1 => near.clone().prop_map(|(first, count)| {
            Op::ReplaceScratch { first, count, pages: 99 }
        }),
        2 => (near.clone(), 0usize..3).prop_map(|((first, count), coarsest)| Op::Map {
            first,
            count,
            to: 0,
            coarsest
        }),
        1 => near.clone().prop_map(|(first, count)| Op::Unmap { first, count, notes: true }),
        2 => near.clone().prop_map(|(first, count)| Op::Split { first, count }),
        2 => near.clone().prop_map(|(first, count)| Op::Collapse { first, count }),
        2 => (near.clone(), any::<bool>()).prop_map(|((first, count), blocks)| Op::MakeContiguous {
            first,
            count,
            blocks
        }),
        1 => near.clone().prop_map(|(first, count)| Op::Dissolve { first, count }),
        3 => (near, prop_oneof![0..40usize, Just(511)], prop_oneof![1 => 0..3usize, 3 => Just(9)])
            .prop_map(|((first, count), holes, blocks)| {
                Op::CopyCollapse { first, count, holes, blocks }
            }),
    ];
    let op = prop_oneof![op, near_op];
    let how = (
        prop_oneof![4 => Just(0), 1 => 1u64..600],
        prop_oneof![Just(1usize), 2usize..700, Just(usize::MAX)],
        prop_oneof![3 => Just(usize::MAX), 1 => 0usize..4],
    );
    let how = how.prop_map(|(skipped, slots, tables)| How { skipped, slots, tables });
    prop::collection::vec((op, how), 1..32)
}
