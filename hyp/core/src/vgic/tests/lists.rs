//! Single steps between state and list registers.

use super::*;

/// Syncs and fills.
fn turn(vgic: &mut Vgic, vcpu: usize, lists: &mut ListRegisters) -> (VcpuSet, Filled) {
    let wake = vgic.sync(vcpu, lists, 0, OPEN);
    assert_eq!(intids(lists), NONE, "a sync empties the list registers");
    (wake, vgic.fill(vcpu, lists, OPEN))
}

#[test]
fn what_is_pending_is_listed_the_most_urgent_first() {
    let mut vgic = set_up(1);
    let mut lists = ListRegisters::new(4);
    for (intid, priority) in [(34, 0x60), (40, 0x20), (90, 0x40)] {
        value(vgic.gicd(gicd::IPRIORITYR + intid, write(1, priority), 0));
        assert_eq!(vgic.set_level(0, intid as u32, true), VcpuSet::one(0));
    }
    let (_, filled) = turn(&mut vgic, 0, &mut lists);
    assert_eq!(intids(&lists), [40, 90, 34]);
    assert_eq!((filled.used, filled.maintenance), (3, Maintenance::empty()));
    for register in listed(&lists) {
        assert!(register.pending && !register.active && register.group1);
        assert_eq!(register.link, Link::Maintenance, "its line is up");
    }
}

#[test]
fn disabled_ones_and_groups_that_are_off_are_not_listed() {
    let mut vgic = set_up(1);
    let mut lists = ListRegisters::new(4);
    value(vgic.gicd(gicd::ICENABLER + 4, write(4, 1 << 1), 0));
    assert_eq!(vgic.set_level(0, 33, true), VcpuSet::EMPTY);
    value(vgic.gicd(gicd::IGROUPR + 4, write(4, !(1 << 2)), 0));
    assert_eq!(vgic.set_level(0, 34, true), VcpuSet::EMPTY);
    let _ = turn(&mut vgic, 0, &mut lists);
    assert_eq!(intids(&lists), NONE);
    assert_eq!(value(vgic.gicd(gicd::ISPENDR + 4, read(4), 0)), 0b110, "pending they are");
    let done = vgic.gicd(gicd::ISENABLER + 4, write(4, 1 << 1), 0);
    assert_eq!(done.wake, VcpuSet::one(0));
    let done = vgic.gicd(gicd::CTLR, write(4, 3), 0);
    assert!(done.wake.contains(0));
    let _ = turn(&mut vgic, 0, &mut lists);
    assert_eq!(intids(&lists), [33, 34]);
    assert!(!listed(&lists)[1].group1);
}

#[test]
fn a_line_that_falls_takes_the_interrupt_back() {
    let mut vgic = set_up(1);
    let mut lists = ListRegisters::new(4);
    let _ = vgic.set_level(0, 33, true);
    let _ = turn(&mut vgic, 0, &mut lists);
    assert_eq!(intids(&lists), [33]);
    assert_eq!(vgic.set_level(0, 33, false), VcpuSet::one(0), "it is listed there");
    let _ = turn(&mut vgic, 0, &mut lists);
    assert_eq!(intids(&lists), NONE);
}

#[test]
fn an_edge_stays_until_it_is_acknowledged() {
    let mut vgic = set_up(1);
    let mut lists = ListRegisters::new(4);
    value(vgic.gicd(gicd::ICFGR + 8, write(4, 2 << 2), 0));
    let _ = vgic.set_level(0, 33, true);
    let _ = vgic.set_level(0, 33, false);
    for _ in 0..3 {
        let _ = turn(&mut vgic, 0, &mut lists);
        assert_eq!(intids(&lists), [33], "an edge is lost");
        assert_eq!(listed(&lists)[0].link, Link::None);
    }
    acknowledge(&mut lists, 33);
    let _ = turn(&mut vgic, 0, &mut lists);
    assert!(!listed(&lists)[0].pending && listed(&lists)[0].active);
    // Another one while it is active: once more after that.
    let _ = vgic.set_level(0, 33, true);
    let _ = turn(&mut vgic, 0, &mut lists);
    assert!(listed(&lists)[0].pending && listed(&lists)[0].active);
    deactivate(&mut lists, 33);
    let _ = turn(&mut vgic, 0, &mut lists);
    assert!(listed(&lists)[0].pending && !listed(&lists)[0].active);
    acknowledge(&mut lists, 33);
    deactivate(&mut lists, 33);
    let _ = turn(&mut vgic, 0, &mut lists);
    assert_eq!(intids(&lists), NONE);
}

