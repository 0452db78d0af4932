//! Types that both requests and replies use.

use std::fmt;
use std::num::NonZeroU64;

use crate::error::{DecodeError, Malformed};
use crate::wire::{Put, Reader, byte_flags};

/// 16 random bytes that name a session, or an instance of a store.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Token(pub [u8; 16]);

impl Token {
    /// In ATTACH: begin a new session.
    pub const NEW: Self = Self([0; 16]);
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A token gives access to its session, so a log shows only a part that distinguishes tokens.
        write!(f, "Token({:02x}{:02x}..)", self.0[0], self.0[1])
    }
}

/// The tier of a body's file. A store may have tiers that this version does not know: they are kept as [`Tier::Other`], so that a
/// client uses what it knows of such a store, and passes the rest on as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// In memory (1).
    Memory,
    /// On disk (2).
    Disk,
    /// A tier of a later version (3 to 255).
    Other(OtherTier),
}

/// The byte of a tier that this version does not know. Only decoding makes one, so that each tier has one representation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OtherTier(u8);

impl Tier {
    /// Returns the byte on the wire, which is not 0.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Memory => 1,
            Self::Disk => 2,
            Self::Other(OtherTier(code)) => code,
        }
    }
}

impl TryFrom<u8> for Tier {
    type Error = Malformed;

    /// Fails for 0 only, which is no tier: in CREATE it is the store's choice.
    fn try_from(byte: u8) -> Result<Self, Malformed> {
        match byte {
            0 => Err(Malformed::Unknown { field: "tier", value: 0 }),
            1 => Ok(Self::Memory),
            2 => Ok(Self::Disk),
            other => Ok(Self::Other(OtherTier(other))),
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory"),
            Self::Disk => f.write_str("disk"),
            Self::Other(OtherTier(code)) => write!(f, "unknown (number {code})"),
        }
    }
}

/// What a LOOKUP, COMMIT or LEASE requests beside its entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Want {
    /// Send a read-only descriptor (flag 1).
    pub fd: bool,
    /// Pin the body for the session (flag 2).
    pub pin: bool,
}

impl Want {
    /// Requests the entry alone.
    pub const ENTRY: Self = Self { fd: false, pin: false };
    /// Requests a descriptor too.
    pub const FD: Self = Self { fd: true, pin: false };
    /// Requests a pin too.
    pub const PIN: Self = Self { fd: false, pin: true };
    /// Requests a descriptor and a pin.
    pub const FD_AND_PIN: Self = Self { fd: true, pin: true };

    pub(super) fn bits(self) -> u8 {
        u8::from(self.fd) | (u8::from(self.pin) << 1)
    }

    pub(super) fn from_bits(bits: u8) -> Self {
        Self { fd: bits & 1 != 0, pin: bits & 2 != 0 }
    }
}

byte_flags! {
    /// Flags of an [`Entry`].
    EntryFlags, "entry flags", {
        /// Dies with its session.
        EPHEMERAL = 1,
        /// Pinned by this session.
        PINNED = 2,
        /// Written by a v0.1 client: no commit, its length may change, its descriptor may be writable elsewhere.
        FOREIGN = 4,
    }
}

impl EntryFlags {
    /// Returns the flags of both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Returns these flags, and `flag` if `set` is true.
    #[must_use]
    pub const fn with(self, flag: Self, set: bool) -> Self {
        if set { self.union(flag) } else { self }
    }
}

/// The attributes of a published object (42 bytes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Entry {
    /// The object's id, which names the body's file. One store instance never uses an id twice.
    pub object: u64,
    /// Grows with every commit of the store.
    pub version: u64,
    /// The tier of the body.
    pub tier: Tier,
    /// Flags.
    pub flags: EntryFlags,
    /// Bytes of its body.
    pub length: u64,
    /// When it was committed, in milliseconds since 1970.
    pub mtime: i64,
    /// Milliseconds since 1970 after which the object may be dropped; 0 is never.
    pub expires: i64,
}

impl Entry {
    /// Bytes of an entry on the wire.
    pub const WIRE_LEN: usize = 42;

    /// Returns true if the object is deleted with its session.
    #[must_use]
    pub const fn is_ephemeral(&self) -> bool {
        self.flags.contains(EntryFlags::EPHEMERAL)
    }

    /// Returns true if the requesting session pins the object.
    #[must_use]
    pub const fn is_pinned(&self) -> bool {
        self.flags.contains(EntryFlags::PINNED)
    }

