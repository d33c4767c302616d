//! Windows are judged against the map, and nobody recovers more than he may.

use core::sync::atomic::{AtomicU64, Ordering};
use std::string::ToString;
use std::thread;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

const K4: u64 = 4096;
const MIB: u64 = 1 << 20;
const RAM: IpaRange = IpaRange { start: 0x4000_0000, end: 0x4800_0000 };
const DEVICES: [IpaRange; 2] =
    [IpaRange { start: 0, end: 0x0800_0000 }, IpaRange { start: 0x0900_0000, end: 0x0900_1000 }];
const MAP: Map<'_> = Map { ram: RAM, devices: &DEVICES, end: 1 << 32 };

fn range(start: u64, len: u64) -> IpaRange {
    IpaRange::from_len(start, len).unwrap()
}

fn asked(value: &str) -> Result<Windows, WindowError> {
    Asked::parse(value).unwrap().windows(&MAP)
}

#[track_caller]
fn refusal(value: &str) -> std::string::String {
    asked(value).unwrap_err().to_string()
}

#[test]
fn a_window_is_ram_or_has_none() {
    let windows = asked("scratch@0x50000000+16M,inject@0x40000000+4K,stop@0x47fff000+4K").unwrap();
    assert_eq!(windows.at(0x5000_0000), Some(Recovery::Scratch));
    assert_eq!(windows.at(0x50ff_ffff), Some(Recovery::Scratch));
    assert_eq!(windows.at(0x5100_0000), None);
    assert_eq!(windows.at(0x4000_0fff), Some(Recovery::Inject));
    assert_eq!(windows.at(0x4000_1000), None);
    assert_eq!(windows.at(RAM.end - 1), Some(Recovery::Stop));
    assert_eq!(windows.at(RAM.end), None);
}

#[test]
fn a_refusal_names_the_numbers() {
    assert_eq!(
        refusal("scratch@0x50000001+4K"),
        "a recovery window is whole pages of 4 KiB, and 0x50000001-0x50001000 is not"
    );
    assert_eq!(
        refusal("scratch@0x50000000+0"),
        "a recovery window is whole pages of 4 KiB, and 0x50000000 (empty) is not"
    );
    assert_eq!(
        refusal("scratch@0xfffff000+8K"),
        "the recovery window 0xfffff000-0x100000fff is beyond the VM's addresses, which end at 0x100000000"
    );
    assert_eq!(
        refusal("stop@0x47fff000+8K"),
        "of the recovery window 0x47fff000-0x48000fff a part is RAM, which is 0x40000000-0x47ffffff: all of it, or nothing"
    );
    assert_eq!(
        refusal("stop@0x30000000+512M"),
        "of the recovery window 0x30000000-0x4fffffff a part is RAM, which is 0x40000000-0x47ffffff: all of it, or nothing"
    );
    assert_eq!(
        refusal("inject@0x07fff000+8K"),
        "the recovery window 0x7fff000-0x8000fff has addresses of the device at 0x0-0x7ffffff"
    );
    assert_eq!(
        refusal("inject@0x09000000+4K"),
        "the recovery window 0x9000000-0x9000fff has addresses of the device at 0x9000000-0x9000fff"
    );
    assert_eq!(
        refusal("inject@0x50000000+8K,stop@0x50001000+8K"),
        "the recovery windows 0x50001000-0x50002fff and 0x50000000-0x50001fff overlap"
    );
    assert_eq!(
        refusal("scratch@0x80000000+512M,inject@0xa0000000+516M"),
        "recovery windows of 1028 MiB outside of RAM are too large: 1 GiB may be"
    );
    let many: Vec<_> =
        (0..17).map(|n| std::format!("scratch@{}+4K", 0x5000_0000_u64 + n * 8192)).collect();
    assert_eq!(refusal(&many.join(",")), "17 recovery windows are too many: 16 may be");
}

#[test]
fn ram_may_be_a_window_as_a_whole_and_does_not_count() {
    let windows = asked("scratch@0x40000000+128M,inject@0x80000000+1G").unwrap();
    assert!(windows.cover(RAM) && windows.touch(range(RAM.end - 1, 2)));
    assert_eq!(windows.largest_gap(RAM), None);
    assert_eq!(windows.around(RAM.start + 5), (RAM, Some(Recovery::Scratch)));
    assert_eq!(windows.around(RAM.end), (range(RAM.end, 0x8000_0000 - RAM.end), None));
}

