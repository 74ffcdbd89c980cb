//! `pgmap.h` is what the sources say.

use std::path::{Path, PathBuf};

use cbindgen::{Builder, Config};

/// What is to be written instead of compared.
const WRITE: &str = "PGMAP_WRITE_HEADER";

fn in_crate(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[test]
fn header_is_the_one_of_the_sources() {
    let config = Config::from_file(in_crate("cbindgen.toml")).unwrap();
    let sources = ["failure", "pool", "writer", "pin", "events", "quotas"];
    let builder = sources.iter().fold(Builder::new().with_config(config), |builder, source| {
        builder.with_src(in_crate(&format!("src/{source}.rs")))
    });
    let mut written = Vec::new();
    builder.generate().unwrap().write(&mut written);
    let path = in_crate("include/pgmap.h");
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, &written).unwrap();
    }
    let there = std::fs::read(&path).unwrap_or_default();
    assert!(
        there == written,
        "{} is not what the sources say: {WRITE}=1 cargo test -p pgmap-c --test header",
        path.display()
    );
}
