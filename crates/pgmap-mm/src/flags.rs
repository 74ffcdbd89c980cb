//! Sets of flags: the methods that each type of this crate has that is one.

/// Gives a type over an integer the methods of a set of flags. `bitflags` would do the same, and be
/// the crate's only dependency at run time.
macro_rules! flag_set {
    ($type:ident) => {
        impl $type {
            /// Both sets of flags.
            #[inline]
            #[must_use]
            pub const fn with(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            /// Without those of `other`.
            #[inline]
            #[must_use]
            pub const fn without(self, other: Self) -> Self {
                Self(self.0 & !other.0)
            }

            /// True if all flags of `other` are set.
            #[inline]
            #[must_use]
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }
        }
    };
}

pub(crate) use flag_set;
