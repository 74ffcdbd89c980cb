//! What a crowd costs an owner: the time to attach 1,000 clients, its memory for each of them, and
//! for each of 200 that ask and never read.
//!
//! Run with `cargo run --release -p pgmap --example crowd`. The owner is a process of its own.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use pgmap::os::{Blocking, Connection, TransferError};
use pgmap::wire::{self, Hello, Numbered, Request};
use pgmap::{Client, FolioSize, Owner, Pool, PoolOptions};

const POOL_BYTES: u64 = 256 << 20;
const NR_CLIENTS: u64 = 1000;
const NR_DEAF: u64 = 200;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args_os().skip(1);
    if let Some(socket) = arguments.next() {
        return own(Path::new(&socket));
    }
    pgmap::os::process::raise_descriptor_limit()?;
    let socket = std::env::temp_dir().join(format!("pgmap-crowd-{}", std::process::id()));
    let mut owner = OwnerProcess::start(&socket)?;
    let before = owner.memory()?;

    let started = Instant::now();
    let clients =
        (0..NR_CLIENTS).map(|_| Client::connect(&socket)).collect::<Result<Vec<_>, _>>()?;
    let took = started.elapsed();
    let each = owner.memory()?.saturating_sub(before) / NR_CLIENTS;
    println!("attach of {NR_CLIENTS} clients: {took:?}, {each} bytes of the owner for each");
    let started = Instant::now();
    drop(clients);
    println!("dropping them: {:?}", started.elapsed());

    let client = Client::connect(&socket)?;
    for file in 0..100 {
        client.create(format!("{file:0>250}"), 1, FolioSize::BestFit)?.commit()?;
    }
    let deaf = (0..NR_DEAF).map(|_| greet(&socket)).collect::<Outcome<Vec<_>>>()?;
    client.list()?;
    let before = owner.memory()?;
    for connection in &deaf {
        ask_and_never_read(connection)?;
    }
    client.list()?;
    let each = owner.memory()?.saturating_sub(before) / NR_DEAF;
    println!("{NR_DEAF} clients that never read: {each} bytes of the owner for each");
    drop(deaf);
    client.list()?;
    let kept = owner.memory()?.saturating_sub(before);
    println!("kept after they left: {kept} bytes in all");
    drop(client);
    owner.end()
}

/// Serves at `socket`, and says how much memory it takes when asked, until its input ends.
fn own(socket: &Path) -> Outcome<()> {
    let owner = Owner::start(Pool::create(&PoolOptions::anonymous(POOL_BYTES))?)?;
    owner.serve(socket)?;
    println!("0");
    for _ in std::io::stdin().lines().map_while(Result::ok) {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let line = status.lines().find(|line| line.starts_with("RssAnon:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1)).unwrap_or("0");
        println!("{}", kib.parse::<u64>()? * 1024);
    }
    drop(owner);
    Ok(())
}

struct OwnerProcess {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl OwnerProcess {
    fn start(socket: &Path) -> Outcome<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .arg(socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = process.stdin.take().ok_or("no input")?;
        let output = BufReader::new(process.stdout.take().ok_or("no output")?);
        let mut owner = Self { process, input, output };
        owner.answer()?;
        Ok(owner)
    }

    fn answer(&mut self) -> Outcome<u64> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim().parse()?)
    }

    fn memory(&mut self) -> Outcome<u64> {
        writeln!(self.input, "memory")?;
        self.answer()
    }

    fn end(self) -> Outcome<()> {
        let Self { mut process, input, .. } = self;
        drop(input);
        process.wait()?;
        Ok(())
    }
}

/// A connection that has said hello and heard the answer.
fn greet(socket: &Path) -> Outcome<(Connection, Vec<std::os::fd::OwnedFd>)> {
    let connection = Connection::connect(socket)?;
    let hello = Hello {
        version: wire::VERSION,
        is_registered: false,
        resume: None,
        label: "deaf".into(),
        is_read_only: false,
    };
    connection.send(&wire::encode(&hello)?, &[])?;
    let received = connection.recv(&mut vec![0; wire::MAX_MESSAGE_BYTES])?;
    Ok((connection, received.fds))
}

/// Asks for a long list until the connection is full in both directions.
fn ask_and_never_read(attached: &(Connection, Vec<std::os::fd::OwnedFd>)) -> Outcome<()> {
    let (connection, _) = attached;
    connection.set_blocking(Blocking::Never)?;
    let list = wire::encode(&Numbered { number: 1, body: Request::List(None) })?;
    loop {
        match connection.send(&list, &[]) {
            Ok(()) => {}
            Err(TransferError::WouldBlock | TransferError::Closed) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}
