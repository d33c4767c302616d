//! Accesses of every size, and those about what another vCPU has listed.

use super::*;

#[test]
fn an_access_is_the_bytes_that_it_covers() {
    let words = [0x0000_0000, 0x8421_8421, 0x1234_5678];
    let mut vgic = Vgic::new(1, 5);
    for (bank, word) in words.into_iter().enumerate() {
        value(vgic.gicd(gicd::ISENABLER + 4 * bank as u64, write(4, word), 0));
    }
    let bytes: Vec<u8> =
        words.iter().flat_map(|word| (*word as u32).to_le_bytes()).chain([0; 16]).collect();
    for size in [1, 2, 4, 8] {
        for at in 0..12 {
            let expected =
                bytes[at..at + size].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
            let offset = gicd::ISENABLER + at as u64;
            assert_eq!(value(vgic.gicd(offset, read(size as u8), 0)), expected, "{size} at {at}");
            // A write of ones there and nowhere else.
            let mut fresh = Vgic::new(1, 5);
            value(fresh.gicd(offset, write(size as u8, u64::MAX), 0));
            for byte in 0..24 {
                let inside = (at..at + size).contains(&byte) && (4..12).contains(&byte);
                let read = value(fresh.gicd(gicd::ISENABLER + byte as u64, read(1), 0));
                assert_eq!(read, if inside { 0xff } else { 0 }, "{size} at {at}: byte {byte}");
            }
        }
    }
}

#[test]
fn sizes_that_no_instruction_has_do_no_harm() {
    let mut vgic = set_up(1);
    for size in [0, 3, 5, 9, u8::MAX] {
        for offset in [0, 0x101, 0xffff, u64::MAX - 1, u64::MAX] {
            let _ = vgic.gicd(offset, read(size), 0);
            let _ = vgic.gicr(offset, write(size, u64::MAX), 0);
        }
    }
}

/// vCPU 0 has SPI 33 in a list register, acknowledged.
fn running_elsewhere() -> (Vgic, ListRegisters) {
    let mut vgic = set_up(2);
    let mut lists = ListRegisters::new(4);
    let _ = vgic.set_level(0, 33, true);
    let _ = vgic.fill(0, &mut lists, OPEN);
    acknowledge(&mut lists, 33);
    (vgic, lists)
}

const AGAIN: Answer = Answer::Again;

#[test]
fn a_read_of_an_active_state_waits_for_the_sync_of_its_vcpu() {
    let (mut vgic, mut lists) = running_elsewhere();
    let is_active = |vgic: &mut Vgic| vgic.gicd(gicd::ISACTIVER + 4, read(4), 1);
    let first = is_active(&mut vgic);
    assert_eq!(first, Done { answer: AGAIN, wake: VcpuSet::one(0) }, "only its CPU knows");
    assert_eq!(is_active(&mut vgic), Done { answer: AGAIN, wake: VcpuSet::EMPTY }, "kicked once");
    let _ = vgic.sync(0, &mut lists, 0, OPEN);
    let _ = vgic.fill(0, &mut lists, OPEN);
    let second = is_active(&mut vgic);
    assert_eq!(second.answer, Answer::Value(2), "synced, though listed again");
    assert_eq!(is_active(&mut vgic).answer, AGAIN, "the next read is another one");
}

#[test]
fn reads_of_what_is_not_listed_do_not_wait() {
    let (mut vgic, _) = running_elsewhere();
    value(vgic.gicd(gicd::ISENABLER + 4, read(4), 1));
    value(vgic.gicd(gicd::ISPENDR + 8, read(4), 1));
    value(vgic.gicd(gicd::ISACTIVER + 5, read(1), 1));
    value(vgic.gicr(gicr(0, SGI + gicd::ISACTIVER), read(4), 1));
}

#[test]
fn a_deactivation_from_elsewhere_is_done_by_the_sync_and_waited_for() {
    let (mut vgic, mut lists) = running_elsewhere();
    let clear = |vgic: &mut Vgic| vgic.gicd(gicd::ICACTIVER + 4, write(4, 2), 1);
    assert_eq!(clear(&mut vgic), Done { answer: AGAIN, wake: VcpuSet::one(0) });
    let _ = vgic.set_level(0, 33, false);
    let _ = vgic.sync(0, &mut lists, 0, OPEN);
    assert!(!vgic.is_active(0, 33), "the active state is back");
    value(clear(&mut vgic));
    let _ = vgic.fill(0, &mut lists, OPEN);
    assert_eq!(intids(&lists), NONE);
}

#[test]
fn the_last_of_two_writes_to_an_active_state_holds() {
    for (first, second, active) in
        [(gicd::ICACTIVER, gicd::ISACTIVER, true), (gicd::ISACTIVER, gicd::ICACTIVER, false)]
    {
        let (mut vgic, mut lists) = running_elsewhere();
        for register in [first, second] {
            assert_eq!(vgic.gicd(register + 4, write(4, 2), 1).answer, AGAIN);
        }
        let _ = vgic.sync(0, &mut lists, 0, OPEN);
        assert_eq!(vgic.is_active(0, 33), active);
        value(vgic.gicd(second + 4, write(4, 2), 1));
    }
}

