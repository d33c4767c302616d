//! Traces of real runs: whole, judged, and not judged good by accident.

use std::collections::HashSet;
use std::sync::OnceLock;

use e2e::disassembly::Program;
use e2e::trace::Checked;
use e2e::{Run, Scenario, Trace, debug_images, images, on_every_cpu};
use hypctl::workspace::Variant;
use mmu_oracle::Event;
use mmu_oracle::event::{Aim, Dsb, Scope};
use mmu_oracle::recorded::Order;
use rustix::process::Signal;

use super::leftovers::Victim;

/// A run that is in total order, and its trace.
#[track_caller]
fn counted(guest: &str, cpu: &str) -> (Run, Trace) {
    let trace = Trace::none();
    let run = Scenario::of(guest).cpu(cpu).vcpus(2).flag("--icount").trace(&trace.path());
    (run.passes(), trace)
}

/// The same trace for all tests that doctor one. The take-down, which goes through all that the guest
/// did, would only say that something before it was changed.
#[track_caller]
fn sound() -> &'static Trace {
    static TRACE: OnceLock<Trace> = OnceLock::new();
    TRACE.get_or_init(|| counted("hello", "max").1.life())
}

fn count(trace: &Trace, wanted: impl Fn(&Event) -> bool) -> u64 {
    trace.recording().lines.iter().filter(|line| wanted(&line.event)).count() as u64
}

/// The tables below EL2's root: those of EL2's window of the VM. Each page that an entry of one names is one, too.
fn tables_of_el2(trace: &Trace) -> HashSet<u64> {
    let lines = trace.recording().lines;
    let page = |address: u64| address & 0x0000_ffff_ffff_f000;
    let mut tables: HashSet<u64> = lines
        .iter()
        .filter_map(|line| match line.event {
            Event::El2Root { root, .. } => Some(root),
            _ => None,
        })
        .collect();
    assert_eq!(tables.len(), 1, "EL2 has one root");
    loop {
        let before = tables.len();
        for line in &lines {
            if let Event::Write { slot, new, .. } = line.event
                && tables.contains(&page(slot))
            {
                tables.insert(page(new));
            }
        }
        if tables.len() == before {
            return tables;
        }
    }
}

on_every_cpu!(a_counted_run_is_recorded_whole_and_sound, |cpu| {
    let (run, trace) = counted("hello", cpu);
    let recording = trace.recording();
    assert_eq!(recording.header.order, Order::Total);
    assert_eq!((recording.header.dropped, recording.header.incomplete), (0, 0));
    assert!(recording.lines.len() > 90, "{run}");
    // What the hypervisor counts and what it records come from different places.
    let stats = run.report().stats;
    let el2 = tables_of_el2(&trace.life());
    let of_el2 = |event: &Event| matches!(event, Event::Write { slot, .. } if el2.contains(&(slot & !0xfff)));
    let writes = |event: &Event| matches!(event, Event::Write { .. }) && !of_el2(event);
    assert_eq!(count(&trace.life(), writes), stats.installed + stats.tables, "{run}");
    // Its window is built beforehand, and this guest makes no call with a buffer: each table was hooked once, and no page is in them.
    assert_eq!(count(&trace.life(), of_el2), el2.len() as u64 - 1, "{run}");
    let published = count(&trace, |event| matches!(event, Event::Published { .. }));
    assert_eq!(published, stats.installed, "{run}");
    let freed = count(&trace, |event| matches!(event, Event::FreeFrame { .. }));
    assert_eq!(
        freed,
        stats.installed + 1,
        "each page went back once, and so did the scratch page{run}"
    );
    // Each vCPU's start has a local flush that is not counted.
    let dsbs = count(&trace, |event| matches!(event, Event::Dsb { .. }));
    assert_eq!(dsbs - 2, stats.dsb, "{run}");
    // The VM is lent its VMID after everything was flushed, since nobody knows what TLBs hold at power-on.
    let flush_of_all = |event: &Event| matches!(event, Event::Tlbi { aim: Aim::All, .. });
    let lent = |event: &Event| matches!(event, Event::ReuseVmid { vmid: 1, .. });
    assert_eq!((count(&trace, flush_of_all), count(&trace, lent)), (1, 1), "{run}");
    for pe in 0..2 {
        assert!(recording.lines.iter().any(|line| line.event.pe() == pe), "PE {pe} did nothing");
    }
    trace.check().exits(0).shows("of 2 PEs, in total order").shows("verdicts             none");
});

