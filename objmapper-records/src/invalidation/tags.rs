//! Tags (surrogate keys) of a response: the words of its tag headers.

use crate::record::head::Headers;

/// Returns the tags in the value of a tag header (`xkey`, `Surrogate-Key`, `Cache-Tag`): its words, divided by white
/// space and commas.
pub fn split_tags(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| b.is_ascii_whitespace() || *b == b',').filter(|tag| !tag.is_empty())
}

/// Returns the tags of a response, sorted, none twice. `names` are the names of its tag headers (case-insensitive).
pub(crate) fn tags_of(headers: &Headers, names: &[Vec<u8>]) -> Vec<Box<[u8]>> {
    let mut tags: Vec<Box<[u8]>> =
        names.iter().flat_map(|name| headers.values(name)).flat_map(split_tags).map(Box::from).collect();
    tags.sort_unstable();
    tags.dedup();
    tags
}
