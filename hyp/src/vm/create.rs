//! Making the VM: which guest, where it goes, what its machine looks like.
//!
//! Everything that can be wrong with the guest or the wishes on the command line is found while the
//! [`Plan`] is made, before anything runs, and refused in words. A VM is made from the plan, each time
//! it starts.

use alloc::boxed::Box;
use core::num::NonZeroU64;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64};

use hyp_abi::MAX_VCPUS;
use hyp_core::churn::Wanted;
use hyp_core::config::Bounds;
use hyp_core::fdt::{Module, ModuleKind, Platform};
use hyp_core::guest_dtb::{self, GuestTree};
use hyp_core::mask::Mask;
use hyp_core::mmio::{Devices, Window};
use hyp_core::patches::Patches;
use hyp_core::psci::Psci;
use hyp_core::range::{Bytes, Count};
use hyp_core::recovery::{Asked, Map, Meter, Quota, Recovery};
use hyp_core::{PaRange, image};
use stage2::geometry::{Geometry, HwUpdate};
use stage2::vmid::Vmids;
use stage2::{
    Attributes, Backing, Bbm, Caps, Coherency, Encoding, Features, Ipa, IpaRange, Level, MemType,
    Owner, Prot, Region, RegionMap, Space,
};

use super::blocks::Blocks;
use super::churning::Churning;
use super::idregs::IdRegisters;
use super::payload::Payload;
use super::pe::{self, Pages, Pe};
use super::policy::Number;
use super::vcpu::Mailbox;
use super::{EPOCHS, Policy, Stage2, Vm, control, interrupts, recovery, scan, takedown};
use crate::boot::{Machine, Refusal};
use crate::lock::Lock;
use crate::mem::{PAGE, cache, clean, frames};
use crate::platform::timer;
use crate::{cpu, say, window};

/// Regions of a VM.
pub(crate) const REGIONS: usize = 1 + Window::ALL.len();

/// IPA sizes to choose from: those that PARange can tell the guest.
const IPA_BITS: [u32; 6] = [32, 36, 40, 42, 44, 48];

/// What a guest may do to its RAM.
pub(super) const RAM: Prot = Prot::RWX;

/// Memory kept for roots of tables and what else comes up, in bytes; also the unit of the account.
const SLACK: u64 = 1 << 20;

/// The guest that was built into the image; empty if there is none.
static EMBEDDED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest.bin"));

/// The guest as it was found.
struct Guest {
    image: &'static [u8],
    ramdisk: Option<&'static [u8]>,
    bootargs: alloc::string::String,
    /// Its node allows it to change its memory.
    manage: bool,
    /// What its node says of addresses without memory.
    recovery: Asked,
}

/// What stays the same in all lives of the VM.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Virtual CPUs: numbers 0 up to here.
    pub(crate) vcpus: usize,
    /// Guest RAM in bytes.
    pub(crate) mem: u64,
    /// Times that the guest may reset its machine and go on; `None` is any number.
    pub(crate) restarts: Option<u32>,
    /// Whether RAM is populated by blocks where that is possible.
    pub(crate) blocks: bool,
    /// Whether the guest may make the calls that change its memory.
    pub(crate) manage: bool,
    /// What becomes of accesses to addresses without memory, at the start of each life.
    recovery: Asked,
    /// How many violations are recovered in a life.
    pub(super) quota: Quota,
    /// Ticks of the counter a second; firmware that names none is taken to say 1.
    pub(super) frequency: NonZeroU64,
    /// Whether CPUs that are idle look for pages that are worth a block.
    pub(crate) scan: bool,
    /// What is done to its memory in the background, if anything is.
    pub(super) churn: Option<Wanted>,
    /// CPUs that serve the VM: as many as it has vCPUs and the machine has, and the others too if there is work for idle ones.
    pub(super) cpus: usize,
    /// Whether populate faults are timed.
    #[cfg(feature = "measure")]
    pub(crate) measure: bool,
    /// What stage 2 makes use of.
    pub(crate) features: Features,
    /// What RAM holds initially.
    pub(crate) payload: Payload,
    /// What the guest sees in the ID registers.
    pub(crate) ids: IdRegisters,
    ram: hyp_core::IpaRange,
    geometry: Geometry,
    /// Every life of the VM is lent one; the first entry empties the TLBs, which may hold anything since
    /// power came on.
    pub(super) vmids: &'static Vmids<MAX_VCPUS>,
}

