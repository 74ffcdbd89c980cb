//! The catalog: the truth about allocation that outlives an owner (I10).
//!
//! One redb database in the pool's directory: files by name, and a few numbers. Every change is on
//! record before the world can see what it says, so a killed owner's successor either finds a file
//! whole or not at all. An anonymous pool has no catalog: it ends with its owner.

use std::path::{Path, PathBuf};

use pgmap_mm::extent::Extent;
use pgmap_mm::level::Level;
use pgmap_mm::memory_type::MemoryType;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::name::FileName;
use crate::owner::device_head::CatalogRegion;
use crate::wire::FileRules;

const FILES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("files");
const POISONED: TableDefinition<'_, u64, ()> = TableDefinition::new("poisoned");
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");
const FORMAT: u64 = 1;

/// What was fixed when the pool was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredPool {
    /// Bytes of data.
    pub size_bytes: u64,
    /// Bytes of the data file, which leaves room for more pagemaps.
    pub capacity_bytes: u64,
    /// Files the index has room for.
    pub max_files: u64,
    /// What kind of memory it is.
    pub memory_type: MemoryType,
    /// Whether descriptors and catalog lie at the head of the data.
    pub has_metadata_on_device: bool,
    /// The smallest folio that the head has room to describe; 4 KiB where it is not on the device.
    pub smallest: Level,
}

/// One committed file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFile {
    /// Its number.
    pub id: u64,
    /// Its length in bytes.
    pub len_bytes: u64,
    /// Its folio sizes, as `FolioSize` says.
    pub largest_level: u8,
    /// What may be done with it.
    pub rules: FileRules,
    /// Its frames under their life words.
    pub extents: Vec<[u64; 3]>,
}

impl StoredFile {
    /// The extents; none when the record is damaged.
    pub fn extents(&self) -> Option<Vec<Extent>> {
        self.extents.iter().map(|&words| Extent::from_words(words)).collect()
    }
}

