//! How fast the copies are against `ptr::copy_nonoverlapping`, which may not be used over memory
//! that others change. Run with
//! `cargo test --release -p pgmap-os --test copy_speed -- --ignored --nocapture`.

// UNSAFETY: the rival is an unsafe copy from the mapping's address.
#![allow(unsafe_code)]

use pgmap_os::{MemoryFile, PageSize, ReadMapping, WriteMapping};
use std::ptr;
use std::time::Instant;

const LEN: usize = 2 << 20;
const NR_BUFFERS: usize = 16;
const NR_ROUNDS: usize = 41;

/// Times one pass over all buffers, in microseconds per copy.
fn pass(mut copy: impl FnMut(usize)) -> f64 {
    let start = Instant::now();
    (0..NR_BUFFERS).for_each(|turn| copy(turn * LEN));
    start.elapsed().as_secs_f64() * 1e6 / NR_BUFFERS as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
#[ignore = "a measurement, for an idle machine and a release build"]
fn copies_run_at_the_speed_of_memcpy() {
    let len = (LEN * NR_BUFFERS) as u64;
    let file = MemoryFile::anonymous("copy-speed", len, PageSize::Base).unwrap();
    let writer = WriteMapping::map(&file, 0, len).unwrap();
    let _ = writer.populate().unwrap();
    let reader = ReadMapping::map(&file, 0, len).unwrap();
    let mut space = vec![1u8; LEN + 256];
    // 0: a whole line; 16: where malloc puts large blocks; 1: anything.
    for misalignment in [0, 16, 1] {
        let start = space.as_ptr().align_offset(64) + misalignment;
        let (mut out, mut out_rival) = (Vec::new(), Vec::new());
        let (mut inn, mut inn_rival) = (Vec::new(), Vec::new());
        for _ in 0..NR_ROUNDS {
            let local = &mut space[start..][..LEN];
            out_rival.push(pass(|at| {
                let source = reader.as_ptr().wrapping_add(at);
                // SAFETY: inside the mapping, and no other process or thread writes to it here.
                unsafe { ptr::copy_nonoverlapping(source, local.as_mut_ptr(), local.len()) };
            }));
            out.push(pass(|at| reader.copy_out(at as u64, local).unwrap()));
            inn_rival.push(pass(|at| {
                let target = writer.as_ptr().wrapping_add(at);
                // SAFETY: inside the mapping, and no other process or thread uses it here.
                unsafe { ptr::copy_nonoverlapping(local.as_ptr(), target, local.len()) };
            }));
            inn.push(pass(|at| writer.copy_in(at as u64, local).unwrap()));
        }
        let (out, out_rival) = (median(out), median(out_rival));
        let (inn, inn_rival) = (median(inn), median(inn_rival));
        println!(
            "2 MiB, misaligned by {misalignment:2}: copy_out {out:6.1} us ({:.2} of memcpy's \
             {out_rival:6.1}), copy_in {inn:6.1} us ({:.2} of {inn_rival:6.1})",
            out / out_rival,
            inn / inn_rival
        );
        assert!(out < out_rival * 1.25, "copy_out is slower than memcpy");
        assert!(inn < inn_rival * 1.25, "copy_in is slower than memcpy");
    }
}
