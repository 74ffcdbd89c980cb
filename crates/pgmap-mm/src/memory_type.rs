//! What kind of memory a pagemap describes.

use core::fmt;

/// The kinds of device memory, numbered as the kernel numbers them; 0 stays reserved for "not said"
/// (Linux 7.1: include/linux/memremap.h, enum `memory_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum MemoryType {
    /// A processor cannot touch it: a touch brings the bytes back first (`MEMORY_DEVICE_PRIVATE`).
    Private = 1,
    /// A device's memory that a processor may touch (`MEMORY_DEVICE_COHERENT`).
    Coherent = 2,
    /// Blocks of named files (`MEMORY_DEVICE_FS_DAX`).
    FsDax = 3,
    /// One range without files, as device-dax (`MEMORY_DEVICE_GENERIC`).
    Generic = 4,
    /// What devices read and write among themselves (`MEMORY_DEVICE_PCI_P2PDMA`).
    P2pDma = 5,
}

impl MemoryType {
    /// Every type, in numeric order.
    pub const ALL: [Self; 5] =
        [Self::Private, Self::Coherent, Self::FsDax, Self::Generic, Self::P2pDma];

    /// The type with this number. The kernel warns of an unknown one and goes on; here there is
    /// none.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Private),
            2 => Some(Self::Coherent),
            3 => Some(Self::FsDax),
            4 => Some(Self::Generic),
            5 => Some(Self::P2pDma),
            _ => None,
        }
    }

    /// 1 to 5.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The name in lower case, as tools print and read it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Private => "private",
            Self::Coherent => "coherent",
            Self::FsDax => "fsdax",
            Self::Generic => "generic",
            Self::P2pDma => "p2pdma",
        }
    }
}

impl fmt::Display for MemoryType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_kernels_and_zero_is_none() {
        for (index, memory_type) in MemoryType::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(memory_type.number()), index + 1);
            assert_eq!(MemoryType::from_number(memory_type.number()), Some(memory_type));
        }
        assert_eq!(MemoryType::from_number(0), None);
        assert_eq!(MemoryType::from_number(6), None);
    }
}
