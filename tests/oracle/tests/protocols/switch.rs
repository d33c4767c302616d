//! Flushes of one VM while another one's VMID stands in VTTBR_EL2, and flushes of all that a VM has.

use mmu_oracle::Event;
use mmu_oracle::event::Span;
use stage2::tlbi::LeafLevel;
use stage2::{Arch, Attributes, Caps, Ipa, Level, MemType, Owner, Prot, Relaxed, flush};

use crate::rig::{Pool, Rig, TLBI_CAPS, VMIDS, drain, map, range};

const PAGE: u64 = 0x4000_0000;

/// PE 0 runs a VM and unmaps from another, which runs on PE 1; then it goes on, and unmaps from its own.
#[test]
fn a_flush_of_another_vm_hits_that_vm_and_leaves_this_one_as_it_was() {
    for caps in TLBI_CAPS {
        for comes_first in [false, true] {
            let rig = Rig::new(40, caps);
            let (vm, running) = (rig.vm(), rig.vm());
            let (mut frames, mut others) = (Pool::new(1, Level::L3, 2), Pool::new(2, Level::L3, 2));
            if comes_first {
                // And so has the lower VMID.
                rig.enter(&running, 0);
            }
            let mine = rig.enter(&vm, 0);
            rig.enter(&vm, 1);
            let old = map(&rig, &vm, PAGE, Level::L3, &mut frames);
            let theirs = map(&rig, &running, PAGE, Level::L3, &mut others);
            let other = rig.enter(&running, 0);

            let drained = drain(&rig, &vm, &[PAGE]).remove(0);
            let flushed = vm.tlb().reduce(range(PAGE, 4096), LeafLevel::L3);
            rig.relies_on_flush(mine, range(PAGE, 4096));
            // SAFETY: (1) flushed above.
            unsafe { drained.release(&&rig.machine, &flushed) };
            rig.free_frame(old, 4096);
            rig.assert_sound(&(caps, "the flushed VM"));

            // The guest that was interrupted goes on without anybody writing VTTBR_EL2.
            let pa = rig.translate(0, PAGE).map(|found| found.pa);
            assert_eq!(pa, Some(theirs), "the guest goes on in memory that is not its own");
            let drained = drain(&rig, &running, &[PAGE]).remove(0);
            let flushed = running.tlb().reduce(range(PAGE, 4096), LeafLevel::L3);
            rig.relies_on_flush(other, range(PAGE, 4096));
            // SAFETY: (1) flushed above.
            unsafe { drained.release(&&rig.machine, &flushed) };
            rig.free_frame(theirs, 4096);
            rig.assert_sound(&(caps, "the VM that ran meanwhile"));
        }
    }
}

/// Everything of a VM goes, blocks and tables and pages; nothing of another VM has to.
#[test]
fn a_flush_of_a_whole_vm_leaves_nothing_of_it() {
    for from_another in [false, true] {
        let rig = Rig::new(40, Caps::empty());
        let (vm, running) = (rig.vm(), rig.vm());
        let vmid = rig.enter(&vm, 0);
        rig.enter(&vm, 1);
        let (mut pages, mut blocks) = (Pool::new(1, Level::L3, 2), Pool::new(2, Level::L2, 2));
        let ipas = [PAGE, PAGE + 4096, PAGE + (2 << 20)];
        map(&rig, &vm, ipas[0], Level::L3, &mut pages);
        map(&rig, &vm, ipas[1], Level::L3, &mut pages);
        map(&rig, &vm, ipas[2], Level::L2, &mut blocks);
        if from_another {
            rig.enter(&running, 0);
        }
        let drained = drain(&rig, &vm, &ipas);
        let flushed = vm.tlb().vm();
        rig.machine.note(|pe| Event::Flushed { pe, vmid, span: None });
        for slot in drained {
            // SAFETY: (1) flushed above, all of the VM.
            unsafe { slot.release(&&rig.machine, &flushed) };
        }
        for pool in [&pages, &blocks] {
            pool.taken().iter().for_each(|frame| rig.free_frame(*frame, pool.size()));
        }
        rig.assert_sound(&from_another);
    }
}

/// TLBs may hold anything at boot, of any VMID.
#[test]
fn the_flush_at_boot_leaves_nothing_of_any_vm() {
    let rig = Rig::new(40, Caps::empty());
    let vms = [rig.vm(), rig.vm()];
    let mut pool = Pool::new(1, Level::L3, 2);
    for vm in &vms {
        rig.enter(vm, 0);
        rig.enter(vm, 1);
        map(&rig, vm, PAGE, Level::L3, &mut pool);
    }
    let drained: Vec<_> = vms.iter().flat_map(|vm| drain(&rig, vm, &[PAGE])).collect();
    let flushed = flush::all(&&rig.machine);
    for vmid in VMIDS {
        let span = Some(Span { ipa: PAGE, bytes: 4096 });
        rig.machine.note(|pe| Event::Flushed { pe, vmid, span });
    }
    for slot in drained {
        // SAFETY: (1) flushed above, everything.
        unsafe { slot.release(&&rig.machine, &flushed) };
    }
    pool.taken().iter().for_each(|frame| rig.free_frame(*frame, 4096));
    rig.assert_sound(&"all");
}