#[test]
fn a_level_that_stays_comes_again_after_the_deactivation() {
    let mut vgic = set_up(1);
    let mut lists = ListRegisters::new(4);
    let _ = vgic.set_level(0, 33, true);
    let _ = turn(&mut vgic, 0, &mut lists);
    acknowledge(&mut lists, 33);
    let _ = turn(&mut vgic, 0, &mut lists);
    let register = listed(&lists)[0];
    assert!(register.active && !register.pending);
    assert_eq!(register.link, Link::Maintenance, "EL2 must look at the line then");
    deactivate(&mut lists, 33);
    let _ = turn(&mut vgic, 0, &mut lists);
    assert!(listed(&lists)[0].pending);
    acknowledge(&mut lists, 33);
    assert_eq!(vgic.set_level(0, 33, false), VcpuSet::one(0));
    let _ = turn(&mut vgic, 0, &mut lists);
    assert_eq!(listed(&lists)[0].link, Link::None, "nothing is to be looked at");
    deactivate(&mut lists, 33);
    let _ = turn(&mut vgic, 0, &mut lists);
    assert_eq!(intids(&lists), NONE);
}

#[test]
fn an_active_one_keeps_its_priority_and_group() {
    let mut vgic = set_up(1);
    let mut lists = ListRegisters::new(4);
    let _ = vgic.set_level(0, 33, true);
    let _ = turn(&mut vgic, 0, &mut lists);
    acknowledge(&mut lists, 33);
    let _ = vgic.sync(0, &mut lists, 0, OPEN);
    value(vgic.gicd(gicd::IPRIORITYR + 33, write(1, 0x10), 0));
    value(vgic.gicd(gicd::IGROUPR + 4, write(4, 0), 0));
    let _ = vgic.fill(0, &mut lists, OPEN);
    let register = listed(&lists)[0];
    assert_eq!((register.priority, register.group1), (0xa0, true), "its end would not find it");
    deactivate(&mut lists, 33);
    value(vgic.gicd(gicd::IGROUPR + 4, write(4, 2), 0));
    let _ = turn(&mut vgic, 0, &mut lists);
    assert_eq!(listed(&lists)[0].priority, 0x10);
}

#[test]
fn the_timer_is_linked_while_its_physical_interrupt_is_held() {
    let mut vgic = set_up(1);
    let mut lists = ListRegisters::new(4);
    assert_eq!(vgic.forward(0, 27), VcpuSet::one(0));
    let _ = turn(&mut vgic, 0, &mut lists);
    assert_eq!(listed(&lists)[0].link, Link::Physical(27));
    acknowledge(&mut lists, 27);
    let (_, filled) = turn(&mut vgic, 0, &mut lists);
    assert_eq!((listed(&lists)[0].link, filled.deactivate), (Link::Physical(27), 0));
    let _ = vgic.set_level(0, 27, false);
    deactivate(&mut lists, 27);
    let (_, filled) = turn(&mut vgic, 0, &mut lists);
    assert!(!vgic.is_held(0, 27));
    let nothing = (Vec::new(), 0);
    assert_eq!((intids(&lists), filled.deactivate), nothing, "hardware deactivated both");
}

