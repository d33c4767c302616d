//! Random programs, shrinking: every program with everything that can go wrong in it.

use std::cell::Cell;
use std::time::{Duration, Instant};

use programs::program::{
    Backing, Fault, Flush, Kind, Op, Pace, Place, Program, Reach, Setup, Size, Touch, Who, Wrong,
};
use programs::run::{exhaust, run};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{FileFailurePersistence, RngAlgorithm, TestRng, TestRunner};

fn who() -> impl Strategy<Value = Who> {
    (0u8..3, 0u8..3).prop_map(|(pe, vm)| Who { pe, vm })
}

/// Mostly few addresses, so that operations meet.
fn place() -> impl Strategy<Value = Place> {
    prop_oneof![
        6 => (0u8..16).prop_map(Place),
        3 => any::<u8>().prop_map(Place),
        1 => Just(Place::BEYOND),
    ]
}

fn size() -> impl Strategy<Value = Size> {
    prop_oneof![5 => Just(Size::Page), 2 => Just(Size::Block2M), 1 => Just(Size::Block1G)]
}

fn kind() -> impl Strategy<Value = Kind> {
    any::<u8>().prop_map(Kind)
}

fn what() -> impl Strategy<Value = Flush> {
    prop_oneof![
        Just(Flush::Vm),
        any::<u8>().prop_map(Flush::Pages),
        Just(Flush::Table),
        Just(Flush::All)
    ]
}

fn touch() -> impl Strategy<Value = Touch> {
    prop_oneof![Just(Touch::Read), Just(Touch::Write), Just(Touch::Speculate)]
}

fn op() -> impl Strategy<Value = Op> {
    let install = (who(), place(), size(), kind()).prop_map(|(who, at, size, kind)| Op::Install {
        who,
        at,
        size,
        kind,
    });
    let replace = (who(), place(), kind(), any::<bool>())
        .prop_map(|(who, at, kind, hint)| Op::Replace { who, at, kind, hint });
    let unmap = (who(), place(), any::<u8>(), any::<bool>())
        .prop_map(|(who, at, pages, hint)| Op::Unmap { who, at, pages, hint });
    let relax =
        (who(), place(), any::<bool>()).prop_map(|(who, at, hint)| Op::Relax { who, at, hint });
    prop_oneof![
        10 => install,
        2 => (who(), place()).prop_map(|(who, at)| Op::Lookup { who, at }),
        3 => (who(), place()).prop_map(|(who, at)| Op::Clear { who, at }),
        2 => (who(), any::<bool>()).prop_map(|(who, hint)| Op::Finish { who, hint }),
        3 => unmap,
        3 => replace,
        2 => relax,
        2 => (who(), place(), what()).prop_map(|(who, at, what)| Op::Flush { who, at, what }),
        4 => who().prop_map(|who| Op::Run { who }),
        1 => (0u8..3).prop_map(|pe| Op::Leave { pe }),
        4 => (0u8..3, place(), touch()).prop_map(|(pe, at, touch)| Op::Access { pe, at, touch }),
        2 => (0u8..3, place(), touch()).prop_map(|(pe, at, touch)| Op::TakeOff { pe, at, touch }),
        2 => (0u8..3).prop_map(|pe| Op::Land { pe }),
        2 => (who(), place(), 0u8..3).prop_map(|(who, at, level)| Op::Unlink { who, at, level }),
        2 => (who(), place(), 0u8..4).prop_map(|(who, at, level)| Op::Hold { who, at, level }),
        2 => who().prop_map(|who| Op::Thaw { who }),
        2 => (who(), place(), any::<u32>())
            .prop_map(|(who, at, payload)| Op::Annotate { who, at, payload }),
        1 => (who(), place()).prop_map(|(who, at)| Op::Forget { who, at }),
        1 => who().prop_map(|who| Op::Rebuild { who }),
        12 => range_op(),
    ]
}

/// Operations on ranges, which begin where others meet.
fn range_op() -> impl Strategy<Value = Op> {
    let place = || prop_oneof![4 => (0u8..16).prop_map(Place), 1 => place()];
    let reach = || any::<u8>().prop_map(Reach);
    let pace = || prop_oneof![2 => Just(Pace(0)), 1 => any::<u8>().prop_map(Pace)];
    let wrong = prop_oneof![
        Just(Wrong::Range),
        Just(Wrong::BeyondIpaSize),
        Just(Wrong::Overlap),
        Just(Wrong::From),
        Just(Wrong::ForeignClaim),
        Just(Wrong::ForeignCpu),
        Just(Wrong::InsideGuard),
        Just(Wrong::Memory),
        Just(Wrong::Attributes),
        Just(Wrong::TooManyClaims),
    ];
    let backing = any::<u8>().prop_map(Backing);
    prop_oneof![
        4 => (who(), place(), reach(), pace(), kind(), backing).prop_map(
            |(who, at, reach, pace, kind, backing)| {
                Op::MapRange { who, at, reach, pace, kind, backing }
            }
        ),
        4 => (who(), place(), reach(), pace(), any::<bool>()).prop_map(
            |(who, at, reach, pace, remove)| Op::UnmapRange { who, at, reach, pace, remove }
        ),
        2 => (who(), place(), reach(), pace(), any::<u32>()).prop_map(
            |(who, at, reach, pace, payload)| Op::AnnotateRange { who, at, reach, pace, payload }
        ),
        1 => (who(), place(), reach(), pace())
            .prop_map(|(who, at, reach, pace)| Op::DeannotateRange { who, at, reach, pace }),
        1 => (who(), place(), reach(), wrong)
            .prop_map(|(who, at, reach, wrong)| Op::Refused { who, at, reach, wrong }),
    ]
}

