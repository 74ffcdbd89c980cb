//! Sizes of folios, as they are written on the command line.

use clap::ValueEnum;
use pgmap::mm::level::Level;

/// Sizes of folios.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum FolioLevel {
    /// 4 KiB
    #[value(name = "4K", alias = "4KiB")]
    Of4K,
    /// 2 MiB
    #[value(name = "2M", alias = "2MiB")]
    Of2M,
    /// 1 GiB
    #[value(name = "1G", alias = "1GiB")]
    Of1G,
}

impl From<FolioLevel> for Level {
    fn from(level: FolioLevel) -> Self {
        match level {
            FolioLevel::Of4K => Self::Pte,
            FolioLevel::Of2M => Self::Pmd,
            FolioLevel::Of1G => Self::Pud,
        }
    }
}