#[test]
fn a_held_interrupt_that_nobody_will_deactivate_is_given_back_once() {
    let mut vgic = set_up(1);
    let mut lists = ListRegisters::new(4);
    // The guest sets its timer anew before it acknowledges.
    let _ = vgic.forward(0, 27);
    let _ = turn(&mut vgic, 0, &mut lists);
    let _ = vgic.set_level(0, 27, false);
    let (_, filled) = turn(&mut vgic, 0, &mut lists);
    assert_eq!((intids(&lists), filled.deactivate), (Vec::new(), 1 << 27));
    let (_, filled) = turn(&mut vgic, 0, &mut lists);
    assert_eq!(filled.deactivate, 0, "given back twice");
    // It deactivates it by a register.
    let _ = vgic.forward(0, 27);
    let _ = turn(&mut vgic, 0, &mut lists);
    acknowledge(&mut lists, 27);
    let _ = vgic.set_level(0, 27, false);
    let _ = vgic.sync(0, &mut lists, 0, OPEN);
    value(vgic.gicr(SGI + gicd::ICACTIVER, write(4, 1 << 27), 0));
    assert_eq!(vgic.fill(0, &mut lists, OPEN).deactivate, 1 << 27);
}

#[test]
fn a_disabled_timer_stays_held_and_the_software_pended_one_is_not_linked() {
    let mut vgic = set_up(1);
    let mut lists = ListRegisters::new(4);
    value(vgic.gicr(SGI + gicd::ICENABLER, write(4, 1 << 27), 0));
    let _ = vgic.forward(0, 27);
    let (_, filled) = turn(&mut vgic, 0, &mut lists);
    assert_eq!((intids(&lists), filled.deactivate), (Vec::new(), 0));
    assert_eq!(vgic.take_holds(0), 1 << 27);
    assert_eq!(vgic.take_holds(0), 0);
    let _ = vgic.set_level(0, 27, false);
    value(vgic.gicr(SGI + gicd::ISENABLER, write(4, 1 << 27), 0));
    value(vgic.gicr(SGI + gicd::ISPENDR, write(4, 1 << 27), 0));
    let _ = turn(&mut vgic, 0, &mut lists);
    assert_eq!((intids(&lists), listed(&lists)[0].link), ([27].into(), Link::None));
}

#[test]
fn more_than_there_is_room_for_waits_and_asks_for_the_maintenance_interrupt() {
    let mut vgic = set_up(1);
    let mut lists = ListRegisters::new(4);
    for intid in 40..47_u32 {
        value(vgic.gicd(
            gicd::IPRIORITYR + u64::from(intid),
            write(1, u64::from(intid - 32) << 3),
            0,
        ));
        value(vgic.gicd(gicd::ISPENDR + 4, write(4, 1 << (intid - 32)), 0));
    }
    let (_, filled) = turn(&mut vgic, 0, &mut lists);
    assert_eq!((intids(&lists), filled.used), ([40, 41, 42, 43].into(), 4));
    assert!(filled.maintenance.contains(Maintenance::NPIE | Maintenance::UIE));
    for intid in [40, 41, 42, 43] {
        acknowledge(&mut lists, intid);
        deactivate(&mut lists, intid);
    }
    let (_, filled) = turn(&mut vgic, 0, &mut lists);
    assert_eq!((intids(&lists), filled.maintenance), ([44, 45, 46].into(), Maintenance::empty()));
}

