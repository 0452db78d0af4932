//! Vary (RFC 9110, section 12.5.5): the headers of a request that select among a key's responses, and their values.

use sha2::{Digest, Sha256};

use crate::lookup::request::RequestView;
use crate::record::bytes::{Malformed, Reader, put_bytes};
use crate::record::head::Headers;

/// The longest name of a header in bytes: varnishd's limit.
const MAX_NAME: usize = 127;
/// The longest value in bytes: varnishd's limit.
const MAX_VALUE: usize = 0xfffe;
/// The most names of one spec.
const MAX_NAMES: usize = 64;

/// A list of header names: lower case, in order, none twice, each with a comma behind it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Spec(Vec<u8>);

/// The response matches no later request: `Vary: *`, an invalid Vary, or one above the limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unmatchable;

/// Returns true for a byte of a token (RFC 9110, section 5.6.2).
pub(crate) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'+-.^_`|~".contains(&byte)
}

impl Spec {
    /// Makes the spec of a response: the names of all its Vary headers (RFC 9110, section 12.5.5).
    pub(crate) fn of_response(headers: &Headers) -> Result<Self, Unmatchable> {
        let mut names = Vec::new();
        for value in headers.values(b"vary") {
            for name in value.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|name| !name.is_empty()) {
                // `*` alone is a token, but is_token() does not accept it.
                if name.len() > MAX_NAME || !name.iter().copied().all(is_token) {
                    return Err(Unmatchable);
                }
                names.push(name.to_ascii_lowercase());
            }
        }
        names.sort_unstable();
        names.dedup();
        if names.len() > MAX_NAMES {
            return Err(Unmatchable);
        }
        let mut spec = Vec::new();
        for name in names {
            spec.extend_from_slice(&name);
            spec.push(b',');
        }
        Ok(Self(spec))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns true if `spec` is its encoding.
    pub(crate) fn is(&self, spec: &[u8]) -> bool {
        self.0 == spec
    }

    /// Returns the names, in order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|b| *b == b',').filter(|name| !name.is_empty())
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let spec = Self(bytes.to_vec());
        let mut former: &[u8] = b"";
        let mut len = 0;
        for name in spec.names() {
            if name.len() > MAX_NAME || name <= former || !name.iter().all(|b| is_token(*b) && !b.is_ascii_uppercase())
            {
                return Err(Malformed("Vary index"));
            }
            former = name;
            len += name.len() + 1;
        }
        if len == bytes.len() { Ok(spec) } else { Err(Malformed("Vary index")) }
    }

    /// Returns the request's values of these headers.
    pub(crate) fn key(&self, request: &dyn RequestView) -> Result<VaryKey, Unmatchable> {
        let mut values = Vec::new();
        for name in self.names() {
            match request.header(name) {
                None => values.push(0),
                Some(value) if value.len() <= MAX_VALUE => {
                    values.push(1);
                    put_bytes(&mut values, value);
                }
                Some(_) => return Err(Unmatchable),
            }
        }
        Ok(VaryKey { spec: self.clone(), values })
    }
}

/// A request's values of the headers of a spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VaryKey {
    spec: Spec,
    /// For each name 0 (absent), or 1, the value's length and the value.
    values: Vec<u8>,
}

impl VaryKey {
    pub(crate) fn spec(&self) -> &[u8] {
        &self.spec.0
    }

    pub(crate) fn values(&self) -> &[u8] {
        &self.values
    }

    pub(crate) fn decode(spec: &[u8], values: &[u8]) -> Result<Self, Malformed> {
        let spec = Spec::decode(spec)?;
        let mut r = Reader::new(values);
        for _ in spec.names() {
            if r.bool()? {
                r.bytes()?;
            }
        }
        r.end()?;
        Ok(Self { spec, values: values.to_vec() })
    }

    /// Returns the names and their values; `None` for an absent header.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        let mut r = Reader::new(&self.values);
        // Decoding has checked that there is a value for each name.
        let mut value = move || r.bool().ok().filter(|present| *present).and_then(|_| r.bytes().ok());
        self.spec.names().map(move |name| (name, value()))
    }
}

/// The index of a key whose responses vary: the specs of its variants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Index {
    /// The key's text.
    pub(crate) text: Vec<u8>,
    /// Random. A new generation makes all earlier variants unreachable.
    pub(crate) generation: [u8; 16],
    /// The specs, the newest first.
    specs: Vec<Spec>,
}

impl Index {
    /// The most specs of an index.
    pub(crate) const MAX_SPECS: usize = 8;

    pub(crate) fn new(text: &[u8], generation: [u8; 16]) -> Self {
        Self { text: text.to_vec(), generation, specs: Vec::new() }
    }

    pub(crate) fn specs(&self) -> &[Spec] {
        &self.specs
    }

    /// Makes a spec the newest; drops the oldest above the limit. Returns false if it was the newest already.
    fn add(&mut self, spec: &Spec) -> bool {
        if self.specs.first() == Some(spec) {
            return false;
        }
        self.specs.retain(|s| s != spec);
        self.specs.insert(0, spec.clone());
        self.specs.truncate(Self::MAX_SPECS);
        true
    }

    /// [`Self::add`] for the spec of a variant.
    pub(crate) fn add_spec_of(&mut self, vary: &VaryKey) -> bool {
        self.add(&vary.spec)
    }

    /// Adds the newest spec of another index, unless it has it. Returns true if it was added.
    pub(crate) fn merge(&mut self, other: &Self) -> bool {
        match other.specs.first() {
            Some(spec) if !self.specs.contains(spec) => self.add(spec),
            _ => false,
        }
    }

    /// Returns the name of a variant: 64 hex digits.
    pub(crate) fn variant(&self, vary: &VaryKey) -> [u8; 64] {
        let mut hash = Sha256::new();
        // Lengths make it unambiguous.
        for part in [&self.text[..], &self.generation, vary.spec(), vary.values()] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hex(&hash.finalize().into())
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_bytes(&mut out, &self.text);
        out.extend_from_slice(&self.generation);
        out.push(self.specs.len() as u8); // at most MAX_SPECS
        for spec in &self.specs {
            put_bytes(&mut out, &spec.0);
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(bytes);
        let text = r.bytes()?.to_vec();
        let generation = r.array()?;
        let count = usize::from(r.u8()?);
        if count == 0 || count > Self::MAX_SPECS {
            return Err(Malformed("Vary index"));
        }
        let specs: Vec<_> = (0..count).map(|_| Spec::decode(r.bytes()?)).collect::<Result<_, _>>()?;
        r.end()?;
        Ok(Self { text, generation, specs })
    }
}

/// Encodes bytes as lower-case hex digits.
pub(crate) fn hex(bytes: &[u8; 32]) -> [u8; 64] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut out = [0; 64];
    for (pair, byte) in out.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    out
}
