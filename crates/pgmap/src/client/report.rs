//! What a client asks about files and the pool: stat, list, who.

use crate::client::{Client, unexpected};
use crate::error::Error;
use crate::name::{Escaped, FileName};
use crate::refusal::{HolderList, Refusal};
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

    /// Why a file cannot be pinned whose frames are not as the index says: the owner may know.
    #[cold]
    pub(super) fn why_changing(&self, name: &[u8]) -> Error {
        let asked = self.look_up(name).and_then(|entry| self.call(Request::Locate(entry.id.0)));
        match asked {
            Err(error @ Error::Refused(Refusal::InUse { .. })) => error,
            _ => {
                let doing = "changed again and again".into();
                Refusal::InUse { name: Escaped(name).to_string(), doing }.into()
            }
        }
    }

    /// Describes every file, in the order of their names. Files that come and go meanwhile may or
    /// may not be among them.
    ///
    /// # Errors
    /// [`Error::OwnerGone`].
    pub fn list(&self) -> Result<Vec<FileInfo>, Error> {
        self.list_pages(Vec::new(), None, |_| true)
    }

    /// As [`list`](Self::list), of the files whose names begin with `prefix`: a call for every 100
    /// of them, however many others there are.
    ///
    /// # Errors
    /// [`Error::OwnerGone`].
    pub fn list_prefix(&self, prefix: impl AsRef<[u8]>) -> Result<Vec<FileInfo>, Error> {
        let prefix = prefix.as_ref();
        // A name that begins with what is no name is none either.
        let Ok(first) = FileName::new(prefix) else {
            return if prefix.is_empty() { self.list() } else { Ok(Vec::new()) };
        };
        let found = match self.stat(prefix) {
            Err(Error::Refused(Refusal::NotFound { .. })) => Vec::new(),
            found => vec![found?],
        };
        self.list_pages(found, Some(first), |name| name.as_bytes().starts_with(prefix))
    }

    /// Adds the files after the name `after` to `files`, up to the first that is not wanted.
    fn list_pages(
        &self,
        mut files: Vec<FileInfo>,
        mut after: Option<FileName>,
        is_wanted: impl Fn(&FileName) -> bool,
    ) -> Result<Vec<FileInfo>, Error> {
        loop {
            match self.call(Request::List(after))? {
                Reply::List(page) => {
                    let is_last = page.len() < MAX_LIST;
                    let nr_before = files.len();
                    let nr_of_page = page.len();
                    files.extend(page.into_iter().take_while(|file| is_wanted(&file.name)));
                    if is_last || files.len() < nr_before + nr_of_page {
                        return Ok(files);
                    }
                }
                reply => return Err(unexpected(&reply)),
            }
            after = files.last().map(|file| file.name.clone());
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

    /// Who holds a file.
    ///
    /// # Errors
    /// [`Refusal::NotFound`] as [`Error::Refused`].
    pub fn who(&self, name: impl AsRef<[u8]>) -> Result<HolderList, Error> {
        self.ask_who(Some(FileName::new(name)?))
    }

    /// Who holds any frame of the pool.
    ///
    /// # Errors
    /// [`Error::OwnerGone`].
    pub fn who_all(&self) -> Result<HolderList, Error> {
        self.ask_who(None)
    }

    fn ask_who(&self, name: Option<FileName>) -> Result<HolderList, Error> {
        match self.call(Request::Who(name))? {
            Reply::Who(holders, is_cut) => Ok(HolderList { holders, is_cut }),
            reply => Err(unexpected(&reply)),
        }
    }
}