#[test]
fn tables_of_a_guest_that_maps_all_over_are_sound() {
    let (run, trace) = counted("attrs", "cortex-a53");
    let (json, code) = trace.check_json();
    assert_eq!((code, &json["verdicts"]), (Some(0), &serde_json::json!([])), "{run}");
    assert_eq!(json["order"], "total");
    assert!(json["writes"].as_u64().is_some_and(|writes| writes > 150), "{json}");
    assert!(json["tables_allocated"].as_u64().is_some_and(|tables| tables > 30), "{json}");
}

/// Unmaps, tables given back, frames that get other owners: what other guests do not make EL2 do.
#[test]
fn moves_of_memory_are_sound_and_a_flush_that_lacks_a_step_is_found() {
    let trace = Trace::none();
    let guest = Scenario::of("churn").vcpus(2).flag("--icount").trace(&trace.path());
    guest.append("moves=12 min-freed=4 min-lost=0 seconds=600").timeout(120).passes();
    trace.check().exits(0).shows("verdicts             none");
    let recording = trace.recording();
    assert!(recording.lines.iter().any(|line| matches!(line.event, Event::FreeTable { .. })));
    // The first flush of a range, step by step; other PEs' events may stand between.
    let mut lines = recording.lines.iter();
    let mut next = |wanted: fn(&Event) -> bool| {
        lines.find(|line| line.event.pe() == 0 && wanted(&line.event)).unwrap().number - 1
    };
    let steps = [
        next(|e| matches!(e, Event::Tlbi { aim: Aim::Ipa(_) | Aim::IpaRange(_), .. })),
        next(|e| matches!(e, Event::Dsb { kind: Dsb::Ish, .. })),
        next(|e| matches!(e, Event::Tlbi { aim: Aim::VmStage1, scope: Scope::Is, .. })),
        next(|e| matches!(e, Event::Dsb { kind: Dsb::Ish, .. })),
        next(|e| matches!(e, Event::Isb { .. })),
    ];
    for step in steps {
        let without = trace.doctored(|lines| drop(lines.remove(step)));
        without.check().exits(1).shows("stale-translation: ");
    }
}

/// Harvests while others write, with a break where hardware manages the dirty state, and in place; the first one's flush is
/// that of the first page.
#[test]
fn a_dirty_log_is_sound_and_a_harvest_that_lacks_its_flush_is_found() {
    for mask in ["", "hw-dirty"] {
        let trace = Trace::none();
        let guest = Scenario::of("dirtier").vcpus(4).flag("--icount").trace(&trace.path());
        let guest = if mask.is_empty() { guest } else { guest.with("--mask", mask) };
        guest.append("sessions=1 rounds=2").timeout(120).passes();
        trace.check().exits(0).shows("in total order").shows("verdicts             none");
        let flush = trace.find("flush of a page", |event| {
            matches!(event, Event::Tlbi { aim: Aim::Ipa(_) | Aim::IpaRange(_), .. })
        });
        let without = trace.doctored(|lines| drop(lines.remove(flush)));
        without.check().exits(1).shows("stale-translation: ");
    }
}

/// A run in which blocks are split with FEAT_BBM of this level at the most, made again and copied, and runs of pages
/// made and dissolved.
fn resized(bbm: u8) -> Trace {
    let trace = Trace::none();
    let guest = Scenario::of("churn").vcpus(2).flag("--icount").flag("--blocks");
    let words = "moves=8 min-drained=1 min-freed=1 min-lost=0 min-split=3 min-collapsed=2 \
                 min-copied=1 min-filled=0 min-runs=1 min-dissolved=1 seconds=600";
    let guest = guest.hypervisor(&format!("bbm={bbm}")).append(words);
    guest.trace(&trace.path()).timeout(120).passes();
    trace.check().exits(0).shows("verdicts             none");
    trace
}

