//! What the registers say.

use super::*;

#[test]
fn the_type_registers_say_what_there_is() {
    let mut vgic = Vgic::new(3, 5);
    let typer = value(vgic.gicd(gicd::TYPER, read(4), 0));
    assert_eq!(32 * (typer & 0x1f) + 32, u64::from(32 + SPIS), "ITLinesNumber");
    assert_eq!(typer >> 19 & 0x1f, 9, "IDbits: 10 bits, for INTIDs up to 1023");
    assert_eq!(typer >> 25 & 1, 1, "No1N");
    assert_eq!(typer & !(0x1f | 0x1f << 19 | 1 << 25), 0, "nothing else is there");
    for vcpu in 0..3 {
        let typer = value(vgic.gicr(gicr(vcpu, 8), read(8), 0));
        assert_eq!(typer, vcpu << 32 | vcpu << 8 | u64::from(vcpu == 2) << 4);
        let halves = [8, 12].map(|at| value(vgic.gicr(gicr(vcpu, at), read(4), 0)));
        assert_eq!(typer, halves[0] | halves[1] << 32);
        assert_eq!(value(vgic.gicr(gicr(vcpu, gicd::PIDR2), read(4), 0)), 0x3b);
    }
    assert_eq!(value(vgic.gicd(gicd::PIDR2, read(4), 0)) >> 4, 3, "architecture 3");
}

#[test]
fn one_security_state_with_affinity_routing_and_two_groups_to_switch() {
    let mut vgic = Vgic::new(1, 5);
    assert_eq!(value(vgic.gicd(gicd::CTLR, read(4), 0)), 0x50);
    value(vgic.gicd(gicd::CTLR, write(4, u64::from(u32::MAX)), 0));
    assert_eq!(value(vgic.gicd(gicd::CTLR, read(4), 0)), 0x53);
    value(vgic.gicd(gicd::CTLR, write(1, 2), 0));
    assert_eq!(value(vgic.gicd(gicd::CTLR, read(4), 0)), 0x52);
    // Bytes that an access does not cover stay.
    value(vgic.gicd(gicd::CTLR + 1, write(2, 0xffff), 0));
    assert_eq!(value(vgic.gicd(gicd::CTLR, read(4), 0)), 0x52);
}

#[test]
fn the_private_interrupts_are_not_the_distributors() {
    let mut vgic = set_up(2);
    for register in
        [gicd::IGROUPR, gicd::ISENABLER, gicd::ISPENDR, gicd::ISACTIVER, gicd::IPRIORITYR]
    {
        value(vgic.gicd(register, write(4, u64::from(u32::MAX)), 0));
        assert_eq!(value(vgic.gicd(register, read(4), 0)), 0, "{register:#x}");
    }
    assert_eq!(value(vgic.gicr(gicr(0, SGI + gicd::ISPENDR), read(4), 0)), 0);
    // And a redistributor has no SPIs.
    value(vgic.gicr(gicr(1, SGI + gicd::ISPENDR + 4), write(4, 1), 0));
    assert_eq!(value(vgic.gicd(gicd::ISPENDR + 4, read(4), 0)), 0);
}

#[test]
fn reserved_registers_read_as_zero_and_ignore_writes() {
    let plain = set_up(2);
    let mut vgic = plain.clone();
    let reserved = (0x10..0x80)
        .chain([gicd::ITARGETSR, 0x900, 0xd00, 0xe00, 0xf00, 0xf10, 0x5ffc, 0x6000, 0x60f8, 0x8000])
        .chain([
            gicd::IROUTER + 96 * 8,
            gicd::ISENABLER + 12,
            gicd::ICFGR,
            0xffcc,
            1 << 16,
            1 << 40,
        ]);
    for offset in reserved {
        value(vgic.gicd(offset, write(4, u64::MAX), 1));
        assert_eq!(value(vgic.gicd(offset, read(4), 1)), 0, "GICD + {offset:#x}");
    }
    let reserved =
        [0, 0x10, 0x20, 0x70, 0x78, 0xc0, SGI, SGI + gicd::ISENABLER + 4, SGI + 0xd00, SGI + 0xe00]
            .into_iter()
            .chain([gicr(2, 8), gicr(2, 0xffe8), gicr(2, SGI + gicd::ISENABLER), 1 << 40]);
    for offset in reserved {
        value(vgic.gicr(offset, write(4, u64::MAX), 1));
        assert_eq!(value(vgic.gicr(offset, read(4), 1)), 0, "GICR + {offset:#x}");
    }
    assert_eq!(vgic, plain);
}

