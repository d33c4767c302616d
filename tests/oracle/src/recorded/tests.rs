//! Files: what is read, what is refused and where, what is judged and what is not.

use super::*;
use crate::event::{Aim, Dsb, Scope, Span};
use crate::verdict::Defect;

const L1: u64 = 0x10_0000;
const L2: u64 = 0x10_1000;
const L3: u64 = 0x10_2000;
const TABLE: u64 = 0b11;
const PAGE_RW: u64 = 0b11 << 8 | 0b1111 << 2 | 0b11 | 1 << 10 | 0b11 << 6;
const DRAIN: u64 = 0b0010;
const VTTBR: u64 = 1 << 48 | L1;

fn write(pe: Pe, slot: u64, new: u64) -> Event {
    Event::Write { pe, slot, new, atomic: true, relaxed: false }
}

fn enter(pe: Pe) -> [Event; 2] {
    [Event::SetVttbr { pe, value: VTTBR }, Event::Isb { pe }]
}

/// PE 0 makes three tables and maps a page; PE 1 maps another; PE 0 unmaps its own.
fn events() -> Vec<Event> {
    let mut all: Vec<Event> = [L1, L2, L3].map(|table| Event::AllocTable { pe: 0, table }).into();
    all.extend(enter(0));
    all.extend(enter(1));
    all.push(write(0, L1, L2 | TABLE));
    all.push(write(0, L2, L3 | TABLE));
    all.push(write(0, L3, 0x8000_0000 | PAGE_RW));
    all.push(Event::Dsb { pe: 0, kind: Dsb::IshSt });
    all.push(write(1, L3 + 8, 0x8000_1000 | PAGE_RW));
    all.push(Event::Dsb { pe: 1, kind: Dsb::IshSt });
    all.extend(unmap(0, L3, 0));
    all
}

/// The full sequence, the slot Empty at the end.
fn unmap(pe: Pe, slot: u64, ipa: u64) -> Vec<Event> {
    let tlbi = |aim| Event::Tlbi { pe, scope: Scope::Is, aim };
    let dsb = |kind| Event::Dsb { pe, kind };
    vec![
        write(pe, slot, DRAIN),
        dsb(Dsb::IshSt),
        tlbi(Aim::Ipa(ipa >> 12)),
        dsb(Dsb::Ish),
        tlbi(Aim::VmStage1),
        dsb(Dsb::Ish),
        Event::Isb { pe },
        Event::Flushed { pe, vmid: 1, span: Some(Span { ipa, bytes: 0x1000 }) },
        write(pe, slot, 0),
    ]
}

fn file(header: &Header, events: &[Event]) -> String {
    let mut text = header.to_line().unwrap() + "\n";
    for event in events {
        text += &(to_line(event, None).unwrap() + "\n");
    }
    text
}

fn read(text: &str) -> Result<Recording, RecordingError> {
    Recording::read(text.as_bytes(), |_| {})
}

fn judge(order: Order, events: &[Event]) -> Judgement {
    let header = Header::new(order, Machine::default());
    read(&file(&header, events)).unwrap().judge(|_, _| {}).unwrap()
}

fn defects(judgement: &Judgement) -> Vec<(usize, Defect)> {
    judgement.found.iter().map(|found| (found.line, found.verdict.defect)).collect()
}

#[test]
fn what_is_written_is_read() {
    let mut header = Header::new(Order::Total, Machine::default());
    header.dropped = 3;
    header.source = Some("a guest".to_owned());
    let recording = read(&file(&header, &events())).unwrap();
    assert_eq!(recording.header, header);
    let read: Vec<_> = recording.lines.iter().map(|line| line.event.clone()).collect();
    assert_eq!(read, events());
    assert!(recording.lines.iter().map(|line| line.number).eq(2..events().len() + 2));
}

#[test]
fn what_a_write_found_is_kept() {
    let line = to_line(&write(0, L3, DRAIN), Some(7)).unwrap();
    let text = Header::new(Order::Total, Machine::default()).to_line().unwrap() + "\n\n" + &line;
    let recording = read(&text).unwrap();
    assert_eq!((recording.lines[0].number, recording.lines[0].old), (3, Some(7)));
}