fn resize() -> impl Strategy<Value = Op> {
    (who(), (0u8..16).prop_map(Place), any::<u8>().prop_map(Pace))
        .prop_map(|(who, at, pace)| Op::Resize { who, at, pace })
}

fn setup() -> impl Strategy<Value = Setup> {
    (0u8..24, any::<u8>(), 0u8..3).prop_map(|(ipa_size, caps, vms)| Setup { ipa_size, caps, vms })
}

fn program(most: usize) -> impl Strategy<Value = Program> {
    (setup(), vec(prop_oneof![15 => op(), 1 => resize()], 1..most))
        .prop_map(|(setup, ops)| Program { setup, ops })
}

/// Runs `check` on programs of up to `most` operations: `usual` of them, or for as long as
/// STAGE2_SOAK_SECONDS says. A finding is shrunk, shown, and noted beside this file.
fn search(usual: u32, most: usize, check: impl Fn(&Program)) {
    let seconds = std::env::var("STAGE2_SOAK_SECONDS").ok();
    let time = seconds.map(|n| Duration::from_secs(n.parse().expect("STAGE2_SOAK_SECONDS")));
    let config = ProptestConfig {
        cases: usual,
        source_file: Some(file!()),
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    };
    let (start, mut rounds) = (Instant::now(), 0);
    while rounds == 0 || time.is_some_and(|time| start.elapsed() < time) {
        let result = TestRunner::new(config.clone()).run(&program(most), |program| {
            check(&program);
            Ok(())
        });
        if let Err(error) = result {
            panic!("{error}");
        }
        rounds += 1;
    }
    println!("{} programs, {:.1} s", rounds * usual, start.elapsed().as_secs_f64());
}

/// Long programs, nothing made to go wrong.
#[test]
fn a_program_does_what_its_reference_does() {
    let sum = Cell::new([0; 4]);
    search(300, 60, |program| {
        let report = run(program, Fault::None);
        let new = [report.installed, report.recorded, report.tables_back, report.refused];
        sum.set(core::array::from_fn(|n| sum.get()[n] + new[n]));
    });
    let [installed, recorded, back, refused] = sum.get();
    println!(
        "{installed} installs, {recorded} updates by hardware, {back} tables back from unmaps, {refused} wrong calls"
    );
    assert!(sum.get().iter().all(|count| *count > 0), "the test showed little");
}

/// The same programs each time, mostly on ranges; the first that fails ends the test as it is.
#[test]
fn programs_that_stay_the_same_do_what_their_references_do() {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(ProptestConfig::default(), rng);
    let strategy = (setup(), vec(prop_oneof![1 => op(), 2 => range_op()], 1..40));
    let mut sum = [0; 3];
    for _ in 0..100 {
        let (setup, ops) = strategy.new_tree(&mut runner).expect("nothing is filtered").current();
        let report = run(&Program { setup, ops }, Fault::None);
        let new = [report.installed, report.tables_back, report.refused];
        sum = core::array::from_fn(|n| sum[n] + new[n]);
    }
    assert!(sum.iter().all(|count| *count > 10), "the test showed little: {sum:?}");
}

/// Likewise, with blocks that are split, have runs in them and are made again.
#[test]
fn blocks_that_were_resized_are_what_they_were() {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(ProptestConfig::default(), rng);
    let strategy = (setup(), vec(prop_oneof![4 => op(), 1 => resize()], 1..40));
    let (mut resized, mut copied) = (0, 0);
    for _ in 0..60 {
        let (setup, ops) = strategy.new_tree(&mut runner).expect("nothing is filtered").current();
        let report = run(&Program { setup, ops }, Fault::None);
        resized += report.resized;
        copied += report.copied;
    }
    println!("{resized} blocks were made again, {copied} of them by copying");
    assert!(resized > 20 && copied > 5, "the test showed little: {resized}, {copied}");
}

/// Short programs, with each allocation failing once and each compare-exchange raced once.
#[test]
fn a_program_survives_everything_that_can_go_wrong_in_it() {
    let (runs, lost) = (Cell::new(0), Cell::new(0));
    search(40, 10, |program| {
        let done = exhaust(program);
        runs.set(runs.get() + done.runs);
        lost.set(lost.get() + done.lost);
    });
    println!("{} runs, {} races lost", runs.get(), lost.get());
    assert!(lost.get() > 0, "no race was ever lost: the test showed little");
}

/// Found by the fuzzer's sister above: hardware sets the access flag of a leaf whose table went Busy while the
/// walk was under way. Nothing was flushed, so it may, and the flag is there when the table is live again.
#[test]
fn a_walk_under_way_lands_in_a_table_that_became_busy() {
    let (who, at) = (Who { pe: 0, vm: 0 }, Place(5));
    let ops = vec![
        Op::Install { who, at, size: Size::Page, kind: Kind(16) },
        Op::TakeOff { pe: 1, at, touch: Touch::Read },
        Op::Hold { who, at, level: 0 },
        Op::Land { pe: 1 },
    ];
    let setup = Setup { ipa_size: 0, caps: 32, vms: 0 };
    let report = run(&Program { setup, ops }, Fault::None);
    assert_eq!(report.recorded, 1);
}
