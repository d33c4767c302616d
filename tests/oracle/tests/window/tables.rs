//! The tables of EL2's window: built, hooked, given back.

use mmu_oracle::Event;
use mmu_oracle::event::{Aim, Scope};
use stage2::window::{OpenError, Recovered, Site, tables_for};
use stage2::{Caps, Ipa, Level, Space};

use crate::rig::*;

#[test]
fn tables_of_the_window_come_one_by_one_and_go_with_the_vm() {
    let rig = Rig::new(Caps::TTL);
    let (epochs, machine) = (rig.epochs.domain(), &rig.machine);
    let vm: Vm<'_> = Space::new(rig.geometry, &rig.vmids, epochs, machine, machine).unwrap();
    assert_eq!((vm.window_root(), vm.window_address(Ipa::new(0))), (None, None));
    // SAFETY: (1, 2) nobody accesses memory here; (3) as the machine walks.
    assert!(!unsafe { vm.hook_window(rig.hook()) }, "there is nothing to hook");
    let wanted = range(BASE + 0x1f_f000, 2 * MIB2);
    let mut tables = 0;
    loop {
        machine.limit_allocations(1);
        match vm.open_window(site(), wanted) {
            Ok(()) => break,
            Err(OpenError::OutOfTables) => tables += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(tables + 1, 1 + tables_for(&wanted), "the root, and as many as it says");
    machine.limit_allocations(0);
    assert_eq!(vm.open_window(site(), wanted), Ok(()), "all of it is there");
    let other = Site::new(WINDOW + (1 << 39), NORMAL).unwrap();
    assert_eq!(vm.open_window(other, wanted), Err(OpenError::Elsewhere));
    let high = range((1 << 39) - 0x1000, 0x2000);
    assert_eq!(vm.open_window(site(), high), Err(OpenError::TooHigh { range: high }));
    assert_eq!(vm.window_address(Ipa::new(BASE + 5)), Some(WINDOW + BASE + 5));
    machine.limit_allocations(usize::MAX);

    // SAFETY: (1) EL2's root lives as long as the machine; (2) nobody accesses memory here; (3) as the machine walks.
    assert!(unsafe { vm.hook_window(rig.hook()) });
    // More of it, while it is in use.
    vm.open_window(site(), range(BASE + 8 * MIB2, MIB2)).unwrap();
    machine.note(|pe| Event::Published { pe });
    rig.assert_sound(&"who builds relies on it");
    map(&rig, &vm, range(BASE + MIB2, 0x4000), &ram(Level::L3));
    assert_eq!(rig.touch(&vm, 1, BASE + MIB2, true), Recovered::Mapped);
    // SAFETY: (1) hooked above, and nobody accesses memory here.
    unsafe { vm.unhook_window(rig.hook()) };
    assert!(rig.el2_walk(WINDOW + BASE + MIB2).is_none(), "no walk of EL2 comes there");
    let cpu = rig.epochs.join(0).unwrap();
    let mut back = Back(machine, vec![]);
    // SAFETY: (1) no PE runs the VM; (2) unhooked above.
    let account = unsafe { vm.destroy(&cpu, || {}, &mut back) }.unwrap();
    assert_eq!((back.1.len(), account.leaves_now(), account.tables_now()), (4, 0, 0));
    let (allocated, freed) = machine.trace().iter().fold((0, 0), |(a, f), event| match event {
        Event::AllocTable { .. } => (a + 1, f),
        Event::FreeTable { .. } => (a, f + 1),
        _ => (a, f),
    });
    assert_eq!(allocated - freed, 1, "EL2's root alone is left");
    rig.assert_sound(&"the end");
    let forgotten = Event::Tlbi { pe: 0, scope: Scope::Is, aim: Aim::El2All };
    let unhooked = machine.trace().contains(&forgotten);
    assert!(unhooked, "every PE forgot the window");
}
