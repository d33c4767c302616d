//! What guest RAM holds initially, and where a populate fault gets its frame.
//!
//! Image, device tree and ramdisk stay where the loader put them; a page of guest RAM gets its share of
//! their bytes when it is first touched. So starting a guest costs nothing for its size, and a page that is
//! never touched is never there.
//!
//! A copied page is cleaned before it is installed, as far as the machine needs it: the guest starts with its
//! caches off. No instruction cache can hold anything of the frame: it was invalidated when the frame
//! came into the stock, and nobody has been able to execute from it since (EL2 never, the guest not yet).
//! A frame that was moved elsewhere comes here again by way of the pool and a stock.

use hyp_core::{IpaRange, PaRange};
use stage2::{Frames, Pa};

use super::copying::copy_lines;
use crate::event::trace;
use crate::mem::cache::{Stock, wipe};
use crate::mem::{PAGE, clean};

/// Image, device tree, ramdisk.
const PARTS: usize = 3;

/// Bytes and where the guest finds them.
#[derive(Clone, Copy, Debug)]
struct Part {
    range: IpaRange,
    bytes: &'static [u8],
}

/// What guest RAM holds initially.
#[derive(Debug)]
pub(crate) struct Payload {
    parts: [Part; PARTS],
    /// From the first byte of any part to the last: outside, no part is looked at.
    span: IpaRange,
    /// The first instruction.
    pub(crate) entry: u64,
    /// The device tree: vCPU 0's `x0`.
    pub(crate) tree: u64,
}

impl Payload {
    /// The parts that are there, each at its place.
    pub(crate) fn new(
        bytes: [Option<&'static [u8]>; PARTS],
        starts: [Option<u64>; PARTS],
        entry: u64,
        tree: u64,
    ) -> Self {
        let mut parts = [Part { range: IpaRange { start: 0, end: 0 }, bytes: &[] }; PARTS];
        let mut span = IpaRange { start: u64::MAX, end: 0 };
        for ((part, bytes), start) in parts.iter_mut().zip(bytes).zip(starts) {
            let (Some(bytes), Some(start)) = (bytes, start) else {
                continue;
            };
            let Some(range) = IpaRange::from_len(start, bytes.len() as u64) else {
                continue;
            };
            *part = Part { range, bytes };
            span.start = span.start.min(range.start);
            span.end = span.end.max(range.end);
        }
        Self { parts, span, entry, tree }
    }

    /// Whether a page may have bytes of the payload.
    #[inline]
    fn may_touch(&self, page: u64) -> bool {
        page < self.span.end && page.saturating_add(PAGE) > self.span.start
    }

    /// Whether the payload has no bytes in a range.
    pub(crate) fn leaves_alone(&self, range: &IpaRange) -> bool {
        self.parts.iter().all(|part| part.range.intersection(range).is_none())
    }

    /// Copies what the payload has for the page at `page` into `frame`, for the guest's eyes; returns whether there was anything.
    ///
    /// # Safety
    /// 1. `frame` is a frame of the caller's that nobody else reaches.
    #[inline(never)]
    pub(super) unsafe fn fill(&self, page: u64, frame: u64) -> bool {
        let wanted = IpaRange { start: page, end: page.saturating_add(PAGE) };
        let mut filled = false;
        for part in &self.parts {
            let Some(common) = part.range.intersection(&wanted) else {
                continue;
            };
            let from = (common.start - part.range.start) as usize;
            let Some(bytes) = part.bytes.get(from..from + common.len() as usize) else {
                continue;
            };
            filled = true;
            let (to, source) = (frame + (common.start - page), bytes.as_ptr().expose_provenance());
            if bytes.len() as u64 == PAGE && source.is_multiple_of(PAGE as usize) {
                // SAFETY: (1) a whole page of the payload, which is never in a frame of the pool, and the frame of clause 1.
                unsafe { copy_lines(source as u64, frame) };
                continue;
            }
            let target = core::ptr::with_exposed_provenance_mut::<u8>(to as usize);
            // SAFETY: (1) clause 1, and `common` lies within one page; (2) the payload is never in a
            // frame of the pool.
            unsafe { target.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        }
        if filled {
            clean::for_guest(PaRange { start: frame, end: frame + PAGE });
        }
        filled
    }
}

/// One fault's source of a frame: the stock, with the payload's bytes for the page.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    stock: &'a Stock,
    payload: &'a Payload,
    page: u64,
    /// The frame that was taken carries bytes of the payload.
    pub(crate) filled: bool,
}

impl<'a> Source<'a> {
    /// For the page at `page`.
    #[inline]
    pub(crate) fn new(stock: &'a Stock, payload: &'a Payload, page: u64) -> Self {
        Self { stock, payload, page, filled: false }
    }
}

// SAFETY: (1) a frame of the stock is a page of RAM that is nobody else's, and comes back to the pool only
// against a completed flush. (2) It is zeroed and cleaned, or filled and cleaned, each with its DSB.
unsafe impl Frames for Source<'_> {
    #[inline(always)]
    fn take(&mut self) -> Option<Pa> {
        let frame = self.stock.take()?;
        if self.payload.may_touch(self.page) {
            // SAFETY: (1) just taken from the stock.
            self.filled = unsafe { self.payload.fill(self.page, frame) };
        }
        Some(Pa::new(frame))
    }

    #[inline]
    fn give_back(&mut self, frame: Pa) {
        if self.filled {
            // SAFETY: (1) never mapped: it lost its race.
            unsafe { wipe(frame.get(), PAGE) };
        }
        trace::frame_given_back(frame.get(), PAGE);
        // There is room: it was taken from here.
        let _fits = self.stock.put_back(frame.get());
    }
}