/// Windows that touch are one: also where RAM ends.
#[test]
fn ram_does_not_count_in_a_window_that_goes_on_behind_it() {
    let ram = range(0x4000_0000, 2 << 30);
    let map = Map { ram, ..MAP };
    let ask = |value: &str| Asked::parse(value).unwrap().windows(&map);
    let windows = ask("scratch@0x3ffff000+4K,scratch@0xc0000000+4K,scratch@0x40000000+2G").unwrap();
    let one = range(ram.start - K4, ram.len() + 2 * K4);
    assert_eq!(windows.all().collect::<Vec<_>>(), [(one, Recovery::Scratch)]);
    let wide = ask("scratch@0x40000000+2G,scratch@0xc0000000+1023M,scratch@0x3ff00000+1M").unwrap();
    assert_eq!(wide.all().count(), 1, "1 GiB outside of RAM is what may be");
    let more = wide.with(range(0x3fef_f000, K4), Some(Recovery::Stop), &map).unwrap_err();
    assert_eq!(more, WindowError::TooLarge { bytes: (1 << 30) + K4 });
}

#[test]
fn a_window_is_taken_back_in_parts() {
    let windows = asked("scratch@0x50000000+16M").unwrap();
    let middle = range(0x5000_0000 + MIB, K4);
    let windows = windows.with(middle, None, &MAP).unwrap();
    assert_eq!(windows.all().count(), 2);
    assert_eq!(windows.at(middle.start), None);
    assert!(!windows.cover(range(0x5000_0000, 16 * MIB)) && !windows.touch(middle));
    assert!(windows.cover(range(middle.end, K4)) && windows.cover(range(0x5000_0000, MIB)));
    let again = windows.with(middle, Some(Recovery::Stop), &MAP).unwrap();
    assert!(again.cover(range(0x5000_0000, 16 * MIB)), "by whatever windows");
    assert_eq!(again.all().count(), 3);
    let one = again.with(range(0x5000_0000, 16 * MIB), Some(Recovery::Stop), &MAP).unwrap();
    assert_eq!(one.all().collect::<Vec<_>>(), [(range(0x5000_0000, 16 * MIB), Recovery::Stop)]);
}

#[test]
fn what_one_says_the_other_does_not() {
    let word = Asked { limit: Some(3), ..Asked::parse("inject").unwrap() };
    let node =
        Asked { limit: Some(9), rate: Some(7), ..Asked::parse("stop,scratch@4096+4K").unwrap() };
    let both = word.or(node.clone());
    assert_eq!(both, Asked { default: Some(Recovery::Inject), limit: Some(3), ..node });
    assert_eq!(both.quota(), Quota { in_all: 3, a_second: 7 });
    assert_eq!((both.end(), Asked::default().end()), (8192, 0));
    assert_eq!(Asked::default().quota(), Quota::DEFAULT);
}

#[test]
fn tables_are_reckoned_with() {
    let tables = |value| Asked::parse(value).unwrap().table_bytes() / K4;
    assert_eq!(Asked::default().table_bytes(), 0);
    assert_eq!((tables("stop"), tables("scratch")), (0, SCRATCH_TABLES));
    // Stage 2's and EL2's: pages, and what leads to them where a window begins and ends anywhere.
    assert_eq!(tables("inject,scratch@0x50001000+1G"), 2 * (512 + 4));
    assert_eq!(
        tables("scratch,inject@0x50000000+4K,stop@0x60000000+4M"),
        SCRATCH_TABLES + 2 * (4 + 2 + 4)
    );
}

#[test]
fn policies_have_words_and_numbers() {
    for (number, policy) in (1..).zip([Recovery::Scratch, Recovery::Inject, Recovery::Stop]) {
        assert_eq!(by_number(number), Some(policy));
        assert_eq!(by_word(&policy.to_string()), Some(policy));
    }
    assert_eq!((by_number(0), by_number(4), by_word("")), (None, None, None));
}

#[test]
fn the_limit_counts_them_all() {
    let (meter, quota) = (Meter::new(), Quota { in_all: 3, a_second: 10 });
    let counted: Vec<_> = (0..5).map(|n| meter.count(&quota, n)).collect();
    let past = Err(Past::Limit(3));
    assert_eq!(counted, [Ok(()), Ok(()), Ok(()), past, past]);
}

#[test]
fn the_rate_counts_those_of_a_second() {
    let (meter, quota) = (Meter::new(), Quota { in_all: 100, a_second: 2 });
    let past = Err(Past::Rate(2));
    for (second, counted) in [
        (0, Ok(())),
        (0, Ok(())),
        (1, Ok(())),
        (1, Ok(())),
        // The clock was read before the second, and it is counted later.
        (0, past),
        (1, past),
        (7, Ok(())),
    ] {
        assert_eq!(meter.count(&quota, second), counted, "{second}");
    }
}

