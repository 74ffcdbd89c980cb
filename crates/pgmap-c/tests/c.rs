//! A program in C, compiled with this machine's compiler, against an owner.

use std::path::{Path, PathBuf};
use std::process::Command;

use pgmap::{FolioSize, Owner, Pool, PoolOptions};

/// Where cargo put the shared library: beside this test program.
fn library_folder() -> PathBuf {
    std::env::current_exe().unwrap().parent().unwrap().to_owned()
}

fn in_crate(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Compiles `plugin.c` as `language`; `None` where there is no compiler.
fn compile(compiler: &str, language: &str, folder: &Path) -> Option<PathBuf> {
    if Command::new(compiler).arg("--version").output().is_err() {
        println!("skipped: no {compiler} to compile the program with");
        return None;
    }
    let program = folder.join(language);
    let mut command = Command::new(compiler);
    command.args(["-Wall", "-Wextra", "-Werror", "-x", language]);
    command.arg(in_crate("tests/plugin.c")).arg("-I").arg(in_crate("include"));
    command.arg("-L").arg(library_folder()).arg("-lpgmap_c").arg("-o").arg(&program);
    let compiled = command.output().unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    Some(program)
}

fn run_as(compiler: &str, language: &str) {
    let folder = tempfile::tempdir().unwrap();
    let Some(program) = compile(compiler, language, folder.path()) else { return };
    let owner = Owner::start(Pool::create(&PoolOptions::anonymous(16 << 20)).unwrap()).unwrap();
    let socket = folder.path().join("socket");
    owner.serve(&socket).unwrap();
    let client = owner.client().unwrap();
    client.create("from/rust", 5, FolioSize::BestFit).unwrap().commit().unwrap();

    let ran = Command::new(program)
        .arg(&socket)
        .env("LD_LIBRARY_PATH", library_folder())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));
    assert!(said.ends_with("all good\n"), "{said}");
    assert_eq!(client.get("from/c").unwrap().to_vec().unwrap(), b"tokens");
}

#[test]
fn a_program_in_c_does_all_that_a_plugin_does() {
    run_as("cc", "c");
}

#[test]
fn the_header_is_cpp_too() {
    run_as("c++", "c++");
}
