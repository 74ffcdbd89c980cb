//! libFuzzer's way to the target `cli`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pgmap_fuzz::cli(bytes));
