//! The header: what the journal is of, and how the process that wrote it ended.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

pub(crate) const NAME: &str = "header";
/// Changes when the layout of any file does.
const LAYOUT: u32 = 1;
const MAGIC: [u8; 8] = *b"objmpers";
/// The header is written in one piece of a disk's sector.
const LEN: usize = 512;
const CHECK_AT: usize = LEN - 8;
/// The longest text that names the product.
const MAX_PRODUCT: usize = 128;

const CLEAN: u32 = 1 << 0;
const LOADING: u32 = 1 << 1;
const BROKEN: u32 = 1 << 2;

/// The header's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    /// What wrote it: entries and records of another product mean something else.
    pub(crate) product: String,
    /// Of the system's boot; 0 if it is not known.
    pub(crate) boot: u128,
    /// The last process closed the journal, and all of it is on disk.
    pub(crate) clean: bool,
    /// A process has begun to load objects, and not ended that.
    pub(crate) loading: bool,
    /// A removal, or a ban, could not be written.
    pub(crate) broken: bool,
    /// How many processes in a row have ended soon after they loaded it.
    pub(crate) short_lives: u32,
}

/// Why a header cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadHeader {
    Damaged,
    /// Of this other layout.
    Layout(u32),
}

impl Header {
    pub(crate) fn new(product: &str, boot: u128) -> Header {
        let mut end = product.len().min(MAX_PRODUCT);
        while !product.is_char_boundary(end) {
            end -= 1;
        }
        let product = product[..end].to_owned();
        Header { product, boot, clean: false, loading: false, broken: false, short_lives: 0 }
    }

    fn encode(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&LAYOUT.to_le_bytes());
        let flag = |set: bool, flag: u32| if set { flag } else { 0 };
        let flags = flag(self.clean, CLEAN) | flag(self.loading, LOADING) | flag(self.broken, BROKEN);
        bytes[12..16].copy_from_slice(&flags.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.short_lives.to_le_bytes());
        bytes[24..40].copy_from_slice(&self.boot.to_le_bytes());
        bytes[40..44].copy_from_slice(&(self.product.len() as u32).to_le_bytes());
        bytes[44..44 + self.product.len()].copy_from_slice(self.product.as_bytes());
        let check = xxh3_64(&bytes[..CHECK_AT]);
        bytes[CHECK_AT..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; LEN]) -> Result<Header, BadHeader> {
        let u32_at = |at: usize| {
            let mut field = [0; 4];
            field.copy_from_slice(&bytes[at..at + 4]);
            u32::from_le_bytes(field)
        };
        let mut check = [0; 8];
        check.copy_from_slice(&bytes[CHECK_AT..]);
        if bytes[..8] != MAGIC || u64::from_le_bytes(check) != xxh3_64(&bytes[..CHECK_AT]) {
            return Err(BadHeader::Damaged);
        }
        if u32_at(8) != LAYOUT {
            return Err(BadHeader::Layout(u32_at(8)));
        }
        let mut boot = [0; 16];
        boot.copy_from_slice(&bytes[24..40]);
        let len = usize::try_from(u32_at(40)).unwrap_or(usize::MAX);
        let product = if len <= MAX_PRODUCT { std::str::from_utf8(&bytes[44..44 + len]).ok() } else { None };
        let flags = u32_at(12);
        Ok(Header {
            product: product.ok_or(BadHeader::Damaged)?.to_owned(),
            boot: u128::from_le_bytes(boot),
            clean: flags & CLEAN != 0,
            loading: flags & LOADING != 0,
            broken: flags & BROKEN != 0,
            short_lives: u32_at(16),
        })
    }

    pub(crate) fn read(file: &File) -> io::Result<Result<Header, BadHeader>> {
        let mut bytes = [0; LEN];
        match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => Ok(Header::decode(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Err(BadHeader::Damaged)),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn write(&self, file: &File) -> io::Result<()> {
        file.write_all_at(&self.encode(), 0)
    }
}

/// The system's boot id; 0 if the kernel does not tell it.
pub(crate) fn boot_id() -> u128 {
    std::fs::read("/proc/sys/kernel/random/boot_id").map_or(0, |id| xxh3_128(&id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_what_it_was_or_damaged() {
        let header = Header {
            clean: true,
            loading: true,
            broken: true,
            short_lives: 3,
            ..Header::new("varnish 7.7.0 (revision abc)", 77)
        };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), Ok(header));
        for at in 0..LEN {
            let mut cut = bytes;
            cut[at] ^= 0x40;
            assert_eq!(Header::decode(&cut), Err(BadHeader::Damaged), "byte {at}");
        }
    }

    #[test]
    fn a_long_product_is_cut_at_a_character() {
        let header = Header::new(&"é".repeat(100), 1);
        assert_eq!(header.product.len(), 128);
        assert_eq!(Header::decode(&header.encode()), Ok(header));
    }
}
