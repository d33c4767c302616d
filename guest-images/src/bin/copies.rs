//! Memory that lies in scattered pages, or has holes, becomes blocks by `COPY`, and says the same as before.
//!
//! | case | what is copied |
//! | --- | --- |
//! | scattered | five blocks that MOVE has scattered: four in the first call, one in the second |
//! | image | the block of the guest's image: its code, its stack, its stage-1 tables, and many holes |
//! | refused | nothing: too many holes, and what the call has to refuse |
//!
//! With `blocks=0` RAM is populated by pages only, and the call is refused altogether.

#![no_std]
#![no_main]

use guest_rt::{MIB2, Machine, PAGE, call, check_eq, fail, say};
use hyp_abi::call::{
    COPY, INVALID_PARAMETER, MOVE, NOT_SUPPORTED, RESIZE_MAX, SPLIT, SUCCESS, Stat,
};
use smccc::Hvc;

guest_rt::guest!("copies", copies);

/// Blocks that MOVE scatters: one more than a call copies.
const SCATTERED: usize = 5;

fn copies(machine: &Machine) {
    let blocks = machine.args(&["blocks"]).number("blocks", 1) != 0;
    let start = machine.arena().take(SCATTERED * MIB2, MIB2);
    if !blocks {
        check_eq!(copy(start, MIB2, 0), Err(NOT_SUPPORTED), "COPY in RAM by pages");
        return;
    }
    refused(machine, start);
    scattered(start);
    image();
}

/// Blocks of pages that lie anywhere.
fn scattered(start: usize) {
    let pages = SCATTERED * MIB2 / PAGE;
    (0..pages).for_each(|page| write(start, page));
    for block in 0..SCATTERED {
        let [status, moved, ..] =
            call::raw::<Hvc>(MOVE, [(start + block * MIB2) as u64, MIB2 as u64, 0]);
        check_eq!((status as i64, moved), (SUCCESS, (MIB2 / PAGE) as u64), "MOVE of block {block}");
    }
    let bytes = SCATTERED * MIB2;
    check_eq!(copy(start, bytes, 0), Ok((4 * MIB2, 4)), "what the first call copies");
    check_eq!(copy(start + 4 * MIB2, MIB2, 0), Ok((MIB2, 1)), "what the second call copies");
    (0..pages).for_each(|page| check_survived(start, page));
    check_eq!(copy(start, bytes, 0), Ok((bytes, 0)), "what is left to copy");
    check_eq!((stat(Stat::Copied), stat(Stat::Filled)), (SCATTERED as u64, 0), "counted");
    let [status, _, split, _] = call::raw::<Hvc>(SPLIT, [start as u64, bytes as u64, 0]);
    check_eq!((status as i64, split), (SUCCESS, SCATTERED as u64), "blocks that can be split");
    (0..pages).for_each(|page| check_survived(start, page));
}

/// The block in which this code is: RAM is populated by pages there.
fn image() {
    let block = image as *const () as usize & !(MIB2 - 1);
    check_eq!(copy(block, MIB2, 0), Ok((MIB2, 0)), "a copy that allows no holes");
    let before = stat(Stat::Filled);
    check_eq!(copy(block, MIB2, 511), Ok((MIB2, 1)), "a copy of the image");
    let filled = stat(Stat::Filled) - before;
    if filled == 0 || filled > 511 {
        fail!("{filled} holes of the image's block were filled");
    }
    // A page that nobody has touched: the last of the block, behind image and stacks.
    let last = (block + MIB2 - PAGE) as *const usize;
    // SAFETY: 1. RAM that the identity map has; nobody writes it.
    let words =
        (0..PAGE / size_of::<usize>()).map(|word| unsafe { last.add(word).read_volatile() });
    check_eq!(words.filter(|word| *word != 0).count(), 0, "words that are not zero in a hole");
    let faults = stat(Stat::Installed);
    // SAFETY: 1. as above.
    let _ = unsafe { last.read_volatile() };
    check_eq!(stat(Stat::Installed), faults, "pages that had to be installed in it");
    say!("copies: the image's block had {filled} holes");
}

/// Calls that change nothing.
fn refused(machine: &Machine, start: usize) {
    let ram = machine.ram.clone();
    for (start, bytes, holes) in [
        (start + PAGE, MIB2, 0),
        (start, MIB2 - PAGE, 0),
        (start, 0, 0),
        (start, RESIZE_MAX as usize + MIB2, 0),
        (ram.start.wrapping_sub(MIB2), MIB2, 0),
        (ram.end & !(MIB2 - 1), MIB2 * 2, 0),
        (usize::MAX & !(MIB2 - 1), MIB2, 0),
        (start, MIB2, 512),
        (start, MIB2, u64::MAX),
    ] {
        let found = copy(start, bytes, holes);
        check_eq!(found, Err(INVALID_PARAMETER), "COPY of {bytes:#x} at {start:#x}, {holes} holes");
    }
    check_eq!(copy(start, MIB2, 511), Ok((MIB2, 0)), "a copy of what is not populated");
    check_eq!((stat(Stat::Copied), stat(Stat::Filled)), (0, 0), "counted");
}

/// Bytes that were done, and blocks that were made; or why not.
fn copy(start: usize, bytes: usize, holes: u64) -> Result<(usize, u64), i64> {
    let [status, done, made, _] = call::raw::<Hvc>(COPY, [start as u64, bytes as u64, holes]);
    if status as i64 == SUCCESS { Ok((done as usize, made)) } else { Err(status as i64) }
}

fn stat(which: Stat) -> u64 {
    match call::stat(which) {
        Some(value) => value,
        None => fail!("no hypervisor, so nobody can copy anything"),
    }
}

/// The word of a page that must survive.
fn place(start: usize, page: usize) -> *mut usize {
    (start + page * PAGE + page % 512 * size_of::<usize>()) as *mut usize
}

fn write(start: usize, page: usize) {
    // SAFETY: 1. the arena gave this memory to nobody else; 2. mapped read-write by the identity map.
    unsafe { place(start, page).write_volatile(!page) };
}

fn check_survived(start: usize, page: usize) {
    // SAFETY: 1, 2. as above.
    check_eq!(unsafe { place(start, page).read_volatile() }, !page, "the word of page {page}");
}
