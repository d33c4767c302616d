//! What guest-physical addresses are: the VM's policy, and how the next one takes its place.
//!
//! | part of RAM | a fault there |
//! | --- | --- |
//! | [`Policy::ram`]: nothing special is the case | a page, at once |
//! | being moved or released | [`moving`](super::moving) |
//! | with limited permissions ([`Limits`]) | a page or a block that has those |
//! | in a [recovery window](hyp_core::recovery) | what the window says ([`recovery`](super::recovery)): nothing is populated there |
//! | everything else | a block where one may be ([`blocks`](super::blocks)), or a page |
//!
//! So the path of most faults asks for one range, whatever else there is: the largest part of RAM in which nothing special is
//! the case. And a vCPU remembers the hole that it has last met, with the number of the policy by which it is one
//! ([`LastHole`]): the path of most recoveries asks for that. A policy is immutable. Who has the turn ([`Vm::moving`](super::Vm)) [publishes](publish) another, and
//! waits until nobody goes by the old one. What the next one takes on the heap is taken beforehand ([`Room`]), while it may
//! still be refused.

use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use hyp_core::patches::{Over, Patches};
use hyp_core::recovery::{Recovery, Windows};
use stage2::fault::Place;
use stage2::{Ipa, IpaRange, Level, Mapping, Prot};

use super::Regions;
use super::blocks::Blocks;
use super::create::RAM;
use super::moving::Moving;
use super::outcome::Refused;
use super::run::Env;
use crate::lock::relax;
use crate::mem::cache::BLOCK;

/// Where no guest has RAM, nor any address: beyond the largest IPA.
pub(super) const NOWHERE: IpaRange = match IpaRange::new(Ipa::new(1 << 56), BLOCK) {
    Ok(range) => range,
    // Evaluated at compile time: an image in which it could panic is not built.
    Err(_) => panic!("a block, aligned"),
};

/// What guest-physical addresses are: immutable, replaced as a whole.
#[derive(Debug)]
pub(crate) struct Policy {
    /// No other policy has had it.
    pub(super) number: Number,
    /// The part of RAM in which nothing special is the case: what nearly every fault is about, looked at before all else.
    pub(crate) ram: IpaRange,
    /// How a page of RAM is mapped.
    pub(crate) ram_page: Mapping,
    /// All of RAM.
    pub(crate) main: IpaRange,
    /// The part of it that is populated by pages whatever it holds.
    pub(super) paged: IpaRange,
    /// How RAM is mapped by blocks, if it may be: by faults, or when pages become blocks.
    pub(crate) blocks: Option<Blocks>,
    /// Memory that is being moved.
    pub(crate) moving: Option<Moving>,
    /// Where permissions are limited.
    pub(super) limited: Patches<Limits>,
    /// Where the guest has no memory, and what becomes of an access there. In RAM: unless something is mapped.
    pub(super) windows: Windows,
    /// The same for addresses at which there is nothing at all.
    pub(super) nothing: Recovery,
    /// The first address that is beyond the VM's.
    pub(super) end: Ipa,
    /// Everything but windows.
    pub(crate) regions: Regions,
}

/// Which policy it is, of all that there ever were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Number(u64);

impl Number {
    /// No policy's.
    const NONE: Self = Self(0);

    /// One that no policy has had.
    pub(super) fn next() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(Number::NONE.0);
        Self(LAST.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

/// The hole that a vCPU has last met: addresses, and the policy by which each of them is a hole in which the scratch page is shown,
/// unless something is mapped there. It says nothing under any other policy.
#[derive(Debug)]
pub(crate) struct LastHole {
    policy: Number,
    start: u64,
    bytes: u64,
}

impl LastHole {
    /// None.
    pub(super) const NONE: Self = Self { policy: Number::NONE, start: 0, bytes: 0 };

    /// Whether an address is in it, and it is one by this policy.
    #[inline(always)]
    pub(super) fn has(&self, policy: &Policy, ipa: Ipa) -> bool {
        self.policy == policy.number && ipa.get().wrapping_sub(self.start) < self.bytes
    }
}

/// What a part of RAM allows that does not allow everything, and how it is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// What is allowed.
    pub(super) prot: Prot,
    /// How a page is mapped.
    pub(super) page: Mapping,
    /// How a block is mapped.
    pub(super) block: Mapping,
}

impl Policy {
    /// All windows and regions as names and ranges, for a diagnosis: a window before the RAM that it lies in.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, hyp_core::IpaRange)> {
        let windows = self.windows.all().map(|(range, policy)| {
            let name = match policy {
                Recovery::Scratch => "recovery window, scratch",
                Recovery::Inject => "recovery window, inject",
                Recovery::Stop => "recovery window, stop",
            };
            (name, range)
        });
        windows.chain(self.regions.all().iter().map(|region| (region.name, plain(region.range))))
    }