impl Plan {
    /// What guest-physical addresses are, windows apart.
    pub(super) fn map(&self) -> Map<'static> {
        addresses(self.ram, self.geometry.ipa_bits())
    }

    /// The executing CPU and the source of table pages, as stage 2 uses them.
    fn pe(&self) -> (Pe, Pages) {
        // SAFETY: (1) this is EL2; (2) `features` are those of all CPUs; (3) TGE is never set.
        unsafe { pe::new(&self.features) }
    }
}

/// Makes the plan.
pub(super) fn plan(machine: Machine) -> Result<Plan, Refusal> {
    let Machine { platform, request, cpus } = machine;
    let guest = find_guest(&platform)?;
    let asked = request.recover.clone().unwrap_or_default().or(guest.recovery.clone());
    let bounds = bounds(cpus, request.blocks, &asked);
    let config = request.resolve(&bounds)?;
    #[cfg(feature = "measure")]
    if config.measure {
        crate::event::measure::check()?;
    }
    let head = guest.image.get(..image::HEAD).unwrap_or(guest.image);
    let length = |bytes: &[u8]| bytes.len() as u64;
    let placed = image::place(head, length(guest.image), guest.ramdisk.map(length), config.mem)?;
    let tree = guest_dtb::build(&GuestTree {
        vcpus: config.vcpus,
        ram: placed.ram,
        ramdisk: placed.ramdisk,
        bootargs: &guest.bootargs,
        flash: false,
    })?;
    let payload = Payload::new(
        [Some(&*tree.leak()), Some(guest.image), guest.ramdisk],
        [Some(placed.dtb.start), Some(placed.image.start), placed.ramdisk.map(|range| range.start)],
        placed.entry,
        placed.dtb.start,
    );

    let most = config.bbm.map_or(Bbm::Level2, bbm);
    let features = features(cpus)?.with_bbm_at_most(most).without(hidden(config.mask));
    let asked = config.recover.clone().or(guest.recovery.clone());
    let end = placed.ram.end.max(asked.end());
    let ipa_bits = IPA_BITS.into_iter().find(|bits| end <= 1 << bits).ok_or_else(|| {
        alloc::format!("guest RAM or recovery windows up to {end:#x} are beyond 48 bits")
    })?;
    asked.windows(&addresses(placed.ram, ipa_bits))?;
    let geometry = Geometry::new(ipa_bits, &features, hw_update(&features))?;
    #[cfg(feature = "trace")]
    if let (Some(wanted), Some(nonce)) = (config.trace, &config.report) {
        crate::event::trace::start(wanted, nonce, cpus, &geometry);
    }
    let vmids = Box::leak(Box::new(Vmids::new(&features).idle_root(control::no_vm())));
    let plan = Plan {
        vcpus: config.vcpus,
        mem: config.mem,
        restarts: config.restarts,
        blocks: config.blocks,
        scan: config.scan,
        churn: config.churn,
        manage: config.manage || guest.manage,
        quota: asked.quota(),
        frequency: NonZeroU64::new(timer::frequency()).unwrap_or(NonZeroU64::MIN),
        recovery: asked,
        cpus: if config.scan || config.churn.is_some() { cpus } else { config.vcpus.min(cpus) },
        #[cfg(feature = "measure")]
        measure: config.measure,
        features,
        payload,
        ids: IdRegisters::of_all(cpus, ipa_bits)?,
        ram: placed.ram,
        geometry,
        vmids,
    };
    announce(&plan, &guest);
    clean::agree(Coherency::of(&plan.features, Encoding::of(&plan.features)));
    Ok(plan)
}

