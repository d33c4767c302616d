//! A VM's interrupt controller: a GICv3 (Arm IHI 0069) with one security state and affinity routing always on.
//!
//! It has SGIs 0 to 15 and PPIs 16 to 31 for each vCPU and [`SPIS`] SPIs from 32 on; no LPIs and no ITS. [`Vgic`] is the state
//! of the distributor and of all redistributors, one plain value that the VM keeps behind one lock. The CPU
//! interface is hardware's: the guest acknowledges and ends interrupts on the list registers of its CPU, without EL2.
//!
//! # Who holds what
//!
//! An interrupt is in at most one list register of one vCPU. While it is (*listed*), hardware holds its state, and only that
//! vCPU's CPU can read it. [`Vgic::sync`] takes everything back from a vCPU's list registers, [`Vgic::fill`] lists what it should
//! have; between the two nothing of that vCPU is in hardware, and every register of the distributor can be answered for it. So a trap is: read the list
//! registers, `sync`, the access, `fill`, write them.
//!
//! What another vCPU has listed is changed by asking that vCPU: the change is noted, its CPU is kicked, and its sync carries it
//! out. An access that must not complete before it has is answered [`Answer::Again`]: the guest does it once more. EL2 does not
//! wait for another vCPU. Such are: reads of pending and active states, and writes that clear a state or enable, of interrupts that
//! are listed elsewhere.
//!
//! # Which interrupts are listed
//!
//! Pending ones that are enabled and whose group the distributor forwards, the most urgent first; those that are active; and there are few list
//! registers. The most urgent pending one always gets one. Active ones come next, then other pending ones. What finds no
//! place is in no list register and waits: of pending ones the maintenance interrupt tells when nothing listed is pending any more; an active one
//! that the guest ends without a list register is counted by hardware, and as guests end what they acknowledged last, the most urgent
//! of those without a place is meant.
//!
//! A level-sensitive interrupt whose line is up while it is active asks for the maintenance interrupt at its deactivation, and is then
//! pending again. An active one keeps the priority and group with which it was acknowledged until its end.
//!
//! # Physical interrupts
//!
//! The virtual timer's PPI belongs to hardware: [`Vgic::forward`] notes that EL2 acknowledged the physical interrupt and left it active
//! (*held*). Its list register is then linked, so the guest's deactivation deactivates both. If there is nothing left that
//! the guest would deactivate, [`Filled::deactivate`] gives it back.
//!
//! Nothing here allocates, and no input panics. All loops are bounded by the number of interrupts.

mod access;
mod bank;
mod interface;
mod list;
mod listing;
mod registers;
mod set;
mod sgi;
#[cfg(test)]
mod tests;

use hyp_abi::MAX_VCPUS;

pub use self::access::{Access, Answer, Done};
use self::bank::{Bank, Groups};
pub use self::interface::{IDLE, Interface, Maintenance, Vmcr, eoi_count, running_priority};
pub use self::list::{Link, ListRegister, ListRegisters, MAX_LIST_REGISTERS};
pub use self::listing::Filled;
pub use self::set::VcpuSet;
use self::set::bits;
pub use self::sgi::Sgi;

/// SPIs: INTIDs 32 up to, not including, 32 + SPIS.
pub const SPIS: u32 = 64;

/// Banks of SPIs.
const SHARED: usize = SPIS as usize / 32;

/// PPIs whose line is a physical one's of the same number, and level-sensitive whatever the guest writes: the virtual timer's.
const PHYSICAL: u32 = 1 << 27;

/// SGIs are edge-triggered.
const SGI_MASK: u32 = 0xffff;

/// A VM's distributor and redistributors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vgic {
    vcpus: usize,
    /// The bits of a priority that the CPU interface has.
    priority_mask: u8,
    groups: Groups,
    private: [Bank; MAX_VCPUS],
    shared: [Shared; SHARED],
    /// `GICR_WAKER.ProcessorSleep`: kept, without effect.
    asleep: VcpuSet,
    asks: [Option<access::Ask>; MAX_VCPUS],
}

/// 32 SPIs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shared {
    bank: Bank,
    /// `GICD_IROUTER<n>`: the affinity that it names.
    router: [u32; 32],
    /// Who has it listed, or active.
    owner: [u8; 32],
}

impl Shared {
    const fn new() -> Self {
        Self { bank: Bank::new(0), router: [0; 32], owner: [0; 32] }
    }

    fn owner(&self, index: usize) -> usize {
        self.owner.get(index).copied().unwrap_or(0).into()
    }

