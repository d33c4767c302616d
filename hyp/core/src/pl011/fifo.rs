//! The receiver's FIFO.

/// Characters that it holds at the most, with FIFOs on.
pub(super) const DEPTH: usize = 16;

/// Received characters that the guest has not read yet, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fifo {
    bytes: [u8; DEPTH],
    /// Where the oldest is.
    first: usize,
    len: usize,
}

impl Fifo {
    pub(super) const fn new() -> Self {
        Self { bytes: [0; DEPTH], first: 0, len: 0 }
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Appends a character. One that finds no room is lost, as in hardware: whoever calls looks first.
    pub(super) fn push(&mut self, byte: u8) {
        let at = self.first.wrapping_add(self.len) % DEPTH;
        if let Some(place) = self.bytes.get_mut(at).filter(|_| self.len < DEPTH) {
            *place = byte;
            self.len = self.len.saturating_add(1);
        }
    }

    pub(super) fn pop(&mut self) -> Option<u8> {
        let byte = self.bytes.get(self.first).copied().filter(|_| self.len > 0)?;
        self.first = self.first.wrapping_add(1) % DEPTH;
        self.len = self.len.saturating_sub(1);
        Some(byte)
    }
}
