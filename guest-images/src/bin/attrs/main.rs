#![no_std]
#![no_main]
guest_rt::guest!("x", f); fn f(_: &guest_rt::Machine){}
