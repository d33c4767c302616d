//! Windows that the guest declares, and takes back.

use guest_rt::access::{Access, load, store};
use guest_rt::ranges::{all, part};
use guest_rt::{Args, Machine, PAGE, check, check_eq};
use hyp_abi::call::{
    INVALID_PARAMETER, RECOVER, RECOVER_INJECT, RECOVER_NONE, RECOVER_SCRATCH, RELEASE, Stat,
};
use hyp_abi::map::UART_BASE;

use super::{PATTERN, injects, recovers, stat};

/// Policies that follow each other, outside of RAM and in it.
pub(crate) fn declared(machine: &Machine, _: Args) {
    const PAGES: usize = 8;
    let outside = machine.ram.end + 0x10_0000;
    let inside = machine.arena().take(PAGES * PAGE, PAGE);
    let recover = |start, policy| all(RECOVER, start, PAGES * PAGE, policy);
    // In RAM, what is mapped stays.
    check_eq!(store(inside, 0x1234), Ok(()), "a store to RAM");
    for start in [inside, outside] {
        let there = usize::from(start == inside);
        check_eq!(recover(start, RECOVER_SCRATCH), 0, "scratch pages of a window that is new");
        recovers("loads from holes", (PAGES - there) as u64, || {
            for page in there..PAGES {
                check_eq!(load(start + page * PAGE), Ok(PATTERN), "page {page} of {start:#x}");
            }
        });
        // The other policy: the scratch pages go.
        check_eq!(recover(start, RECOVER_INJECT), (PAGES - there) as u64, "scratch pages that go");
        injects("loads from holes", (PAGES - there) as u64, || {
            (there..PAGES).for_each(|page| Access::Load.expect(start + page * PAGE, false));
        });
        check_eq!(recover(start, RECOVER_SCRATCH), 0, "scratch pages of a window without one");
        recovers("a load", 1, || load(start + there * PAGE).ok());
    }
    check_eq!(load(inside), Ok(0x1234), "what was in RAM before");

    // RAM again: each page is as its first touch finds it.
    check_eq!(recover(inside, RECOVER_NONE), 1, "scratch pages that go");
    let before = stat(Stat::Installed);
    recovers("loads from RAM", 0, || {
        for page in 1..PAGES {
            check_eq!(load(inside + page * PAGE), Ok(0), "page {page}, populated");
        }
    });
    check!(stat(Stat::Installed) - before >= PAGES as u64 - 1, "they are not counted as populated");
    // Outside, holes are made anew by RELEASE, which counts no page of the VM's.
    check_eq!(all(RELEASE, outside, PAGES * PAGE, 0), 0, "pages of the VM's that RELEASE took");
    recovers("a load where one was", 1, || load(outside).ok());

    let refused = |start: usize, bytes: usize, policy, what| {
        let answer = part(RECOVER, start as u64, bytes as u64, policy);
        check_eq!(answer, Err(INVALID_PARAMETER), "RECOVER of {what}");
    };
    refused(machine.ram.end - PAGE, 2 * PAGE, RECOVER_SCRATCH, "RAM and what is none");
    refused(UART_BASE as usize, PAGE, RECOVER_SCRATCH, "a device");
    refused(outside + 1, PAGE, RECOVER_SCRATCH, "what is not a page");
    refused(outside, PAGE, 4, "a policy that is none");
    refused(1 << 32, PAGE, RECOVER_SCRATCH, "an address that the VM does not have");
}

/// What is declared nowhere goes by the VM's default, and devices are devices.
pub(crate) fn undeclared(machine: &Machine, _: Args) {
    let places = [machine.ram.end + 8, 0x8000_0000, 0xffff_fff8, 0x1000_0000];
    for at in places {
        let found = recovers("a load where nothing is declared", 1, || load(at));
        check_eq!(found, Ok(PATTERN), "a load from {at:#x}");
    }
    recovers("a load from flash", 0, || check_eq!(load(0x400_0000), Ok(0), "flash"));
}

/// Three policies at once: a window for scratch, one that ends the VM, and aborts everywhere else.
pub(crate) fn policies(machine: &Machine, _: Args) {
    let end = machine.ram.end;
    check_eq!(recovers("a load from the window", 1, || load(end)), Ok(PATTERN), "the window");
    injects("a load behind it", 1, || Access::Load.expect(end + super::BYTES, false));
    injects("a store far behind it", 1, || Access::Store.expect(0xc000_0010, false));
    let survived = load(0x5000_0040);
    guest_rt::fail!("a load from a window that ends the VM: {survived:x?}");
}
