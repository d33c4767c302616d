//! The sequences, step by step, on every kind of machine.

use super::*;
use crate::arch;
use crate::arch::HeldWalks;
use crate::arch::host::{Event, Host};
use crate::vmid::Vmids;

const VMID: Vmid = Vmid::new(7, 8).unwrap();
pub(crate) const VTTBR: u64 = 7 << 48 | 0x8000_0000;

/// A VM without tables that the host runs under [`VTTBR`].
pub(crate) struct Rig {
    pub(crate) host: Host,
    pub(crate) ledger: Ledger,
    vmids: &'static Vmids<1>,
    loan: Loan<'static>,
}

impl Rig {
    const ROOT: Pa = Pa::new(VTTBR & ((1 << 48) - 1));

    pub(crate) fn new() -> Self {
        Self::on(Host::new())
    }

    fn on(host: Host) -> Self {
        let vmids: &Vmids<1> = Box::leak(Box::new(Vmids::only(VMID)));
        let (ledger, loan) = (Ledger::default(), Loan::new(vmids));
        let mut cpu = vmids.join(0).unwrap();
        // SAFETY: (1, 2) no guest runs on the host.
        core::mem::forget(unsafe { loan.enter(&host, Self::ROOT, &mut cpu, 0) });
        assert_eq!(arch::Arch::vttbr(&host), VTTBR);
        let _ = host.take_log();
        Self { host, ledger, vmids, loan }
    }

    /// Another VM takes the only VMID.
    pub(crate) fn another_runs(&self) {
        let (mut cpu, other) = (self.vmids.join(0).unwrap(), Loan::new(self.vmids));
        // SAFETY: (1, 2) no guest runs on the host.
        core::mem::forget(unsafe { other.enter(&self.host, Pa::new(0x1000), &mut cpu, 0) });
    }

    pub(crate) fn tlb(&self, caps: Caps) -> Stage2Tlb<'_, Host> {
        let (arch, loan, ledger) = (&self.host, &self.loan, &self.ledger);
        Stage2Tlb { arch, loan, root: Self::ROOT, caps, pinned: None, ledger }
    }
}

