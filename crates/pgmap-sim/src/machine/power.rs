//! Power failures: what of files had reached its disk.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::SeekFrom;

use super::{Machine, Panicked};

const SECTOR: usize = 512;

impl Machine {
    /// The power fails: what was not synced of the files in these directories is as it may be, and
    /// everybody is gone.
    pub fn lose_power(&self, directories: &[&Path]) -> Result<(), Panicked> {
        self.kill_all()?;
        self.boot.set(self.boot.get() + 1);
        let nr_names = self.names.borrow().len() as u64;
        if nr_names > 0 {
            let nr_kept = self.below(nr_names + 1);
            let lost = self.names.borrow_mut().lose(nr_kept as usize);
            lost.iter().for_each(|lost| self.note(|| format!("  lost: {lost}")));
        }
        let listed = directories.iter().filter_map(|directory| std::fs::read_dir(directory).ok());
        for file in listed.flatten().flatten() {
            if file.file_type().is_ok_and(|kind| kind.is_file()) {
                // What cannot be read has nothing to lose.
                let _ = self.tear(&file.path());
            }
        }
        self.note(|| "power failure".to_owned());
        Ok(())
    }

    /// Leaves of each sector either what was synced or what was written since.
    fn tear(&self, path: &Path) -> std::io::Result<()> {
        let file = File::options().read(true).write(true).open(path)?;
        let (mut now, inode) = (contents_of(&file)?, file.metadata()?.ino());
        let durable = self.books.borrow().durable.get(&inode).cloned().unwrap_or_default();
        for start in (0..now.len()).step_by(SECTOR) {
            let end = (start + SECTOR).min(now.len());
            let mut old = [0; SECTOR];
            if let Some(synced) = durable.get(start..) {
                let len = synced.len().min(end - start);
                old[..len].copy_from_slice(&synced[..len]);
            }
            if now[start..end] != old[..end - start] && self.below(2) == 0 {
                now[start..end].copy_from_slice(&old[..end - start]);
                file.write_all_at(&now[start..end], start as u64)?;
            }
        }
        // What a disk shows after a power failure it goes on to show.
        self.books.borrow_mut().durable.insert(inode, now);
        Ok(())
    }

    /// All of a file has reached its disk.
    pub(super) fn note_synced(&self, file: &File) -> std::io::Result<()> {
        let bytes = contents_of(file)?;
        self.books.borrow_mut().durable.insert(file.metadata()?.ino(), bytes);
        Ok(())
    }
}

/// All bytes of a file, of whose holes nothing is read.
fn contents_of(file: &File) -> std::io::Result<Vec<u8>> {
    let len = file.metadata()?.len();
    let mut bytes = vec![0; len as usize];
    let mut at = 0;
    while at < len {
        // An error says that there are only holes from there on.
        let Ok(start) = rustix::fs::seek(file, SeekFrom::Data(at)) else { break };
        at = rustix::fs::seek(file, SeekFrom::Hole(start))?.min(len);
        file.read_exact_at(&mut bytes[start as usize..at as usize], start)?;
    }
    Ok(bytes)
}