/// The same trace of a machine that has no more of FEAT_BBM than this.
fn with_less(trace: &Trace, bbm: u8, less: u8) -> Trace {
    trace.doctored(|lines| {
        let header = lines[0].replace(&format!("\"bbm\":{bbm}"), &format!("\"bbm\":{less}"));
        assert_ne!(lines[0], header, "the header names the level");
        lines[0] = header;
    })
}

#[test]
fn blocks_that_are_split_with_a_break_are_sound() {
    let _ = resized(0);
}

#[test]
fn blocks_that_are_split_by_nt_are_sound_where_there_is_nt() {
    with_less(&resized(1), 1, 0).check().exits(1).shows("conflicting-size: ");
}

#[test]
fn blocks_that_are_split_at_once_are_sound_where_that_is_allowed() {
    let trace = resized(2);
    with_less(&trace, 2, 1).check().exits(1).shows("conflicting-size: ");
    with_less(&trace, 2, 0).check().exits(1).shows("conflicting-size: ");
}

#[test]
fn pages_that_are_copied_into_blocks_are_reached_by_nobody() {
    let trace = Trace::none();
    let guest = Scenario::of("copies").vcpus(1).flag("--icount").flag("--blocks");
    guest.trace(&trace.path()).timeout(120).passes();
    trace.check().exits(0).shows("in total order").shows("verdicts             none");
}

#[test]
fn a_trace_of_real_threads_is_judged_by_cpu_and_says_so() {
    let trace = Trace::none();
    let run = Scenario::of("touch").vcpus(4).alone().timeout(120).trace(&trace.path()).passes();
    assert!(trace.recording().lines.len() > 4000, "{run}");
    trace
        .check()
        .exits(0)
        .shows("of 4 PEs, in each PE's own order only")
        .shows("not judged           the order between PEs is not known: each was judged alone")
        .shows("verdicts             none");
}

/// One CPU has one order, counted or not.
#[test]
fn an_unmodified_program_on_one_cpu_is_in_total_order_and_sound() {
    let trace = Trace::none();
    let script = "expect Hit any key\nsend-raw \\x20\nexpect =>\nsend poweroff\n";
    let guest = Scenario::of("u-boot").vcpus(1).timeout(90).script(script);
    let run = guest.trace(&trace.path()).passes();
    assert!(trace.recording().lines.len() > 10_000, "{run}");
    trace.check().exits(0).shows("of 1 PEs, in total order").shows("verdicts             none");
}

#[test]
fn two_counted_runs_leave_the_same_trace() {
    let (_, other) = counted("hello", "max");
    assert_eq!(sound().lines(), other.life().lines());
}

fn is_install_barrier(event: &Event) -> bool {
    matches!(event, Event::Dsb { kind: Dsb::IshSt, pe: 1 })
}

/// Each change is one that the hypervisor could have made by a mistake of a line.
#[test]
fn a_doctored_trace_gets_its_verdict_at_its_line() {
    let trace = sound();
    let barrier = trace.find("barrier of PE 1", is_install_barrier);
    let published = trace.find("promise of PE 1", |e| matches!(e, Event::Published { pe: 1 }));
    let entry = |e: &Event| matches!(e, Event::SetVttbr { pe: 1, value } if value >> 48 != 0);
    let switch = trace.find("entry of PE 1", entry);
    let link = trace.find("write", |e| matches!(e, Event::Write { .. }));
    trace.check().exits(0);

    let verdict = |changed: Trace, defect: &str, line: usize| {
        let checked = changed.check().exits(1);
        checked
            .shows(&format!("trace.jsonl:{line}: {defect}: "))
            .shows(&format!("  > {line:>7}  "));
    };
    // An install without its DSB ISHST. The line after it is one up, and lines count from 1.
    verdict(trace.doctored(|lines| drop(lines.remove(barrier))), "not-yet-visible", published);
    // VTTBR_EL2 changed without the DSB that ends the walks for what stood there.
    let events = trace.recording().lines;
    let mine = |number: &usize| events[*number - 1].event.pe() == 1;
    let sync = |number: &usize| matches!(events[*number - 1].event, Event::Isb { .. });
    let since = (1..switch).rev().filter(mine).take_while(|number| !sync(number));
    let barriers: Vec<usize> =
        since.filter(|number| matches!(events[*number - 1].event, Event::Dsb { .. })).collect();
    let without = trace.doctored(|lines| barriers.iter().for_each(|at| drop(lines.remove(*at))));
    verdict(without, "walk-across-switch", switch + 1 - barriers.len());
    // A table that nobody had made one.
    let linked = "\"slot\":";
    let slot = trace.lines()[link].split_once(linked).unwrap().1.to_owned();
    let slot: u64 = slot.split(',').next().unwrap().parse().unwrap();
    let table = slot & !0xfff;
    let made =
        trace.find("its table", |e| matches!(e, Event::AllocTable { table: t, .. } if *t == table));
    verdict(trace.doctored(|lines| drop(lines.remove(made))), "write-to-no-table", link);
    // A second frame behind an address that a TLB may hold.
    let leaf = barrier - 1;
    let again = |line: &str| {
        let (before, old) = line.rsplit_once(",\"old\":0").unwrap();
        let (head, new) = before.split_once("\"new\":").unwrap();
        let (new, rest) = new.split_once(',').unwrap();
        let new: u64 = new.parse().unwrap();
        format!("{head}\"new\":{},{rest},\"old\":{new}{old}", new ^ 0x10_0000)
    };
    verdict(
        trace.doctored(|lines| lines.insert(leaf + 1, again(&lines[leaf]))),
        "conflicting-address",
        leaf + 2,
    );
}

