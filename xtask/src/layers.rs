//! Who may use whom. The one table to edit when a module or a crate is added.

/// The modules of pgmap-mm, lowest first: layers from the bottom up, and in each layer its modules
/// in order. A module may name itself, modules that stand earlier in its own layer, and every
/// module of a lower layer.
///
/// To add a module, put its name where its meaning stands: after everything it builds on.
pub const MM_LAYERS: &[(&str, &[&str])] = &[
    ("atomics", &["sync", "barrier", "words"]),
    (
        "values",
        &[
            "flags",
            "level",
            "pfn",
            "prot",
            "memory_type",
            "stamp",
            "descriptor",
            "extent",
            "runs",
            "error",
        ],
    ),
    ("metadata", &["vmemmap", "ledger", "index", "used", "frames", "folio", "split", "pagemap"]),
    ("holds", &["drain", "pin", "longterm"]),
    ("translation", &["page_table", "vma", "mm"]),
    ("access", &["fault", "gup", "holder", "admission", "lease"]),
    ("trouble", &["memory_failure"]),
];

/// The modules of pgmap, lowest first, as those of pgmap-mm. What stores a pool is in `pool`; an
/// owner may use a client of its own, and a client reaches an owner in the same process by the
/// trait `client::local::LocalOwner`.
pub const PGMAP_LAYERS: &[(&str, &[&str])] = &[
    (
        "values",
        &["deadline", "refusal", "error", "byte_strings", "name", "metadata", "spare_places"],
    ),
    ("messages", &["wire"]),
    ("memory", &["memory", "device_watch"]),
    ("storage", &["pool"]),
    ("access", &["client", "space"]),
    ("service", &["owner"]),
];

/// For each crate folder, the paths its code must not name. An entry that ends in `::` is a path
/// prefix, any other a word.
pub const FOREIGN_NAMES: &[(&str, &[&str])] = &[
    ("crates/pgmap-mm/", &["pgmap_os", "pgmap::", "pgmap_cli", "pgmap_bench"]),
    ("crates/pgmap-os/", &["pgmap_mm", "pgmap::", "pgmap_cli", "pgmap_bench"]),
    ("crates/pgmap/", &["pgmap_cli", "pgmap_bench"]),
    ("crates/pgmap-c/", &["pgmap_mm", "pgmap_os", "pgmap_cli", "pgmap_bench"]),
    ("crates/pgmap-py/", &["pgmap_mm", "pgmap_os", "pgmap_bench"]),
    ("crates/pgmap-bench/", &["pgmap_cli"]),
];
