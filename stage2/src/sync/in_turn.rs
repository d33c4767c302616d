//! Words of which each access is atomic, and which two threads are to use in turn nevertheless.
//!
//! Loom never lets a load take effect after a later store of its thread. So no value ever shows that a reader's loads are not
//! ordered before the stores of who has the words next. But of a cell of its own loom tells when two threads access it, one
//! of them to write, and nothing orders the two. Who reads or writes such words says so here.

/// Stands for words that are used in turn. Shuttle knows one order only, and checks nothing here.
#[derive(Debug, Default)]
pub struct InTurn(#[cfg(loom)] loom::cell::UnsafeCell<()>);

// SAFETY: (1) there is nothing in it.
#[cfg(loom)]
unsafe impl Sync for InTurn {}

impl InTurn {
    /// The words are about to be read.
    ///
    /// # Panics
    /// When another thread writes them, and nothing orders the two.
    pub fn read(&self) {
        #[cfg(loom)]
        self.0.with(|_| ());
    }

    /// The words are about to be written.
    ///
    /// # Panics
    /// When another thread reads or writes them, and nothing orders the two.
    pub fn write(&self) {
        #[cfg(loom)]
        self.0.with_mut(|_| ());
    }
}
