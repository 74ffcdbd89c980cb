//! The initial file system's format: cpio's "newc", as the kernel's documentation of initramfs
//! buffers describes it. Written here so that nothing needs root and nothing is copied twice.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// An archive being written.
#[derive(Debug)]
pub struct Archive {
    file: BufWriter<File>,
    names: BTreeSet<String>,
    nr_entries: u32,
}

impl Archive {
    /// Begins the archive `path`.
    pub fn create(path: &Path) -> io::Result<Archive> {
        let file = BufWriter::new(File::create(path)?);
        Ok(Archive { file, names: BTreeSet::new(), nr_entries: 0 })
    }

    /// Adds a folder, and those that it lies in.
    pub fn directory(&mut self, name: &str) -> io::Result<()> {
        let mut end = 0;
        while let Some(slash) = name.get(end..).and_then(|rest| rest.find('/')) {
            self.entry(&name[..end + slash], DIRECTORY, &[])?;
            end += slash + 1;
        }
        self.entry(name, DIRECTORY, &[])
    }

    /// Adds a file that may be run, and the folders that it lies in. The first of a name stays.
    pub fn file(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        if let Some((folder, _)) = name.rsplit_once('/') {
            self.directory(folder)?;
        }
        self.entry(name, PROGRAM, bytes)
    }

    /// Ends the archive.
    pub fn finish(mut self) -> io::Result<()> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.file.flush()
    }

    fn entry(&mut self, name: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
        if name.is_empty() || !self.names.insert(name.to_owned()) {
            return Ok(());
        }
        self.nr_entries += 1;
        let len = u32::try_from(bytes.len()).map_err(|_| {
            io::Error::other(format!("{name}: {} bytes are more than 4 GiB", bytes.len()))
        })?;
        let name_len = name.len() as u32 + 1;
        // Number, mode, user, group, links, time, length, device twice, device number twice, length
        // of the name, checksum.
        let links = 1 + u32::from(mode == DIRECTORY);
        let fields = [self.nr_entries, mode, 0, 0, links, 0, len, 0, 0, 0, 0, name_len, 0];
        let mut header = b"070701".to_vec();
        for field in fields {
            header.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        header.extend_from_slice(name.as_bytes());
        header.push(0);
        pad(&mut header);
        self.file.write_all(&header)?;
        self.file.write_all(bytes)?;
        let padding = bytes.len().next_multiple_of(4) - bytes.len();
        self.file.write_all(&[0; 4][..padding])
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_follow_the_format_and_folders_come_first() {
        let path = std::env::temp_dir().join(format!("xtask-archive-{}", std::process::id()));
        let mut archive = Archive::create(&path).unwrap();
        archive.file("a/b/c", b"12345").unwrap();
        archive.file("a/b/d", b"").unwrap();
        archive.file("a/b/c", b"not this").unwrap();
        archive.finish().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let mut at = 0;
        let mut seen = Vec::new();
        while at < bytes.len() {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |index: usize| {
                let from = at + 6 + 8 * index;
                let text = std::str::from_utf8(&bytes[from..from + 8]).unwrap();
                usize::from_str_radix(text, 16).unwrap()
            };
            let (len, name_len) = (field(6), field(11));
            let name = &bytes[at + 110..at + 110 + name_len - 1];
            seen.push((String::from_utf8(name.to_vec()).unwrap(), len));
            let data = (at + 110 + name_len).next_multiple_of(4);
            if len == 5 {
                assert_eq!(&bytes[data..data + 5], b"12345");
            }
            at = (data + len).next_multiple_of(4);
        }
        let expected = [("a", 0), ("a/b", 0), ("a/b/c", 5), ("a/b/d", 0), ("TRAILER!!!", 0)];
        assert_eq!(seen, expected.map(|(name, len)| (name.to_owned(), len)));
    }
}