#[test]
fn a_sound_trace_has_no_verdict_in_either_order() {
    assert_eq!(judge(Order::Total, &events()), Judgement::default());
    let alone = judge(Order::PerPe, &events());
    assert_eq!(defects(&alone), []);
    assert_eq!(alone.unjudged.len(), 1, "{:?}", alone.unjudged);
    assert!(alone.unjudged[0].contains("each was judged alone"));
}

/// Each step of the unmap is needed, and PE 0 alone shows it.
#[test]
fn a_missing_step_is_found_at_its_line_in_either_order() {
    let first = events().len() - 9;
    for left_out in first..first + 6 {
        let mut doctored = events();
        let gone = doctored.remove(left_out);
        for order in [Order::Total, Order::PerPe] {
            let found = defects(&judge(order, &doctored));
            if left_out == first {
                // Without the write nothing was taken away, until the slot is emptied.
                assert_eq!(found, [(doctored.len() + 1, Defect::EmptyTooEarly)], "{gone:?}");
            } else {
                let flushed = doctored.len();
                assert_eq!(found[0], (flushed, Defect::StaleTranslation), "{order:?} {gone:?}");
            }
        }
    }
}

#[test]
fn what_other_pes_hold_shows_in_a_total_order_only() {
    let mut local = events();
    let last = local.len();
    local[last - 7] = Event::Tlbi { pe: 0, scope: Scope::Local, aim: Aim::Ipa(0) };
    assert_eq!(defects(&judge(Order::Total, &local))[0].1, Defect::StaleTranslation);
    assert_eq!(defects(&judge(Order::PerPe, &local)), []);
}

#[test]
fn a_verdict_has_the_lines_that_led_to_it() {
    let mut doctored = events();
    let last = doctored.len();
    doctored.remove(last - 6);
    for order in [Order::Total, Order::PerPe] {
        let found = &judge(order, &doctored).found[0];
        assert_eq!(found.verdict.defect, Defect::StaleTranslation);
        let with_lines: Vec<_> =
            found.trace.iter().filter_map(|(line, e)| line.zip(Some(e))).collect();
        assert!(with_lines.len() >= 4, "{found:?}");
        for (line, event) in with_lines {
            assert_eq!(&doctored[line - 2], event, "{order:?}");
        }
    }
}

/// PE 1 unmaps what it mapped itself, in a table that PE 0 made and linked.
#[test]
fn a_pe_is_judged_in_tables_that_another_made() {
    let mut sound = events();
    sound.extend(unmap(1, L3 + 8, 0x1000));
    assert_eq!(defects(&judge(Order::PerPe, &sound)), []);
    let mut doctored = sound.clone();
    let dsb = sound.len() - 6;
    assert!(matches!(doctored.remove(dsb), Event::Dsb { pe: 1, kind: Dsb::Ish }));
    assert_eq!(defects(&judge(Order::PerPe, &doctored))[0].1, Defect::StaleTranslation);
}

#[test]
fn the_order_of_the_lines_of_different_pes_does_not_matter_to_each_alone() {
    let (mut ones, zeros): (Vec<_>, Vec<_>) = events().into_iter().partition(|e| e.pe() == 1);
    ones.extend(zeros);
    assert_eq!(defects(&judge(Order::PerPe, &ones)), []);
    assert_ne!(defects(&judge(Order::Total, &ones)), []);
}

#[test]
fn what_several_pes_wrote_is_called_unjudged() {
    let mut both = events();
    both.extend(unmap(0, L3 + 8, 0x1000));
    let judgement = judge(Order::PerPe, &both);
    assert_eq!(defects(&judgement), []);
    assert_eq!(judgement.unjudged[1], "1 descriptors that several PEs wrote");
    both.push(Event::AllocTable { pe: 1, table: L3 + 0x1000 });
    both.push(Event::FreeTable { pe: 1, table: L3 + 0x1000 });
    both.push(Event::AllocTable { pe: 0, table: L3 + 0x2000 });
    both.push(Event::FreeTable { pe: 1, table: L3 + 0x2000 });
    let unjudged = judge(Order::PerPe, &both).unjudged;
    assert_eq!(unjudged[2], "1 table pages that changed hands");
    assert!(unjudged[3].starts_with("1 table pages that came and went"));
}

