//! Objects that survive the end of varnishd (`persist=on`): what a storage writes down of them, and what a start makes of it.
//!
//! The format is `objmapper-journal`'s. Here is what is particular to this storage: which bytes of an object are its record
//! (`record.rs`), how a body comes back (`body.rs`), and which objects of those that were found are loaded (`choice.rs`).
//! Large bodies are files of the store, published under a URI that begins with [`URI_PREFIX`]; the store's own index says which
//! there are. What varnishd is told is the cdylib's.
//!
//! Order of an object's end: its entry is removed first, its body is deleted afterwards. A process that dies in between leaves a body
//! without an entry, which the next start deletes ([`Persistence::finish_loading`]).

mod body;
mod choice;
mod keeper;
mod record;

pub use body::NotRestored;
pub use choice::{Choice, choose};
pub use keeper::{Loading, NewObject, Persistence, forget, open};
pub use objmapper_journal::{Entry, Found, Reader, Times};
pub use record::{Record, RecordParts};

/// URIs of bodies that survive begin with this.
pub const URI_PREFIX: &str = "/objmapper-persist/";
