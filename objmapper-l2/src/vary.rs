//! Vary: which headers of a request choose among a key's responses, and what it says in them.

use sha2::{Digest, Sha256};

use crate::bytes::{Malformed, Reader, put_bytes};
use crate::head::Headers;
use crate::request::RequestView;

/// Longest name of a header, as varnishd's own limit.
const MAX_NAME: usize = 127;
/// Longest value, as varnishd's own limit.
const MAX_VALUE: usize = 0xfffe;
/// Most names of one spec.
const MAX_NAMES: usize = 64;

/// A list of header names: lower case, in order, none twice, each with a comma behind it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Spec(Vec<u8>);

/// No request matches it again: `Vary: *`, or something that cannot be understood or kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unmatchable;

/// Returns true for a byte of a token (RFC 9110, section 5.6.2).
pub(crate) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'+-.^_`|~".contains(&byte)
}

impl Spec {
    /// Of a response: what all its Vary headers name (RFC 9110, section 12.5.5).
    pub(crate) fn of_response(headers: &Headers) -> Result<Self, Unmatchable> {
        let mut names = Vec::new();
        for value in headers.values(b"vary") {
            for name in value.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|name| !name.is_empty()) {
                // `*` is no letter of a name here.
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

    /// Whether it is encoded so.
    pub(crate) fn is(&self, spec: &[u8]) -> bool {
        self.0 == spec
    }

    fn names(&self) -> impl Iterator<Item = &[u8]> {
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

    /// What a request says in these headers.
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

/// What a request says in the headers of a spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VaryKey {
    spec: Spec,
    /// For each name 0, or 1 and the value with its length.
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
}

/// The index of a key whose responses vary: which specs they have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Index {
    /// The key's text.
    pub(crate) text: Vec<u8>,
    /// Random: with another one, no variant of before is found.
    pub(crate) generation: [u8; 16],
    /// The newest first.
    specs: Vec<Spec>,
}

impl Index {
    /// Most specs that it keeps.
    pub(crate) const MAX_SPECS: usize = 8;

    pub(crate) fn new(text: &[u8], generation: [u8; 16]) -> Self {
        Self { text: text.to_vec(), generation, specs: Vec::new() }
    }

    pub(crate) fn specs(&self) -> &[Spec] {
        &self.specs
    }

    /// Makes a spec the newest; the oldest goes if they are too many. `false`: it was the newest already.
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

    /// Takes over the newest spec of another one, if it lacks it; whether it did.
    pub(crate) fn merge(&mut self, other: &Self) -> bool {
        match other.specs.first() {
            Some(spec) if !self.specs.contains(spec) => self.add(spec),
            _ => false,
        }
    }

    /// The name of a variant: 64 hex digits.
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

/// As lower-case hex digits.
pub(crate) fn hex(bytes: &[u8; 32]) -> [u8; 64] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut out = [0; 64];
    for (pair, byte) in out.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    out
}
