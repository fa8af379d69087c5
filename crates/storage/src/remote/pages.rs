//! Whether a listing goes on.
//!
//! A listing comes in pages, and the service says where the next one begins. Nothing makes it end but the service's word, so
//! that is watched here: a place that comes again is a circle (found after at most three rounds of it, with one place
//! kept), pages on which nothing stands may follow each other so often, and no honest place has more objects than
//! [`OBJECTS`].

use super::failure::Failure;

/// More objects than any place has: at 16 MiB each they would be 1.6 PB.
const OBJECTS: u64 = 100_000_000;
/// So many pages in a row may be empty. Azure gives such where many objects were deleted.
const EMPTY: u32 = 1000;

/// The pages of one listing.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    seen: u64,
    /// Where page number `kept_at` began, a power of two.
    kept: String,
    kept_at: u64,
    objects: u64,
    empty: u32,
}

impl Pages {
    /// Notes where the next page begins, and how many objects came so far.
    pub fn next(&mut self, from: &str, objects: u64) -> Result<(), Failure> {
        self.empty = if objects > self.objects { 0 } else { self.empty + 1 };
        self.objects = objects;
        if self.empty > EMPTY || objects > OBJECTS {
            return Err(Failure::nonsense("A listing that does not end"));
        }
        if self.seen > 0 && self.kept == from {
            return Err(Failure::nonsense("A listing that goes in circles"));
        }
        self.seen += 1;
        if self.seen >= self.kept_at.saturating_mul(2) {
            from.clone_into(&mut self.kept);
            self.kept_at = self.seen;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn circles_of_any_length_are_found_and_long_listings_are_not_circles() {
        for (lead, length) in [(0, 1), (0, 2), (3, 1), (5, 7), (100, 33)] {
            let mut pages = Pages::default();
            let found = (0..10_000_u64).position(|n| {
                let place = if n < lead { n } else { lead + (n - lead) % length };
                pages.next(&place.to_string(), n + 1).is_err()
            });
            assert!(found.unwrap() as u64 <= 3 * (lead + length), "{lead} {length}: {found:?}");
        }
        let mut pages = Pages::default();
        assert!((0..100_000_u64).all(|n| pages.next(&n.to_string(), n * 1000).is_ok()));
    }

    #[test]
    fn listings_without_end_end() {
        let mut pages = Pages::default();
        assert_eq!((0..).position(|n| pages.next(&n.to_string(), 5).is_err()).unwrap(), 1001);
        let mut pages = Pages::default();
        assert!(pages.next("a", OBJECTS).is_ok() && pages.next("b", OBJECTS + 1).is_err());
    }
}
