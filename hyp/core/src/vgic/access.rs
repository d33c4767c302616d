//! A guest's accesses to the distributor and the redistributors.
//!
//! Accesses of any size and alignment are defined: a read gives the bytes it covers, a write acts on the bytes it
//! covers, of one register or of several. Of registers where a 1 sets or clears something, the bytes that are not
//! covered are as if 0 were written.
//!
//! An access about interrupts that other vCPUs have listed is answered [`Answer::Again`] until those vCPUs have been synced (see the
//! [module](super)). What it asks for is then noted in the banks, and that it was asked, in `asks`; the same access of the same vCPU
//! finds the note and completes. Another access of this vCPU instead, of an interrupt handler that ran meanwhile, replaces the note,
//! and the first access begins anew: it may take effect twice, both times before it completes, which no program can tell
//! from an effect that came late.
//!
//! What a word of an access reads, or changes, is [`words`]' part: it says who has to look, and whom the access waits for.

mod words;

use super::interface::Vmcr;
use super::registers::{self, Register, Word};
use super::set::VcpuSet;
use super::{Place, Vgic};

/// A load or store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Bytes: 1, 2, 4 or 8.
    pub size: u8,
    /// What is written, in the low bytes; `None` for a read.
    pub write: Option<u64>,
}

/// What an access comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "others have to look, and a read has a value"]
pub struct Done {
    /// For the guest.
    pub answer: Answer,
    /// Who has to sync and fill, at once if they run. The vCPU that did the access, which does so anyway, may be among them.
    pub wake: VcpuSet,
}

/// The guest's part of [`Done`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is done. What a load reads, in the low bytes; 0 for a store.
    Value(u64),
    /// Not yet: the guest does it again, the instruction is not passed over.
    Again,
}

/// An access that waits for other vCPUs' syncs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ask {
    what: What,
    /// Who has not been synced since.
    pub(super) waits: VcpuSet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Distributor(u64, Access),
    Redistributor(u64, Access),
    Deactivate(u32),
}

/// What came of a part of an access.
#[derive(Clone, Copy, Default)]
struct Effect {
    /// Who has to look.
    wake: VcpuSet,
    /// Who has to be synced before the access completes.
    waits: VcpuSet,
}

impl Effect {
    fn add(&mut self, other: Self) {
        self.wake.add(other.wake);
        self.waits.add(other.waits);
    }
}

impl Vgic {
    /// `vcpu`, which has been synced, accesses the distributor, `offset` bytes from its base.
    pub fn gicd(&mut self, offset: u64, access: Access, vcpu: usize) -> Done {
        self.ask(What::Distributor(offset, access), vcpu)
    }

    /// `vcpu`, which has been synced, accesses a redistributor, `offset` bytes from the base of the first vCPU's. Each has
    /// 128 KiB; where there is no vCPU, registers read as zero and ignore writes.
    pub fn gicr(&mut self, offset: u64, access: Access, vcpu: usize) -> Done {
        self.ask(What::Redistributor(offset, access), vcpu)
    }

    /// `vcpu`, which has been synced, writes this INTID to `ICC_DIR_EL1`: deactivates it, whoever has it active. Without split
    /// ends of interrupts (`ICC_CTLR_EL1.EOImode` = 0) this does nothing.
    pub fn deactivate(&mut self, vcpu: usize, intid: u32, vmcr: Vmcr) -> Done {
        if !vmcr.splits_eoi() {
            return Done { answer: Answer::Value(0), wake: VcpuSet::EMPTY };
        }
        self.ask(What::Deactivate(intid), vcpu)
    }

    /// Does it, or notes that it is waited for.
    fn ask(&mut self, what: What, vcpu: usize) -> Done {
        let noted = self.asks.get_mut(vcpu).and_then(|ask| {
            let noted = ask.filter(|ask| ask.what == what);
            if noted.is_none_or(|ask| ask.waits.is_empty()) {
                *ask = None;
            }
            noted
        });
        match noted {
            Some(ask) if ask.waits.is_empty() => {
                let answer = Answer::Value(self.read(what));
                return Done { answer, wake: VcpuSet::EMPTY };
            }
            Some(_) => return Done { answer: Answer::Again, wake: VcpuSet::EMPTY },
            None => {}
        }
        let Effect { wake, waits } = self.perform(what, vcpu);
        if waits.is_empty() {
            return Done { answer: Answer::Value(self.read(what)), wake };
        }
        if let Some(ask) = self.asks.get_mut(vcpu) {
            *ask = Some(Ask { what, waits });
        }
        Done { answer: Answer::Again, wake: wake.union(waits) }
    }

