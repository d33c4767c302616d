//! Every syndrome, slot and place.

mod injected;
