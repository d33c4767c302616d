//! What a guest finds in its registers.

use super::super::*;

/// An abort from the guest: EC and ISS; IL set.
fn abort(class: u64, iss: u64) -> Abort {
    Abort::new(class << 26 | 1 << 25 | iss).unwrap()
}

#[test]
fn an_external_abort_says_what_access_it_was_and_nothing_of_stage_2() {
    // ISV and the register, S1PTW and a level mean EL2 only.
    let store = abort(0x24, 1 << 24 | 2 << 22 | 1 << 16 | 1 << 15 | 1 << 6 | 0x0f);
    assert_eq!(store.injected(El::El1, None), 0x25 << 26 | 1 << 25 | 1 << 6 | 0x10);
    assert_eq!(store.injected(El::El0, None), 0x24 << 26 | 1 << 25 | 1 << 6 | 0x10);
    let load = abort(0x24, 1 << 24 | 3 << 22 | 0x07);
    assert_eq!(load.injected(El::El1, None), 0x25 << 26 | 1 << 25 | 0x10);
    let maintenance = abort(0x24, 1 << 8 | 1 << 6 | 0x0f);
    assert_eq!(
        maintenance.injected(El::El0, None),
        0x24 << 26 | 1 << 25 | 1 << 8 | 1 << 6 | 0x10,
        "maintenance sets CM and WnR"
    );
    let fetch = abort(0x20, 0x07);
    assert_eq!(fetch.injected(El::El1, None), 0x21 << 26 | 1 << 25 | 0x10);
    assert_eq!(fetch.injected(El::El0, None), 0x20 << 26 | 1 << 25 | 0x10);
}

#[test]
fn an_external_abort_on_a_walk_has_the_level_of_stage_1() {
    // The level in ESR_EL2 is that of stage 2, and WnR is of the walker.
    for (class, el1) in [(0x20, 0x21), (0x24, 0x25)] {
        let walk = abort(class, 1 << 7 | 1 << 6 | 0x0e);
        for (level, status) in [(-1, 0x13), (0, 0x14), (1, 0x15), (2, 0x16), (3, 0x17)] {
            let esr = walk.injected(El::El1, Some(level));
            assert_eq!(esr, el1 << 26 | 1 << 25 | status, "the level of stage 1");
            assert_eq!(Abort::new(esr).unwrap().status(), Status::ExternalOnWalk(level));
        }
        assert_eq!(walk.injected(El::El1, None), el1 << 26 | 1 << 25 | 0x10, "the walk is gone");
    }
    let maintenance = abort(0x24, 1 << 8 | 1 << 7 | 0x0e);
    assert_eq!(maintenance.injected(El::El1, Some(3)) & 0x1ff, 1 << 8 | 1 << 6 | 0x17);
}

#[test]
fn what_is_wrong_with_the_instruction_is_told_as_that() {
    let misaligned = abort(0x24, 1 << 6 | 0x21);
    assert_eq!(misaligned.injected(El::El0, None), 0x24 << 26 | 1 << 25 | 1 << 6 | 0x21);
    let exclusive = abort(0x24, 1 << 6 | 0x35);
    assert_eq!(exclusive.injected(El::El1, None), 0x25 << 26 | 1 << 25 | 0x35, "WnR is UNKNOWN");
}

/// SPSR_EL2.M of EL0, of EL1 with SP_EL0, and with SP_EL1.
const MODES: [(u64, u64); 3] = [(0b0000, 0x400), (0b0100, 0x000), (0b0101, 0x200)];

#[test]
fn the_vector_is_by_where_the_guest_was_and_the_handler_runs_masked_at_el1() {
    for (mode, vector) in MODES {
        for (vbar, base) in [(0xffff_8000_0001_0800, 0xffff_8000_0001_0800), (0x7ff, 0)] {
            let entry = Entry::synchronous(mode, vbar, 0, false);
            assert_eq!(
                entry,
                Entry { pc: base + vector, pstate: 0x3c5 },
                "the vector for M = {mode:#b}"
            );
        }
    }
}

#[test]
fn an_exception_keeps_the_flags_and_sets_what_sctlr_says() {
    const FLAGS: u64 = 0xf << 28 | 1 << 24;
    const PAN: u64 = 1 << 22;
    const SSBS: u64 = 1 << 12;
    // UAO, SS, IL, BTYPE, TCO, ALLINT and the masks go.
    let others = 1 << 23 | 1 << 21 | 1 << 20 | 0b11 << 10 | 1 << 25 | 1 << 13;
    for (mode, _) in MODES {
        let state = |sctlr, from, pan| Entry::synchronous(mode | from, 0, sctlr, pan).pstate;
        let span = 1 << 23;
        assert_eq!(state(span, FLAGS | others, true), FLAGS | 0x3c5);
        assert_eq!(state(span, PAN, true), PAN | 0x3c5, "kept");
        assert_eq!(state(0, 0, true), PAN | 0x3c5, "SPAN is clear");
        assert_eq!(state(0, 0, false), 0x3c5, "no FEAT_PAN");
        assert_eq!(state(span | 1 << 44, SSBS, true), SSBS | 0x3c5, "DSSBS");
        assert_eq!(state(span, SSBS, true), 0x3c5, "not DSSBS");
    }
}