fn run(before: u64, caps: Caps, flush: impl FnOnce(&Stage2Tlb<'_, Host>)) -> Vec<Event> {
    run_on(Host::new(), before, caps, flush)
}

fn run_on(
    host: Host,
    before: u64,
    caps: Caps,
    flush: impl FnOnce(&Stage2Tlb<'_, Host>),
) -> Vec<Event> {
    let rig = Rig::on(host);
    // SAFETY: (1, 2) no guest runs on the host.
    unsafe { arch::Arch::set_vttbr(&rig.host, before) };
    let _ = rig.host.take_log();
    flush(&rig.tlb(caps));
    assert_eq!(arch::Arch::vttbr(&rig.host), before, "VTTBR_EL2 is as it was");
    rig.host.take_log()
}

fn told(range: Option<IpaRange>) -> Event {
    Event::Observe(Observation::Flushed { vmid: VMID, range })
}

fn page() -> IpaRange {
    IpaRange::page_of(Ipa::new(0x4000_0000)).unwrap()
}

#[test]
fn reduce_flushes_stage_2_before_combined_entries() {
    let operand = PageOperand::new(page().start(), LeafLevel::L3, Caps::TTL);
    let log = run(VTTBR, Caps::TTL, |tlb| _ = tlb.reduce(page(), LeafLevel::L3));
    assert_eq!(
        log,
        [
            Event::Dsb(Dsb::Ish),
            Event::Tlbi(Tlbi::Ipas2e1Is(operand), VTTBR),
            Event::Dsb(Dsb::Ish),
            Event::Tlbi(Tlbi::Vmalle1Is, VTTBR),
            Event::Dsb(Dsb::Ish),
            Event::Isb,
            told(Some(page())),
        ]
    );
}

#[test]
fn a_table_is_flushed_without_a_hint_over_its_whole_span() {
    let span = IpaRange::new(Ipa::new(0x4020_0000), 2 << 20).unwrap();
    let caps = Caps::TTL | Caps::TLBI_RANGE;
    let expected: Vec<Tlbi> = by_ipa(span, LeafLevel::Unknown, caps).collect();
    let log = run(VTTBR, caps, |tlb| _ = tlb.table(span));
    assert_eq!(log[1], Event::Tlbi(expected[0], VTTBR));
    assert_eq!(expected.len(), 1);
    assert_eq!(
        (log[0], log[2], log[3], log[4], log[5], log[6], log.len()),
        (
            Event::Dsb(Dsb::Ish),
            Event::Dsb(Dsb::Ish),
            Event::Tlbi(Tlbi::Vmalle1Is, VTTBR),
            Event::Dsb(Dsb::Ish),
            Event::Isb,
            told(Some(span)),
            7
        )
    );
}

#[test]
fn too_many_pages_become_the_whole_vmid() {
    let vmalls = Event::Tlbi(Tlbi::Vmalls12e1Is, VTTBR);
    let pages = |n: u64| IpaRange::new(Ipa::new(0), n << 12).unwrap();
    let log = |n| run(VTTBR, Caps::empty(), |tlb| _ = tlb.reduce(pages(n), LeafLevel::L3));
    assert!(!log(512).contains(&vmalls));
    assert_eq!(
        log(513),
        [Event::Dsb(Dsb::Ish), vmalls, Event::Dsb(Dsb::Ish), Event::Isb, told(None)]
    );
}

#[test]
fn another_vms_flush_ends_walks_switches_and_restores() {
    // Another VMID, and the same VMID with another root.
    for other in [9 << 48 | 0x8000_0000, 7 << 48 | 0x9000_0000] {
        let log = run(other, Caps::empty(), |tlb| _ = tlb.vm());
        assert_eq!(
            log,
            [
                Event::Dsb(Dsb::Ish),
                Event::SetVttbr(VTTBR),
                Event::Isb,
                Event::Tlbi(Tlbi::Vmalls12e1Is, VTTBR),
                Event::Dsb(Dsb::Ish),
                Event::SetVttbr(other),
                Event::Isb,
                told(None),
            ]
        );
    }
}

#[test]
fn relax_stays_on_this_pe() {
    let operand = PageOperand::new(page().start(), LeafLevel::Unknown, Caps::empty());
    let log = run(VTTBR, Caps::empty(), |tlb| {
        tlb.relax_local(page().start(), LeafLevel::Unknown);
    });
    assert_eq!(
        log,
        [
            Event::Dsb(Dsb::Ish),
            Event::Tlbi(Tlbi::Ipas2e1(operand), VTTBR),
            Event::Dsb(Dsb::Nsh),
            Event::Tlbi(Tlbi::Vmalle1, VTTBR),
            Event::Dsb(Dsb::Nsh),
            Event::Isb,
        ]
    );
}

#[test]
fn after_a_conflict_everything_of_the_vm_goes_from_this_pe() {
    let log = run(VTTBR, Caps::TTL, |tlb| tlb.vm_local());
    let vmalls = Event::Tlbi(Tlbi::Vmalls12e1, VTTBR);
    assert_eq!(log, [Event::Dsb(Dsb::Ish), vmalls, Event::Dsb(Dsb::Nsh), Event::Isb]);
}

#[test]
fn boot_flushes_every_vmid() {
    let host = Host::new();
    let _ = all(&host);
    assert_eq!(
        host.take_log(),
        [Event::Dsb(Dsb::Ish), Event::Tlbi(Tlbi::Alle1Is, 0), Event::Dsb(Dsb::Ish), Event::Isb]
    );
}

#[test]
fn a_dsb_that_may_end_early_is_followed_by_one_more_invalidation() {
    let host = || Host::with_errata(Errata::REPEAT_TLBI);
    // Two pages apart.
    let pages = [page(), IpaRange::page_of(Ipa::new(0x4100_0000)).unwrap()];
    type Flush = fn(&Stage2Tlb<'_, Host>, [IpaRange; 2]);
    let flushes: [Flush; 3] = [
        |tlb, pages| _ = tlb.reduce_all(pages.into_iter(), LeafLevel::L3),
        |tlb, pages| _ = tlb.table(pages[0]),
        |tlb, _| _ = tlb.vm(),
    ];
    for flush in flushes {
        let mut expected = run(VTTBR, Caps::TTL, |tlb| flush(tlb, pages));
        let end = expected.iter().position(|event| *event == Event::Isb).unwrap();
        assert_eq!(expected[end - 1], Event::Dsb(Dsb::Ish), "the flush is complete");
        let more = [Event::Tlbi(ONCE_MORE, VTTBR), Event::Dsb(Dsb::Ish)];
        expected.splice(end..end, more);
        let log = run_on(host(), VTTBR, Caps::TTL, |tlb| flush(tlb, pages));
        assert_eq!(log, expected, "one more TLBI and DSB at the end, otherwise the same");
    }
    let local =
        |host| run_on(host, VTTBR, Caps::TTL, |tlb| tlb.relax_local(page().start(), LeafLevel::L3));
    assert_eq!(local(host()), local(Host::new()), "a local flush needs no more");
}

#[test]
fn a_flush_of_everything_is_repeated_too() {
    let host = Host::with_errata(Errata::REPEAT_TLBI);
    let _ = all(&host);
    assert_eq!(
        host.take_log(),
        [
            Event::Dsb(Dsb::Ish),
            Event::Tlbi(Tlbi::Alle1Is, 0),
            Event::Dsb(Dsb::Ish),
            Event::Tlbi(ONCE_MORE, 0),
            Event::Dsb(Dsb::Ish),
            Event::Isb
        ]
    );
}

#[test]
fn no_walk_starts_under_another_vms_vttbr() {
    let other = 9 << 48 | 0x8000_0000;
    let host = || Host::with_errata(Errata::SPECULATIVE_AT);
    let held = HeldWalks { tcr: 0x7c12, sctlr: 0x5c71 };
    assert_eq!(
        run_on(host(), other, Caps::empty(), |tlb| _ = tlb.vm()),
        [
            Event::Dsb(Dsb::Ish),
            Event::HoldWalks,
            Event::SetVttbr(VTTBR),
            Event::Isb,
            Event::Tlbi(Tlbi::Vmalls12e1Is, VTTBR),
            Event::Dsb(Dsb::Ish),
            Event::SetVttbr(other),
            Event::Isb,
            Event::ReleaseWalks(held),
            Event::Isb,
            told(None),
        ],
        "walks are held as long as VTTBR_EL2 is not that of EL1's registers"
    );
    let own = run_on(host(), VTTBR, Caps::empty(), |tlb| _ = tlb.vm());
    assert!(!own.contains(&Event::HoldWalks), "the VM's own VTTBR_EL2 is not switched");
}
