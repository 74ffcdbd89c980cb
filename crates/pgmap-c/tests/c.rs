//! Programs in C, compiled with this machine's compiler, against an owner.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use pgmap::{Client, FolioSize, Owner, Pool, PoolOptions, WaterMarks};

/// Where cargo put the shared library: beside this test program.
fn library_folder() -> PathBuf {
    std::env::current_exe().unwrap().parent().unwrap().to_owned()
}

fn in_crate(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Compiles one of the programs in tests/ as `language`; `None` where there is no compiler.
fn compile(program: &str, language: &str, folder: &Path) -> Option<PathBuf> {
    let compiler = if language == "c" { "cc" } else { "c++" };
    if Command::new(compiler).arg("--version").output().is_err() {
        println!("skipped: no {compiler} to compile {program} with");
        return None;
    }
    let compiled = folder.join("program");
    let mut command = Command::new(compiler);
    command.args(["-Wall", "-Wextra", "-Werror", "-x", language]);
    command.arg(in_crate("tests").join(program)).arg("-I").arg(in_crate("include"));
    command.arg("-L").arg(library_folder()).arg("-lpgmap_c").arg("-o").arg(&compiled);
    let said = command.output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    Some(compiled)
}

/// A program, and the owner of the pool of 16 MiB that it is given the socket of.
struct Stage {
    program: PathBuf,
    owner: Owner,
    folder: tempfile::TempDir,
}

impl Stage {
    /// `None` where there is no compiler.
    fn new(program: &str, language: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let program = compile(program, language, folder.path())?;
        let owner = Owner::start(Pool::create(&PoolOptions::anonymous(16 << 20)).unwrap()).unwrap();
        owner.serve(folder.path().join("socket")).unwrap();
        Some(Self { program, owner, folder })
    }

    /// The program, and what it says.
    fn start(&self) -> (Child, BufReader<ChildStdout>) {
        let mut command = Command::new(&self.program);
        command.arg(self.folder.path().join("socket")).env("LD_LIBRARY_PATH", library_folder());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut program = command.spawn().unwrap();
        let output = BufReader::new(program.stdout.take().unwrap());
        (program, output)
    }
}

/// Lets a program go on to its end, which is a good one.
#[track_caller]
fn ends_well(mut program: Child, mut output: impl Read) {
    drop(program.stdin.take());
    let mut said = String::new();
    output.read_to_string(&mut said).unwrap();
    let ended = program.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{}: {said}{errors}", ended.status);
    assert_eq!(said, "all good\n");
}

fn plugin_as(language: &str) {
    let Some(stage) = Stage::new("plugin.c", language) else { return };
    let client = stage.owner.client().unwrap();
    client.create("from/rust", 5, FolioSize::BestFit).unwrap().commit().unwrap();
    let (program, output) = stage.start();
    ends_well(program, output);
    assert_eq!(client.get("from/c").unwrap().to_vec().unwrap(), b"tokens");
}

fn quotas_as(language: &str) {
    let Some(stage) = Stage::new("quotas.c", language) else { return };
    let (program, output) = stage.start();
    ends_well(program, output);
    // What it left is what the owner has.
    let client = stage.owner.client().unwrap();
    let quotas = client.quotas().unwrap();
    assert_eq!((quotas.len(), quotas[0].limits.bytes), (1, Some(3 << 20)), "{quotas:?}");
    let marks = WaterMarks { low_bytes: 1 << 20, high_bytes: 2 << 20 };
    assert_eq!(client.water_marks().unwrap(), marks);
}

/// The reader is listed as one, by its label.
#[track_caller]
fn reader_is_listed(client: &Client) {
    let holders = client.who("a").unwrap().holders;
    let listed: Vec<_> = holders.iter().map(|its| (&its.label[..], its.is_read_only)).collect();
    assert_eq!(listed, [("reader", true)]);
    assert_eq!(client.pool_stat().unwrap().nr_read_only_clients, 1);
}

fn reader_as(language: &str) {
    let Some(stage) = Stage::new("reader.c", language) else { return };
    let client = stage.owner.client().unwrap();
    let (program, mut output) = stage.start();
    let mut said = String::new();
    output.read_line(&mut said).unwrap();
    if said == "holding\n" {
        reader_is_listed(&client);
    }
    ends_well(program, output);
}

#[test]
fn a_program_in_c_does_all_that_a_plugin_does() {
    plugin_as("c");
}

#[test]
fn a_program_in_c_sets_quotas_and_water_marks_and_is_refused_what_exceeds_them() {
    quotas_as("c");
}

#[test]
fn a_program_in_c_that_connects_read_only_reads_and_changes_nothing() {
    reader_as("c");
}

#[test]
fn the_header_is_cpp_too() {
    for program in [plugin_as, quotas_as, reader_as] {
        program("c++");
    }
}
