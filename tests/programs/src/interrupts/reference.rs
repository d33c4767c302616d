//! An interrupt controller without list registers: each interrupt is a struct, each register is its bytes.
//!
//! What happens to an interrupt that is in some CPU's list registers takes effect when that CPU is next synced: such events wait
//! here, too, in their order. All else takes effect at once.

use std::collections::BTreeMap;

/// SPIs.
pub(super) const SPIS: u32 = 64;

/// An interrupt: its INTID, and whose it is if it is private.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id {
    /// The vCPU; 0 for SPIs.
    pub vcpu: usize,
    /// The INTID.
    pub intid: u32,
}

impl Id {
    /// The interrupt that a vCPU calls by this number.
    #[must_use]
    pub fn of(vcpu: usize, intid: u32) -> Self {
        Self { vcpu: if intid < 32 { vcpu } else { 0 }, intid }
    }
}

/// What happens to an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An edge, an SGI, ISPENDR.
    Latch,
    /// ICPENDR.
    Unlatch,
    /// ISACTIVER by this vCPU.
    Activate(usize),
    /// ICACTIVER, `ICC_DIR_EL1`.
    Deactivate,
}

/// One interrupt.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    pub enabled: bool,
    pub group1: bool,
    pub edge: bool,
    pub priority: u8,
    pub line: bool,
    pub latch: bool,
    /// The vCPU where it is active, and the priority and group with which.
    pub active: Option<Active>,
    /// `GICD_IROUTER<n>`.
    pub route: [u8; 4],
    waiting: Vec<Event>,
}

/// An active interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Active {
    pub vcpu: usize,
    pub priority: u8,
    /// It was acknowledged, not made active by a register.
    pub taken: bool,
    /// The guest ended it when it was in no list register.
    pub ended: bool,
}

impl Interrupt {
    /// Whether it is pending.
    #[must_use]
    pub fn pending(&self) -> bool {
        self.latch || self.line && !self.edge
    }
}

/// The distributor and the redistributors.
#[derive(Clone, Debug)]
pub struct Reference {
    vcpus: usize,
    groups: [bool; 2],
    asleep: Vec<bool>,
    interrupts: BTreeMap<Id, Interrupt>,
    /// A register deactivated something: the guest may end what is not active.
    pub interfered: bool,
}

/// The same registers of the distributor and of a redistributor.
enum Place {
    Bit(Bit, Id),
    Priority(Id),
    Config([Id; 4]),
}

#[derive(Clone, Copy)]
enum Bit {
    Group,
    SetEnable,
    ClearEnable,
    SetPending,
    ClearPending,
    SetActive,
    ClearActive,
}

const BITS: [Bit; 7] = [
    Bit::Group,
    Bit::SetEnable,
    Bit::ClearEnable,
    Bit::SetPending,
    Bit::ClearPending,
    Bit::SetActive,
    Bit::ClearActive,
];

impl Reference {
    /// After reset.
    #[must_use]
    pub fn new(vcpus: usize) -> Self {
        let private = (0..vcpus).flat_map(|vcpu| (0..32).map(move |intid| Id { vcpu, intid }));
        let shared = (32..32 + SPIS).map(|intid| Id { vcpu: 0, intid });
        let fresh = |id: Id| (id, Interrupt { edge: id.intid < 16, ..Interrupt::default() });
        Self {
            vcpus,
            groups: [false; 2],
            asleep: vec![true; vcpus],
            interrupts: private.chain(shared).map(fresh).collect(),
            interfered: false,
        }
    }

    /// The interrupt.
    #[must_use]
    pub fn get(&self, id: Id) -> &Interrupt {
        &self.interrupts[&id]
    }