    /// The value of a read; 0 for all else.
    fn read(&self, what: What) -> u64 {
        let (offset, access) = match what {
            What::Distributor(offset, access) | What::Redistributor(offset, access) => {
                (offset, access)
            }
            What::Deactivate(_) => return 0,
        };
        if access.write.is_some() {
            return 0;
        }
        Parts::of(offset, access).fold(0, |value, part| {
            let word = match self.decode(what, part.word) {
                (register, Some(place)) => self.load(register, place),
                (register, None) => {
                    self.load_common(register, matches!(what, What::Redistributor(..)))
                }
            };
            value | part.in_access(word)
        })
    }

    /// The effects of a write, and for whom an access has to wait.
    fn perform(&mut self, what: What, vcpu: usize) -> Effect {
        let (offset, access) = match what {
            What::Distributor(offset, access) | What::Redistributor(offset, access) => {
                (offset, access)
            }
            What::Deactivate(intid) => {
                return self.set_active(vcpu, self.locate(vcpu, intid), false);
            }
        };
        let mut effect = Effect::default();
        for part in Parts::of(offset, access) {
            effect.add(match (self.decode(what, part.word), access.write) {
                ((register, place), Some(value)) => {
                    self.store(register, place, part.of_access(value), part.lanes, vcpu)
                }
                (
                    (Register::Bank(Word::Pending { .. } | Word::Active { .. }), Some(place)),
                    None,
                ) => Effect { waits: self.listers(place, part.lanes), ..Effect::default() },
                _ => Effect::default(),
            });
        }
        effect
    }

    /// The register at a word of an access, and the bank or the vCPU that it is about.
    fn decode(&self, what: What, word: u64) -> (Register, Option<Place>) {
        match what {
            What::Distributor(..) if word < registers::GICD_SIZE => {
                match registers::distributor(word) {
                    (Register::Bank(word), bank @ 1..=super::SHARED) => {
                        (Register::Bank(word), Some(Place::Shared(bank.wrapping_sub(1))))
                    }
                    (Register::Bank(_), _) => (Register::Reserved, None),
                    (register, _) => (register, None),
                }
            }
            What::Redistributor(..) => {
                let (vcpu, offset) = (word / registers::GICR_STRIDE, word % registers::GICR_STRIDE);
                match registers::redistributor(offset) {
                    _ if vcpu >= self.vcpus as u64 => (Register::Reserved, None),
                    register @ (Register::Implementer | Register::Identity(_)) => (register, None),
                    register => (register, Some(Place::Private(vcpu as usize))),
                }
            }
            _ => (Register::Reserved, None),
        }
    }
}

/// The words that an access covers.
struct Parts {
    at: u64,
    left: u32,
    done: u32,
}

/// One of them.
#[derive(Clone, Copy)]
struct Part {
    /// Its offset, a multiple of 4.
    word: u64,
    /// Its bits that are covered.
    lanes: u32,
    /// The place of its lowest bit in the access, in bits; below 0 if the access begins within it.
    shift: i32,
}

impl Parts {
    fn of(offset: u64, access: Access) -> Self {
        Self { at: offset, left: u32::from(access.size.min(8)), done: 0 }
    }
}

impl Iterator for Parts {
    type Item = Part;

    fn next(&mut self) -> Option<Part> {
        let skip = (self.at & 3) as u32;
        let bytes = self.left.min(4_u32.wrapping_sub(skip));
        if bytes == 0 {
            return None;
        }
        let covered = u32::MAX >> 32_u32.wrapping_sub(bytes << 3);
        let part = Part {
            word: self.at & !3,
            lanes: covered << (skip << 3),
            shift: ((self.done << 3) as i32).wrapping_sub((skip << 3) as i32),
        };
        self.at = self.at.wrapping_add(bytes.into());
        self.left = self.left.wrapping_sub(bytes);
        self.done = self.done.wrapping_add(bytes);
        Some(part)
    }
}

impl Part {
    /// The bits of the access's value that belong to this word.
    fn of_access(self, value: u64) -> u32 {
        let moved = match self.shift {
            shift if shift < 0 => value << shift.unsigned_abs(),
            shift => value >> shift,
        };
        moved as u32 & self.lanes
    }

    /// The word's bits in their place in the access's value.
    fn in_access(self, word: u32) -> u64 {
        let value = u64::from(word & self.lanes);
        match self.shift {
            shift if shift < 0 => value >> shift.unsigned_abs(),
            shift => value << shift,
        }
    }
}
