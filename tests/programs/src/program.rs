//! What a program is: the one definition that property tests and the fuzzer share.
//!
//! Numbers are taken modulo what there is, so that every value is a program and a smaller value is a simpler one.
//! Addresses are few, so that they meet; they differ in each level of the tree.

use arbitrary::Arbitrary;
use mmu_oracle::walker::Access;
use stage2::{
    Attributes, Bbm, Caps, Errata, Features, Geometry, HwUpdate, Ipa, Level, MemType, Owner, Prot,
    Write,
};

/// PEs of the machine.
pub const PES: usize = 3;

/// A machine, and what is done on it.
#[derive(Clone, Debug)]
pub struct Program {
    /// The machine and its VMs.
    pub setup: Setup,
    /// What is done, in order.
    pub ops: Vec<Op>,
}

/// The machine and its VMs.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub struct Setup {
    /// IPA size: 25 to 48 bits, and with it the start level and the number of root pages.
    pub ipa_size: u8,
    /// What the machine can do: one bit each, see [`Setup::features`].
    pub caps: u8,
    /// 1 to 3 VMs, and the level of FEAT_BBM.
    pub vms: u8,
}

impl Setup {
    /// Bits of IPA.
    #[must_use]
    pub fn ipa_bits(&self) -> u32 {
        25 + u32::from(self.ipa_size % 24)
    }

    /// Number of VMs.
    #[must_use]
    pub fn vm_count(&self) -> usize {
        1 + usize::from(self.vms % 3)
    }

    /// What the machine can do.
    #[must_use]
    pub fn features(&self) -> Features {
        let all = [
            Caps::TTL,
            Caps::TLBI_RANGE,
            Caps::FWB,
            Caps::XNX,
            Caps::VMID16,
            Caps::HW_ACCESS,
            Caps::HW_ACCESS | Caps::HW_DIRTY,
        ];
        let chosen = all.into_iter().enumerate().filter(|(n, _)| self.caps >> n & 1 != 0);
        let caps = chosen.fold(Caps::GRANULE_4K, |caps, (_, cap)| caps | cap);
        let bbm = match self.vms / 3 % 3 {
            0 => Bbm::Level0,
            1 => Bbm::Level1,
            _ => Bbm::Level2,
        };
        Features { caps, bbm, pa_bits: 48, errata: Errata::empty() }
    }

    /// Whether hardware manages the access flag: wherever it can.
    #[must_use]
    pub fn hw_access(&self) -> bool {
        self.features().has(Caps::HW_ACCESS)
    }

    /// Whether hardware manages the dirty state: wherever it can.
    #[must_use]
    pub fn hw_dirty(&self) -> bool {
        self.features().has(Caps::HW_DIRTY)
    }

    /// The shape of every VM's tables.
    ///
    /// # Panics
    /// Never: every choice is a shape.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        let update = match (self.hw_access(), self.hw_dirty()) {
            (false, _) => HwUpdate::Off,
            (true, false) => HwUpdate::Access,
            (true, true) => HwUpdate::AccessAndDirty,
        };
        Geometry::new(self.ipa_bits(), &self.features(), update).expect("a legal shape")
    }
}

/// An address: one bit in each part that selects something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Arbitrary)]
pub struct Place(pub u8);

impl Place {
    /// Beyond the IPA size.
    pub const BEYOND: Self = Self(0xff);

    /// The address under an IPA size: page, 2 MiB, 1 GiB, 512 GiB, and the last root page.
    #[must_use]
    pub fn ipa(self, ipa_bits: u32) -> Ipa {
        let bits = |low: u32, count: u32| u64::from(self.0) >> low & ((1 << count) - 1);
        if self == Self::BEYOND {
            return Ipa::new(1 << ipa_bits);
        }
        let spread = bits(0, 2) << 12
            | bits(2, 2) << 21
            | bits(4, 1) << 30
            | bits(5, 1) << 39
            | bits(6, 1) << (ipa_bits - 1)
            | bits(7, 1) << 20;
        Ipa::new(spread & ((1 << ipa_bits) - 1))
    }
}

/// Size of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Arbitrary)]
pub enum Size {
    /// 4 KiB.
    Page,
    /// 2 MiB.
    Block2M,
    /// 1 GiB.
    Block1G,
}

impl Size {
    /// Level of the leaf.
    #[must_use]
    pub const fn level(self) -> Level {
        match self {
            Self::Page => Level::L3,
            Self::Block2M => Level::L2,
            Self::Block1G => Level::L1,
        }
    }
}

