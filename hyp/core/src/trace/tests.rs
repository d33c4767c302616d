//! What is recorded is read; what is not whole is called that; nothing else is believed.

use std::boxed::Box;
use std::string::{String, ToString};
use std::vec;

use proptest::prelude::*;

use super::*;

const NONCE: &str = "0123456789abcdef0123";
const SETUP: Setup = Setup {
    order: Order::Total,
    cpus: 8,
    start_level: 1,
    root_pages: 2,
    bbm: 2,
    vtcr: 0x8000_0000,
    dead: 6,
};

fn buffer<const N: usize>(most: Option<u64>) -> Box<Buffer<N>> {
    let buffer = Box::new(Buffer::<N>::new());
    buffer.start(&SETUP, NONCE, most);
    buffer
}

/// The memory as the host finds it.
fn bytes<const N: usize>(buffer: &Buffer<N>) -> Vec<u8> {
    let words = buffer.head.iter().chain(buffer.records.iter().flatten());
    words.flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect()
}

fn every_kind() -> Vec<What> {
    let mut all = vec![
        What::SetVttbr { value: 1 << 48 | 0x8000_0000 },
        What::Synchronized,
        What::Published,
        What::Write { slot: 0x8008, old: 0, new: u64::MAX, by: Access::Atomic },
        What::Write { slot: 0x8010, old: 2, new: 0, by: Access::Store },
        What::Write { slot: 0x8018, old: 0, new: 3, by: Access::Relaxed },
        What::Locked { table: 0x8000 },
        What::Unlocked { table: 0x8000 },
        What::AllocTable { table: 0x9000 },
        What::FreeTable { table: 0x9000 },
        What::FreeFrame { frame: 0xa000, bytes: 0x1000 },
        What::Flushed { vmid: u16::MAX, range: Some((0x4000_0000, 1 << 20)) },
        What::Flushed { vmid: 1, range: None },
        What::Lent { vmid: u16::MAX },
        What::El2Root { root: 0xb000 },
        What::El2Flushed,
    ];
    all.extend(Barrier::ALL.map(What::Dsb));
    all.extend(Invalidation::ALL.map(|invalidation| What::Tlbi(invalidation, 0x1234)));
    all
}

#[test]
fn every_kind_of_record_is_read_as_it_was_written() {
    let buffer = buffer::<32>(None);
    let records: Vec<_> =
        every_kind().into_iter().zip(0..).map(|(what, cpu)| Record { cpu, what }).collect();
    records.iter().for_each(|record| assert!(buffer.record(*record)));
    let contents = Contents::read(&bytes(&buffer), NONCE).unwrap();
    assert_eq!(contents.records, records);
    assert_eq!((contents.head.setup, contents.head.dropped, contents.incomplete), (SETUP, 0, 0));
}

#[test]
fn a_full_buffer_counts_and_overruns_nothing() {
    for (most, room) in [(None, 4), (Some(2), 2), (Some(100), 4), (Some(0), 0)] {
        let buffer = buffer::<4>(most);
        let fitted = (0..10)
            .filter(|cpu| buffer.record(Record { cpu: *cpu, what: What::Synchronized }))
            .count();
        let contents = Contents::read(&bytes(&buffer), NONCE).unwrap();
        assert_eq!((fitted as u64, contents.head.dropped), (room, 10 - room), "{most:?}");
        let cpus: Vec<_> = contents.records.iter().map(|record| u64::from(record.cpu)).collect();
        assert_eq!(cpus, (0..room).collect::<Vec<_>>());
    }
}

#[test]
fn a_record_that_was_begun_is_incomplete_and_not_lost_in_silence() {
    let buffer = buffer::<8>(None);
    (0..4).for_each(|cpu| _ = buffer.record(Record { cpu, what: What::Synchronized }));
    buffer.records[2][0].store(0, Ordering::Relaxed);
    let contents = Contents::read(&bytes(&buffer), NONCE).unwrap();
    assert_eq!(contents.incomplete, 1);
    let cpus: Vec<_> = contents.records.iter().map(|record| record.cpu).collect();
    assert_eq!(cpus, [0, 1, 3]);
}

