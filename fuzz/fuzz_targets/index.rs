//! libFuzzer's way to the target `index`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pgmap_fuzz::index(bytes));
