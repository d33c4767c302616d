//! The peers, through their public interfaces, in the setting that suits them best.
//!
//! Neither has a concurrent interface: both take `&mut`, so page-by-page installs happen behind a
//! lock, the ticket lock that this crate has for its own tables. Neither does TLB maintenance here: to
//! `aarch64-paging` the tables are inactive, and `page_table_multiarch` flushes only without an operating system.

pub(crate) mod aarch64_paging;
pub(crate) mod page_table_multiarch;
