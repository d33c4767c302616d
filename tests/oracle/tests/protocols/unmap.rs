//! What was unmapped is gone, on every PE and in every form, when its flush returns.

use mmu_oracle::Event;
use mmu_oracle::event::Aim;
use stage2::tlbi::{LeafLevel, Tlbi, by_ipa};
use stage2::{Caps, HwUpdate, IpaRange, Level};

use crate::rig::{Pool, Rig, TLBI_CAPS, VMIDS, Vm, drain, fault, map, range};

/// The VM that is unmapped from.
const VMID: u16 = VMIDS[0];

/// Takes the leaves of `ipas` away: Drain, one flush of `span`, Empty, frames back.
#[track_caller]
fn unmap(rig: &Rig, vm: &Vm<'_>, ipas: &[u64], span: IpaRange, level: LeafLevel, pool: &Pool) {
    let frames: Vec<u64> =
        ipas.iter().map(|ipa| rig.translate(1, *ipa).expect("hardware finds no page").pa).collect();
    let drained = drain(rig, vm, ipas);
    let flushed = vm.tlb().reduce(span, level);
    rig.relies_on_flush(VMID, span);
    for (slot, frame) in drained.into_iter().zip(frames) {
        // SAFETY: (1) flushed above, the whole span.
        unsafe { slot.release(&&rig.machine, &flushed) };
        rig.free_frame(frame, pool.size());
    }
}

/// Populates `ipas`, runs the VM on both PEs, unmaps, and populates again with other frames.
#[track_caller]
fn round(rig: &Rig, level: Level, ipas: &[u64], span: IpaRange, hint: LeafLevel) {
    let vm = rig.vm();
    rig.enter(&vm, 0);
    rig.enter(&vm, 1);
    let what = (rig.caps(), level, ipas.len(), span, hint);
    let mut first = Pool::new(1, level, ipas.len() as u64);
    let mut second = Pool::new(2, level, ipas.len() as u64);
    for ipa in ipas {
        map(rig, &vm, *ipa, level, &mut first);
    }
    unmap(rig, &vm, ipas, span, hint, &first);
    rig.assert_sound(&what);
    for ipa in ipas {
        assert_eq!(rig.translate(1, *ipa), None, "{what:?}: {ipa:#x} is still mapped");
        let (result, _) = fault(rig, &vm, 1, *ipa, level, &mut second);
        assert!(result.is_ok(), "{what:?}: an Empty slot refuses a page: {result:?}");
        let pa = rig.translate(0, *ipa).map(|found| found.pa);
        assert!(pa.is_some_and(|pa| second.taken().contains(&pa)), "{what:?}: wrong frame {pa:x?}");
    }
    rig.assert_sound(&what);
}

fn consecutive(start: u64, level: Level, count: u64) -> (Vec<u64>, IpaRange) {
    let ipas = (0..count).map(|n| start + n * level.slot_bytes()).collect();
    (ipas, range(start, count * level.slot_bytes()))
}

#[test]
fn unmapped_pages_are_gone_everywhere() {
    for caps in TLBI_CAPS {
        for pages in [1, 2, 3, 7, 33] {
            for hint in [LeafLevel::Unknown, LeafLevel::L3] {
                let (ipas, span) = consecutive(0x4000_3000, Level::L3, pages);
                round(&Rig::new(40, caps), Level::L3, &ipas, span, hint);
            }
        }
    }
}

#[test]
fn unmapped_blocks_are_gone_everywhere() {
    for caps in TLBI_CAPS {
        for (level, exact) in [(Level::L1, LeafLevel::L1), (Level::L2, LeafLevel::L2)] {
            for (count, hint) in [(1, exact), (2, exact), (3, exact), (1, LeafLevel::Unknown)] {
                let (ipas, span) = consecutive(0x4000_0000, level, count);
                round(&Rig::new(40, caps), level, &ipas, span, hint);
            }
        }
    }
}