#[test]
fn the_most_urgent_pending_one_is_listed_beside_any_number_of_active_ones() {
    let mut vgic = set_up(1);
    let mut lists = ListRegisters::new(2);
    for (bit, priority) in [(4, 0xc0), (3, 0x80), (2, 0x40)] {
        value(vgic.gicd(gicd::IPRIORITYR + 32 + bit, write(1, priority), 0));
        value(vgic.gicd(gicd::ISACTIVER + 4, write(4, 1 << bit), 0));
    }
    value(vgic.gicd(gicd::IPRIORITYR + 37, write(1, 0xf0), 0));
    value(vgic.gicd(gicd::ISPENDR + 4, write(4, 1 << 5), 0));
    let (_, filled) = turn(&mut vgic, 0, &mut lists);
    assert_eq!(
        intids(&lists),
        [37, 34],
        "the most urgent pending one, then the most urgent active one"
    );
    assert_eq!(filled.maintenance, Maintenance::LRENPIE | Maintenance::UIE);
    // Two ends that found no list register: those of the most urgent ones that have none.
    let _ = vgic.sync(0, &mut lists, 1 << 27, OPEN);
    assert_eq!(value(vgic.gicd(gicd::ISACTIVER + 4, read(4), 0)), 0b10100, "the wrong one is over");
    let _ = vgic.sync(0, &mut lists, 1 << 27, Vmcr(OPEN.0 | 1 << 9));
    assert_eq!(
        value(vgic.gicd(gicd::ISACTIVER + 4, read(4), 0)),
        0b10100,
        "split ends deactivate nothing"
    );
}

#[test]
fn one_list_register_does_not_ask_for_an_underflow() {
    let mut vgic = set_up(1);
    let mut lists = ListRegisters::new(1);
    value(vgic.gicd(gicd::ISPENDR + 4, write(4, 0b11), 0));
    let (_, filled) = turn(&mut vgic, 0, &mut lists);
    assert_eq!(
        (intids(&lists), filled.maintenance),
        ([32].into(), Maintenance::NPIE),
        "it would call for ever"
    );
}

#[test]
fn groups_that_the_guest_has_off_come_last() {
    let mut vgic = set_up(1);
    let mut lists = ListRegisters::new(1);
    value(vgic.gicd(gicd::CTLR, write(4, 3), 0));
    value(vgic.gicd(gicd::IGROUPR + 4, write(4, !1), 0));
    value(vgic.gicd(gicd::IPRIORITYR + 32, write(1, 0), 0));
    value(vgic.gicd(gicd::ISPENDR + 4, write(4, 0b11), 0));
    let (_, filled) = turn(&mut vgic, 0, &mut lists);
    assert_eq!(intids(&lists), [33], "group 0 is off at the interface");
    assert_eq!(filled.maintenance, Maintenance::NPIE | Maintenance::VGRP0EIE);
}

#[test]
fn a_route_moves_what_is_pending_and_not_what_is_active() {
    let mut vgic = set_up(2);
    let mut lists = [ListRegisters::new(4); 2];
    let _ = vgic.set_level(0, 33, true);
    let _ = vgic.set_level(0, 34, true);
    let _ = turn(&mut vgic, 0, &mut lists[0]);
    acknowledge(&mut lists[0], 34);
    for intid in [33, 34] {
        let done = vgic.gicd(gicd::IROUTER + intid * 8, write(8, 1), 1);
        assert_eq!(done, Done { answer: Answer::Value(0), wake: VcpuSet::one(0) });
    }
    let _ = turn(&mut vgic, 1, &mut lists[1]);
    assert_eq!(intids(&lists[1]), NONE, "still listed elsewhere");
    let (wake, _) = turn(&mut vgic, 0, &mut lists[0]);
    assert_eq!((intids(&lists[0]), wake), ([34].into(), VcpuSet::one(1)));
    let _ = turn(&mut vgic, 1, &mut lists[1]);
    assert_eq!(intids(&lists[1]), [33]);
    deactivate(&mut lists[0], 34);
    let (wake, _) = turn(&mut vgic, 0, &mut lists[0]);
    assert_eq!((intids(&lists[0]), wake), (Vec::new(), VcpuSet::one(1)));
}

#[test]
fn an_spi_that_is_routed_nowhere_is_nobodys() {
    let mut vgic = set_up(2);
    let mut lists = ListRegisters::new(4);
    value(vgic.gicd(gicd::IROUTER + 33 * 8, write(8, 7), 0));
    assert_eq!(vgic.set_level(0, 33, true), VcpuSet::EMPTY);
    for vcpu in 0..2 {
        let _ = turn(&mut vgic, vcpu, &mut lists);
        assert_eq!(intids(&lists), NONE);
    }
    assert_eq!(vgic.gicd(gicd::IROUTER + 33 * 8, write(8, 1), 0).wake, VcpuSet::one(1));
}