    /// The interrupt, to change it as its guest does.
    pub fn get_mut(&mut self, id: Id) -> &mut Interrupt {
        self.interrupts.get_mut(&id).expect("it is implemented")
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = (Id, &Interrupt)> {
        self.interrupts.iter().map(|(id, interrupt)| (*id, interrupt))
    }

    /// Whose it would be if it were pending.
    fn target(&self, id: Id) -> Option<usize> {
        let route = u32::from_le_bytes(self.get(id).route) as usize;
        let vcpu = if id.intid < 32 { id.vcpu } else { route };
        (vcpu < self.vcpus).then_some(vcpu)
    }

    /// What waits for `vcpu`: pending, enabled, of a group that is forwarded, and not active.
    pub fn waiting(&self, vcpu: usize) -> impl Iterator<Item = (Id, &Interrupt)> {
        self.all().filter(move |(id, interrupt)| {
            interrupt.pending()
                && interrupt.enabled
                && interrupt.active.is_none()
                && self.groups[usize::from(interrupt.group1)]
                && self.target(*id) == Some(vcpu)
        })
    }

    /// What is active at `vcpu`.
    pub fn active(&self, vcpu: usize) -> impl Iterator<Item = (Id, Active)> {
        let active = self.all().filter_map(|(id, interrupt)| Some((id, interrupt.active?)));
        active.filter(move |(_, active)| active.vcpu == vcpu)
    }

    /// Something happens; later, if it is in a list register.
    pub fn happens(&mut self, id: Id, event: Event, listed: bool) {
        self.interfered |= event == Event::Deactivate;
        if listed {
            self.get_mut(id).waiting.push(event);
        } else {
            self.takes_effect(id, event, None);
        }
    }

    /// The vCPU that had it in a list register was synced.
    pub fn synced(&mut self, vcpu: usize, id: Id) {
        for event in std::mem::take(&mut self.get_mut(id).waiting) {
            self.takes_effect(id, event, Some(vcpu));
        }
    }

    fn takes_effect(&mut self, id: Id, event: Event, lister: Option<usize>) {
        let target = self.target(id);
        let interrupt = self.get_mut(id);
        match event {
            Event::Latch => interrupt.latch = true,
            Event::Unlatch => interrupt.latch = false,
            Event::Deactivate => interrupt.active = None,
            Event::Activate(_) if interrupt.active.is_some() => {}
            Event::Activate(by) => {
                let vcpu = lister.or(target).unwrap_or(by);
                let priority = interrupt.priority;
                interrupt.active = Some(Active { vcpu, priority, taken: false, ended: false });
            }
        }
    }

    /// A line changes.
    pub fn line(&mut self, id: Id, level: bool, listed: bool) {
        let interrupt = self.get_mut(id);
        let rises = level && !interrupt.line;
        interrupt.line = level;
        if rises && interrupt.edge {
            self.happens(id, Event::Latch, listed);
        }
    }

    /// The targets of an SGI of `group1` that have it in this group.
    #[must_use]
    pub fn sgi_targets(&self, from: usize, value: u64, group1: bool) -> Vec<Id> {
        let field = |low: u32, bits: u32| value >> low & ((1 << bits) - 1);
        let affinity = [field(16, 8), field(32, 8), field(48, 8), field(44, 4)];
        let named = |vcpu: usize| match field(40, 1) {
            1 => vcpu != from,
            _ => affinity == [0; 4] && value >> vcpu & 1 == 1,
        };
        let intid = field(24, 4) as u32;
        (0..self.vcpus)
            .filter(|vcpu| named(*vcpu))
            .map(|vcpu| Id { vcpu, intid })
            .filter(|id| self.get(*id).group1 == group1)
            .collect()
    }

    /// A byte of the distributor.
    #[must_use]
    pub fn read_distributor(&self, offset: u64) -> u8 {
        match offset {
            0 => 0x50 | u8::from(self.groups[1]) << 1 | u8::from(self.groups[0]),
            4..8 => (1_u32 << 25 | 9 << 19 | (SPIS / 32)).to_le_bytes()[offset as usize - 4],
            8 => 0x3b,
            9 => 4,
            0x6000..0x8000 => self.router(offset).map_or(0, |(id, byte)| self.get(id).route[byte]),
            0xffd0..0x1_0000 => identity(offset, 0x92),
            _ => self.shared(offset).map_or(0, |places| self.load(&places)),
        }
    }

    /// A byte of a redistributor, from the base of all.
    #[must_use]
    pub fn read_redistributor(&self, offset: u64) -> u8 {
        let (vcpu, at) = ((offset >> 17) as usize, offset & 0x1_ffff);
        match at {
            _ if vcpu >= self.vcpus => 0,
            4 => 0x3b,
            5 => 4,
            8 => u8::from(vcpu + 1 == self.vcpus) << 4,
            9 | 12 => vcpu as u8,
            0x14 => {
                if self.asleep[vcpu] {
                    6
                } else {
                    0
                }
            }
            0xffd0..0x1_0000 => identity(at, 0x93),
            0x1_0000.. => self.private(vcpu, at - 0x1_0000).map_or(0, |places| self.load(&places)),
            _ => 0,
        }
    }

    /// Writes a byte of the distributor. `listed` says which interrupts are in list registers.
    pub fn write_distributor(
        &mut self,
        offset: u64,
        byte: u8,
        by: usize,
        listed: &dyn Fn(Id) -> bool,
    ) {
        match offset {
            0 => self.groups = [byte & 1 != 0, byte & 2 != 0],
            0x6000..0x8000 => {
                if let Some((id, at @ 0..3)) = self.router(offset) {
                    self.get_mut(id).route[at] = byte;
                }
            }
            _ => {
                if let Some(places) = self.shared(offset) {
                    self.store(&places, byte, by, listed);
                }
            }
        }
    }

    /// Writes a byte of a redistributor.
    pub fn write_redistributor(
        &mut self,
        offset: u64,
        byte: u8,
        by: usize,
        listed: &dyn Fn(Id) -> bool,
    ) {
        let (vcpu, at) = ((offset >> 17) as usize, offset & 0x1_ffff);
        match at {
            _ if vcpu >= self.vcpus => {}
            0x14 => self.asleep[vcpu] = byte & 2 != 0,
            0x1_0000.. => {
                if let Some(places) = self.private(vcpu, at - 0x1_0000) {
                    self.store(&places, byte, by, listed);
                }
            }
            _ => {}
        }
    }

    /// Which interrupts a byte of the distributor is about: a register's bits 31:0 are the private ones, which are elsewhere.
    fn shared(&self, offset: u64) -> Option<Vec<Place>> {
        let spis = 32..32 + SPIS;
        places(offset).filter(|(_, first)| spis.contains(first)).map(|(make, _)| make(0))
    }

    fn private(&self, vcpu: usize, offset: u64) -> Option<Vec<Place>> {
        places(offset).filter(|(_, first)| *first < 32).map(|(make, _)| make(vcpu))
    }

    fn router(&self, offset: u64) -> Option<(Id, usize)> {
        let intid = ((offset - 0x6000) / 8) as u32;
        let byte = (offset % 8) as usize;
        ((32..32 + SPIS).contains(&intid) && byte < 4).then_some((Id { vcpu: 0, intid }, byte))
    }

    fn load(&self, places: &[Place]) -> u8 {
        let mut byte = 0;
        for (nth, place) in places.iter().enumerate() {
            byte |= match place {
                Place::Priority(id) => self.get(*id).priority,
                Place::Config(ids) => ids.iter().enumerate().fold(0, |byte, (nth, id)| {
                    byte | u8::from(self.get(*id).edge) << (2 * nth + 1)
                }),
                Place::Bit(bit, id) => {
                    let interrupt = self.get(*id);
                    let set = match bit {
                        Bit::Group => interrupt.group1,
                        Bit::SetEnable | Bit::ClearEnable => interrupt.enabled,
                        Bit::SetPending | Bit::ClearPending => interrupt.pending(),
                        Bit::SetActive | Bit::ClearActive => interrupt.active.is_some(),
                    };
                    u8::from(set) << nth
                }
            };
        }
        byte
    }

    fn store(&mut self, places: &[Place], byte: u8, by: usize, listed: &dyn Fn(Id) -> bool) {
        for (nth, place) in places.iter().enumerate() {
            match place {
                Place::Priority(id) => self.get_mut(*id).priority = byte & 0xf8,
                Place::Config(ids) => {
                    for (nth, id) in ids.iter().enumerate() {
                        if id.intid >= 16 && id.intid != super::pe::TIMER {
                            self.get_mut(*id).edge = byte >> (2 * nth + 1) & 1 == 1;
                        }
                    }
                }
                Place::Bit(bit, id) => {
                    let (one, listed) = (byte >> nth & 1 == 1, listed(*id));
                    match bit {
                        Bit::Group => self.get_mut(*id).group1 = one,
                        _ if !one => {}
                        Bit::SetEnable => self.get_mut(*id).enabled = true,
                        Bit::ClearEnable => self.get_mut(*id).enabled = false,
                        Bit::SetPending => self.happens(*id, Event::Latch, listed),
                        Bit::ClearPending => self.happens(*id, Event::Unlatch, listed),
                        Bit::SetActive => self.happens(*id, Event::Activate(by), listed),
                        Bit::ClearActive => self.happens(*id, Event::Deactivate, listed),
                    }
                }
            }
        }
    }
}

/// What a byte is about, for any vCPU, and the first INTID; none if it is no such register.
fn places(offset: u64) -> Option<(impl FnOnce(usize) -> Vec<Place>, u32)> {
    let at = offset as u32;
    let (kind, first) = match at {
        0x080..0x400 => (0, at % 0x80 * 8),
        0x400..0x800 => (1, at - 0x400),
        0xc00..0xd00 => (2, (at - 0xc00) * 4),
        _ => return None,
    };
    let make = move |vcpu| {
        let id = |nth| Id::of(vcpu, first + nth);
        match kind {
            0 => (0..8).map(|nth| Place::Bit(BITS[(at / 0x80 - 1) as usize], id(nth))).collect(),
            1 => vec![Place::Priority(id(0))],
            _ => vec![Place::Config([id(0), id(1), id(2), id(3)])],
        }
    };
    Some((make, first))
}

fn identity(offset: u64, part: u8) -> u8 {
    match offset {
        0xffd0 => 0x44,
        0xffe0 => part,
        0xffe4 => 0xb4,
        0xffe8 => 0x3b,
        0xfff0 => 0x0d,
        0xfff4 => 0xf0,
        0xfff8 => 0x05,
        0xfffc => 0xb1,
        _ => 0,
    }
}
