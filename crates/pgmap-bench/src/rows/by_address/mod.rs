//! The rows of address spaces: translate, pin and map by address, beside floors and rivals.
//!
//! Each group is a scenario. Groups are measured together, each beside floors of its own, so that a
//! ratio compares what ran within moments of each other. A *region* is what rivals know: for them
//! it is an entry of their map; here it is one or two areas, each a file with an extent of its own.

pub mod base_page;
pub mod churn;
pub mod fill;
pub mod hot;
pub mod library;
pub mod long;
pub mod metadata;
pub mod range;
pub mod remap;
pub mod short;
pub mod translate;
pub mod world;

use std::sync::Arc;

use pgmap::mm::level::Level;

use self::library::Library;
use self::world::{Cut, Shape, World};
use crate::failure::Failure;
use crate::harness::{Row, Scale, Scenario};
use crate::rivals::vm_memory;
use crate::rows::SPACE_BYTES;
use crate::rows::floor::{Tree, f_name};

/// A group that can be built.
pub struct Group {
    /// What people call it.
    pub key: char,
    /// What it measures.
    pub title: &'static str,
    /// Builds it.
    pub build: fn(&mut Stage) -> Result<Scenario, Failure>,
}

/// Every group, in the order in which they run.
pub const GROUPS: &[Group] = &[
    Group { key: 'A', title: "translate in a read section", build: translate::scenario },
    Group { key: 'B', title: "short pin + unpin", build: short::scenario },
    Group { key: 'C', title: "long pin + unpin", build: long::scenario },
    Group { key: 'D', title: "one hot folio", build: hot::scenario },
    Group { key: 'E', title: "ranges", build: range::scenario },
    Group { key: 'F', title: "4 KiB leaves", build: base_page::scenario },
    Group { key: 'G', title: "remap one leaf", build: remap::scenario },
    Group { key: 'H', title: "short pins under remapping", build: churn::scenario },
    Group { key: 'J', title: "map and fill 1 TiB", build: fill::scenario },
];

/// The key of the figures that are counted, not timed.
pub const METADATA_KEY: char = 'I';
/// What they are.
pub const METADATA_TITLE: &str = "metadata per TiB";

/// What groups share, made when it is first wanted.
pub struct Stage {
    pub scale: Scale,
    /// Numbers of threads for the groups that vary them, each once and in order.
    pub threads: Vec<usize>,
    tree: Option<Arc<Tree>>,
    worlds: Vec<(Shape, Arc<World>)>,
    maps: Vec<(u64, vm_memory::Map)>,
    libraries: Vec<(u64, Arc<Library>)>,
}

impl Stage {
    /// An empty stage.
    pub fn new(scale: Scale, mut threads: Vec<usize>) -> Self {
        threads.sort_unstable();
        threads.dedup();
        let (worlds, maps, libraries) = (Vec::new(), Vec::new(), Vec::new());
        Self { scale, threads, tree: None, worlds, maps, libraries }
    }

    /// Numbers of regions.
    pub const fn regions(&self) -> &'static [u64] {
        match self.scale {
            Scale::Full => &[1, 16, 1024, 16384],
            Scale::Small => &[1, 16],
        }
    }

    /// Numbers of regions of which one can change while the others stay.
    pub const fn many_regions(&self) -> &'static [u64] {
        match self.scale {
            Scale::Full => &[16, 1024, 16384],
            Scale::Small => &[16],
        }
    }

    /// The floors' tree.
    pub fn tree(&mut self) -> Result<Arc<Tree>, Failure> {
        if let Some(tree) = &self.tree {
            return Ok(Arc::clone(tree));
        }
        let tree = Tree::new()?;
        self.tree = Some(Arc::clone(&tree));
        Ok(tree)
    }

    /// The space mapped by 2 MiB leaves in `nr_regions` regions, the first leaf of each apart.
    pub fn world(&mut self, nr_regions: u64) -> Result<Arc<World>, Failure> {
        let cut = Cut::FirstLeafApart;
        self.world_of(Shape { bytes: SPACE_BYTES, leaf: Level::Pmd, nr_regions, cut })
    }

    /// A world of this shape.
    pub fn world_of(&mut self, shape: Shape) -> Result<Arc<World>, Failure> {
        if let Some((_, world)) = self.worlds.iter().find(|(known, _)| *known == shape) {
            return Ok(Arc::clone(world));
        }
        let world = World::new(shape)?;
        self.worlds.push((shape, Arc::clone(&world)));
        Ok(world)
    }

    /// The library's address space of so many regions.
    pub fn library(&mut self, nr_regions: u64) -> Result<Arc<Library>, Failure> {
        if let Some((_, library)) = self.libraries.iter().find(|(known, _)| *known == nr_regions) {
            return Ok(Arc::clone(library));
        }
        let library = Library::new(nr_regions)?;
        self.libraries.push((nr_regions, Arc::clone(&library)));
        Ok(library)
    }

    /// vm-memory's map of so many regions.
    pub fn map(&mut self, n: u64) -> Result<vm_memory::Map, Failure> {
        if let Some((_, map)) = self.maps.iter().find(|(known, _)| *known == n) {
            return Ok(Arc::clone(map));
        }
        let map = vm_memory::map(n)?;
        self.maps.push((n, Arc::clone(&map)));
        Ok(map)
    }
}

/// The row on so many threads, compared to F on as many.
fn to_f(row: Row, nr_threads: usize) -> Row {
    row.on_threads(nr_threads).against(&f_name(nr_threads))
}