/// The range begins and ends inside of blocks: each block that it meets goes as a whole.
#[test]
fn a_range_from_within_one_block_to_within_another_takes_both() {
    for caps in TLBI_CAPS {
        for level in [Level::L1, Level::L2] {
            let size = level.slot_bytes();
            let ipas = [0x4000_0000, 0x4000_0000 + size, 0x4000_0000 + 2 * size];
            let hint = if level == Level::L1 { LeafLevel::L1 } else { LeafLevel::L2 };
            for (from, to) in [(size - 4096, 2 * size + 4096), (4096, 3 * size - 4096)] {
                let span = range(0x4000_0000 + from, to - from);
                round(&Rig::new(40, caps), level, &ipas, span, hint);
            }
        }
    }
}

/// Addresses that need every bit of an operand: at both ends of large spans, in large VMs.
#[test]
fn far_ends_of_large_ranges_are_gone() {
    for caps in [Caps::TLBI_RANGE, Caps::TLBI_RANGE | Caps::TTL] {
        for (start, pages) in [
            (0xa5a5_c3c3_7000, 0x25_a5a6),
            (0x0000_0000_1000, 0x3f_ffff),
            (0x7fff_ffff_f000, 2),
            (0xffff_fe00_0000, 0x2000),
            (0x1000_0000_0000, 63 << 11 | 31 << 6 | 31 << 1 | 1),
        ] {
            let bytes = pages * 4096;
            // The ends, and what lies on both sides of every step that a range may be cut into.
            let cuts = (1..22).map(|bit| start + ((pages >> bit) << bit << 12));
            let inner = cuts.flat_map(|cut| [cut - 4096, cut]);
            let mut ipas: Vec<u64> = inner.chain([start, start + bytes - 4096]).collect();
            ipas.retain(|ipa| (start..start + bytes).contains(ipa));
            ipas.sort_unstable();
            ipas.dedup();
            let rig = Rig::new(48, caps);
            round(&rig, Level::L3, &ipas, range(start, bytes), LeafLevel::L3);
        }
    }
    for caps in [Caps::empty(), Caps::TTL] {
        let (ipas, span) = consecutive(0xa5a5_a5a5_a000, Level::L3, 2);
        round(&Rig::new(48, caps), Level::L3, &ipas, span, LeafLevel::L3);
    }
}

/// Pages that an operand covers, by its fields as C5.5 has them.
fn covered(op: Tlbi) -> (u64, u64) {
    match op {
        Tlbi::Ipas2e1Is(operand) => (operand.bits() & ((1 << 40) - 1), 1),
        Tlbi::Ripas2e1Is(operand) => {
            let bits = operand.bits();
            let (num, scale) = (bits >> 39 & 0x1f, bits >> 44 & 0b11);
            (bits & ((1 << 37) - 1), (num + 1) << (5 * scale + 1))
        }
        other => panic!("{other:?}"),
    }
}

/// Each page once, and none outside: what is flushed in vain has to be walked for again.
#[test]
fn invalidations_cover_the_range_exactly() {
    let sizes = (1..300).chain((8..22).flat_map(|bit| {
        let near = 1u64 << bit | 1 << (bit / 2);
        [near - 1, near, near + 1, (1 << bit) - 1, 31 << (bit - 5)]
    }));
    for pages in sizes {
        for start in [0, 7, 0xa_5a5a_5a5a] {
            let span = range(start << 12, pages << 12);
            let (mut next, mut count) = (start, 0);
            for op in by_ipa(span, LeafLevel::Unknown, Caps::TLBI_RANGE) {
                let (at, pages) = covered(op);
                assert_eq!(
                    at, next,
                    "{span}: the pages covered are not exactly those of the range"
                );
                (next, count) = (at + pages, count + 1);
            }
            let all = next == start + pages && count <= 12;
            assert!(all, "{span}: {count} operands, which are not exactly what it takes");
        }
    }
}

fn tlbis(rig: &Rig) -> Vec<Aim> {
    let aim = |event: &Event| match event {
        Event::Tlbi { aim, .. } => Some(*aim),
        _ => None,
    };
    rig.machine.trace().iter().filter_map(aim).collect()
}

