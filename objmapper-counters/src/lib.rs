//! Sets of counters whose documentation in the source is what varnishstat(1) shows.
//!
//! [`counters!`] makes a structure of atomics and a [`Description`] of it. The user decides where the atomics are: in a
//! test a plain value, in varnishd a segment of shared memory (`varnishd-sys`, `vsc::Segment`).

use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

/// The kind of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A value that only grows.
    Counter,
    /// A value that goes up and down.
    Gauge,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        }
    }
}

/// The unit in which varnishstat shows a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A number.
    Integer,
    /// A number of bytes.
    Bytes,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Format::Integer => "integer",
            Format::Bytes => "bytes",
        }
    }
}

/// The definition of one counter.
#[derive(Debug)]
pub struct Definition {
    /// The part of the name behind the last dot.
    pub name: &'static str,
    /// The kind of a value.
    pub kind: Kind,
    /// The unit in which varnishstat shows a value.
    pub format: Format,
    /// The lines of the field's documentation.
    pub documentation: &'static [&'static str],
}

impl Definition {
    /// Returns the first paragraph of the documentation, in one line.
    pub fn summary(&self) -> String {
        self.paragraphs().into_iter().next().unwrap_or_default()
    }

    /// Returns the paragraphs after the summary.
    pub fn details(&self) -> String {
        self.paragraphs().into_iter().skip(1).collect::<Vec<_>>().join("\n\n")
    }

    fn paragraphs(&self) -> Vec<String> {
        let lines: Vec<&str> = self.documentation.iter().map(|line| line.trim()).collect();
        lines.split(|line| line.is_empty()).filter(|lines| !lines.is_empty()).map(|lines| lines.join(" ")).collect()
    }
}

/// The counters of one structure, in the order of its fields.
#[derive(Debug)]
pub struct Description {
    name: &'static str,
    definitions: &'static [Definition],
    document: OnceLock<String>,
}

impl Description {
    /// Makes a description; used by [`counters!`].
    pub const fn new(name: &'static str, definitions: &'static [Definition]) -> Description {
        Description { name, definitions, document: OnceLock::new() }
    }

    /// Returns the counters' definitions.
    pub fn definitions(&self) -> &'static [Definition] {
        self.definitions
    }

    /// Returns the JSON that Varnish's programs read about a segment of counters, in the form of `vsctool.py`. It is always the same
    /// text at the same address, by which varnishd identifies a document.
    pub fn document(&'static self) -> &'static str {
        self.document.get_or_init(|| {
            let elements: serde_json::Map<String, serde_json::Value> = self
                .definitions
                .iter()
                .enumerate()
                .map(|(index, definition)| {
                    let element = serde_json::json!({
                        "name": definition.name,
                        "type": definition.kind.name(),
                        "ctype": "uint64_t",
                        "level": "info",
                        "oneliner": definition.summary(),
                        "format": definition.format.name(),
                        "docs": definition.details(),
                        "index": index * size_of::<AtomicU64>(),
                    });
                    (definition.name.to_owned(), element)
                })
                .collect();
            serde_json::json!({
                "version": "1",
                "name": self.name,
                "oneliner": format!("{} statistics", self.name),
                "order": 100,
                "docs": "",
                "elements": self.definitions.len(),
                "elem": elements,
            })
            .to_string()
        })
    }
}

/// A structure of counters.
///
/// # Safety
/// The type must be `repr(C)`, consist of an [`AtomicU64`] for each of the definitions, in their order, and of nothing else: it
/// is read in memory that holds zeros at first, and by other processes.
pub unsafe trait CounterSet: Sync + 'static {
    /// Returns the description of the structure's fields.
    fn description() -> &'static Description;
}

