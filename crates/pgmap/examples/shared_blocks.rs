//! Blocks that several processes share: one process owns the pool, another writes blocks, a third
//! reads one, is killed while it holds it, and loses nothing of the pool.
//!
//! Run with `cargo run -p pgmap --example shared_blocks`. It starts its own child processes.

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pgmap::{Client, FolioSize, Owner, Pool, PoolOptions};

const BLOCK: &str = "block-7";
const BLOCK_BYTES: u64 = 2 << 20;
const PATIENCE: Duration = Duration::from_secs(5);

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => own(),
        ["write", socket] => write(Path::new(socket)),
        ["read", socket] => read(Path::new(socket)),
        _ => Err("usage: shared_blocks".into()),
    }
}

/// The owner: has the pool, and serves it at a socket.
fn own() -> Outcome<()> {
    let owner = Owner::start(Pool::create(&PoolOptions::anonymous(64 << 20))?)?;
    let socket = std::env::temp_dir().join(format!("pgmap-example-{}.sock", std::process::id()));
    owner.serve(&socket)?;

    if !start("write", &socket)?.wait()?.success() {
        return Err("the writer failed".into());
    }
    let mut reader = start("read", &socket)?;
    let output = reader.stdout.take().ok_or("the reader has no output")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    print!("reader {}: {line}", reader.id());

    let client = owner.client()?;
    client.unlink(BLOCK)?; // the name goes at once, the frames wait for the reader
    for holder in client.who_all()?.holders {
        println!("held: {holder}");
    }
    println!("draining while it is held: {} bytes", owner.info().draining_bytes);
    let killed = Instant::now();
    reader.kill()?; // SIGKILL: it releases nothing itself
    while owner.info().draining_bytes != 0 {
        if killed.elapsed() > PATIENCE {
            return Err("the frames of a killed reader are still held".into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("draining {:?} after kill -9: 0 bytes", killed.elapsed());
    reader.wait()?;
    Ok(())
}

/// A writer: nobody can open the block before it is committed.
fn write(socket: &Path) -> Outcome<()> {
    let client = Client::connect(socket)?;
    let mut writer = client.create(BLOCK, BLOCK_BYTES, FolioSize::Pages2M)?;
    writer.write_all_at(0, b"tokens and tensors")?;
    writer.commit()?;
    Ok(())
}

/// A reader: opens and pins the block without a call to the owner, and holds it until it is killed.
fn read(socket: &Path) -> Outcome<()> {
    let client = Client::connect(socket)?;
    let pinned = client.get(BLOCK)?;
    let mut bytes = [0; 18];
    pinned.read_at(0, &mut bytes)?;
    println!("{}", String::from_utf8_lossy(&bytes));
    loop {
        std::thread::park();
    }
}

fn start(role: &str, socket: &Path) -> Outcome<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    Ok(command.arg(role).arg(socket).stdout(Stdio::piped()).spawn()?)
}
