//! The state of 32 interrupts: a bit for each in every word.
//!
//! A vCPU's SGIs and PPIs are one bank, the SPIs are two. An interrupt is pending because its line is up (level-sensitive), or
//! because something latched it: an edge, an SGI, a write of ISPENDR. The latch goes when the guest acknowledges.
//!
//! While an interrupt is in a list register (`listed`), hardware holds the truth about it, and the words here say what was true
//! when it was put there, and what has come since:
//!
//! | word | while listed |
//! | --- | --- |
//! | `latch` | an edge that came since |
//! | `carried` | the latch that the register took along; back in `latch` if the guest has not acknowledged it by the next sync |
//! | `active` | as it was put there |
//! | `withdrawn`, `activated`, `deactivated` | what the next sync does to what it finds: a write to ICPENDR, ISACTIVER, ICACTIVER |

/// 32 interrupts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bank {
    pub(super) enabled: u32,
    pub(super) group1: u32,
    /// Edge-triggered; the others are level-sensitive.
    pub(super) edge: u32,
    /// The input lines.
    pub(super) line: u32,
    pub(super) latch: u32,
    pub(super) active: u32,
    /// The physical interrupt of the same number is active on behalf of this one.
    pub(super) held: u32,
    pub(super) listed: u32,
    pub(super) carried: u32,
    pub(super) withdrawn: u32,
    pub(super) activated: u32,
    pub(super) deactivated: u32,
    pub(super) priority: [u8; 32],
    /// The priority and group with which an active one was acknowledged: its end must find them.
    pub(super) running: [u8; 32],
    pub(super) running_group1: u32,
}

impl Bank {
    /// After reset: disabled, group 0, priority 0, nothing pending. `edge`: those that are edge-triggered.
    pub(super) const fn new(edge: u32) -> Self {
        Self {
            enabled: 0,
            group1: 0,
            edge,
            line: 0,
            latch: 0,
            active: 0,
            held: 0,
            listed: 0,
            carried: 0,
            withdrawn: 0,
            activated: 0,
            deactivated: 0,
            priority: [0; 32],
            running: [0; 32],
            running_group1: 0,
        }
    }

    /// Those that are pending, as far as is known here.
    pub(super) const fn pending(&self) -> u32 {
        self.latch | self.carried & !self.withdrawn | self.line & !self.edge
    }

    /// Those that are pending, enabled, and of a group that the distributor forwards.
    pub(super) const fn forwarded(&self, groups: Groups) -> u32 {
        self.pending() & self.enabled & groups.of(self.group1)
    }

    /// Changes the lines of `mask`; gives those that changed.
    pub(super) const fn set_line(&mut self, mask: u32, level: bool) -> u32 {
        let changed = if level { mask & !self.line } else { mask & self.line };
        self.line ^= changed;
        if level {
            self.latch |= changed & self.edge;
        }
        changed
    }

    /// Clears the pending state of `mask` as far as it is a latch; gives those that are known only to hardware.
    pub(super) const fn clear_pending(&mut self, mask: u32) -> u32 {
        self.latch &= !mask;
        self.withdrawn |= mask & self.listed;
        mask & self.listed
    }

    /// Sets or clears the active state of `mask`; gives those that are known only to hardware.
    pub(super) fn set_active(&mut self, mask: u32, active: bool) -> u32 {
        let listed = mask & self.listed;
        let here = mask & !self.listed;
        if active {
            for index in super::set::bits(here & !self.active) {
                self.note_running(index, self.priority(index), self.group1 >> index & 1 != 0);
            }
            self.active |= here;
            self.activated |= listed;
            self.deactivated &= !listed;
        } else {
            self.active &= !here;
            self.deactivated |= listed;
            self.activated &= !listed;
        }
        listed
    }

    /// The priority of the interrupt at `index`.
    pub(super) fn priority(&self, index: usize) -> u8 {
        self.priority.get(index).copied().unwrap_or(0)
    }

    /// The priority at which the interrupt at `index` is active.
    pub(super) fn running(&self, index: usize) -> u8 {
        self.running.get(index).copied().unwrap_or(0)
    }

    /// The interrupt at `index` is active with this priority and group.
    pub(super) fn note_running(&mut self, index: usize, priority: u8, group1: bool) {
        if let Some(running) = self.running.get_mut(index) {
            *running = priority;
        }
        let bit = 1_u32.wrapping_shl(index as u32);
        self.running_group1 =
            if group1 { self.running_group1 | bit } else { self.running_group1 & !bit };
    }
}

/// The groups that the distributor forwards: `GICD_CTLR`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Groups {
    pub(super) group0: bool,
    pub(super) group1: bool,
}

impl Groups {
    /// Those interrupts of a bank with this IGROUPR that it forwards.
    pub(super) const fn of(self, group1: u32) -> u32 {
        let one = if self.group1 { group1 } else { 0 };
        let zero = if self.group0 { !group1 } else { 0 };
        one | zero
    }
}
