#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| programs::descriptors::check(bytes));