    /// Returns true if a v0.1 client writes the object: there was no commit, and the length may change.
    #[must_use]
    pub const fn is_foreign(&self) -> bool {
        self.flags.contains(EntryFlags::FOREIGN)
    }

    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            object: r.u64()?,
            version: r.u64()?,
            tier: Tier::try_from(r.u8()?)?,
            flags: EntryFlags::from_bits(r.u8()?)?,
            length: r.u64()?,
            mtime: r.i64()?,
            expires: r.i64()?,
        })
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.put_u64(self.object);
        out.put_u64(self.version);
        out.put_u8(self.tier.code());
        out.put_u8(self.flags.bits());
        out.put_u64(self.length);
        out.put_i64(self.mtime);
        out.put_i64(self.expires);
    }
}

/// The version that a URI must have for a COMMIT or DELETE to succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IfVersion {
    /// Any, or none (`ffffffffffffffff`).
    Any,
    /// None (0).
    Absent,
    /// This one. A store's versions do not reach `u64::MAX`, which is [`IfVersion::Any`] on the wire.
    Is(NonZeroU64),
}

impl IfVersion {
    /// Returns the condition that the wire's number stands for.
    #[must_use]
    pub const fn from_raw(raw: u64) -> Self {
        match NonZeroU64::new(raw) {
            None => Self::Absent,
            Some(NonZeroU64::MAX) => Self::Any,
            Some(version) => Self::Is(version),
        }
    }

    /// Returns the number on the wire.
    #[must_use]
    pub const fn raw(self) -> u64 {
        match self {
            Self::Any => u64::MAX,
            Self::Absent => 0,
            Self::Is(version) => version.get(),
        }
    }

    /// Returns true if the operation may proceed when `current` is the published version; `None` if there is none.
    #[must_use]
    pub fn allows(self, current: Option<u64>) -> bool {
        match self {
            Self::Any => true,
            Self::Absent => current.is_none(),
            Self::Is(version) => current == Some(version.get()),
        }
    }
}

/// A tier in the reply to ATTACH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TierLimits {
    /// The tier.
    pub tier: Tier,
    /// The limit in bytes.
    pub limit: u64,
    /// The bytes held, reservations included.
    pub used: u64,
}

impl TierLimits {
    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { tier: Tier::try_from(r.u8()?)?, limit: r.u64()?, used: r.u64()? })
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.put_u8(self.tier.code());
        out.put_u64(self.limit);
        out.put_u64(self.used);
    }
}

/// A tier in the reply to STAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TierStat {
    /// The tier.
    pub tier: Tier,
    /// The limit in bytes.
    pub limit: u64,
    /// The bytes held, reservations included.
    pub used: u64,
    /// Bytes of `used` that cannot be evicted, because a session pins them.
    pub pinned: u64,
    /// Published objects.
    pub objects: u64,
    /// Objects evicted since the store started.
    pub evictions: u64,
}

impl TierStat {
    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            tier: Tier::try_from(r.u8()?)?,
            limit: r.u64()?,
            used: r.u64()?,
            pinned: r.u64()?,
            objects: r.u64()?,
            evictions: r.u64()?,
        })
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.put_u8(self.tier.code());
        out.put_u64(self.limit);
        out.put_u64(self.used);
        out.put_u64(self.pinned);
        out.put_u64(self.objects);
        out.put_u64(self.evictions);
    }
}

/// Path of a body's file below its tier's directory: `xx/xxxxxxxxxxxxxxxx`.
///
/// ```
/// use objmapper_proto::ext::BodyPath;
/// assert_eq!(BodyPath::new(0x1234).as_str(), "34/0000000000001234");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BodyPath([u8; Self::LEN + 1]);

impl BodyPath {
    /// Length in bytes.
    pub const LEN: usize = 19;

    /// Returns the path for an object's id.
    #[must_use]
    pub const fn new(object: u64) -> Self {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut path = [0; Self::LEN + 1];
        path[0] = HEX[(object >> 4 & 15) as usize];
        path[1] = HEX[(object & 15) as usize];
        path[2] = b'/';
        let mut at = 0;
        while at < 16 {
            path[3 + at] = HEX[(object >> (60 - 4 * at) & 15) as usize];
            at += 1;
        }
        Self(path)
    }

    /// Returns the path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Always hex digits and a slash, so the default is never used.
        std::str::from_utf8(&self.0[..Self::LEN]).unwrap_or_default()
    }

    /// Returns the directory part, two hex digits.
    #[must_use]
    pub fn directory(&self) -> &str {
        &self.as_str()[..2]
    }

    /// Returns the path for a system call, without an allocation.
    #[must_use]
    pub fn as_c_str(&self) -> &std::ffi::CStr {
        std::ffi::CStr::from_bytes_until_nul(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for BodyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