#[test]
fn starting_again_forgets_what_was_there() {
    let buffer = buffer::<8>(None);
    (0..8).for_each(|cpu| _ = buffer.record(Record { cpu, what: What::Synchronized }));
    buffer.start(&SETUP, NONCE, Some(4));
    let contents = Contents::read(&bytes(&buffer), NONCE).unwrap();
    assert_eq!((contents.records.len(), contents.head.dropped), (0, 0));
}

#[test]
fn memory_that_is_no_trace_of_this_run_is_refused() {
    let buffer = buffer::<4>(None);
    buffer.record(Record { cpu: 0, what: What::Synchronized });
    let good = bytes(&buffer);
    let read = |bytes: &[u8], nonce: &str| Contents::read(bytes, nonce).map(drop);
    assert_eq!(read(&good, NONCE), Ok(()));
    assert_eq!(read(&good, "0123456789abcdef0124"), Err(TraceError::OtherRun));
    assert_eq!(read(&good, "0123456789abcdef"), Err(TraceError::OtherRun));
    assert_eq!(read(&good, &"a".repeat(65)), Err(TraceError::OtherRun));
    assert_eq!(read(&[0; HEAD_BYTES], NONCE), Err(TraceError::NotBegun));
    assert_eq!(read(&good[..100], NONCE), Err(TraceError::Short(100)));
    let cut = HEAD_BYTES + 31;
    assert_eq!(read(&good[..cut], NONCE), Err(TraceError::Short(cut)));
    let with = |at: usize, value: u64| {
        let mut bad = good.clone();
        bad[at * 8..at * 8 + 8].copy_from_slice(&value.to_le_bytes());
        read(&bad, NONCE).unwrap_err()
    };
    for at in [word::CAPACITY, word::ORDER, word::CPUS, word::START_LEVEL, word::BBM] {
        assert_eq!(with(at, u64::MAX), TraceError::Head { at, value: u64::MAX });
    }
    let first = HEAD_BYTES / 8;
    for head in [
        1 << 32,
        1 << 32 | 16,
        1 << 32 | 3 << 16 | 3,
        1 << 32 | 3 << 16 | 4,
        2 << 32 | 2,
        1 << 32 | 1 << 24 | 2,
    ] {
        assert_eq!(with(first, head), TraceError::Record { number: 0, head });
    }
}

#[test]
fn the_nonce_may_have_any_length_that_a_nonce_has() {
    for length in [16, 17, 32, 63, 64] {
        let nonce: String = "0123456789abcdef".chars().cycle().take(length).collect();
        let buffer = Buffer::<1>::new();
        buffer.start(&SETUP, &nonce, None);
        assert_eq!(Head::read(&bytes(&buffer), &nonce).unwrap().records, 0, "{length}");
    }
    assert_eq!(Order::PerCpu.to_string(), "per-pe");
}

proptest! {
    #[test]
    fn any_memory_gets_an_answer(
        mut words in proptest::collection::vec(any::<u64>(), HEAD_WORDS..HEAD_WORDS + 64),
        small in proptest::collection::vec(0_u64..70, 9),
        begun: bool,
    ) {
        if begun {
            words[word::MAGIC] = MAGIC;
            words[1..10].copy_from_slice(&small);
            words[word::NONCE..word::NONCE + NONCE_WORDS].fill(0);
        }
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let _ = Contents::read(&bytes, "");
    }

    #[test]
    fn numbers_are_never_shared(threads in 1_u8..4, each in 1_u8..40) {
        let buffer = buffer::<128>(None);
        std::thread::scope(|scope| {
            for cpu in 0..threads {
                let buffer = &buffer;
                scope.spawn(move || {
                    (0..each).for_each(|n| {
                        let what = What::FreeTable { table: u64::from(n) };
                        buffer.record(Record { cpu, what });
                    });
                });
            }
        });
        let contents = Contents::read(&bytes(&buffer), NONCE).unwrap();
        for cpu in 0..threads {
            let own = contents.records.iter().filter(|record| record.cpu == cpu);
            let own: Vec<_> = own.map(|record| record.what).collect();
            let wanted = (0..each).map(|n| What::FreeTable { table: u64::from(n) });
            prop_assert_eq!(own, wanted.collect::<Vec<_>>());
        }
    }
}
