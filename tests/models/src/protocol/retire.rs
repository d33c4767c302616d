//! A table is taken out of the tree and reused while PEs may be on their way into it.
//!
//! The order is the design's: every slot becomes non-installable while the table is still linked, the
//! parent's becomes Drain, one flush over the span, a grace period for the guards, and only then is
//! anything written into the page. All of it is [`Space::unmap`](stage2::Space::unmap).

use stage2::space::Notes;
use stage2::{Pa, View};

use super::clear::{Met, install, populate};
use crate::outcome::reached;
use crate::ranges::table;
use crate::world::{Shape, World, page};

/// One PE retires a table with a page in it while another installs a neighbour of that page, and then
/// again: into the old table, or into a new one, which may be the same memory.
pub fn against_install() {
    let world = World::new(Shape::small(3, 3));
    let _ = world.pe(0, &[0], |pe| populate(pe, 0));
    let installer = world.spawn(1, &[1, 2], |pe| [install(pe, 1), install(pe, 1)]);
    world.pe(0, &[], |pe| pe.unmap_all(table(0), Notes::Keep));
    let met = installer.join().unwrap();
    let last: Option<Pa> = match world.walk(page(1)).view() {
        View::Leaf(leaf) => Some(leaf.pa()),
        _ => None,
    };
    reached(match met {
        [Met::Installed(pa), Met::Present(same)] if pa == same && last == Some(pa) => "after",
        [Met::Installed(pa), Met::Present(same)] if pa == same && last.is_none() => "before",
        [Met::Installed(_), Met::Retry] if last.is_none() => "before, then met Dead or Drain",
        [Met::Installed(_), Met::Installed(pa)] if last == Some(pa) => "before and after",
        [Met::Retry, Met::Installed(pa)] if last == Some(pa) => "met Dead or Drain, then after",
        [Met::Retry, Met::Retry] if last.is_none() => "met Dead or Drain",
        other => panic!("{other:?}, and last {last:?}"),
    });
    world.settle();
}
