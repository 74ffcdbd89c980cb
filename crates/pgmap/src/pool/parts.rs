//! The files of a pool: made as long as they must be, and checked against the catalog.

use std::path::Path;
use std::sync::Arc;

use pgmap_os::{FileAccess, MemoryFile, MemoryKind, ParentFd};

use crate::error::Error;
use crate::pool::catalog::header::is_catalog;
use crate::pool::catalog::{Catalog, Head, StoredPool};
use crate::pool::directory::{CATALOG, DATA, Directory, INDEX, VMEMMAP, kind_of, remove_file};
use crate::pool::identity::{FileKind, PoolId, Seal};
use crate::pool::mark::{FoundMark, Mark};
use crate::pool::on::{self, DataSource, On};
use crate::pool::{Layout, bad, options, pool_name};

fn data_kind(stored: &StoredPool) -> FileKind {
    if stored.head == Head::Nothing { FileKind::Data } else { FileKind::DataWithHead }
}

/// Makes a pool's data, in its directory or elsewhere, and locks it there.
pub(super) fn create_data(
    directory: &Directory,
    id: PoolId,
    ground: Option<DataSource>,
    size_bytes: u64,
) -> Result<(MemoryFile, Option<ParentFd>), Error> {
    let (data, lock) = match ground {
        Some(ground) => {
            let (path, data) = ground.make()?;
            let lock = on::lock(&path, &data)?;
            On { id, path }.write(directory)?;
            (data, Some(lock))
        }
        None => (MemoryFile::create_named(&directory.file(DATA), 0)?, None),
    };
    check_memory(&pool_name(Some(directory.path())), &data, size_bytes)?;
    if lock.is_some() {
        data.check_capacity(size_bytes)?;
    }
    Ok((data, lock))
}

/// Makes a pool's data as long as it must be, with its seal.
pub(super) fn give_length(id: PoolId, data: &MemoryFile, stored: &StoredPool) -> Result<(), Error> {
    let len_bytes = stored.capacity_bytes;
    match data.kind() {
        MemoryKind::DevDax => Ok(()),
        MemoryKind::Hugetlb => {
            Ok(data.set_len(len_bytes.next_multiple_of(data.page_size().len_bytes()))?)
        }
        _ => {
            data.set_len(len_bytes)?;
            Seal { id, kind: data_kind(stored), len_bytes }.write(data)
        }
    }
}

/// Refuses a pool that this process would be killed for, before anything of it is used.
pub(crate) fn check_memory(name: &str, data: &MemoryFile, size_bytes: u64) -> Result<(), Error> {
    // What lies on a disk can be dropped from memory, and huge pages are counted elsewhere.
    if data.kind() != MemoryKind::Shmem {
        return Ok(());
    }
    match pgmap_os::memory_limit()? {
        Some(limit) if size_bytes > limit.len_bytes => Err(Error::BadPool {
            pool: name.into(),
            why: format!(
                "{size_bytes} bytes of memory are more than this process may have, {} bytes by {}; \
                 make it smaller, or raise that limit",
                limit.len_bytes,
                limit.path.display()
            ),
        }),
        _ => Ok(()),
    }
}

/// Makes a file of what the catalog says in another form, in the place of an earlier one.
fn derived(directory: &Directory, name: &str, seal: Seal) -> Result<Arc<MemoryFile>, Error> {
    let path = directory.file(name);
    remove_file(&path)?;
    let file = MemoryFile::create_named(&path, Seal::file_bytes(seal.len_bytes))?;
    seal.write(&file)?;
    Ok(Arc::new(file))
}

/// Opens a file that live clients have mapped.
fn kept(directory: &Directory, name: &str, seal: Seal) -> Result<Arc<MemoryFile>, Error> {
    let file = MemoryFile::open_named(&directory.file(name), FileAccess::ReadWrite)?;
    if Seal::read(&file)? != Some(seal) {
        let why = format!(
            "its {name} is damaged or another pool's, and clients use it; end them, then it is \
             made again"
        );
        return Err(bad(directory.path(), why));
    }
    Ok(Arc::new(file))
}

/// Refuses to replace a file of another pool.
fn check_replaceable(directory: &Directory, id: PoolId, name: &str) -> Result<(), Error> {
    let path = directory.file(name);
    if kind_of(&path)?.is_none() {
        return Ok(());
    }
    match Seal::read(&MemoryFile::open_named(&path, FileAccess::ReadOnly)?)? {
        Some(seal) if seal.id != id => {
            let why = format!("its {name} belongs to pool {}, its catalog to pool {id}", seal.id);
            Err(bad(directory.path(), why))
        }
        _ => Ok(()),
    }
}

