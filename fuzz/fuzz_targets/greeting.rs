//! libFuzzer's way to the target `greeting`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pgmap_fuzz::greeting(bytes));