/// What a leaf allows, how its memory behaves, and whose it is.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub struct Kind(pub u8);

impl Kind {
    /// Permissions and memory type.
    #[must_use]
    pub fn attributes(self) -> Attributes {
        let prot = [Prot::RWX, Prot::RO, Prot::RX, Prot::RW][usize::from(self.0 % 4)];
        let mem = [MemType::Normal, MemType::NonCacheable, MemType::Device];
        let fresh = Attributes::new(prot, mem[usize::from(self.0 >> 2 & 3) % 3]);
        // What is not the VM's is mapped as it will stay.
        let own = self.owner() == Owner::Vm;
        let (never, clean) = (own && self.0 >> 4 & 1 == 1, own && self.0 >> 5 & 1 == 1);
        let write = if clean && fresh.write == Write::Allowed { Write::Clean } else { fresh.write };
        Attributes { accessed: !never, write, ..fresh }
    }

    /// Whose the memory is.
    #[must_use]
    pub const fn owner(self) -> Owner {
        if self.0 >> 7 == 0 { Owner::Vm } else { Owner::Other }
    }
}

/// Who does it, to which VM.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub struct Who {
    /// The PE.
    pub pe: u8,
    /// The VM.
    pub vm: u8,
}

impl Who {
    /// The PE.
    #[must_use]
    pub const fn pe(self) -> usize {
        self.pe as usize % PES
    }
}

/// How a guest touches memory.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub enum Touch {
    /// A load.
    Read,
    /// A store.
    Write,
    /// A load that never happens.
    Speculate,
}

impl Touch {
    /// As the oracle's walker has it.
    #[must_use]
    pub const fn access(self) -> Access {
        match self {
            Self::Read => Access::Read,
            Self::Write => Access::Write,
            Self::Speculate => Access::Speculative,
        }
    }
}

/// Where a range ends that begins at a [`Place`], or around it.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub struct Reach(pub u8);

impl Reach {
    /// The range, by first address and bytes: some pages from the place on; a table's worth and more of them; some
    /// pages on both sides of the end of its 2 MiB, or of its 1 GiB; the last ones of its 2 MiB and the next 2 MiB;
    /// these 2 MiB, or 4; all of its 1 GiB.
    #[must_use]
    pub fn range(self, ipa: Ipa) -> (u64, u64) {
        let (ipa, n) = (ipa.get(), u64::from(self.0));
        let around = |bytes: u64| ipa & !(bytes - 1);
        let below = (1 + n % 4) << 12;
        let across = |bytes: u64, above: u64| (around(bytes) + bytes - below, below + above);
        match self.0 {
            0..128 => (ipa, (1 + n % 40) << 12),
            128..136 => (ipa, 0x20_0000 + below),
            136..192 => across(0x20_0000, (1 + n % 5) << 12),
            192..208 => across(0x4000_0000, (1 + n % 5) << 12),
            208..216 => across(0x20_0000, 0x20_0000),
            216..248 => (around(0x20_0000), if n % 8 == 0 { 0x40_0000 } else { 0x20_0000 }),
            248.. => (around(0x4000_0000), 0x4000_0000),
        }
    }
}

/// How an operation on a range is done: in batches of how many slots, by one PE or by several in turn.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub struct Pace(pub u8);

impl Pace {
    /// Slots of a batch.
    #[must_use]
    pub const fn slots(self) -> usize {
        [usize::MAX, 7, 511, 512, 513, 40][(self.0 >> 1) as usize % 6]
    }

    /// Whether each batch is another PE's.
    #[must_use]
    pub const fn relay(self) -> bool {
        self.0 & 1 == 1
    }
}

/// Which memory is behind a range that is mapped.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub struct Backing(pub u8);

impl Backing {
    /// The largest leaves that are wanted for so many bytes: not a GiB of pages.
    #[must_use]
    pub fn coarsest(self, bytes: u64) -> Level {
        let levels = [Level::L1, Level::L2, Level::L3];
        levels[usize::from(self.0 >> 2) % if bytes < 1 << 30 { 3 } else { 2 }]
    }

    /// Bytes of address above which memory and IPAs do not lie alike.
    #[must_use]
    pub fn alike(self, bytes: u64) -> u64 {
        let alike = [1 << 30, 1 << 21, 1 << 12, 1 << 30];
        if bytes < 1 << 30 { alike[usize::from(self.0 % 4)] } else { 1 << 30 }
    }
}

