//! An input, taken apart from its start. Where it ends everything is zero.

/// What is left of an input.
#[derive(Debug)]
pub struct Input<'i>(&'i [u8]);

impl<'i> Input<'i> {
    /// All of `bytes`.
    pub const fn new(bytes: &'i [u8]) -> Self {
        Self(bytes)
    }

    /// Whether nothing is left.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `N` bytes.
    pub fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let (taken, rest) = self.0.split_at(self.0.len().min(N));
        bytes[..taken.len()].copy_from_slice(taken);
        self.0 = rest;
        bytes
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    /// The next two bytes as a number.
    pub fn number16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    /// The next four bytes as a number.
    pub fn number32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    /// The next eight bytes as a number.
    pub fn number64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    /// All that is left.
    pub const fn rest(self) -> &'i [u8] {
        self.0
    }
}
