//! libFuzzer's way to the target `pool_header`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pgmap_fuzz::pool_header(bytes));