/// One change of the catalog.
#[derive(Debug)]
pub enum Change<'a> {
    /// A file is now this.
    Put(&'a FileName, StoredFile),
    /// A file is gone.
    Delete(&'a FileName),
    /// Stamps below this may be in use.
    StampLimit(u64),
    /// The memory of this frame failed.
    Poisoned(u64),
    /// The memory of this frame was replaced.
    Healthy(u64),
}

/// An open catalog.
#[derive(Debug)]
pub struct Catalog {
    path: PathBuf,
    database: Database,
}

impl Catalog {
    /// Makes a catalog.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn create(path: &Path, pool: &StoredPool) -> Result<(), Error> {
        let database = Database::create(path).map_err(|e| failure(path)(&e))?;
        Self::fill(path, &database, pool)
    }

    /// Makes or opens a catalog in the head of a pool's data.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub(crate) fn on_device(
        region: CatalogRegion,
        pool: Option<&StoredPool>,
    ) -> Result<Self, Error> {
        let path = PathBuf::from("(on the device)");
        let database =
            Database::builder().create_with_backend(region).map_err(|e| failure(&path)(&e))?;
        if let Some(pool) = pool {
            Self::fill(&path, &database, pool)?;
        }
        Ok(Self { path, database })
    }

    fn fill(path: &Path, database: &Database, pool: &StoredPool) -> Result<(), Error> {
        let failed = failure(path);
        let transaction = database.begin_write().map_err(|e| failed(&e))?;
        {
            let mut numbers = transaction.open_table(NUMBERS).map_err(|e| failed(&e))?;
            for (name, value) in [
                ("format", FORMAT),
                ("size_bytes", pool.size_bytes),
                ("capacity_bytes", pool.capacity_bytes),
                ("max_files", pool.max_files),
                ("memory_type", u64::from(pool.memory_type.number())),
            ] {
                numbers.insert(name, value).map_err(|e| failed(&e))?;
            }
            transaction.open_table(FILES).map_err(|e| failed(&e))?;
            transaction.open_table(POISONED).map_err(|e| failed(&e))?;
        }
        transaction.commit().map_err(|e| failed(&e))
    }

    /// Opens a catalog.
    ///
    /// # Errors
    /// [`Error::Catalog`] when it is damaged or of another format.
    pub fn open(path: &Path) -> Result<(Self, StoredPool), Error> {
        let failed = failure(path);
        let database = Database::open(path).map_err(|e| failed(&e))?;
        let catalog = Self { path: path.into(), database };
        let number = |name| {
            catalog.number(name)?.ok_or_else(|| failed(&format!("\"{name}\" is missing in it")))
        };
        let format = number("format")?;
        if format != FORMAT {
            return Err(failed(&format!("format {format}; this version reads {FORMAT}")));
        }
        let memory_type = number("memory_type")?;
        let memory_type = u8::try_from(memory_type).ok().and_then(MemoryType::from_number);
        let pool = StoredPool {
            size_bytes: number("size_bytes")?,
            capacity_bytes: number("capacity_bytes")?,
            max_files: number("max_files")?,
            memory_type: memory_type.ok_or_else(|| failed(&"its memory type is none"))?,
            has_metadata_on_device: false,
            smallest: Level::Pte,
        };
        Ok((catalog, pool))
    }

    fn number(&self, name: &str) -> Result<Option<u64>, Error> {
        let failed = failure(&self.path);
        let transaction = self.database.begin_read().map_err(|e| failed(&e))?;
        let numbers = transaction.open_table(NUMBERS).map_err(|e| failed(&e))?;
        Ok(numbers.get(name).map_err(|e| failed(&e))?.map(|value| value.value()))
    }

    /// The limit that stamps have not passed.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn stamp_limit(&self) -> Result<u64, Error> {
        Ok(self.number("stamp_limit")?.unwrap_or(1))
    }

    /// Every file.
    ///
    /// # Errors
    /// [`Error::Catalog`] when a record cannot be read.
    pub fn files(&self) -> Result<Vec<(FileName, StoredFile)>, Error> {
        let failed = failure(&self.path);
        let transaction = self.database.begin_read().map_err(|e| failed(&e))?;
        let table = transaction.open_table(FILES).map_err(|e| failed(&e))?;
        let mut files = Vec::new();
        for record in table.iter().map_err(|e| failed(&e))? {
            let (name, file) = record.map_err(|e| failed(&e))?;
            let name = FileName::new(name.value())?;
            let file: StoredFile = postcard::from_bytes(file.value())
                .map_err(|e| failed(&format!("the record of \"{name}\": {e}")))?;
            files.push((name, file));
        }
        Ok(files)
    }

    /// Frames whose memory failed.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn poisoned(&self) -> Result<Vec<u64>, Error> {
        let failed = failure(&self.path);
        let transaction = self.database.begin_read().map_err(|e| failed(&e))?;
        let table = transaction.open_table(POISONED).map_err(|e| failed(&e))?;
        let frames = table.iter().map_err(|e| failed(&e))?;
        frames.map(|frame| Ok(frame.map_err(|e| failed(&e))?.0.value())).collect()
    }

    /// Puts `changes` on record, all or none.
    ///
    /// # Errors
    /// [`Error::Catalog`]; nothing is on record then.
    pub fn record(&self, changes: &[Change<'_>]) -> Result<(), Error> {
        let failed = failure(&self.path);
        let transaction = self.database.begin_write().map_err(|e| failed(&e))?;
        {
            let mut files = transaction.open_table(FILES).map_err(|e| failed(&e))?;
            let mut numbers = transaction.open_table(NUMBERS).map_err(|e| failed(&e))?;
            let mut poisoned = transaction.open_table(POISONED).map_err(|e| failed(&e))?;
            for change in changes {
                match change {
                    Change::Put(name, file) => {
                        let bytes = postcard::to_stdvec(file).map_err(|e| failed(&e))?;
                        files.insert(name.as_bytes(), bytes.as_slice()).map_err(|e| failed(&e))?;
                    }
                    Change::Delete(name) => {
                        files.remove(name.as_bytes()).map_err(|e| failed(&e))?;
                    }
                    Change::StampLimit(limit) => {
                        numbers.insert("stamp_limit", limit).map_err(|e| failed(&e))?;
                    }
                    Change::Poisoned(pfn) => {
                        poisoned.insert(pfn, ()).map_err(|e| failed(&e))?;
                    }
                    Change::Healthy(pfn) => {
                        poisoned.remove(pfn).map_err(|e| failed(&e))?;
                    }
                }
            }
        }
        transaction.commit().map_err(|e| failed(&e))
    }
}

fn failure(path: &Path) -> impl Fn(&dyn std::fmt::Display) -> Error + '_ {
    move |why| Error::Catalog { path: path.display().to_string(), why: why.to_string() }
}