/// Refuses data that is not the catalog's, or not all of it.
pub(super) fn check_data(
    directory: &Directory,
    id: PoolId,
    stored: &StoredPool,
    data: &MemoryFile,
) -> Result<(), Error> {
    if stored.head != Head::Nothing && kind_of(&directory.file(CATALOG))?.is_some() {
        let why = "its catalog lies in its data, and there is a file `catalog` beside that, which \
                   is not its own; move that away";
        return Err(bad(directory.path(), why));
    }
    let page = options::level_of(data.page_size());
    if page != stored.page {
        let why = format!(
            "its data is on {}, whose pages have {} bytes now, and was made on pages of {}; give \
             the device its old alignment back (ndctl create-namespace --align)",
            data.name(),
            page.size_bytes(),
            stored.page.size_bytes()
        );
        return Err(bad(directory.path(), why));
    }
    if !on::has_seal(data) {
        // The catalog is in the data itself.
        let (has, needed) = (data.len_bytes(), stored.capacity_bytes);
        let why = format!("its data, {}, is cut off: it has {has} bytes of {needed}", data.name());
        return if has < needed { Err(bad(directory.path(), why)) } else { Ok(()) };
    }
    let wanted = Seal { id, kind: data_kind(stored), len_bytes: stored.capacity_bytes };
    let why = match Seal::read(data)? {
        Some(seal) if seal == wanted => return Ok(()),
        Some(seal) if seal.id != id => {
            format!("its data belongs to pool {}, its catalog to pool {id}", seal.id)
        }
        _ => format!(
            "its data, a file of {} bytes, is cut off or damaged: the pool {id} has {} bytes and \
             a seal behind them",
            data.len_bytes(),
            stored.capacity_bytes
        ),
    };
    Err(bad(directory.path(), why))
}

/// Refuses a catalog and data of which one is an old copy.
pub(super) fn check_mark(
    directory: &Directory,
    catalog: &Catalog,
    data: &MemoryFile,
) -> Result<(), Error> {
    if !on::has_seal(data) {
        return Ok(());
    }
    let damaged = || "the mark behind its data is damaged".to_owned();
    let why = match Mark::read(data, catalog.id())? {
        FoundMark::Mark { mark, is_alone, .. } => {
            let mismatch = mark.mismatch(catalog.state());
            mismatch.map(|why| if is_alone { damaged() } else { why })
        }
        FoundMark::None => None,
        FoundMark::Damaged => Some(damaged()),
    };
    why.map_or(Ok(()), |why| Err(bad(directory.path(), why)))
}

/// Whether a data file has a catalog at its head. What lies there in other data is a file's, and
/// may look like one.
pub(crate) fn has_head(path: &Path) -> Result<bool, Error> {
    match kind_of(path)? {
        Some(kind) if kind.is_file() => {}
        _ => return Ok(false),
    }
    let data = MemoryFile::open_named(path, FileAccess::ReadOnly)?;
    let is_sealed = !on::has_seal(&data)
        || match Seal::read(&data)? {
            Some(seal) => seal.kind == FileKind::DataWithHead,
            // Before format 2 there were no seals.
            _ => true,
        };
    Ok(is_sealed && is_catalog(&data)?)
}

/// Opens what the catalog says in another form: as clients that live have it mapped, else made
/// again.
pub(super) fn derived_files(
    directory: &Directory,
    id: PoolId,
    layout: &Layout,
    data: &Arc<MemoryFile>,
    has_live_client: bool,
) -> Result<(Arc<MemoryFile>, Arc<MemoryFile>), Error> {
    let open = |name, kind, len_bytes| {
        let seal = Seal { id, kind, len_bytes };
        if has_live_client {
            return kept(directory, name, seal);
        }
        check_replaceable(directory, id, name)?;
        derived(directory, name, seal)
    };
    let vmemmap = match layout.vmemmap_start() {
        Some(start) if !has_live_client => {
            data.clear(start..start + layout.vmemmap_bytes())?;
            Arc::clone(data)
        }
        Some(_) => Arc::clone(data),
        None => open(VMEMMAP, FileKind::Vmemmap, layout.vmemmap_bytes())?,
    };
    let index = open(INDEX, FileKind::Index, layout.index_bytes())?;
    Ok((vmemmap, index))
}