/// Makes a structure a [`CounterSet`].
///
/// Each field is an `AtomicU64`, with an attribute: `#[counter]` or `#[gauge]`, and for bytes `#[counter(format = "bytes")]` or
/// `#[gauge(format = "bytes")]`. The first paragraph of its documentation is the line that varnishstat shows, without a full
/// stop at its end; what follows is for its long form.
#[macro_export]
macro_rules! counters {
    (@fields $head:tt [$($done:tt)*] $(#[doc = $doc:literal])* #[counter] pub $field:ident: AtomicU64, $($rest:tt)*) => {
        $crate::counters! { @fields $head [$($done)* { [$($doc)*] Counter Integer $field }] $($rest)* }
    };
    (@fields $head:tt [$($done:tt)*] $(#[doc = $doc:literal])* #[counter(format = "bytes")] pub $field:ident: AtomicU64, $($rest:tt)*) => {
        $crate::counters! { @fields $head [$($done)* { [$($doc)*] Counter Bytes $field }] $($rest)* }
    };
    (@fields $head:tt [$($done:tt)*] $(#[doc = $doc:literal])* #[gauge] pub $field:ident: AtomicU64, $($rest:tt)*) => {
        $crate::counters! { @fields $head [$($done)* { [$($doc)*] Gauge Integer $field }] $($rest)* }
    };
    (@fields $head:tt [$($done:tt)*] $(#[doc = $doc:literal])* #[gauge(format = "bytes")] pub $field:ident: AtomicU64, $($rest:tt)*) => {
        $crate::counters! { @fields $head [$($done)* { [$($doc)*] Gauge Bytes $field }] $($rest)* }
    };
    (
        @fields [$(#[$attribute:meta])* $visibility:vis struct $name:ident]
        [$({ [$($doc:literal)*] $kind:ident $format:ident $field:ident })*]
    ) => {
        $(#[$attribute])*
        #[derive(Debug, Default)]
        #[repr(C)]
        $visibility struct $name {
            $( $(#[doc = $doc])* pub $field: ::core::sync::atomic::AtomicU64, )*
        }

        // SAFETY: repr(C), and fields and definitions are made from the same list.
        unsafe impl $crate::CounterSet for $name {
            fn description() -> &'static $crate::Description {
                static DESCRIPTION: $crate::Description = $crate::Description::new(
                    stringify!($name),
                    &[$($crate::Definition {
                        name: stringify!($field),
                        kind: $crate::Kind::$kind,
                        format: $crate::Format::$format,
                        documentation: &[$($doc),*],
                    }),*],
                );
                &DESCRIPTION
            }
        }
    };
    ($(#[$attribute:meta])* $visibility:vis struct $name:ident { $($fields:tt)* }) => {
        $crate::counters! { @fields [$(#[$attribute])* $visibility struct $name] [] $($fields)* }
    };
}

#[cfg(test)]
// What the macro makes is public, as its users are.
#[allow(unreachable_pub)]
mod tests {
    use super::*;

    counters! {
        /// For the tests.
        pub struct Sample {
            /// Things that
            /// happened
            ///
            /// First "line",
            /// second line.
            ///
            /// Another paragraph.
            #[counter]
            pub c_things: AtomicU64,
            /// Bytes in use
            #[gauge(format = "bytes")]
            pub g_bytes: AtomicU64,
            /// Users
            #[gauge]
            pub g_users: AtomicU64,
            /// Bytes sent
            #[counter(format = "bytes")]
            pub b_sent: AtomicU64,
        }
    }

    #[test]
    fn the_structure_is_its_atomics_in_order() {
        assert_eq!(size_of::<Sample>(), 4 * size_of::<AtomicU64>());
        assert_eq!(std::mem::offset_of!(Sample, g_users), 2 * size_of::<AtomicU64>());
        let names: Vec<&str> = Sample::description().definitions().iter().map(|d| d.name).collect();
        assert_eq!(names, ["c_things", "g_bytes", "g_users", "b_sent"]);
    }

    #[test]
    fn the_document_says_what_the_source_says() {
        let document: serde_json::Value = serde_json::from_str(Sample::description().document()).expect("JSON");
        assert_eq!(document["version"], "1");
        assert_eq!(document["elements"], 4);
        let things = serde_json::json!({
            "name": "c_things", "type": "counter", "ctype": "uint64_t", "level": "info", "format": "integer",
            "oneliner": "Things that happened", "docs": "First \"line\", second line.\n\nAnother paragraph.", "index": 0,
        });
        assert_eq!(document["elem"]["c_things"], things);
        let sent = serde_json::json!({
            "name": "b_sent", "type": "counter", "ctype": "uint64_t", "level": "info", "format": "bytes",
            "oneliner": "Bytes sent", "docs": "", "index": 24,
        });
        assert_eq!(document["elem"]["b_sent"], sent);
        assert_eq!(document["elem"]["g_users"]["type"], "gauge");
        assert_eq!(document["elem"]["g_bytes"]["format"], "bytes");
    }

    #[test]
    fn the_document_stays_where_it_is() {
        assert!(std::ptr::eq(Sample::description().document(), Sample::description().document()));
    }
}
