//! Which of the objects that were found are loaded: the newest, as many as the storage may hold.

use objmapper_journal::Found;

/// What becomes of objects that were found.
#[derive(Debug, PartialEq)]
pub struct Choice<'a> {
    /// Those to load, from the oldest to the newest.
    pub load: &'a [Found],
    /// Those that there is no room for.
    pub drop: &'a [Found],
}

/// Chooses among objects that are sorted from the oldest to the newest, for a storage of `limit` bytes.
pub fn choose(found: &[Found], limit: u64) -> Choice<'_> {
    let mut bytes = 0u64;
    let mut first = found.len();
    for (index, object) in found.iter().enumerate().rev() {
        bytes = bytes.saturating_add(object.bytes);
        if bytes > limit {
            break;
        }
        first = index;
    }
    let (drop, load) = found.split_at(first);
    Choice { load, drop }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_loaded() {
        let found: Vec<Found> =
            (1..=5).map(|sequence| Found { sequence, bytes: 10 * sequence, ban: 0.0, slot: 0 }).collect();
        let numbers = |found: &[Found]| found.iter().map(|found| found.sequence).collect::<Vec<_>>();
        let choice = choose(&found, 120);
        assert_eq!((numbers(choice.drop), numbers(choice.load)), (vec![1, 2], vec![3, 4, 5]));
        assert_eq!(choose(&found, 1000).load.len(), 5);
        assert_eq!(choose(&found, 49).drop.len(), 5);
        assert_eq!(choose(&[], 0).load.len(), 0);
    }
}