/// A VMID that served one VM serves another.
#[test]
fn a_new_vm_finds_nothing_of_the_last_one_with_its_vmid() {
    let rig = Rig::new(40, Caps::empty());
    let (first, running) = (rig.vm(), rig.vm());
    let (mut old, mut new) = (Pool::new(1, Level::L3, 2), Pool::new(2, Level::L3, 2));
    let vmid = rig.enter(&first, 0);
    rig.enter(&first, 1);
    map(&rig, &first, PAGE, Level::L3, &mut old);
    map(&rig, &first, PAGE + 4096, Level::L3, &mut old);
    // Its guests run no more, on no PE.
    rig.enter(&running, 0);
    rig.enter(&running, 1);
    let (second, vttbr) = (rig.vm(), rig.vttbr(0));
    assert_eq!(
        rig.enter(&second, 1),
        vmid,
        "all VMIDs were lent, and it was that of no VM that ran"
    );
    rig.assert_sound(&"reuse");
    assert_eq!(rig.vttbr(0), vttbr, "the other PE runs on as it did");
    old.taken().iter().for_each(|frame| rig.free_frame(*frame, 4096));
    map(&rig, &second, PAGE, Level::L3, &mut new);
    let pa = rig.translate(1, PAGE).map(|found| found.pa);
    assert!(pa.is_some_and(|pa| new.taken().contains(&pa)), "the new VM has its own page: {pa:x?}");
    assert_eq!(rig.translate(1, PAGE + 4096), None, "the new VM has a page of the old one");
    rig.assert_sound(&"the new VM");
}

/// On a machine with one PE a local flush is all that there is to do.
#[test]
fn a_granted_permission_is_in_force_after_a_local_flush() {
    for caps in TLBI_CAPS {
        for (level, hint) in [
            (Level::L3, LeafLevel::L3),
            (Level::L2, LeafLevel::L2),
            (Level::L3, LeafLevel::Unknown),
        ] {
            for from_another in [false, true] {
                let rig = Rig::with(40, caps, stage2::HwUpdate::Off, 1);
                let (vm, running) = (rig.vm(), rig.vm());
                let vmid = rig.enter(&vm, 0);
                let attributes = Attributes::new(Prot::RX, MemType::Normal);
                let mapping = vm.mapping(level, &attributes, Owner::Vm).unwrap();
                let (cpu, mut pool) = (rig.epochs.join(0).unwrap(), Pool::new(1, level, 1));
                vm.install(
                    &cpu.enter(),
                    Ipa::new(PAGE),
                    &mapping,
                    &mut pool,
                    &mut Default::default(),
                )
                .unwrap();
                if from_another {
                    rig.enter(&running, 0);
                }
                let slot = rig.slot(&vm, PAGE);
                let read_only = slot.load(&&rig.machine).bits();
                // SAFETY: (1, 2) permission is added to a live leaf, by one thread.
                unsafe { (&rig.machine).swap(slot, read_only | 1 << 7) };
                let before = rig.vttbr(0);
                vm.tlb().relax_local(Ipa::new(PAGE), hint);
                rig.relies_on_flush(vmid, range(PAGE, level.slot_bytes()));
                rig.assert_sound(&(caps, level, hint, from_another));
                assert_eq!(rig.vttbr(0), before, "the interrupted guest is another");
            }
        }
    }
}

/// What a fault handler has granted is in force on its PE, also where another VM has been entered since.
#[test]
fn what_a_fault_is_granted_is_in_force_on_its_pe() {
    for caps in TLBI_CAPS {
        for (level, from_another) in
            [Level::L3, Level::L2].into_iter().flat_map(|level| [false, true].map(|f| (level, f)))
        {
            let rig = Rig::with(40, caps, stage2::HwUpdate::Off, 1);
            let (vm, running) = (rig.vm(), rig.vm());
            let vmid = rig.enter(&vm, 0);
            let attributes = Attributes::new(Prot::RX, MemType::Normal);
            let mapping = vm.mapping(level, &attributes, Owner::Vm).unwrap();
            let (cpu, mut pool) = (rig.epochs.join(0).unwrap(), Pool::new(1, level, 1));
            let (guard, at, tally) = (cpu.enter(), Ipa::new(PAGE), &mut Default::default());
            vm.install(&guard, at, &mapping, &mut pool, tally).unwrap();
            if from_another {
                rig.enter(&running, 0);
            }
            let before = rig.vttbr(0);
            let granted = vm.relax(&guard, at, Prot::WRITE, Prot::RWX);
            assert!(matches!(granted, Ok(Relaxed::Granted(_))), "{granted:?}");
            rig.relies_on_flush(vmid, range(PAGE, level.slot_bytes()));
            rig.assert_sound(&(caps, level, from_another));
            assert_eq!(rig.vttbr(0), before, "the interrupted guest is another");
        }
    }
}
