//! What the call PROBE is asked: that the hypervisor reaches for the caller's memory, whatever lock it holds. Only hypervisors
//! that are built for selftests have the call; others answer NOT_SUPPORTED.

/// Has the hypervisor reach for the 8 bytes at `x1` through its window on the caller's memory, as it does for the buffers of
/// calls; `x1` is a multiple of 8. `x2` is [`PROBE_READ`], [`PROBE_WRITE`] or [`PROBE_HOLD`]. `x3` is the number of a [`Held`],
/// with [`PROBE_OTHER`] or without.
///
/// | `x2` | what happens | `x1` |
/// | --- | --- | --- |
/// | [`PROBE_READ`] | with that held, the 8 bytes are read | their value |
/// | [`PROBE_WRITE`] | with that held, the address is written there; no record is made of it | 0 |
/// | [`PROBE_HOLD`] | once another vCPU is in a probe with [`PROBE_OTHER`], that is held until it has touched, or for [`PROBE_SECONDS`] | 1 if it has, else 0 |
///
/// With [`PROBE_OTHER`] nothing is held by this CPU: the access is made while another vCPU is in [`PROBE_HOLD`], of the same
/// [`Held`]; it waits for one, for [`PROBE_SECONDS`] at the most.
///
/// Returns SUCCESS in `x0`, and in `x2` how the access ended: [`PROBE_DONE`], or what stood against it. INVALID_PARAMETER in
/// `x0` for arguments that say nothing, BUSY if what is to be held cannot be: another CPU has it, or nobody has come in time.
pub const PROBE: u32 = 0xC600_0014;

/// Of [`PROBE`]: reads.
pub const PROBE_READ: u64 = 0;
/// Of [`PROBE`]: writes.
pub const PROBE_WRITE: u64 = 1;
/// Of [`PROBE`]: holds.
pub const PROBE_HOLD: u64 = 2;
/// Of [`PROBE`]: another vCPU holds it.
pub const PROBE_OTHER: u64 = 1 << 8;
/// How long one waits for the other, at the most.
pub const PROBE_SECONDS: u64 = 20;

/// How an access has ended: it was made.
pub const PROBE_DONE: u64 = 0;
/// The page is on its way, or there is no frame at hand: another time.
pub const PROBE_RETRY: u64 = 1;
/// The guest may not write there.
pub const PROBE_READ_ONLY: u64 = 2;
/// Nothing is there.
pub const PROBE_NOT_MAPPED: u64 = 3;
/// The window does not reach there.
pub const PROBE_NOT_COVERED: u64 = 4;
/// As many violations were recovered as may be.
pub const PROBE_PAST_LIMIT: u64 = 5;
/// As many violations were recovered in this second as may be.
pub const PROBE_PAST_RATE: u64 = 6;

/// What a CPU may hold at EL2 when it touches a guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum Held {
    /// Nothing.
    Nothing = 0,
    /// The lock of the lowest stage-2 table on the way to the address: the one that an install of a page would take.
    Table = 1,
    /// The lock of the frame pool.
    Pool = 2,
    /// The lock of the heap.
    Heap = 3,
    /// The lock of the console.
    Console = 4,
    /// The lock of the emulated devices.
    Devices = 5,
    /// The turn of who changes the VM's memory.
    Turn = 6,
    /// The lock of the scan.
    Scan = 7,
    /// The lock of the dirty log.
    Logging = 8,
    /// The lock of the shadow.
    Shadow = 9,
    /// The lock of the violation log.
    Violations = 10,
    /// A claim on the page at the address.
    Claim = 11,
    /// An open guard.
    Guard = 12,
}

impl Held {
    /// All of them, by their numbers.
    pub const ALL: [Self; 13] = [
        Self::Nothing,
        Self::Table,
        Self::Pool,
        Self::Heap,
        Self::Console,
        Self::Devices,
        Self::Turn,
        Self::Scan,
        Self::Logging,
        Self::Shadow,
        Self::Violations,
        Self::Claim,
        Self::Guard,
    ];

    /// The one with this number.
    #[must_use]
    pub fn from_u64(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|held| *held as u64 == number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_held_is_numbered_from_0_on() {
        for (number, held) in (0..).zip(Held::ALL) {
            assert_eq!(held as u64, number);
            assert_eq!(Held::from_u64(number), Some(held));
        }
        assert_eq!(Held::from_u64(Held::ALL.len() as u64), None);
        assert!(Held::ALL.iter().all(|held| (*held as u64) < PROBE_OTHER));
    }

    #[test]
    fn the_call_is_none_of_those_that_every_build_has() {
        assert!(!crate::call::manages(PROBE));
        assert_eq!(PROBE, crate::call::RECOVER + 1);
    }
}