    fn set_owner(&mut self, index: usize, vcpu: usize) {
        if let Some(owner) = self.owner.get_mut(index) {
            *owner = vcpu as u8;
        }
    }

    /// Those of `mask` that belong to `vcpu`.
    fn owned(&self, mask: u32, vcpu: usize) -> u32 {
        bits(mask).filter(|index| self.owner(*index) == vcpu).fold(0, with)
    }

    /// Those of `mask` that are routed to `vcpu`: its affinity is its number.
    fn routed(&self, mask: u32, vcpu: usize) -> u32 {
        bits(mask).filter(|index| self.route(*index) == vcpu).fold(0, with)
    }

    /// The vCPU to which it is routed, if there is one of that number.
    fn route(&self, index: usize) -> usize {
        self.router.get(index).copied().unwrap_or(0) as usize
    }
}

/// A mask and one more bit.
fn with(mask: u32, index: usize) -> u32 {
    mask | 1_u32.wrapping_shl(index as u32)
}

/// Where an interrupt's state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// SGIs and PPIs of a vCPU.
    Private(usize),
    /// 32 SPIs.
    Shared(usize),
}

impl Vgic {
    /// The controller after reset: all disabled, both groups off.
    ///
    /// `vcpus` is at most [`MAX_VCPUS`]; more are not served. `priority_bits` is what the CPU interface has,
    /// `ICH_VTR_EL2.PRIbits` + 1: 4 to 8, others are brought to the nearest.
    #[must_use]
    pub const fn new(vcpus: usize, priority_bits: u32) -> Self {
        let vcpus = if vcpus < MAX_VCPUS { vcpus } else { MAX_VCPUS };
        let bits = match priority_bits {
            0..=4 => 4,
            5..=8 => priority_bits,
            _ => 8,
        };
        Self {
            vcpus,
            priority_mask: !(0xff_u32 >> bits) as u8,
            groups: Groups { group0: false, group1: false },
            private: [const { Bank::new(SGI_MASK) }; MAX_VCPUS],
            shared: [const { Shared::new() }; SHARED],
            asleep: VcpuSet::first(vcpus),
            asks: [None; MAX_VCPUS],
        }
    }

    /// Resets it: the VM starts anew. The caller has emptied all list registers.
    pub fn reset(&mut self) {
        *self = Self::new(self.vcpus, self.priority_mask.count_ones());
    }

    /// How many vCPUs it serves.
    #[must_use]
    pub const fn vcpus(&self) -> usize {
        self.vcpus
    }

    /// Raises or lowers an interrupt's line: an SPI's, or a PPI's of `vcpu`, which for an SPI means nothing. SGIs and what is not
    /// implemented have none.
    ///
    /// Gives who has to look: their list registers are to be synced and filled, at once if they run. The caller's own vCPU may
    /// be among them.
    pub fn set_level(&mut self, vcpu: usize, intid: u32, level: bool) -> VcpuSet {
        let Some((place, index)) = self.locate(vcpu, intid).filter(|_| intid >= 16) else {
            return VcpuSet::EMPTY;
        };
        let Some(bank) = self.bank_mut(place) else { return VcpuSet::EMPTY };
        let changed = bank.set_line(with(0, index), level);
        self.lookers(place, changed)
    }

    /// EL2 acknowledged the physical interrupt of this PPI of `vcpu` and leaves it active: its line is up, and the guest's deactivation shall
    /// deactivate the physical one. Any other interrupt is only raised.
    pub fn forward(&mut self, vcpu: usize, intid: u32) -> VcpuSet {
        if let (Some(bank), Some(bit)) = (self.private.get_mut(vcpu), 1_u32.checked_shl(intid)) {
            bank.held |= bit & PHYSICAL;
        }
        self.set_level(vcpu, intid, true)
    }

    /// Forgets which physical interrupts are held for `vcpu`, and gives them, bit n for INTID n: the caller deactivates them,
    /// because the CPU will now have another vCPU's. While a line is up its physical interrupt comes again, for whoever is then
    /// there. The caller has synced `vcpu`.
    #[must_use = "these physical interrupts are still active"]
    pub fn take_holds(&mut self, vcpu: usize) -> u32 {
        self.private.get_mut(vcpu).map_or(0, |bank| core::mem::take(&mut bank.held))
    }

    /// Whether the physical interrupt of this PPI is held for `vcpu`.
    #[must_use]
    pub fn is_held(&self, vcpu: usize, intid: u32) -> bool {
        self.has(vcpu, intid, |bank| bank.held)
    }

