//! libFuzzer's way to the target `ledger_words`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pgmap_fuzz::ledger_words(bytes));