#[test]
fn nobody_is_recovered_beyond_the_limit_however_many_count() {
    const EACH: u64 = 20_000;
    let (meter, quota) = (Meter::new(), Quota { in_all: 3 * EACH, a_second: u32::MAX });
    let recovered = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for n in 0..EACH {
                    // A new second every hundred.
                    let counted = meter.count(&quota, n / 100);
                    recovered.fetch_add(counted.is_ok().into(), Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(recovered.into_inner(), 3 * EACH);
}

#[test]
fn of_a_second_that_many_begin_at_once_few_go_uncounted() {
    const EACH: u64 = 20_000;
    let (meter, quota) = (Meter::new(), Quota { in_all: u64::MAX, a_second: 1000 });
    let recovered = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..EACH {
                    let counted = meter.count(&quota, 5);
                    recovered.fetch_add(counted.is_ok().into(), Ordering::Relaxed);
                }
            });
        }
    });
    // Those that came before him who began it.
    let recovered = recovered.into_inner();
    assert!((1000..=1003).contains(&recovered), "{recovered}");
}

#[test]
fn what_is_too_large_takes_no_more_tables_than_what_may_be() {
    let tables = |value: &str| Asked::parse(value).unwrap().table_bytes() / K4;
    let most = tables("stop@0x50000000+1G");
    assert_eq!(most, 2 * (512 + 4));
    assert_eq!(tables("scratch@0x50000000+1024G"), most);
    assert_eq!(tables("stop@0+17179869183G"), most);
    let many = ["stop@0+17179869183G"; 300].join(",");
    assert_eq!(tables(&many), 2 * (512 + 4 * RECOVER_MAX as u64));
    assert_eq!(
        refusal("stop@0x50000000+1025M"),
        "recovery windows of 1025 MiB outside of RAM are too large: 1 GiB may be"
    );
}

#[test]
fn a_window_is_replaced_by_parts_though_there_are_as_many_as_may_be() {
    let one = |number: u64| range(0x5000_0000 + number * 2 * MIB, MIB);
    let mut windows = Windows::new();
    for number in 0..RECOVER_MAX as u64 {
        windows = windows.with(one(number), Some(Recovery::Inject), &MAP).unwrap();
    }
    let (whole, part) = (one(3), range(one(3).start, K4));
    let scratch = Some(Recovery::Scratch);
    windows.with(whole, scratch, &MAP).unwrap();
    let wanted = RECOVER_MAX + 1;
    assert_eq!(windows.with(part, scratch, &MAP).unwrap_err(), WindowError::TooMany { wanted });
    let between = windows.with_part(part, scratch, &MAP).unwrap();
    assert_eq!(between.all().count(), RECOVER_MAX + 1);
    let rest = IpaRange { start: part.end, end: whole.end };
    let done = between.with(rest, scratch, &MAP).unwrap();
    assert_eq!(done.all().count(), RECOVER_MAX);
    assert_eq!(done.at(whole.end - 1), scratch);
    assert!(between.with_part(range(one(5).start, K4), scratch, &MAP).is_err());
}

proptest! {
    #[test]
    fn windows_are_what_was_said_last(
        said in proptest::collection::vec((0_u64..64, 1_u64..16, 0_u64..4), 0..12),
    ) {
        let base = 0x5000_0000;
        let mut windows = Windows::new();
        let mut pages = [None; 96];
        for (start, count, policy) in said {
            let policy = by_number(policy);
            let window = range(base + start * K4, count * K4);
            match windows.with(window, policy, &MAP) {
                Ok(new) => windows = new,
                Err(why) => {
                    prop_assert!(matches!(why, WindowError::TooMany { wanted: 17.. }), "{why}");
                    continue;
                }
            }
            pages[start as usize..(start + count) as usize].fill(policy);
        }
        for (page, policy) in (0..).zip(pages) {
            prop_assert_eq!(windows.at(base + page * K4), policy);
            prop_assert_eq!(windows.touch(range(base + page * K4, K4)), policy.is_some());
        }
        for start in 0..96 {
            let all = pages[start..(start + 8).min(96)].iter().all(Option::is_some);
            let count = 8.min(96 - start) as u64;
            prop_assert_eq!(windows.cover(range(base + start as u64 * K4, count * K4)), all);
        }
    }

    #[test]
    fn any_value_gets_an_answer(value in "\\PC{0,40}|((scratch|inject|stop)(@(0x)?[0-9a-f]{1,18}\\+[0-9]{1,20}[KMG]?)?,?){0,4}") {
        if let Some(asked) = Asked::parse(&value) {
            let _ = asked.windows(&MAP).map_err(|error| error.to_string());
        }
    }
}