#[test]
fn a_full_recorder_is_told() {
    let mut header = Header::new(Order::Total, Machine::default());
    header.dropped = 12;
    let recording = read(&file(&header, &events())).unwrap();
    let judgement = recording.judge(|_, _| {}).unwrap();
    assert!(judgement.unjudged[0].contains("12 events after the last line"));
}

fn with_old(machine: Machine, found: &[(Event, u64)]) -> Result<Judgement, RecordingError> {
    // What one PE does alone is the same in both orders.
    let total = with_old_in(Order::Total, machine, found)?;
    let alone = with_old_in(Order::PerPe, machine, found)?;
    assert_eq!((&total.found, total.hw_updates), (&alone.found, alone.hw_updates));
    Ok(total)
}

fn with_old_in(
    order: Order,
    machine: Machine,
    found: &[(Event, u64)],
) -> Result<Judgement, RecordingError> {
    let mut text = Header::new(order, machine).to_line().unwrap() + "\n";
    text += &(to_line(&Event::AllocTable { pe: 0, table: L3 }, None).unwrap() + "\n");
    for (event, old) in found {
        text += &(to_line(event, Some(*old)).unwrap() + "\n");
    }
    read(&text).unwrap().judge(|_, _| {})
}

#[test]
fn an_update_by_hardware_is_put_in_where_a_write_found_it() {
    const CLEAN: u64 = PAGE_RW & !(1 << 7) | 1 << 51;
    const DIRTY: u64 = CLEAN | 1 << 7;
    let dirty = Machine { hw_access: true, hw_dirty: true, ..Machine::default() };
    let swap = [(write(0, L3, CLEAN), 0), (write(0, L3, DRAIN), DIRTY)];
    let judgement = with_old(dirty, &swap).unwrap();
    assert_eq!((judgement.hw_updates, defects(&judgement)), (1, vec![]));
    // No hardware took the dirty state back, and none runs without VTCR_EL2.HD.
    let back = [(write(0, L3, DIRTY), 0), (write(0, L3, DRAIN), CLEAN)];
    assert!(with_old(dirty, &back).is_err());
    let error = with_old(Machine::default(), &swap).unwrap_err().to_string();
    assert!(
        error.starts_with("line 4, column 1: ") && error.contains("a line is missing"),
        "{error}"
    );
}

#[test]
fn a_table_that_comes_again_is_empty() {
    let again = [
        (write(0, L3, DRAIN), 0),
        (Event::FreeTable { pe: 0, table: L3 }, 0),
        (Event::AllocTable { pe: 0, table: L3 }, 0),
        (write(0, L3, DRAIN), 0),
    ];
    assert_eq!(defects(&with_old(Machine::default(), &again).unwrap()), []);
}

#[track_caller]
fn refused(text: &str, wanted: &str) {
    let error = read(text).unwrap_err().to_string();
    assert!(error.starts_with(wanted), "{error:?} does not start with {wanted:?}");
}

#[test]
fn a_last_line_needs_no_end() {
    let text = file(&Header::new(Order::Total, Machine::default()), &events());
    assert_eq!(read(text.trim_end()).unwrap(), read(&text).unwrap());
    assert_eq!(read(&text.replace('\n', "\r\n")).unwrap(), read(&text).unwrap());
}