    /// What an address is to a fault.
    #[inline(always)]
    pub(crate) fn place(&self, ipa: Ipa) -> Place {
        if self.ram.contains(ipa) { Place::Ram { allowed: RAM } } else { self.place_elsewhere(ipa) }
    }

    #[cold]
    fn place_elsewhere(&self, ipa: Ipa) -> Place {
        if ipa >= self.end {
            return Place::BeyondIpaSize(self.nothing);
        }
        let ram = self.allows_elsewhere(ipa);
        match (self.windows.at(ipa.get()), ram) {
            (Some(policy), ram) => Place::Recovery { policy, ram },
            (None, Some(allowed)) => Place::Ram { allowed },
            (None, None) if self.regions.find(ipa).is_some() => Place::Emulated,
            (None, None) => Place::Nothing(self.nothing),
        }
    }

    /// Whether a touch of the RAM at `ipa` populates it: it is in no window.
    pub(super) fn is_populated(&self, ipa: Ipa) -> bool {
        self.main.contains(ipa) && self.windows.at(ipa.get()).is_none()
    }

    /// What the guest may do to the RAM at `ipa`; `None` where there is none.
    #[inline]
    pub(crate) fn allows(&self, ipa: Ipa) -> Option<Prot> {
        if self.ram.contains(ipa) { Some(RAM) } else { self.allows_elsewhere(ipa) }
    }

    #[cold]
    fn allows_elsewhere(&self, ipa: Ipa) -> Option<Prot> {
        let limits = self.limited.at(ipa.get());
        self.main.contains(ipa).then(|| limits.map_or(RAM, |limits| limits.prot))
    }

    /// What the guest may do in all of the leaf of a level that would translate `ipa`; `None` if that is not the same
    /// everywhere, or not all of it is RAM.
    #[cold]
    pub(super) fn allows_in(&self, ipa: Ipa, level: Level) -> Option<Prot> {
        let bytes = level.slot_bytes();
        let span = IpaRange::new(ipa.align_down(bytes), bytes).ok()?;
        match self.limited.over(plain(span)) {
            _ if !self.main.covers(&span) => None,
            Over::Rest => Some(RAM),
            Over::Patch(limits) => Some(limits.prot),
            Over::Mixed => None,
        }
    }

    /// Whether the pages of a range of RAM are all mapped alike.
    pub(super) fn is_limited_alike(&self, range: IpaRange) -> bool {
        self.limited.over(plain(range)) != Over::Mixed
    }

    /// How the page of RAM at an address is mapped.
    pub(super) fn page(&self, ipa: Ipa) -> &Mapping {
        self.limited.at(ipa.get()).map_or(&self.ram_page, |limits| &limits.page)
    }

    /// How the block at `start` is mapped; `None` where RAM has no blocks, or if it is not all RAM with the same permissions, outside of
    /// windows.
    pub(super) fn block(&self, start: Ipa) -> Option<Mapping> {
        let span = IpaRange::new(start, BLOCK).ok().filter(|span| self.main.covers(span))?;
        let Blocks { mapping, .. } = self.blocks?;
        if self.windows.touch(plain(span)) {
            return None;
        }
        match self.limited.over(plain(span)) {
            Over::Rest => Some(mapping),
            Over::Patch(limits) => Some(limits.block),
            Over::Mixed => None,
        }
    }

    /// The first of a range of whole blocks of RAM, up to one within which permissions change, or that has a part of a window; `None`
    /// if the first does.
    pub(super) fn whole_spans(&self, range: IpaRange) -> Option<IpaRange> {
        let (start, end) = (range.start().get(), range.end().get());
        let is_mixed = |at: &u64| {
            let span = hyp_core::IpaRange { start: *at, end: at.saturating_add(BLOCK) };
            self.limited.over(span) == Over::Mixed || self.windows.touch(span)
        };
        let until = (start..end).step_by(BLOCK as usize).find(is_mixed).unwrap_or(end);
        IpaRange::new(range.start(), until - start).ok()
    }