#[test]
fn a_pending_state_that_is_cleared_from_elsewhere_does_not_come_back() {
    for acknowledged in [false, true] {
        let mut vgic = set_up(2);
        let mut lists = ListRegisters::new(4);
        let _ = vgic.sgi(1, Sgi::One, 1);
        let _ = vgic.fill(0, &mut lists, OPEN);
        let clear = |vgic: &mut Vgic| vgic.gicr(SGI + gicd::ICPENDR, write(4, 1), 1);
        assert_eq!(clear(&mut vgic), Done { answer: AGAIN, wake: VcpuSet::one(0) });
        if acknowledged {
            acknowledge(&mut lists, 0);
        }
        let _ = vgic.sync(0, &mut lists, 0, OPEN);
        assert!(!vgic.is_pending(0, 0), "the pending state is back");
        assert_eq!(vgic.is_active(0, 0), acknowledged);
        value(clear(&mut vgic));
        let _ = vgic.fill(0, &mut lists, OPEN);
        assert_eq!(intids(&lists).len(), usize::from(acknowledged));
    }
}

#[test]
fn what_is_made_pending_after_the_clearing_is_pending() {
    let mut vgic = set_up(2);
    let mut lists = ListRegisters::new(4);
    let _ = vgic.sgi(1, Sgi::One, 1);
    let _ = vgic.fill(0, &mut lists, OPEN);
    assert_eq!(vgic.gicr(SGI + gicd::ICPENDR, write(4, 1), 1).answer, AGAIN);
    assert_eq!(vgic.sgi(1, Sgi::One, 1), VcpuSet::one(0));
    let _ = vgic.sync(0, &mut lists, 0, OPEN);
    assert!(vgic.is_pending(0, 0));
}

#[test]
fn a_disabled_interrupt_is_in_no_list_register_when_the_write_completes() {
    let mut vgic = set_up(2);
    let mut lists = ListRegisters::new(4);
    let _ = vgic.sgi(1, Sgi::One, 1);
    let _ = vgic.fill(0, &mut lists, OPEN);
    let disable = |vgic: &mut Vgic| vgic.gicr(SGI + gicd::ICENABLER, write(4, 1), 1);
    assert_eq!(disable(&mut vgic).answer, AGAIN, "it may still come");
    let _ = vgic.sync(0, &mut lists, 0, OPEN);
    let _ = vgic.fill(0, &mut lists, OPEN);
    value(disable(&mut vgic));
    assert_eq!(intids(&lists), NONE);
    assert!(vgic.is_pending(0, 0));
    // So it is with the groups.
    value(vgic.gicr(SGI + gicd::ISENABLER, write(4, 1), 1));
    let _ = vgic.sync(0, &mut lists, 0, OPEN);
    let _ = vgic.fill(0, &mut lists, OPEN);
    assert_eq!(vgic.gicd(gicd::CTLR, write(4, 0), 1).answer, AGAIN);
}

#[test]
fn another_access_in_between_begins_the_first_anew() {
    let (mut vgic, mut lists) = running_elsewhere();
    let is_active = |vgic: &mut Vgic| vgic.gicd(gicd::ISACTIVER + 4, read(4), 1);
    assert_eq!(is_active(&mut vgic).answer, AGAIN);
    value(vgic.gicd(gicd::TYPER, read(4), 1));
    let _ = vgic.sync(0, &mut lists, 0, OPEN);
    let _ = vgic.fill(0, &mut lists, OPEN);
    assert_eq!(is_active(&mut vgic), Done { answer: AGAIN, wake: VcpuSet::one(0) });
}

#[test]
fn two_that_wait_for_each_other_both_come_through() {
    let mut vgic = set_up(2);
    let mut lists = [ListRegisters::new(4); 2];
    let _ = vgic.sgi(0, Sgi::One, 0b11);
    for (vcpu, lists) in lists.iter_mut().enumerate() {
        let _ = vgic.fill(vcpu, lists, OPEN);
    }
    let others = |vgic: &mut Vgic, vcpu: usize| {
        vgic.gicr(gicr(1 - vcpu as u64, SGI + gicd::ISPENDR), read(4), vcpu)
    };
    for vcpu in [0, 1] {
        let _ = vgic.sync(vcpu, &mut lists[vcpu], 0, OPEN);
        let done = others(&mut vgic, vcpu);
        let _ = vgic.fill(vcpu, &mut lists[vcpu], OPEN);
        assert_eq!(done.answer, AGAIN);
    }
    for vcpu in [0, 1] {
        let _ = vgic.sync(vcpu, &mut lists[vcpu], 0, OPEN);
        let _ = vgic.fill(vcpu, &mut lists[vcpu], OPEN);
    }
    for vcpu in [0, 1] {
        assert_eq!(value(others(&mut vgic, vcpu)), 1);
    }
}

#[test]
fn a_split_end_deactivates_whoever_has_it() {
    let split = Vmcr(OPEN.0 | 1 << 9);
    let (mut vgic, mut lists) = running_elsewhere();
    let _ = vgic.set_level(0, 33, false);
    assert_eq!(value(vgic.deactivate(1, 33, OPEN)), 0);
    assert_eq!(vgic.deactivate(1, 33, split), Done { answer: AGAIN, wake: VcpuSet::one(0) });
    let _ = vgic.sync(0, &mut lists, 0, OPEN);
    assert!(!vgic.is_active(0, 33));
    value(vgic.deactivate(1, 33, split));
    for intid in [0, 31, 96, 1023, 8192, u32::MAX] {
        value(vgic.deactivate(1, intid, split));
    }
}

#[test]
fn a_reset_forgets_all() {
    let (mut vgic, _) = running_elsewhere();
    let _ = vgic.gicd(gicd::ICACTIVER + 4, write(4, 2), 1);
    vgic.reset();
    assert_eq!(vgic, Vgic::new(2, 5));
}
