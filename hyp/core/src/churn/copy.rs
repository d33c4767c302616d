//! What becomes of the second copy of a page: after a harvest has reported the page, and when it is compared.
//!
//! Nothing is copied but what a harvest reports. So a page without a copy has to be what its first touch finds: it was never written.

/// What a look-up has found of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<Frame> {
    /// It lies in this frame.
    Mapped(Frame),
    /// Its next touch finds what the first one found.
    Untouched,
    /// Somebody changes its slot. It tells nothing of the page, which may come back as it was, and nobody would report it again.
    Unsettled,
}

/// What is to be done about a page that was reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reported<Frame> {
    /// It is copied from this frame.
    Copy(Frame),
    /// Its copy becomes what a first touch finds.
    Reset,
    /// Nothing: it is what a first touch finds, and has no copy.
    Nothing,
    /// It is marked, so that the next harvest reports it again.
    Mark,
}

impl<Frame> Reported<Frame> {
    /// For a page of which this was found; whether it has a copy.
    #[must_use]
    pub fn of(found: Found<Frame>, has_copy: bool) -> Self {
        match found {
            Found::Mapped(frame) => Self::Copy(frame),
            Found::Untouched if has_copy => Self::Reset,
            Found::Untouched => Self::Nothing,
            Found::Unsettled => Self::Mark,
        }
    }
}

/// Whether a page, if it is mapped, is what its copy is, if it has one. What is missing is taken for what a first touch finds.
#[must_use]
pub fn is_same<'a, Words: PartialEq>(
    page: Option<&'a Words>,
    copy: Option<&'a Words>,
    first_touch: impl FnOnce() -> &'a Words,
) -> bool {
    match (page, copy) {
        (Some(page), Some(copy)) => page == copy,
        (Some(one), None) | (None, Some(one)) => one == first_touch(),
        (None, None) => true,
    }
}