/// A call that is wrong.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub enum Wrong {
    /// A range that is no range: unaligned, empty, around the end.
    Range,
    /// A range that ends beyond the IPA size.
    BeyondIpaSize,
    /// A claim over another one.
    Overlap,
    /// A batch that begins outside its claim, or within a page.
    From,
    /// Another VM's claim.
    ForeignClaim,
    /// A CPU of other epochs.
    ForeignCpu,
    /// An unmap inside a guard.
    InsideGuard,
    /// Memory that is unaligned, or beyond the machine's addresses.
    Memory,
    /// A single member of a contiguous run; memory of others whose leaf a fault would have to change.
    Attributes,
    /// More claims than a VM can have.
    TooManyClaims,
}

/// What is flushed.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub enum Flush {
    /// The whole VM.
    Vm,
    /// Some pages.
    Pages(u8),
    /// What a table of pages spans.
    Table,
    /// Everything of every VM.
    All,
}

/// One operation.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub enum Op {
    /// A fault handler populates.
    Install { who: Who, at: Place, size: Size, kind: Kind },
    /// A lockless look.
    Lookup { who: Who, at: Place },
    /// Live to Drain: the flush is owed by this PE.
    Clear { who: Who, at: Place },
    /// The PE pays what it owes: one flush, with a level hint if there is one to give, then Empty.
    Finish { who: Who, hint: bool },
    /// All leaves of a range: Drain, one flush, Empty.
    Unmap { who: Who, at: Place, pages: u8, hint: bool },
    /// Another frame behind an address: Drain, flush, live.
    Replace { who: Who, at: Place, kind: Kind, hint: bool },
    /// Stores are allowed where they were not, without a break.
    Relax { who: Who, at: Place, hint: bool },
    /// A flush for its own sake.
    Flush { who: Who, at: Place, what: Flush },
    /// The PE leaves its guest and enters this one.
    Run { who: Who },
    /// The PE leaves its guest.
    Leave { pe: u8 },
    /// The guest that the PE runs makes an access.
    Access { pe: u8, at: Place, touch: Touch },
    /// Its walk reads, and is under way until it lands, faults or is ended.
    TakeOff { pe: u8, at: Place, touch: Touch },
    /// The walk ends: hardware updates the leaf, unless it has changed.
    Land { pe: u8 },
    /// An empty table is given back: its slots to Dead, its link to Drain, flush, grace period.
    Unlink { who: Who, at: Place, level: u8 },
    /// A live slot to Busy.
    Hold { who: Who, at: Place, level: u8 },
    /// What the PE made Busy is live again.
    Thaw { who: Who },
    /// An Empty slot to a note.
    Annotate { who: Who, at: Place, payload: u32 },
    /// A note to Empty.
    Forget { who: Who, at: Place },
    /// The VM ends, and another one begins under its VMID.
    Rebuild { who: Who },
    /// A range is mapped.
    MapRange { who: Who, at: Place, reach: Reach, pace: Pace, kind: Kind, backing: Backing },
    /// A range is unmapped, with its tables; its notes go, too, if that is asked.
    UnmapRange { who: Who, at: Place, reach: Reach, pace: Pace, remove: bool },
    /// Notes on a range, by the largest slots that fit.
    AnnotateRange { who: Who, at: Place, reach: Reach, pace: Pace, payload: u32 },
    /// The notes of a range go.
    DeannotateRange { who: Who, at: Place, reach: Reach, pace: Pace },
    /// The first 2 MiB block behind an address, or of all, is split into pages, which form contiguous runs, and made
    /// again.
    Resize { who: Who, at: Place, pace: Pace },
    /// A wrong call: a typed error, and nothing changes.
    Refused { who: Who, at: Place, reach: Reach, wrong: Wrong },
}

/// The one thing that goes wrong in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Arbitrary)]
pub enum Fault {
    /// Nothing.
    None,
    /// The allocation with this number, from 0, finds nothing: tables and frames count alike.
    Allocation(u16),
    /// Another PE installs at the address of operation `op`, just before its `n`th compare-exchange, from 1.
    Race {
        /// Which operation, from 0.
        op: u16,
        /// Which of its compare-exchanges.
        n: u16,
        /// What the other PE installs.
        size: Size,
    },
}