#[test]
fn one_cpus_own_order_shows_its_own_mistakes() {
    let per_pe = |lines: &mut Vec<String>| {
        lines[0] = lines[0].replace("\"order\":\"total\"", "\"order\":\"per-pe\"");
    };
    sound().doctored(per_pe).check().exits(0);
    let barrier = sound().find("barrier of PE 1", is_install_barrier);
    let doctored = sound().doctored(|lines| {
        per_pe(lines);
        lines.remove(barrier);
    });
    doctored.check().exits(1).shows(": not-yet-visible: ");
}

#[test]
fn a_write_that_found_what_nobody_wrote_is_a_hole_in_the_trace() {
    let write = sound().find("write", |event| matches!(event, Event::Write { .. }));
    let doctored = sound().doctored(|lines| {
        lines[write] = lines[write].replace("\"old\":0", "\"old\":3");
    });
    let wanted = format!("trace.jsonl: line {}, column 1: the write to", write + 1);
    doctored.check().exits(2).says(&wanted).says("a line is missing");
}

#[test]
fn a_full_buffer_is_told_and_the_trace_judged_up_to_there() {
    let trace = Trace::none();
    let guest = Scenario::of("hello").flag("--icount").with("--trace-max", 50);
    let run = guest.flag("--quiet").trace(&trace.path()).passes();
    let recording = trace.recording();
    assert_eq!(recording.lines.len(), 50, "{run}");
    let dropped = recording.header.dropped;
    assert!(dropped > 40, "{run}");
    let run = run.says(&format!("truncated: {dropped} more found no room"));
    let shown = format!("truncated            after the last line; {dropped} events are missing");
    trace.check().exits(0).shows(&shown).shows("verdicts             none");
    assert_eq!(
        trace.lines(),
        {
            let mut whole = counted("hello", "max").1.lines();
            whole.truncate(51);
            whole[0].clone_from(&trace.lines()[0]);
            whole
        },
        "what fits is what a larger buffer holds{run}"
    );
}

#[test]
fn a_run_whose_time_is_up_leaves_its_trace() {
    let trace = Trace::none();
    let guest = Scenario::of("wild").append("case=sleep").vcpus(1).timeout(2);
    let run = guest.trace(&trace.path()).run().exits(124);
    assert!(trace.recording().lines.len() > 40, "{run}");
    trace.check().exits(0);
}

#[test]
fn a_run_that_the_keyboard_ends_leaves_its_trace() {
    debug_images();
    let trace = Trace::none();
    let path = trace.path().display().to_string();
    let victim = Victim::with_options("case=sleep", &["--trace", &path]);
    victim.signal(Signal::INT);
    assert_eq!(victim.gone(), Some(130));
    assert!(trace.recording().lines.len() > 40);
    trace.check().exits(0);
}

