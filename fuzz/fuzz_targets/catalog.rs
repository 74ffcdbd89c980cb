//! libFuzzer's way to the target `catalog`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pgmap_fuzz::catalog(bytes));