    /// Whether the interrupt is active, as of the last sync of the vCPU that has it listed.
    #[must_use]
    pub fn is_active(&self, vcpu: usize, intid: u32) -> bool {
        self.has(vcpu, intid, |bank| bank.active)
    }

    /// Whether the interrupt is pending, as of the last sync of the vCPU that has it listed.
    #[must_use]
    pub fn is_pending(&self, vcpu: usize, intid: u32) -> bool {
        self.has(vcpu, intid, Bank::pending)
    }

    /// Whether there is an interrupt for `vcpu` that its interface would signal: this ends a WFI. Exact if the vCPU has not run since
    /// its last sync.
    #[must_use]
    pub fn signals(&self, vcpu: usize, interface: &Interface) -> bool {
        let signals = |bank: &Bank, mask: u32| {
            bits(mask)
                .any(|index| interface.signals(bank.priority(index), bank.group1 >> index & 1 != 0))
        };
        let waiting = |bank: &Bank| bank.forwarded(self.groups) & !bank.active;
        let private = self.private.get(vcpu).is_some_and(|bank| signals(bank, waiting(bank)));
        private
            || self.shared.iter().any(|shared| {
                let (waiting, listed) = (waiting(&shared.bank), shared.bank.listed);
                let mine =
                    shared.owned(waiting & listed, vcpu) | shared.routed(waiting & !listed, vcpu);
                signals(&shared.bank, mine)
            })
    }

    /// Where the state of an interrupt of this INTID is, as `vcpu` names it; `None` if it is not implemented.
    fn locate(&self, vcpu: usize, intid: u32) -> Option<(Place, usize)> {
        let index = (intid % 32) as usize;
        match (intid / 32) as usize {
            0 if vcpu < self.vcpus => Some((Place::Private(vcpu), index)),
            number @ 1..=SHARED => Some((Place::Shared(number.wrapping_sub(1)), index)),
            _ => None,
        }
    }

    fn bank(&self, place: Place) -> Option<&Bank> {
        match place {
            Place::Private(vcpu) => self.private.get(vcpu),
            Place::Shared(number) => self.shared.get(number).map(|shared| &shared.bank),
        }
    }

    fn bank_mut(&mut self, place: Place) -> Option<&mut Bank> {
        match place {
            Place::Private(vcpu) => self.private.get_mut(vcpu),
            Place::Shared(number) => self.shared.get_mut(number).map(|shared| &mut shared.bank),
        }
    }

    fn has(&self, vcpu: usize, intid: u32, word: impl Fn(&Bank) -> u32) -> bool {
        self.locate(vcpu, intid).is_some_and(|(place, index)| {
            self.bank(place).is_some_and(|bank| word(bank) >> index & 1 != 0)
        })
    }

    /// Who has to sync and fill because these interrupts changed: who has one listed, and for whom one is pending that is in no
    /// list register and not active.
    fn lookers(&self, place: Place, changed: u32) -> VcpuSet {
        let Some(bank) = self.bank(place) else { return VcpuSet::EMPTY };
        let listed = bank.listed & changed;
        let waiting = bank.forwarded(self.groups) & !bank.active & !bank.listed & changed;
        match place {
            Place::Private(vcpu) if listed | waiting != 0 => VcpuSet::one(vcpu),
            Place::Private(_) => VcpuSet::EMPTY,
            Place::Shared(number) => self.shared.get(number).map_or(VcpuSet::EMPTY, |shared| {
                let owners = bits(listed).map(|index| shared.owner(index));
                let targets = bits(waiting).map(|index| shared.route(index));
                owners
                    .chain(targets)
                    .filter(|vcpu| *vcpu < self.vcpus)
                    .fold(VcpuSet::EMPTY, |set, vcpu| set.union(VcpuSet::one(vcpu)))
            }),
        }
    }

    /// Who has one of these interrupts listed.
    fn listers(&self, place: Place, mask: u32) -> VcpuSet {
        let listed = self.bank(place).map_or(0, |bank| bank.listed & mask);
        match place {
            _ if listed == 0 => VcpuSet::EMPTY,
            Place::Private(vcpu) => VcpuSet::one(vcpu),
            Place::Shared(number) => self.shared.get(number).map_or(VcpuSet::EMPTY, |shared| {
                bits(listed)
                    .fold(VcpuSet::EMPTY, |set, index| set.union(VcpuSet::one(shared.owner(index))))
            }),
        }
    }

    /// All banks that are served.
    fn places(&self) -> impl Iterator<Item = Place> + use<> {
        (0..self.vcpus).map(Place::Private).chain((0..SHARED).map(Place::Shared))
    }
}
