//! Every interleaving of the small cases: of most of them all there are, of the larger ones those with
//! few preemptions.

#![cfg(loom)]

use protocol_models::check::Model;
use protocol_models::protocol::primitive::{Follow, Publish, hand_over};
use protocol_models::protocol::{
    alike, clear, copy, dirty, disjoint, epoch, fill, hardware, install, look, policy, prot, relax,
    resize, retire, scratch, session, standstill, violations, vmid, window,
};

/// A test for each case: name, bound on preemptions, fewest executions, outcomes, the case.
macro_rules! models {
    ($($test:ident: $bound:expr, $at_least:expr, $outcomes:expr, $case:expr;)*) => {$(
        #[test]
        fn $test() {
            let (preemptions, outcomes) = ($bound, &$outcomes);
            let model = Model { name: stringify!($test), preemptions, at_least: $at_least, outcomes };
            model.check($case);
        }
    )*};
}

models! {
    two_pauses_of_a_guest: Some(2), 1_000,
        ["paused twice"],
        standstill::two_pauses_of_a_guest;
    two_pauses_that_are_given_up: Some(3), 1_000,
        ["paused", "given up"],
        standstill::two_pauses_that_are_given_up;
    two_pause_each_other: Some(3), 1_000,
        ["paused", "refused"],
        standstill::two_pause_each_other;
    an_end_against_a_pause: Some(3), 1_000,
        ["paused before", "refused", "a guest worked after it"],
        standstill::an_end_against_a_pause;
    a_repeat_against_a_drain: None, 2_500,
        ["came too early", "took both as one", "the repeat came after it"],
        violations::a_repeat_against_a_drain;
    a_full_log_against_a_drain: Some(3), 4_000,
        ["lost", "found room"],
        violations::a_full_log_against_a_drain;
    one_page: None, 40_000,
        ["lost the exchange", "found it there", "guest read", "guest faulted"],
        install::one_page;
    neighbours_under_one_missing_table: None, 10_000,
        ["nobody lost a table", "one lost a table", "guest read", "guest faulted"],
        install::neighbours_under_one_missing_table;
    neighbours_under_two_missing_tables: None, 500,
        ["nobody lost a table", "one lost a table", "both lost a table"],
        install::neighbours_under_two_missing_tables;
    cousins_under_a_missing_table: None, 25,
        ["nobody lost a table", "one lost a table"],
        install::cousins_under_a_missing_table;
    a_block_and_a_page_of_it: None, 25,
        ["a block", "a page"],
        install::a_block_and_a_page_of_it;
    clear_against_install: None, 300,
        ["before", "met Drain", "installed at the second try", "installed at once"],
        clear::against_install;
    clear_against_two_installs: Some(3), 2_000,
        ["one installed, one found a page", "one installed, one met Drain", "none installed"],
        clear::against_two_installs;
    a_move_against_install: Some(3), 2_900,
        ["install before", "install after", "install met Drain", "guest faulted",
         "guest read before", "guest read after"],
        clear::a_move_against_install;
    a_clear_has_the_last_word: Some(3), 100,
        ["wrote", "write faulted", "walked", "walk faulted"],
        hardware::a_clear_has_the_last_word;
    a_page_is_written_as_it_comes: Some(3), 100,
        ["lost the exchange", "found it there", "wrote", "write faulted"],
        hardware::a_page_is_written_as_it_comes;
    two_clears_side_by_side: None, 4,
        ["both cleared"],
        clear::two_side_by_side;
    a_decision_and_its_install: None, 400,
        ["installed, then swept", "refused"],
        epoch::a_decision_and_its_install;
    what_a_guard_wrote: None, 30,
        ["wrote", "refused"],
        epoch::what_a_guard_wrote;
    a_decision_and_its_try_set: None, 100,
        ["installed, then swept", "refused"],
        epoch::a_decision_and_its_try_set;
    a_reader_and_a_retirement: None, 400,
        ["read the old", "read the new"],
        epoch::a_reader_and_a_retirement;
    two_readers_and_a_retirement: Some(3), 6_000,
        ["read the old", "read the new"],
        epoch::two_readers_and_a_retirement;
    a_place_changes_hands: Some(3), 2_500,
        ["read the old", "read the new", "the place was taken"],
        epoch::a_place_changes_hands;
    a_table_is_retired: Some(3), 2_000,
        ["after", "before", "before, then met Dead or Drain", "before and after",
         "met Dead or Drain, then after", "met Dead or Drain"],
        retire::against_install;
    a_guest_in_a_table_that_goes: Some(2), 4_000,
        ["guest read", "guest faulted"],
        look::a_guest_in_a_table_that_goes;
    a_write_against_unmap: Some(3), 3_000,
        ["wrote", "Stale", "too late"],
        look::a_write_against_unmap;
    an_access_of_el2_against_unmap: Some(3), 1_000,
        ["read", "nothing was there"],
        look::an_access_of_el2_against_unmap;
    a_visit_against_unmap: Some(2), 4_000,
        ["saw nothing", "saw one page", "saw both"],
        look::a_visit_against_unmap;
    a_locked_parent_against_unmap: None, 300,
        ["linked", "unlinked"],
        look::a_locked_parent_against_unmap;
    a_map_beside_one_that_fails: None, 40,
        ["one mapped"],
        disjoint::a_map_beside_one_that_fails;
    unmaps_in_one_table: Some(2), 3_000,
        ["guest read", "guest faulted"],
        disjoint::unmaps_in_one_table;
    unmaps_under_one_parent: Some(3), 2_500,
        ["both went"],
        disjoint::unmaps_under_one_parent;
    an_unmap_that_another_resumes: None, 8,
        ["resumed", "all was done", "Conflict"],
        disjoint::an_unmap_that_another_resumes;
    an_unmap_beside_notes: Some(3), 20_000,
        ["guest read", "guest faulted"],
        disjoint::an_unmap_beside_notes;
    maps_under_one_missing_table: Some(3), 100,
        ["both mapped", "one met Busy"],
        disjoint::maps_under_one_missing_table;
    a_map_against_install: Some(3), 6_000,
        ["mapped first", "mapped, and met Busy", "Occupied", "guest read", "guest faulted"],
        fill::a_map_against_install;
    a_map_into_a_table_against_install: Some(3), 9_000,
        ["mapped first", "mapped, and met Busy", "Occupied", "guest read", "guest faulted"],
        fill::a_map_into_a_table_against_install;
    a_block_against_install: Some(3), 100,
        ["mapped first", "mapped by pages", "mapped, and met Busy", "Occupied", "guest read",
         "guest faulted"],
        fill::a_block_against_install;
    an_annotate_against_install: None, 1_000,
        ["met the note", "noted, and met Busy", "Occupied"],
        fill::an_annotate_against_install;
    a_page_is_given_away: Some(3), 4_000,
        ["installed, then swept", "refused", "guest read", "guest faulted"],
        policy::a_page_is_given_away;
    a_page_is_taken_back: None, 90,
        ["installed", "refused"],
        policy::a_page_is_taken_back;
    a_split_by_nt_against_a_reduction: Some(3), 1_200,
        ["found the block", "made a page read-only", "guest read the block", "guest read the page"],
        resize::a_split_by_nt_against_a_reduction;
    a_split_at_once_against_a_reduction: Some(3), 800,
        ["found the block", "made a page read-only", "guest read the block", "guest read the page"],
        resize::a_split_at_once_against_a_reduction;
    a_split_against_install: Some(3), 2_000,
        ["found the block", "found the page", "met Busy", "guest read the block",
         "guest read the page", "guest faulted"],
        resize::a_split_against_install;
    a_collapse_against_a_write: Some(3), 6_000,
        ["wrote", "Stale", "found no table", "guest read the block", "guest read the page",
         "guest faulted"],
        resize::a_collapse_against_a_write;
    a_collapse_beside_an_unmap: Some(3), 1_500,
        ["both went"],
        resize::a_collapse_beside_an_unmap;
    a_copy_against_an_access_of_el2: Some(4), 1_000,
        ["EL2 wrote the page", "EL2 wrote the block", "EL2 found nothing"],
        copy::a_copy_against_an_access_of_el2;
    a_copy_against_install: Some(3), 4_200,
        ["installed", "found the block", "met Drain", "copied its page", "filled the hole"],
        copy::a_copy_against_install;
    a_copy_that_fails_against_install: Some(3), 700,
        ["it stays", "it is a block"],
        copy::a_copy_that_fails_against_install;
    a_copy_against_a_write: Some(3), 550,
        ["wrote", "Stale", "found no table"],
        copy::a_copy_against_a_write;
    a_copy_against_a_locked_parent: Some(3), 290,
        ["it was linked", "it was broken"],
        copy::a_copy_against_a_locked_parent;
    a_copy_against_a_guest: None, 4_000,
        ["guest read the page", "guest read the block", "guest faulted"],
        copy::a_copy_against_a_guest;
    a_collapse_against_an_exchange: Some(3), 500,
        ["exchanged", "came too late", "met Busy", "found the block"],
        alike::a_collapse_against_an_exchange;
    a_collapse_against_records: Some(2), 4_000,
        ["exchanged", "came too late", "met Busy", "found the block", "wrote", "write faulted"],
        alike::a_collapse_against_records;
    a_run_against_an_exchange: None, 3_000,
        ["exchanged", "came too late", "met Busy", "made", "stays"],
        alike::a_run_against_an_exchange;
    a_run_comes_and_goes: Some(2), 6_000,
        ["guest read", "guest faulted", "wrote", "write faulted"],
        alike::a_run_comes_and_goes;
    a_harvest_against_records: Some(2), 1_000,
        ["exchanged", "came too late", "met Busy", "wrote", "write faulted"],
        prot::a_harvest_against_records;
    a_write_protect_against_an_exchange: None, 300,
        ["exchanged", "came too late"],
        prot::a_write_protect_against_an_exchange;
    a_write_protect_against_who_relies_on_it: None, 150,
        ["writable", "pending", "read-only"],
        prot::a_write_protect_against_who_relies_on_it;
    a_protect_against_a_write_fault: Some(3), 50,
        ["granted, then swept", "refused"],
        relax::a_protect_against_a_write_fault;
    an_access_fault_against_ageing: Some(3), 25,
        ["set after it was taken", "was set still"],
        relax::an_access_fault_against_ageing;
    a_harvest_against_a_write_of_el2: Some(3), 500,
        ["copied", "told by the next"],
        dirty::a_harvest_against_a_write_of_el2;
    a_harvest_by_a_break_against_a_write_of_el2: Some(3), 2_200,
        ["copied", "told by the next", "again"],
        dirty::a_harvest_by_a_break_against_a_write_of_el2;
    a_harvest_against_a_write_fault: Some(3), 300,
        ["copied", "told by the next", "wrote"],
        dirty::a_harvest_against_a_write_fault;
    a_harvest_against_a_held_leaf: Some(3), 850,
        ["copied", "wrote by its TLB", "its TLB is clean", "taken meanwhile", "nothing yet"],
        dirty::a_harvest_against_a_held_leaf;
    a_write_protect_while_logging: Some(3), 1_300,
        ["copied", "wrote by its TLB", "its TLB is clean", "taken meanwhile", "nothing yet"],
        dirty::a_write_protect_while_logging;
    a_write_of_el2_is_copied_by_a_third: Some(3), 130,
        ["copied", "told by the next", "taken meanwhile", "nothing yet"],
        dirty::a_write_of_el2_is_copied_by_a_third;
    a_harvest_against_hardware: Some(3), 100,
        ["copied", "told by the next", "wrote", "write faulted"],
        dirty::a_harvest_against_hardware;
    an_unmap_while_logging: None, 20,
        ["told at once", "told by the next"],
        dirty::an_unmap_while_logging;
    an_install_while_a_session_begins: Some(2), 250,
        ["copied", "told by the next", "in time", "later"],
        dirty::an_install_while_a_session_begins;
    a_read_only_install_while_a_session_begins: Some(2), 250,
        ["in time", "later"],
        dirty::a_read_only_install_while_a_session_begins;
    a_mark_while_a_session_comes_and_goes: None, 30_000,
        ["in time", "before or after"],
        session::a_mark_while_a_session_comes_and_goes;
    a_mark_while_one_session_gives_way_to_another: Some(3), 1_000,
        ["in time", "before or after"],
        session::a_mark_while_one_session_gives_way_to_another;
    a_mark_while_a_second_session_begins: Some(3), 1_000,
        ["in time", "before it"],
        session::a_mark_while_a_second_session_begins;
    four_in_one_hole: Some(2), 2_500,
        ["won", "found it there"],
        scratch::four_in_one_hole;
    two_in_one_hole_without_a_table: None, 1_500,
        ["won", "found it there", "a table was lost"],
        scratch::two_in_one_hole_without_a_table;
    scratch_against_populate: None, 1_500,
        ["scratch won", "memory won"],
        scratch::scratch_against_populate;
    scratch_against_unmap: Some(3), 8_500,
        ["after", "before", "before, then met Dead or Drain", "before and after",
         "met Dead or Drain, then after", "met Dead or Drain"],
        scratch::scratch_against_unmap;
    a_replacement_against_an_access_of_el2: Some(4), 4_000,
        ["EL2 wrote scratch", "EL2 wrote the page", "EL2 found nothing"],
        scratch::a_replacement_against_an_access_of_el2;
    a_replacement_against_a_guest: None, 3_000,
        ["guest read scratch", "guest read the page", "guest faulted"],
        scratch::a_replacement_against_a_guest;
    a_replacement_against_a_fault: Some(3), 500,
        ["found scratch", "found the page", "met Drain"],
        scratch::a_replacement_against_a_fault;
    a_hole_is_taken_back: Some(3), 120,
        ["shown, then swept", "refused"],
        scratch::a_hole_is_taken_back;
    a_fault_of_el2_against_unmap: Some(3), 3_500,
        ["read", "nothing was there", "met Drain"],
        window::a_fault_of_el2_against_unmap;
    a_read_of_el2_against_unmap: Some(3), 300,
        ["read", "faulted"],
        window::a_read_of_el2_against_unmap;
    two_faults_of_el2_at_one_page: Some(3), 850,
        ["both read"],
        window::two_faults_of_el2_at_one_page;
    a_fault_of_el2_against_a_copy: Some(3), 2_800,
        ["wrote", "met Drain in its fault", "again"],
        window::a_fault_of_el2_against_a_copy;
    a_nested_fault_of_el2_against_unmap: Some(3), 1_800,
        ["read under the lock", "nothing was there", "met Drain"],
        window::a_nested_fault_of_el2_against_unmap;
    a_page_changes_behind_el2s_window: Some(3), 4_000,
        ["read the old", "read the new", "ended"],
        window::a_page_changes_behind_el2s_window;
    a_harvest_against_a_write_by_el2s_window: Some(2), 200,
        ["copied", "told by the next"],
        dirty::a_harvest_against_a_write_by_el2s_window;
    a_vm_is_entered_during_a_roll_over: Some(3), 50,
        ["kept its VMID", "was lent another", "its VMID was lent", "its VMID was not lent"],
        vmid::entry_against_roll_over;
    a_vm_is_flushed_during_a_roll_over: Some(3), 50,
        ["kept its VMID", "was lent another"],
        vmid::flush_against_roll_over;
}

/// One test for each of the nine: the name says how it was published, and how found.
macro_rules! primitives {
    ($($test:ident: $publish:ident, $follow:ident;)*) => {$(
        #[test]
        fn $test() {
            let outcomes = &["followed", "came too early"];
            let model = Model { name: stringify!($test), preemptions: None, at_least: 4, outcomes };
            model.check(|| hand_over(Publish::$publish, Follow::$follow));
        }
    )*};
}

primitives! {
    a_store_then_a_load: Store, Load;
    a_store_then_a_swap: Store, Swap;
    a_store_then_a_lost_exchange: Store, LostExchange;
    a_swap_then_a_load: Swap, Load;
    a_swap_then_a_swap: Swap, Swap;
    a_swap_then_a_lost_exchange: Swap, LostExchange;
    an_exchange_then_a_load: Exchange, Load;
    an_exchange_then_a_swap: Exchange, Swap;
    an_exchange_then_a_lost_exchange: Exchange, LostExchange;
}
