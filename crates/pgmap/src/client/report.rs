//! What a client asks about files and the pool: stat, list, who.

use crate::client::{Client, unexpected};
use crate::error::Error;
use crate::name::FileName;
use crate::refusal::Holder;
use crate::wire::{FileInfo, MAX_LIST, PoolInfo, Reply, Request};

impl Client {
    /// Describes a file.
    ///
    /// # Errors
    /// [`Refusal::NotFound`] as [`Error::Refused`].
    pub fn stat(&self, name: impl AsRef<[u8]>) -> Result<FileInfo, Error> {
        match self.call(Request::Stat(FileName::new(name)?))? {
            Reply::Stat(info) => Ok(info),
            reply => Err(unexpected(&reply)),
        }
    }

    /// Describes every file, in the order of their names. Files that come and go meanwhile may or
    /// may not be among them.
    ///
    /// # Errors
    /// [`Error::OwnerGone`].
    pub fn list(&self) -> Result<Vec<FileInfo>, Error> {
        let mut files: Vec<FileInfo> = Vec::new();
        loop {
            let after = files.last().map(|file| file.name.clone());
            match self.call(Request::List(after))? {
                Reply::List(page) => {
                    let is_last = page.len() < MAX_LIST;
                    files.extend(page);
                    if is_last {
                        return Ok(files);
                    }
                }
                reply => return Err(unexpected(&reply)),
            }
        }
    }

    /// Describes the pool.
    ///
    /// # Errors
    /// [`Error::OwnerGone`].
    pub fn pool_stat(&self) -> Result<PoolInfo, Error> {
        match self.call(Request::PoolStat)? {
            Reply::PoolStat(info) => Ok(info),
            reply => Err(unexpected(&reply)),
        }
    }

    /// Who holds a file, or any frame of the pool. The flag says that there are more than the
    /// answer names.
    ///
    /// # Errors
    /// [`Refusal::NotFound`] as [`Error::Refused`].
    pub fn who(&self, name: Option<&[u8]>) -> Result<(Vec<Holder>, bool), Error> {
        let name = name.map(FileName::new).transpose()?;
        match self.call(Request::Who(name))? {
            Reply::Who(holders, is_cut) => Ok((holders, is_cut)),
            reply => Err(unexpected(&reply)),
        }
    }
}
