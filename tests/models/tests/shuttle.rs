//! Many interleavings of the larger cases.

#![cfg(all(shuttle, not(loom)))]

use protocol_models::check::Model;
use protocol_models::protocol::{
    clear, copy, dirty, disjoint, epoch, fill, install, look, policy, prot, ranges, resize, retire,
    scratch, standstill, violations, window,
};

/// A test for each case: name, executions with each scheduler, outcomes, the case.
macro_rules! models {
    ($($test:ident: $executions:expr, $outcomes:expr, $case:expr;)*) => {$(
        #[test]
        fn $test() {
            let (executions, outcomes) = ($executions, &$outcomes);
            Model { name: stringify!($test), executions, outcomes }.check($case);
        }
    )*};
}

models! {
    a_crowd_pauses: 1000,
        ["paused", "refused"],
        standstill::a_crowd_pauses;
    a_crowd_gives_up: 1000,
        ["paused", "refused", "given up"],
        standstill::a_crowd_gives_up;
    an_end_against_a_pause_of_four: 1000,
        ["paused before", "refused", "a guest worked after it"],
        standstill::an_end_against_a_pause_of_four;
    a_storm_against_drains: 2000,
        ["lost", "found room", "took a repeat"],
        violations::a_storm_against_drains;
    a_crowd_installs: 2000,
        ["tables were lost", "frames were lost", "guest read"],
        install::a_crowd;
    pages_come_and_go: 2000,
        ["installed", "was present", "met Drain", "guest read", "cleared"],
        clear::churn;
    maps_come_and_go: 2000,
        ["read the old", "read the new"],
        epoch::a_crowd;
    a_table_is_retired: 1000,
        ["after", "before", "before, then met Dead or Drain", "met Dead or Drain"],
        retire::against_install;
    a_guest_in_a_table_that_goes: 500,
        ["guest read", "guest faulted"],
        look::a_guest_in_a_table_that_goes;
    a_write_against_unmap: 500,
        ["wrote", "Stale", "too late"],
        look::a_write_against_unmap;
    unmaps_in_one_table: 500,
        ["guest read", "guest faulted"],
        disjoint::unmaps_in_one_table;
    unmaps_under_one_parent: 500,
        ["both went"],
        disjoint::unmaps_under_one_parent;
    an_unmap_that_another_resumes: 500,
        ["resumed", "all was done", "Conflict"],
        disjoint::an_unmap_that_another_resumes;
    a_map_against_install: 500,
        ["mapped first", "mapped, and met Busy", "Occupied", "guest read", "guest faulted"],
        fill::a_map_against_install;
    a_page_is_given_away: 500,
        ["installed, then swept", "refused", "guest read", "guest faulted"],
        policy::a_page_is_given_away;
    a_collapse_against_a_write: 500,
        ["wrote", "Stale", "found no table", "guest read the block", "guest read the page",
         "guest faulted"],
        resize::a_collapse_against_a_write;
    a_copy_against_install: 500,
        ["installed", "met Drain", "copied its page", "filled the hole"],
        copy::a_copy_against_install;
    a_write_protect_against_who_relies_on_it: 1000,
        ["writable", "pending", "read-only"],
        prot::a_write_protect_against_who_relies_on_it;
    a_harvest_against_a_held_leaf: 1000,
        ["copied", "wrote by its TLB", "its TLB is clean", "taken meanwhile", "nothing yet"],
        dirty::a_harvest_against_a_held_leaf;
    a_harvest_by_a_break_against_a_write_of_el2: 1000,
        ["copied", "told by the next", "again"],
        dirty::a_harvest_by_a_break_against_a_write_of_el2;
    four_in_one_hole: 2000,
        ["won", "found it there"],
        scratch::four_in_one_hole;
    scratch_against_unmap: 2000,
        ["after", "before", "before, then met Dead or Drain", "before and after",
         "met Dead or Drain, then after", "met Dead or Drain"],
        scratch::scratch_against_unmap;
    a_replacement_against_a_guest: 1000,
        ["guest read scratch", "guest read the page", "guest faulted"],
        scratch::a_replacement_against_a_guest;
    a_replacement_against_an_access_of_el2: 1000,
        ["EL2 wrote scratch", "EL2 wrote the page", "EL2 found nothing"],
        scratch::a_replacement_against_an_access_of_el2;
    a_hole_is_taken_back: 1000,
        ["shown, then swept", "refused"],
        scratch::a_hole_is_taken_back;
    a_fault_of_el2_against_a_copy: 1000,
        ["wrote", "met Drain in its fault", "again"],
        window::a_fault_of_el2_against_a_copy;
    a_nested_fault_of_el2_against_unmap: 1000,
        ["read under the lock", "nothing was there", "met Drain"],
        window::a_nested_fault_of_el2_against_unmap;
    a_page_changes_behind_el2s_window: 1000,
        ["read the old", "read the new", "ended"],
        window::a_page_changes_behind_el2s_window;
    ranges_come_and_go: 1000,
        ["mapped", "Occupied", "met another's Busy slot", "unmapped", "noted", "notes removed", "Conflict", "installed",
         "was present", "met Busy, Drain or Dead", "met a note", "guest read", "EL2 read"],
        ranges::come_and_go;
}
