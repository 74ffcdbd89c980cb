//! A client that carries out commands: one a line, one answer each.

use std::path::Path;
use std::time::Duration;

use pgmap::quota::{QuotaLimits, QuotaOf};
use pgmap::{Agent, Client, CreateSpec, Error, File, FileName, FilePin, FileWriter, FolioSize};

use super::{block, commands, put, say};

/// Connects to the owner at `socket` and obeys until the parent closes the pipe.
pub fn run(socket: &Path) -> ! {
    let client = Client::connect(socket).unwrap();
    say("ok");
    let mut held =
        Held { client: &client, files: Vec::new(), pins: Vec::new(), writers: Vec::new() };
    for line in commands() {
        let words: Vec<&str> = line.split(' ').collect();
        match held.obey(&words) {
            Ok(answer) => say(answer),
            Err(error) => say(format!("err {} {error}", error.errno())),
        }
    }
    drop(held);
    drop(client);
    std::process::exit(0);
}

struct Held<'c> {
    client: &'c Client,
    files: Vec<File<'c>>,
    pins: Vec<FilePin<'c>>,
    writers: Vec<FileWriter<'c>>,
}

impl Held<'_> {
    fn obey(&mut self, words: &[&str]) -> Result<String, Error> {
        let ok = || Ok("ok".to_owned());
        let number = |at: usize| words[at].parse::<u64>().unwrap();
        match words[0] {
            "put" => put(self.client, words[1], &block::make(number(2), number(3) as usize))?,
            "put-once" => {
                let bytes = block::make(number(2), number(3) as usize);
                self.client.put(spec(words[1], number(3)), &bytes)?;
            }
            "write-ahead" => {
                let len = number(3);
                let mut writer = self.client.create_ahead(spec(words[1], len))?;
                writer
                    .write_all_at(0, &block::make(number(2), len as usize)[..len as usize / 2])?;
                self.writers.push(writer);
            }
            "get" => return Ok(generation(&self.client.get(words[1])?)),
            "open" => self.files.push(self.client.open(words[1])?),
            "pin-opened" => {
                let pin = self.files.last().unwrap().pin_all()?;
                return Ok(generation(&pin));
            }
            "pin" => self.pins.push(self.client.get(words[1])?),
            "pin-longterm" | "pin-device" => {
                let file = self.client.open(words[1])?;
                let len = file.len_bytes();
                let pin = match words[0] {
                    "pin-longterm" => file.pin_longterm(0..len)?,
                    _ => file.pin_for_device(0..len)?,
                };
                self.pins.push(pin);
            }
            "verify" => return Ok(generation(self.pins.last().unwrap())),
            "wanted" => return Ok(self.pins.last().unwrap().is_reclaim_requested().to_string()),
            "drop" => self.pins.clear(),
            "write" | "write-device" => {
                let len = number(3);
                let mut writer = self.client.create(words[1], len, FolioSize::BestFit)?;
                if words[0] == "write-device" {
                    writer.set_agent(Agent::Device);
                }
                writer
                    .write_all_at(0, &block::make(number(2), len as usize)[..len as usize / 2])?;
                self.writers.push(writer);
            }
            "commit" => self.writers.pop().unwrap().commit()?,
            "unlink" => self.client.unlink(words[1])?,
            "truncate" => {
                self.client.truncate(words[1], number(2), Duration::from_millis(number(3)))?
            }
            "stat" => return Ok(format!("{} bytes", self.client.stat(words[1])?.len_bytes)),
            "quota" => {
                let of = QuotaOf::Prefix(FileName::new(words[1]).unwrap());
                self.client.set_quota(of, QuotaLimits::new().files(1))?;
            }
            "id" => return Ok(self.client.id().to_string()),
            "clients" => return Ok(self.client.pool_stat()?.nr_clients.to_string()),
            "draining" => return Ok(self.client.pool_stat()?.draining_bytes.to_string()),
            other => panic!("no such command: {other}"),
        }
        ok()
    }
}

fn spec(name: &str, len_bytes: u64) -> CreateSpec {
    CreateSpec::new(FileName::new(name).unwrap(), len_bytes, FolioSize::BestFit)
}

fn generation(pin: &FilePin<'_>) -> String {
    match block::check(&pin.to_vec().unwrap()) {
        Ok(generation) => format!("generation {generation}"),
        Err(wrong) => wrong,
    }
}