#[test]
fn constant_registers_ignore_writes() {
    let plain = set_up(2);
    let mut vgic = plain.clone();
    for offset in [gicd::TYPER, 8, 0xffd0, 0xffe0, gicd::PIDR2, 0xfff0, 0xfffc] {
        value(vgic.gicd(offset, write(4, u64::MAX), 1));
    }
    for offset in [4, 8, 12, 0xffd0, 0xffe0, gicd::PIDR2] {
        value(vgic.gicr(gicr(1, offset), write(4, u64::MAX), 1));
    }
    assert_eq!(vgic, plain);
}

#[test]
fn bits_are_set_and_cleared_by_ones() {
    let mut vgic = Vgic::new(1, 5);
    for (set, clear) in [
        (gicd::ISENABLER, gicd::ICENABLER),
        (gicd::ISPENDR, gicd::ICPENDR),
        (gicd::ISACTIVER, gicd::ICACTIVER),
    ] {
        value(vgic.gicd(set + 4, write(4, 0xf0f0), 0));
        value(vgic.gicd(set + 4, write(4, 0x000f), 0));
        value(vgic.gicd(clear + 4, write(4, 0x8001), 0));
        for register in [set, clear] {
            assert_eq!(value(vgic.gicd(register + 4, read(4), 0)), 0x70fe, "{register:#x}");
            assert_eq!(value(vgic.gicd(register + 8, read(4), 0)), 0, "{register:#x}");
        }
        value(vgic.gicr(SGI + set, write(4, 0xffff_0000), 0));
        value(vgic.gicr(SGI + clear, write(4, 0x0ff0_0000), 0));
        assert_eq!(value(vgic.gicr(SGI + set, read(4), 0)), 0xf00f_0000);
    }
}

#[test]
fn priorities_are_bytes_of_the_bits_that_the_interface_has() {
    for (bits, mask) in [(4, 0xf0), (5, 0xf8), (8, 0xff)] {
        let mut vgic = Vgic::new(1, bits);
        value(vgic.gicd(gicd::IPRIORITYR + 35, write(1, 0xff), 0));
        value(vgic.gicd(gicd::IPRIORITYR + 40, write(4, 0xffff_ffff), 0));
        let all = mask * 0x0101_0101;
        assert_eq!(value(vgic.gicd(gicd::IPRIORITYR + 32, read(8), 0)), mask << 24);
        assert_eq!(value(vgic.gicd(gicd::IPRIORITYR + 40, read(8), 0)), all);
        assert_eq!(value(vgic.gicd(gicd::IPRIORITYR + 43, read(1), 0)), mask);
        value(vgic.gicr(SGI + gicd::IPRIORITYR + 31, write(1, 0x55), 0));
        assert_eq!(value(vgic.gicr(SGI + gicd::IPRIORITYR + 28, read(4), 0)), (0x55 & mask) << 24);
    }
}

#[test]
fn triggers_of_sgis_and_of_the_timer_cannot_be_changed() {
    let mut vgic = Vgic::new(1, 5);
    for register in [0, 4] {
        value(vgic.gicr(SGI + gicd::ICFGR + register, write(4, u64::from(u32::MAX)), 0));
    }
    assert_eq!(value(vgic.gicr(SGI + gicd::ICFGR, read(4), 0)), 0xaaaa_aaaa);
    let timer = 2 << (2 * (27 - 16));
    assert_eq!(value(vgic.gicr(SGI + gicd::ICFGR + 4, read(4), 0)), 0xaaaa_aaaa & !timer);
    value(vgic.gicd(gicd::ICFGR + 12, write(4, 0x0000_000a), 0));
    assert_eq!(value(vgic.gicd(gicd::ICFGR + 12, read(4), 0)), 0x0000_000a);
    assert_eq!(value(vgic.gicd(gicd::ICFGR + 8, read(4), 0)), 0);
}

