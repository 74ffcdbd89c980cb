//! Every target on its corpus and on a fixed number of other inputs, without a fuzzer.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails as its test does")]

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pgmap::{FolioSize, Owner, Pool, PoolOptions};
use pgmap_fuzz::catalog_file::CatalogFile;
use pgmap_fuzz::{catalog, pool_header};

use pgmap_fuzz::drive::{Random, corpora, corpus, run_one, run_random};
use pgmap_fuzz::{TARGETS, Target};

fn seed() -> u64 {
    let given = std::env::var("PGMAP_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = given.unwrap_or_else(now);
    println!("seed {seed}; repeat with PGMAP_TEST_SEED={seed}");
    seed
}

fn run(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let seeds = replay(target);
    let nr_inputs = std::env::var("PGMAP_FUZZ_INPUTS").ok().and_then(|text| text.parse().ok());
    let nr_inputs = nr_inputs.unwrap_or(target.nr_inputs);
    run_random(target, &seeds, nr_inputs, &mut Random(seed()))
        .unwrap_or_else(|why| panic!("{why}"));
    println!("{name}: {} inputs of the corpus, {nr_inputs} others", seeds.len());
}

fn replay(target: &Target) -> Vec<Vec<u8>> {
    let corpus = corpus(target);
    assert!(corpus.len() > 1, "{} has no corpus", target.name);
    for (path, input) in &corpus {
        run_one(target, input).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    }
    corpus.into_iter().map(|(_, input)| input).collect()
}

#[test]
fn any_message_decodes_to_what_is_encoded_again_or_is_refused() {
    run("wire");
}

#[test]
fn any_greeting_is_taken_in_or_refused() {
    run("greeting");
}

#[test]
fn any_catalog_is_opened_and_written_or_refused() {
    run("catalog");
}

#[test]
fn any_header_and_seal_of_a_pool_are_possible_or_refused() {
    run("pool_header");
}

#[test]
fn any_ledger_is_scanned_in_bounds() {
    run("ledger_words");
}

#[test]
fn any_index_is_looked_up_in_bounds_and_taken_over() {
    run("index");
}

#[test]
fn any_size_and_name_is_written_as_it_is_read() {
    run("cli");
}

/// The bytes of the catalog of a pool with files.
fn made_catalog() -> Vec<u8> {
    let place = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = place.path().join("pool");
    let pool = Pool::create(&PoolOptions::in_directory(&path, 1 << 20).max_files(16)).unwrap();
    let owner = Owner::start(pool).unwrap();
    let client = owner.client().unwrap();
    for name in ["a", "b", "c"] {
        let writer = client.create(name, 3 * 4096, FolioSize::Pages4K).unwrap();
        writer.commit().unwrap();
    }
    client.punch("b", 4096..8192, Duration::from_secs(1)).unwrap();
    client.unlink("a").unwrap();
    drop(client);
    drop(owner);
    fs::read(path.join("catalog")).unwrap()
}

/// Story: the inputs of both corpora were of formats long gone, and ended at the refusal of those.
#[test]
fn the_corpora_have_a_catalog_and_a_pool_of_todays_format() {
    let catalog = made_catalog();
    let made = [
        ("catalog", CatalogFile::input_of(&catalog, &[])),
        ("pool_header", pool_header::input_of(&catalog)),
    ];
    for (target, input) in made {
        let path = corpora().join(target).join("made");
        if std::env::var_os("PGMAP_WRITE_SEEDS").is_some() {
            fs::write(&path, input).unwrap();
        }
        let input = fs::read(&path).unwrap();
        let is_opened = match target {
            "catalog" => catalog::nr_files_of(&input) == Some(2),
            _ => pool_header::is_opened(&input),
        };
        let how = "make it again: PGMAP_WRITE_SEEDS=1 cargo test -p pgmap-fuzz";
        assert!(is_opened, "{} is of another format: {how}", path.display());
    }
}

#[test]
fn every_target_has_its_file_for_the_fuzzer_and_its_corpus() {
    let names: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    let in_folder = |folder: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(corpora().join("..").join(folder)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.map(|name| name.trim_end_matches(".rs").to_owned()).collect()
    };
    assert_eq!(in_folder("fuzz_targets"), names);
    assert_eq!(in_folder("corpus"), names);
    let manifest = fs::read_to_string(corpora().join("../Cargo.toml")).unwrap();
    for name in names {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is not in the manifest");
    }
}