#[test]
fn what_is_no_header_is_refused() {
    refused("", "line 1, column 1: no header of a trace: there is nothing");
    refused("\n{}", "line 1, column 1: no header of a trace: there is nothing");
    refused("hello", "line 1, column 1: no header of a trace: expected value");
    refused("{}", "line 1, column 2: no header of a trace: missing field `format`");
    refused(
        r#"{"format":"x","version":1}"#,
        "line 1, column 1: no header of a trace: the format is \"x\", not \"mmu-trace\"",
    );
    refused(
        r#"{"format":"mmu-trace","version":2,"order":"none"}"#,
        "line 1: a trace of version 2; version 1 can be read",
    );
    refused(
        r#"{"format":"mmu-trace","version":1,"order":"none","machine":{}}"#,
        "line 1, column 48: no header of a trace: unknown variant `none`",
    );
    refused(
        &to_line(&events()[0], None).unwrap(),
        "line 1, column 39: no header of a trace: missing",
    );
    for (field, value) in
        [("pes", 65), ("pes", 0), ("start_level", 4), ("root_pages", 17), ("bbm", 3)]
    {
        let machine = format!(r#""order":"total","machine":{{"{field}":{value}}}"#);
        let text = format!(r#"{{"format":"mmu-trace","version":1,{machine}}}"#);
        refused(
            &text,
            &format!("line 1, column 1: no header of a trace: machine.{field} is {value}"),
        );
    }
}

#[test]
fn a_bad_line_is_named_with_its_column() {
    let head = Header::new(Order::Total, Machine::default()).to_line().unwrap();
    for (line, wanted) in [
        ("{", "line 3, column 1: EOF while parsing"),
        (r#"{"Isb":{"pe":0}} x"#, "line 3, column 18: trailing characters"),
        (r#"{"Isb":{"pe":2}}"#, "line 3, column 1: PE 2, and the machine has 2"),
        (r#"{"Isb":{"pe":-1}}"#, "line 3, column 15: invalid value: integer `-1`"),
        (r#"{"Isc":{"pe":0}}"#, "line 3, column 6: unknown variant `Isc`"),
        (r#"{"Write":{"pe":0,"slot":8}}"#, "line 3, column 26: missing field `new`"),
        (
            r#"{"Write":{"pe":0,"slot":9,"new":0}}"#,
            "line 3, column 1: a descriptor at 0x9 is not below 2^52 and a multiple of 8",
        ),
        (
            r#"{"Write":{"pe":0,"slot":8,"new":0,"old":"x"}}"#,
            "line 3, column 43: invalid type: string \"x\"",
        ),
        (r#"{"AllocTable":{"pe":0,"table":2048}}"#, "line 3, column 1: a table at 0x800"),
        (r#"{"SetVttbr":{"pe":0,"value":64}}"#, "line 3, column 1: a root at 0x40"),
        (
            r#"{"FreeFrame":{"pe":0,"frame":8,"bytes":18446744073709551615}}"#,
            "line 3, column 1: a frame at 0x8 with 0xffffffffffffffff bytes ends beyond 2^52",
        ),
    ] {
        refused(&format!("{head}\n\n{line}\n{{"), wanted);
    }
    let long = format!("{head}\n\n{}", " ".repeat(LINE_MAX + 1));
    refused(&long, "line 3, column 65536: the line is longer than 65536 bytes");
}

#[test]
fn bytes_that_are_no_text_are_a_bad_line() {
    let mut bytes = Header::new(Order::Total, Machine::default()).to_line().unwrap().into_bytes();
    bytes.extend(b"\n\xff\xfe{");
    let error = Recording::read(&*bytes, |_| {}).unwrap_err();
    assert!(matches!(error, RecordingError::Line { line: 2, .. }), "{error}");
}

/// A generator of numbers that is the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

#[test]
fn no_bytes_make_it_panic() {
    let header = Header::new(Order::PerPe, Machine::default());
    let good = file(&header, &events()).into_bytes();
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for _ in 0..4000 {
        let mut bytes = good.clone();
        for _ in 0..=dice.roll(6) {
            let at = dice.roll(bytes.len() as u64) as usize;
            match dice.roll(3) {
                0 => bytes[at] = dice.roll(256) as u8,
                1 => drop(bytes.drain(at..(at + dice.roll(40) as usize).min(bytes.len()))),
                _ => bytes.insert(at, b"0123456789{}[]\",:\n"[dice.roll(18) as usize]),
            }
            if bytes.is_empty() {
                bytes.push(0);
            }
        }
        if let Ok(recording) = Recording::read(&*bytes, |_| {}) {
            let _ = recording.judge(|_, _| {});
        }
    }
}

/// Events that the reader lets through, without sense: few pages, so that they meet.
#[test]
fn no_events_make_it_panic() {
    let mut dice = Dice(0x2545_f491_4f6c_dd1d);
    for round in 0..400 {
        let machine = Machine {
            pes: 1 + dice.roll(3) as usize,
            start_level: dice.roll(4) as u8,
            root_pages: 1 + dice.roll(16),
            bbm: dice.roll(3) as u8,
            hw_access: dice.roll(2) == 0,
            hw_dirty: dice.roll(2) == 0,
            dead: Some(6),
        };
        let order = if dice.roll(2) == 0 { Order::Total } else { Order::PerPe };
        let events: Vec<_> = (0..60).map(|_| random(&mut dice, machine.pes as u64)).collect();
        let recording = read(&file(&Header::new(order, machine), &events));
        let recording = recording.unwrap_or_else(|error| panic!("round {round}: {error}"));
        let _ = recording.judge(|_, _| {});
    }
}

fn random(dice: &mut Dice, pes: u64) -> Event {
    let pe = dice.roll(pes) as Pe;
    let base = [L1, 0, (1 << 52) - 0x4000][dice.roll(3) as usize];
    let table = base + dice.roll(4) * 0x1000;
    let slot = table + [0, 8, 0xff8][dice.roll(3) as usize];
    let bits =
        [0, 2, 6, u64::MAX, table & 0xffff_ffff_f000 | TABLE, PAGE_RW | table, 1 << 52 | PAGE_RW];
    let new = bits[dice.roll(7) as usize];
    let operand = [0, u64::MAX, dice.roll(1 << 48), 3 << 44 | 1][dice.roll(4) as usize];
    let aims = [
        Aim::Ipa(operand),
        Aim::IpaLast(operand),
        Aim::IpaRange(operand),
        Aim::IpaRangeLast(operand),
        Aim::VmStage1,
        Aim::Vm,
        Aim::All,
    ];
    let dsbs = [Dsb::IshSt, Dsb::IshLd, Dsb::Ish, Dsb::NshSt, Dsb::Nsh];
    let end = (1 << 52) - dice.roll(3) * 0x1000;
    let start = [0, 0x1000, end][dice.roll(3) as usize];
    let bytes = [0, 0x1000, end][dice.roll(3) as usize].min((1 << 52) - start);
    let vmid = [1, u16::MAX][dice.roll(2) as usize];
    match dice.roll(16) {
        0 => Event::SetVttbr { pe, value: u64::from(vmid) << 48 | table & 0xffff_ffff_f000 },
        1 => Event::Isb { pe },
        2..=4 => {
            Event::Write { pe, slot, new, atomic: dice.roll(2) == 0, relaxed: dice.roll(2) == 0 }
        }
        5 => Event::HwUpdate { pe, slot, new, inferred: dice.roll(2) == 0 },
        6 => Event::GuestStore { pe, slot },
        7 => Event::Harvested { pe, slot, count: dice.roll(513) },
        8 => Event::Dsb { pe, kind: dsbs[dice.roll(5) as usize] },
        9 => {
            let scope = if dice.roll(2) == 0 { Scope::Is } else { Scope::Local };
            Event::Tlbi { pe, scope, aim: aims[dice.roll(7) as usize] }
        }
        10 => Event::AllocTable { pe, table },
        11 => Event::FreeTable { pe, table },
        12 => Event::Scribble { pe, table },
        13 => Event::FreeFrame { pe, frame: start, bytes },
        14 => Event::Flushed {
            pe,
            vmid,
            span: (dice.roll(3) != 0).then_some(Span { ipa: start, bytes }),
        },
        _ => {
            let event = [
                Event::Published { pe },
                Event::ListTable { pe, table },
                Event::Start { pe, slot },
                Event::Commit { pe, slot },
                Event::ReuseVmid { pe, vmid },
                Event::Lock { pe, table },
                Event::Unlock { pe, table },
            ];
            event[dice.roll(7) as usize].clone()
        }
    }
}