#[test]
fn sgis_go_to_whom_they_name_in_their_group() {
    let mut vgic = set_up(4);
    let to = |list: u64| 5 << 24 | list;
    assert_eq!(vgic.sgi(0, Sgi::One, to(0b0110)).bits(), 0b0110);
    assert_eq!(vgic.sgi(0, Sgi::One, to(0b1_0001)).bits(), 0b0001, "to itself; there is no vCPU 4");
    assert_eq!(vgic.sgi(2, Sgi::One, 6 << 24 | 1 << 40).bits(), 0b1011, "all but itself");
    for elsewhere in [1 << 16, 1 << 32, 1 << 44, 1 << 48] {
        assert_eq!(vgic.sgi(0, Sgi::One, to(1) | elsewhere), VcpuSet::EMPTY);
    }
    for other in [Sgi::Zero, Sgi::Alternate] {
        assert_eq!(vgic.sgi(0, other, 7 << 24 | 0xf), VcpuSet::EMPTY, "it is of group 1");
        assert!(!vgic.is_pending(0, 7));
    }
    value(vgic.gicd(gicd::CTLR, write(4, 3), 0));
    value(vgic.gicr(gicr(1, SGI + gicd::IGROUPR), write(4, 0), 1));
    assert_eq!(vgic.sgi(0, Sgi::Zero, 7 << 24 | 0xf), VcpuSet::one(1));
    assert_eq!(vgic.sgi(0, Sgi::Alternate, 8 << 24 | 0xf), VcpuSet::one(1));
    assert_eq!(vgic.sgi(0, Sgi::One, 9 << 24 | 0xf).bits(), 0b1101, "in group 0 it is another's");
    let mut lists = ListRegisters::new(4);
    let _ = turn(&mut vgic, 2, &mut lists);
    assert_eq!(intids(&lists), [5, 9]);
}

#[test]
fn a_sleeper_is_woken_by_what_its_interface_would_signal() {
    let mut vgic = set_up(2);
    let open = Interface { vmcr: OPEN, running: IDLE };
    assert!(!vgic.signals(0, &open));
    let _ = vgic.sgi(1, Sgi::One, 1);
    assert!(vgic.signals(0, &open) && !vgic.signals(1, &open));
    assert!(!vgic.signals(0, &Interface { running: 0xa0, ..open }));
    assert!(!vgic.signals(0, &Interface { vmcr: Vmcr(0xa0 << 24 | 2), ..open }));
    let _ = vgic.set_level(0, 33, true);
    value(vgic.gicd(gicd::IROUTER + 33 * 8, write(8, 1), 0));
    assert!(vgic.signals(1, &open));
    // Listed or not.
    let mut lists = ListRegisters::new(4);
    let _ = turn(&mut vgic, 1, &mut lists);
    assert!(vgic.signals(1, &open));
    acknowledge(&mut lists, 33);
    let _ = turn(&mut vgic, 1, &mut lists);
    assert!(!vgic.signals(1, &open), "it is active");
}

#[test]
fn list_registers_that_are_not_its_own_are_ignored() {
    let mut vgic = set_up(2);
    let before = vgic.clone();
    let mut lists = ListRegisters::new(4);
    for (value, intid) in lists.values.iter_mut().zip([0, 33, 95, 96, 1019, 1023, 8192, u32::MAX]) {
        *value = 3 << 62 | u64::from(intid);
    }
    assert_eq!(vgic.sync(0, &mut lists, u64::MAX, OPEN), VcpuSet::EMPTY);
    assert_eq!((vgic, intids(&lists)), (before, Vec::new()));
}