#[test]
fn routes_are_affinities_without_the_third_level() {
    let mut vgic = Vgic::new(2, 5);
    let register = gicd::IROUTER + 40 * 8;
    value(vgic.gicd(register, write(8, u64::MAX), 0));
    assert_eq!(value(vgic.gicd(register, read(8), 0)), 0x00ff_ffff);
    value(vgic.gicd(register, write(4, 1), 0));
    assert_eq!(value(vgic.gicd(register, read(4), 0)), 1);
    assert_eq!(value(vgic.gicd(register + 4, read(4), 0)), 0);
}

#[test]
fn a_redistributor_sleeps_and_wakes_at_once() {
    let mut vgic = Vgic::new(2, 5);
    assert_eq!(value(vgic.gicr(gicr(1, 0x14), read(4), 1)), 6);
    value(vgic.gicr(gicr(1, 0x14), write(4, 0), 1));
    assert_eq!(value(vgic.gicr(gicr(1, 0x14), read(4), 1)), 0);
    assert_eq!(value(vgic.gicr(gicr(0, 0x14), read(4), 1)), 6);
    value(vgic.gicr(gicr(1, 0x14), write(4, 2), 1));
    assert_eq!(value(vgic.gicr(gicr(1, 0x14), read(4), 1)), 6);
}

#[test]
fn a_list_register_means_what_the_architecture_says() {
    let register = ListRegister {
        intid: 27,
        pending: true,
        active: false,
        group1: true,
        priority: 0xa0,
        link: Link::Physical(27),
    };
    assert_eq!(register.encode(), 0x70a0_001b_0000_001b);
    let active = ListRegister { pending: false, active: true, link: Link::Maintenance, ..register };
    assert_eq!(active.encode(), 0x90a0_0200_0000_001b);
    for register in [register, active, ListRegister { link: Link::None, ..active }] {
        assert_eq!(ListRegister::decode(register.encode()), register);
    }
}

#[test]
fn the_interface_signals_what_is_more_urgent_than_mask_and_running_one() {
    let interface = |vmcr, running| Interface { vmcr: Vmcr(vmcr), running };
    assert!(interface(OPEN.0, IDLE).signals(0xa0, true));
    assert!(!interface(OPEN.0, IDLE).signals(0xa0, false), "group 0 is off");
    assert!(!interface(0xa0 << 24 | 2, IDLE).signals(0xa0, true), "the mask itself does not pass");
    assert!(interface(0xa8 << 24 | 2, IDLE).signals(0xa0, true));
    // The group priority alone decides: VBPR1 = 5 leaves bits 7:5.
    assert!(!interface(0xf8 << 24 | 5 << 18 | 2, 0xa0).signals(0xa0, true));
    assert!(interface(0xf8 << 24 | 1 << 18 | 2, 0xa8).signals(0xa0, true));
    assert!(!interface(0xf8 << 24 | 5 << 18 | 2, 0xa8).signals(0xa0, true));
    assert!(interface(0xf8 << 24 | 5 << 18 | 2, 0xc8).signals(0xa0, true));
    // VCBPR: group 1 goes by VBPR0, 6, which leaves bit 7.
    assert!(!interface(0xf8 << 24 | 6 << 21 | 1 << 4 | 2, 0xc8).signals(0xa0, true));
}

#[test]
fn the_running_priority_is_that_of_the_lowest_bit() {
    assert_eq!(running_priority([0; 4], 5), IDLE);
    assert_eq!(running_priority([1 << 20 | 1 << 31, 0, 0, 0], 5), 0xa0);
    assert_eq!(running_priority([0, 1 << 8, 0, 0], 6), 0xa0);
    assert_eq!(running_priority([0, 0, 1 << 16, 1], 7), 0xa0);
}
