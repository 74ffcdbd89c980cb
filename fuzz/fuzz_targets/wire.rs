//! libFuzzer's way to the target `wire`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pgmap_fuzz::wire(bytes));