    /// The hole around an address, if that is one in which the scratch page is shown: all of its window, or what lies between windows
    /// and everything else.
    #[inline(never)]
    pub(super) fn hole_around(&self, ipa: Ipa) -> Option<LastHole> {
        let (mut hole, window) = self.windows.around(ipa.get());
        if window.unwrap_or(self.nothing) != Recovery::Scratch {
            return None;
        }
        if window.is_none() {
            hole.end = hole.end.min(self.end.get());
            for region in self.regions.all() {
                let region = plain(region.range);
                if region.end <= ipa.get() {
                    hole.start = hole.start.max(region.end);
                } else {
                    hole.end = hole.end.min(region.start);
                }
            }
        }
        // Not in a region, nor beyond the VM's addresses.
        let bytes = hole.end.saturating_sub(hole.start);
        let is_in = ipa.get().wrapping_sub(hole.start) < bytes;
        is_in.then_some(LastHole { policy: self.number, start: hole.start, bytes })
    }

    /// The part of RAM in which nothing special is the case.
    pub(super) fn ordinary(
        &self,
        moving: Option<IpaRange>,
        limited: &Patches<Limits>,
        windows: &Windows,
    ) -> IpaRange {
        let paged = plain(self.paged);
        let away = moving.map_or(hyp_core::IpaRange { start: paged.end, end: paged.end }, plain);
        let below = hyp_core::IpaRange { start: paged.start, end: away.start.min(paged.end) };
        let above = hyp_core::IpaRange { start: away.end.max(paged.start), end: paged.end };
        let gap = limited
            .gaps(&[below, above])
            .filter_map(|gap| windows.largest_gap(gap))
            .max_by_key(hyp_core::IpaRange::len);
        gap.and_then(|gap| IpaRange::new(Ipa::new(gap.start), gap.len()).ok()).unwrap_or(NOWHERE)
    }
}

/// A range in the terms of `hyp-core`.
pub(super) fn plain(range: IpaRange) -> hyp_core::IpaRange {
    hyp_core::IpaRange { start: range.start().get(), end: range.end().get() }
}

/// What a policy takes on the heap.
#[derive(Debug)]
pub(super) struct Room {
    /// Empty, with room for one.
    place: Vec<Policy>,
    /// Where permissions will be limited.
    limited: Patches<Limits>,
    /// Where the guest will have no memory.
    windows: Windows,
}

impl Room {
    /// For a policy after that of now. The caller has the turn.
    pub(super) fn new(env: Env<'_>) -> Result<Self, Refused> {
        let guard = env.guards.enter();
        let limited = env.vm.policy(&guard).limited.again().map_err(|_| Refused::NoMemory)?;
        Self::limiting(env.vm.policy(&guard), limited)
    }

    /// For a policy under which permissions are limited so, and that is as `now` else.
    pub(super) fn limiting(now: &Policy, limited: Patches<Limits>) -> Result<Self, Refused> {
        let windows = now.windows.again().map_err(|_| Refused::NoMemory)?;
        Self::with(limited, windows)
    }

    /// For a policy under which windows are these, and that is as `now` else.
    pub(super) fn opening(now: &Policy, windows: Windows) -> Result<Self, Refused> {
        let limited = now.limited.again().map_err(|_| Refused::NoMemory)?;
        Self::with(limited, windows)
    }

    fn with(limited: Patches<Limits>, windows: Windows) -> Result<Self, Refused> {
        let mut place = Vec::new();
        place.try_reserve_exact(1).map_err(|_| Refused::NoMemory)?;
        Ok(Self { place, limited, windows })
    }
}

/// Replaces the policy, and waits until nobody goes by the old one. The caller has the turn.
pub(super) fn publish(env: Env<'_>, room: Room, moving: Option<Moving>) -> Result<(), Refused> {
    let Room { mut place, limited, windows } = room;
    {
        let guard = env.guards.enter();
        let now = env.vm.policy(&guard);
        place.push(Policy {
            number: Number::next(),
            ram: now.ordinary(moving.as_ref().map(Moving::range), &limited, &windows),
            ram_page: now.ram_page,
            main: now.main,
            paged: now.paged,
            blocks: now.blocks,
            moving,
            limited,
            windows,
            nothing: now.nothing,
            end: now.end,
            regions: now.regions.clone(),
        });
    }
    // A slice of one has the layout of its element.
    let new = Box::into_raw(place.into_boxed_slice()).cast();
    let old = env.vm.policy.swap(new, Ordering::AcqRel);
    env.guards.wait(relax).map_err(|inside| Refused::Broken(format!("{inside}")))?;
    // SAFETY: (1) from a box, of one or of a slice of one, here or in `create`; (2) replaced, and everyone has been
    // outside a guard since.
    drop(unsafe { Box::from_raw(old) });
    Ok(())
}