/// Beyond a bound the whole VM goes: a flush takes a bounded number of instructions.
#[test]
fn a_large_range_without_range_instructions_is_bounded() {
    for pages in [512, 513, 5000] {
        let rig = Rig::new(40, Caps::TTL);
        let ipas = [0x4000_0000, 0x4000_0000 + (pages - 1) * 4096];
        round(&rig, Level::L3, &ipas, range(0x4000_0000, pages * 4096), LeafLevel::L3);
        let count = tlbis(&rig).len();
        assert!(count < 520, "{pages} pages took {count} invalidations");
    }
}

/// One page of many is taken away: the others stay where they are, and nothing is flushed in vain.
#[test]
fn small_ranges_spare_the_rest_of_the_vm() {
    for caps in TLBI_CAPS {
        let rig = Rig::new(40, caps);
        let (ipas, span) = consecutive(0x4000_0000, Level::L3, 5);
        round(&rig, Level::L3, &ipas, span, LeafLevel::L3);
        let whole = tlbis(&rig).into_iter().filter(|aim| *aim == Aim::Vm).count();
        assert_eq!(whole, 0, "{caps:?}: a flush of five pages hit the whole VM");
    }
}

/// An instruction that the machine lacks is UNDEFINED, and bits of a field that it lacks are RES0.
#[test]
fn machines_are_spared_what_they_do_not_have() {
    for caps in TLBI_CAPS {
        let rig = Rig::new(40, caps);
        let (ipas, span) = consecutive(0x4000_0000, Level::L3, 7);
        round(&rig, Level::L3, &ipas, span, LeafLevel::L3);
        for aim in tlbis(&rig) {
            let hint = match aim {
                Aim::Ipa(operand) => operand >> 44,
                Aim::IpaRange(operand) => {
                    assert!(caps.contains(Caps::TLBI_RANGE), "{aim:x?} is UNDEFINED here");
                    operand >> 37 & 0b11
                }
                _ => 0,
            };
            assert!(hint == 0 || caps.contains(Caps::TTL), "{aim:x?} sets RES0 bits");
        }
    }
}

/// With hardware updates on, the way out of a live slot must not lose one.
#[test]
fn clearing_a_slot_loses_no_hardware_update() {
    for hw_update in [HwUpdate::Access, HwUpdate::AccessAndDirty] {
        let rig = Rig::with(40, Caps::HW_ACCESS | Caps::HW_DIRTY, hw_update, 2);
        let (ipas, span) = consecutive(0x4000_0000, Level::L3, 2);
        round(&rig, Level::L3, &ipas, span, LeafLevel::L3);
    }
}

/// A new frame in place of the old: the slot goes through a break.
#[test]
fn a_replaced_page_was_broken_first_and_is_published() {
    let rig = Rig::new(40, Caps::empty());
    let vm = rig.vm();
    rig.enter(&vm, 0);
    rig.enter(&vm, 1);
    let mut pool = Pool::new(1, Level::L3, 2);
    let old = map(&rig, &vm, 0x4000_0000, Level::L3, &mut pool);
    let before = rig.slot(&vm, 0x4000_0000).load(&&rig.machine);
    let moved = stage2::Descriptor::from_bits(before.bits() + 0x1000);
    let drained = drain(&rig, &vm, &[0x4000_0000]).remove(0);
    assert_eq!(drained.old(), before, "what the slot held is what was drained");
    let flushed = vm.tlb().reduce(range(0x4000_0000, 4096), LeafLevel::L3);
    // SAFETY: (1) flushed above. (2) No guest runs.
    unsafe { drained.replace(&&rig.machine, &flushed, moved) };
    rig.machine.note(|pe| Event::Published { pe });
    rig.free_frame(old, 4096);
    let pa = rig.translate(1, 0x4000_0000).map(|found| found.pa);
    assert_eq!(pa, Some(old + 0x1000), "the replaced page is where it was sent");
    rig.assert_sound(&"replace");
}