/// Makes the VM as its guest expects to find it when the power comes on.
pub(super) fn create(plan: &'static Plan) -> Result<Vm, Refusal> {
    let (arch, pages) = plan.pe();
    // A root of one page comes from the stock.
    cpu::current().stock.refill();
    let space = Space::new(plan.geometry, plan.vmids, EPOCHS.domain(), pages, arch)?;
    let scratch = recovery::page(&space)?;
    let policy = policy(&space, plan)?;
    window::open(&space, cpu::current(), policy.main)?;
    for (range, _) in policy.windows.all().filter(|(_, policy)| *policy == Recovery::Scratch) {
        recovery::open_to_el2(&space, cpu::current(), policy.main, range)?;
    }
    window::hook(&space)?;
    let churning = Churning::new(plan, policy.main);
    let scan = policy.blocks.and_then(|_| scan::scanner(policy.main));
    Ok(Vm {
        plan,
        since: takedown::tally(),
        space,
        scratch,
        meter: Meter::new(),
        outlying: AtomicU64::new(0),
        policy: AtomicPtr::new(Box::into_raw(Box::new(policy))),
        moving: Lock::new("the turn", ()),
        scan: Lock::new("the scan", scan),
        logging: Lock::new("the dirty log", None),
        shadow: Lock::new("the shadow", None),
        churning,
        psci: Psci::new(plan.vcpus, plan.ram),
        mailboxes: [const { Mailbox::new() }; MAX_VCPUS],
        devices: Lock::new("the devices", Devices::new()),
        full: AtomicBool::new(false),
        vgic: Lock::new("the interrupt controller", interrupts::model(plan.vcpus)),
        epoch: timer::now(),
    })
}

/// The loader's modules, or what was built in.
fn find_guest(platform: &Platform) -> Result<Guest, Refusal> {
    let ramdisk = platform.module(ModuleKind::Ramdisk)?.map(|module| bytes(module.range));
    let Some(Module { range, bootargs, manage, recovery, .. }) =
        platform.module(ModuleKind::Kernel)?
    else {
        if EMBEDDED.is_empty() {
            return Err(Refusal(
                "no guest: none is built into this image, and the device tree names no kernel module \
                 (QEMU: -device guest-loader,addr=ADDRESS,kernel=FILE)"
                    .into(),
            ));
        }
        let (bootargs, recovery) = Default::default();
        return Ok(Guest { image: EMBEDDED, ramdisk, bootargs, manage: false, recovery });
    };
    let (image, bootargs) = (bytes(*range), bootargs.clone());
    Ok(Guest { image, ramdisk, bootargs, manage: *manage, recovery: recovery.clone() })
}

/// A module's bytes.
fn bytes(module: PaRange) -> &'static [u8] {
    let start = core::ptr::with_exposed_provenance::<u8>(module.start as usize);
    // SAFETY: (1) the layout has found every module inside RAM and apart from everything else; (2) EL2's
    // map has it read-only, for ever.
    unsafe { core::slice::from_raw_parts(start, module.len() as usize) }
}

/// What this machine has for a guest. Tables take one page in 512, and those of EL2's window as many; the same for recovery windows that are
/// asked for; the rest is for stocks and slack.
fn bounds(cpus: usize, blocks: bool, asked: &Asked) -> Bounds {
    let free = frames::free();
    let block = if blocks { cache::BLOCK_FRAMES } else { 0 };
    let stocks = (cpus * (cache::FULL + block)) as u64 * PAGE;
    let tables = free / 256 + free / 512;
    let overhead = (tables + asked.table_bytes() + stocks + SLACK).next_multiple_of(SLACK);
    let (can_measure, can_trace) = (cfg!(feature = "measure"), cfg!(feature = "trace"));
    Bounds { cpus, free, overhead, can_measure, can_trace }
}

/// A level of FEAT_BBM by its number.
const fn bbm(level: u8) -> Bbm {
    match level {
        0 => Bbm::Level0,
        1 => Bbm::Level1,
        _ => Bbm::Level2,
    }
}

/// What is hidden from stage 2.
const fn hidden(mask: Mask) -> Caps {
    // The bits are the same: see below.
    Caps::from_bits_truncate(mask.bits())
}