#[test]
fn a_vm_that_ends_and_starts_anew_gives_its_memory_back_soundly() {
    let trace = Trace::none();
    let guest = Scenario::of("wild").append("case=reset").vcpus(1).with("--restarts", 2);
    guest.trace(&trace.path()).passes();
    trace.check().exits(0).shows("verdicts             none");
    let events = trace.recording();
    let count =
        |wanted: fn(&Event) -> bool| events.lines.iter().filter(|line| wanted(&line.event)).count();
    let taken = count(|event| matches!(event, Event::AllocTable { .. }));
    assert_eq!(count(|event| matches!(event, Event::FreeTable { .. })), taken, "tables, roots too");
    assert!(
        count(|event| matches!(event, Event::FreeFrame { .. })) >= 3 * 8,
        "frames of three lives"
    );
}

#[test]
fn a_run_without_a_trace_says_so_and_leaves_no_file() {
    let trace = Trace::none();
    let guest = Scenario::of("hello").hypervisor("nonsense").trace(&trace.path());
    guest.run().exits(4).says("the hypervisor had not begun a trace");
    assert!(!trace.path().exists());
}

#[test]
fn a_file_in_no_folder_is_refused_before_the_run() {
    let guest = Scenario::of("hello").before_the_build().with("--trace", "/nonexistent/t.jsonl");
    guest.run().exits(2).never_started().says("--trace: there is no folder /nonexistent");
    let guest = Scenario::of("hello").before_the_build().with("--trace-max", 10);
    guest.run().exits(2).says("--trace <FILE>");
}

#[test]
fn what_is_no_trace_is_named_with_line_and_column() {
    let header = r#"{"format":"mmu-trace","version":1,"order":"total","machine":{"pes":2}}"#;
    let after = |line: &str| format!("{header}\n{line}\n");
    for (text, wanted) in [
        (String::new(), "line 1, column 1: no header of a trace: there is nothing"),
        ("\u{1}\u{2}".to_owned(), "line 1, column 1: no header of a trace: expected value"),
        (
            header.replace("mmu-trace", "other"),
            "line 1, column 1: no header of a trace: the format is",
        ),
        (header.replace(":1,", ":7,"), "line 1: a trace of version 7; version 1 can be read"),
        (
            header.replace(":2}", ":99}"),
            "line 1, column 1: no header of a trace: machine.pes is 99",
        ),
        (after(r#"{"Isb":{"pe":2}}"#), "line 2, column 1: PE 2, and the machine has 2"),
        (after(r#"{"Isb":{"pe":0}"#), "line 2, column 15: EOF"),
        (after(r#"{"Wfi":{"pe":0}}"#), "line 2, column 6: unknown variant `Wfi`"),
    ] {
        Trace::of(&text).check().exits(2).says(&format!("trace.jsonl: {wanted}"));
    }
    let nowhere = Trace::none();
    nowhere.check().exits(2).says("trace.jsonl: No such file");
    Checked::of(nowhere.path().parent().unwrap(), &[]).exits(2).says("this is a folder");
}

/// What records and what fails on purpose is in the debug build, and nowhere else.
#[test]
fn the_image_of_users_has_neither_recorder_nor_selftests() {
    let symbols = |variant| {
        debug_images();
        let elf = Program::read(&images().hyp_elf(variant));
        let ours = ["HYP_TRACE", "6Traced", "6traced", "8selftest"];
        let all = elf.symbols();
        assert!(all.len() > 100, "stripped?");
        ours.map(|name| all.iter().any(|symbol| symbol.contains(name)))
    };
    assert_eq!(symbols(Variant::Plain), [false; 4]);
    let [buffer, _, wrapper, selftest] = symbols(Variant::Debug);
    assert!(buffer && wrapper && selftest);
    let has = |variant, word: &str| {
        let image = std::fs::read(images().hyp_bin(variant)).unwrap();
        image.windows(word.len()).any(|bytes| bytes == word.as_bytes())
    };
    assert_eq!(["selftest", "no GICv3"].map(|word| has(Variant::Plain, word)), [false, true]);
    assert_eq!(["selftest", "no GICv3"].map(|word| has(Variant::Debug, word)), [true, true]);
    let refused = |words: &str| Scenario::of("hello").hypervisor(words).run().exits(4);
    refused("selftest=panic").shows("unknown word \"selftest=panic\" on the command line");
    refused("trace=total").shows("\"trace\" needs a hypervisor built with the feature \"trace\"");
}