/// SPI 33 is edge-triggered, active at vCPU 0, and pending again.
fn pending_again(vgic: &mut Vgic, lists: &mut ListRegisters) {
    value(vgic.gicd(gicd::ICFGR + 8, write(4, 2 << 2), 0));
    value(vgic.gicd(gicd::ISPENDR + 4, write(4, 2), 0));
    let _ = turn(vgic, 0, lists);
    acknowledge(lists, 33);
    let _ = vgic.sync(0, lists, 0, OPEN);
    value(vgic.gicd(gicd::ISPENDR + 4, write(4, 2), 0));
}

/// The list register of SPI 33 after a fill: whether it is pending, too, and its link.
fn relisted(vgic: &mut Vgic, lists: &mut ListRegisters) -> (bool, Link) {
    let _ = vgic.fill(0, lists, OPEN);
    let register = listed(lists).into_iter().find(|register| register.intid == 33).unwrap();
    assert!(register.active);
    (register.pending, register.link)
}

#[test]
fn what_is_pending_again_does_not_take_the_place_of_what_is_more_urgent() {
    let mut vgic = set_up(1);
    let mut lists = ListRegisters::new(2);
    pending_again(&mut vgic, &mut lists);
    for bit in [4, 5] {
        value(vgic.gicd(gicd::IPRIORITYR + 32 + bit, write(1, 0x20), 0));
        value(vgic.gicd(gicd::ISPENDR + 4, write(4, 1 << bit), 0));
    }
    // One of the two finds no place.
    assert_eq!(
        relisted(&mut vgic, &mut lists),
        (false, Link::Maintenance),
        "it comes before its betters"
    );
    deactivate(&mut lists, 33);
    let _ = turn(&mut vgic, 0, &mut lists);
    assert_eq!(intids(&lists), [36, 37]);
}

#[test]
fn what_is_pending_again_and_disabled_does_not_come_at_its_end() {
    for register in [gicd::ICENABLER + 4, gicd::CTLR] {
        let mut vgic = set_up(1);
        let mut lists = ListRegisters::new(4);
        pending_again(&mut vgic, &mut lists);
        let off = if register == gicd::CTLR { 0 } else { 2 };
        value(vgic.gicd(register, write(4, off), 0));
        assert_eq!(
            relisted(&mut vgic, &mut lists),
            (false, Link::None),
            "it comes though it is off"
        );
        deactivate(&mut lists, 33);
        let _ = turn(&mut vgic, 0, &mut lists);
        assert_eq!(intids(&lists), NONE);
        assert!(vgic.is_pending(0, 33));
    }
}

#[test]
fn what_is_pending_again_comes_with_its_new_priority_and_where_it_is_routed_now() {
    for (register, new) in [(gicd::IPRIORITYR + 33, 0x10), (gicd::IROUTER + 33 * 8, 1)] {
        let mut vgic = set_up(2);
        let mut lists = ListRegisters::new(4);
        pending_again(&mut vgic, &mut lists);
        value(vgic.gicd(register, write(1, new), 0));
        assert_eq!(
            relisted(&mut vgic, &mut lists),
            (false, Link::Maintenance),
            "it comes as it was"
        );
        deactivate(&mut lists, 33);
        let (wake, _) = turn(&mut vgic, 0, &mut lists);
        if new == 1 {
            assert_eq!((intids(&lists), wake), (Vec::new(), VcpuSet::one(1)));
        } else {
            assert_eq!(listed(&lists)[0].priority, 0x10);
        }
    }
}

#[test]
fn a_guest_that_switches_groups_while_some_wait_is_looked_after() {
    let mut vgic = set_up(1);
    let mut lists = ListRegisters::new(1);
    value(vgic.gicd(gicd::CTLR, write(4, 3), 0));
    value(vgic.gicd(gicd::IGROUPR + 4, write(4, !1), 0));
    value(vgic.gicd(gicd::ISPENDR + 4, write(4, 0b11), 0));
    let both = Vmcr(OPEN.0 | 1);
    let filled = vgic.fill(0, &mut lists, both);
    let off = Maintenance::VGRP0DIE | Maintenance::VGRP1DIE;
    assert_eq!(filled.maintenance, Maintenance::NPIE | off);
}