const _: () = {
    assert!(Mask::all().bits() | Caps::GRANULE_4K.bits() == Caps::all().bits());
    assert!(Mask::VMID16.bits() == Caps::VMID16.bits());
    assert!(Mask::HW_ACCESS.bits() == Caps::HW_ACCESS.bits());
    assert!(Mask::HW_DIRTY.bits() == Caps::HW_DIRTY.bits());
    assert!(Mask::TLBI_RANGE.bits() == Caps::TLBI_RANGE.bits());
    assert!(Mask::LSE.bits() == Caps::LSE.bits());
    assert!(Mask::TTL.bits() == Caps::TTL.bits());
    assert!(Mask::FWB.bits() == Caps::FWB.bits());
    assert!(Mask::XNX.bits() == Caps::XNX.bits());
    assert!(Mask::IDC.bits() == Caps::IDC.bits());
    assert!(Mask::DIC.bits() == Caps::DIC.bits());
};

/// What hardware updates in leaves: all that every CPU can.
const fn hw_update(features: &Features) -> HwUpdate {
    if features.has(Caps::HW_ACCESS.union(Caps::HW_DIRTY)) {
        HwUpdate::AccessAndDirty
    } else if features.has(Caps::HW_ACCESS) {
        HwUpdate::Access
    } else {
        HwUpdate::Off
    }
}

/// What every CPU has.
fn features(cpus: usize) -> Result<Features, Refusal> {
    let all = cpu::all().iter().take(cpus).filter_map(|cpu| cpu.features.get().copied());
    all.reduce(Features::and).ok_or_else(|| "no CPU has told its features".into())
}

/// Where devices are.
static DEVICES: [hyp_core::IpaRange; Window::ALL.len()] = {
    let [uart, flash, distributor, redistributors] = Window::ALL;
    [uart.range(), flash.range(), distributor.range(), redistributors.range()]
};

/// What guest-physical addresses are, windows apart.
const fn addresses(ram: hyp_core::IpaRange, ipa_bits: u32) -> Map<'static> {
    Map { ram, devices: &DEVICES, end: 1 << ipa_bits }
}

fn policy(space: &Stage2, plan: &Plan) -> Result<Policy, Refusal> {
    const MEM: MemType = MemType::Normal;
    let range = |range: hyp_core::IpaRange| IpaRange::new(Ipa::new(range.start), range.len());
    let device = |index: usize| -> Result<Region, Refusal> {
        let window = Window::ALL[index];
        let backing = Backing::Emulated(index as u16);
        Ok(Region { range: range(window.range())?, backing, name: window.name() })
    };
    let ram = range(plan.ram)?;
    let main = Region { range: ram, backing: Backing::Ram { prot: RAM, mem: MEM }, name: "RAM" };
    let regions = RegionMap::new([main, device(0)?, device(1)?, device(2)?, device(3)?])?;
    let mapping = |level| space.mapping(level, &Attributes::new(RAM, MEM), Owner::Vm);
    let ram_page = mapping(Level::L3)?;
    let first = Blocks::split_off(ram).filter(|_| plan.blocks || plan.scan || plan.churn.is_some());
    let (paged, blocks) = match first {
        Some(first) => {
            let blocks = Blocks { mapping: mapping(Level::L2)? };
            (if plan.blocks { first } else { ram }, Some(blocks))
        }
        None => (ram, None),
    };
    let limited = Patches::new();
    let map = plan.map();
    let windows = plan.recovery.windows(&map)?;
    let mut policy = Policy {
        number: Number::next(),
        ram: paged,
        ram_page,
        main: ram,
        paged,
        blocks,
        moving: None,
        limited,
        windows,
        nothing: plan.recovery.default.unwrap_or(Recovery::Stop),
        end: Ipa::new(map.end),
        regions,
    };
    policy.ram = policy.ordinary(None, &policy.limited, &policy.windows);
    Ok(policy)
}

fn announce(plan: &Plan, guest: &Guest) {
    let image = Bytes(guest.image.len() as u64);
    say!(
        "VM {}: {}, {} of RAM at {:#x}, image {image}",
        super::NUMBER,
        Count(plan.vcpus as u64, "vCPU"),
        Bytes(plan.mem),
        hyp_abi::map::RAM_BASE
    );
    say!("stage 2: {}, {}-bit IPA", plan.features, plan.geometry.ipa_bits());
}
