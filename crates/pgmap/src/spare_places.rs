//! How kinds of spares share the places that there are for those of one client.
//!
//! A program may put files of several sizes in turns. Were each to take the places of what was put
//! before it, none would find its own spares again. So where places are short the kind that has
//! most of them gives one up, and a kind that would have most itself gets none.

/// Spares of one kind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SpareShare {
    pub nr: usize,
    pub len_bytes: u64,
}

/// How much of what is limited a kind has.
type Amount = fn(SpareShare) -> u64;

impl SpareShare {
    const fn number(self) -> u64 {
        self.nr as u64
    }

    const fn bytes(self) -> u64 {
        (self.nr as u64).saturating_mul(self.len_bytes)
    }
}

/// Most spares of all kinds together, and most bytes of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SparePlaces {
    pub nr: usize,
    pub bytes: u64,
}

impl SparePlaces {
    /// Which of the kinds `others` give up a spare each, in order, so that one that has `own` can
    /// have one more; `None` if it cannot. Of several that have most the first gives.
    pub(crate) fn for_one_more(
        self,
        own: SpareShare,
        others: impl Iterator<Item = SpareShare> + Clone,
    ) -> Option<Vec<usize>> {
        let own = SpareShare { nr: own.nr + 1, ..own };
        let limits: [(u64, Amount); 2] =
            [(self.nr as u64, SpareShare::number), (self.bytes, SpareShare::bytes)];
        let is_free = |&(most, amount): &(u64, Amount)| {
            others.clone().map(amount).fold(amount(own), u64::saturating_add) <= most
        };
        if limits.iter().all(is_free) {
            return Some(Vec::new());
        }
        let (mut others, mut giving) = (others.collect::<Vec<_>>(), Vec::new());
        for (most, amount) in limits {
            let own = amount(own);
            while others.iter().copied().map(amount).fold(own, u64::saturating_add) > most {
                let all = others.iter_mut().enumerate().rev();
                let (nth, largest) = all.max_by_key(|(_, other)| amount(**other))?;
                if amount(*largest) < own {
                    return None;
                }
                largest.nr -= 1;
                giving.push(nth);
            }
        }
        Some(giving)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACES: SparePlaces = SparePlaces { nr: 10, bytes: 100 };

    fn place(own: (usize, u64), others: &[(usize, u64)]) -> Option<Vec<usize>> {
        let share = |(nr, len_bytes): (usize, u64)| SpareShare { nr, len_bytes };
        PLACES.for_one_more(share(own), others.iter().copied().map(share))
    }

    #[test]
    fn the_kind_with_most_gives_and_gets_none() {
        assert_eq!(place((9, 10), &[]), Some(vec![]));
        assert_eq!(place((10, 1), &[]), None, "too many");
        assert_eq!(place((9, 11), &[]), None, "too many bytes");
        assert_eq!(place((0, 101), &[]), None, "too long");
        assert_eq!(place((3, 1), &[(1, 1), (6, 1)]), Some(vec![1]));
        assert_eq!(place((4, 1), &[(5, 1), (1, 1)]), Some(vec![0]), "five each in the end");
        assert_eq!(place((5, 1), &[(5, 1)]), None);
        assert_eq!(place((2, 10), &[(2, 40)]), Some(vec![0]), "by bytes, not by number");
        assert_eq!(place((0, 50), &[(3, 30)]), Some(vec![0, 0]), "several for a large one");
        assert_eq!(place((1, 40), &[(3, 10), (3, 10)]), None);
        assert_eq!(place((0, 1), &[(5, 1), (5, 1)]), Some(vec![0]), "the first of them");
        assert_eq!(place((0, u64::MAX), &[(5, u64::MAX)]), None, "of any length");
    }

    /// One of the smaller kind was given up for the number, and then there was no place for the
    /// bytes.
    #[test]
    fn none_gives_for_one_that_has_no_place_in_the_end() {
        assert_eq!(place((3, 24), &[(7, 3)]), None);
    }
}
