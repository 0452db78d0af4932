//! The token by which a cache recognizes the fetch of another cache that shares its records.
//!
//! A cache may have another cache of the same store and prefix as its origin. The fetch of the first one then is a request
//! to the second one, whose look-up would wait for the lease that the first one holds: for itself. So each fetch carries a
//! token, and a request with a valid one does not wait.
//!
//! A token is `<expiry>-<code>`: when it expires, in milliseconds since 1970, hexadecimal; and the first half of the
//! HMAC-SHA256 of the expiry, the host and the URL of the fetch. The key is the nonce of the invalidation log, which each cache of
//! the prefix reads from the store, and which nothing else is told. So only a cache of the prefix makes a valid token. One
//! that leaks, by an origin that repeats its request, is good for the same host and URL until it expires, and for
//! nothing but not to wait there.

use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::l2::L2;

/// The lifetime of a token in seconds: what the fetch may take to reach the other cache, whose clock is this machine's.
const LIFETIME: f64 = 10.0;

/// The bytes of a code.
const CODE_LEN: usize = 16;

/// The longest token: 16 digits of expiry, the hyphen, and the code.
const MAX_LEN: usize = 16 + 1 + 2 * CODE_LEN;

fn code(nonce: &[u8; 16], expiry_ms: u64, host: &[u8], url: &[u8]) -> Option<Hmac<Sha256>> {
    // An HMAC takes a key of any length.
    let mut code = Hmac::<Sha256>::new_from_slice(nonce).ok()?;
    code.update(b"objmapper fetch");
    code.update(&expiry_ms.to_be_bytes());
    // The length makes it unambiguous.
    code.update(&(host.len() as u64).to_be_bytes());
    code.update(host);
    code.update(url);
    Some(code)
}

fn sign(nonce: &[u8; 16], host: &[u8], url: &[u8], now: f64) -> Option<String> {
    // The cast saturates.
    let expiry_ms = ((now + LIFETIME) * 1000.0) as u64;
    let code = code(nonce, expiry_ms, host, url)?.finalize().into_bytes();
    let hex: String = code.iter().take(CODE_LEN).map(|byte| format!("{byte:02x}")).collect();
    Some(format!("{expiry_ms:x}-{hex}"))
}

/// Returns the expiry and the code of a token that has not expired.
fn parse(token: &[u8], now: f64) -> Option<(u64, [u8; CODE_LEN])> {
    if token.len() > MAX_LEN {
        return None;
    }
    let (expiry, hex) = std::str::from_utf8(token).ok()?.split_once('-')?;
    // from_str_radix() takes a sign, too.
    if !expiry.bytes().chain(hex.bytes()).all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let expiry_ms = u64::from_str_radix(expiry, 16).ok()?;
    let left = expiry_ms as f64 / 1000.0 - now;
    if !(0.0..=LIFETIME).contains(&left) || hex.len() != 2 * CODE_LEN {
        return None;
    }
    let mut code = [0; CODE_LEN];
    for (byte, digits) in code.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some((expiry_ms, code))
}

pub(crate) fn verify(nonce: &[u8; 16], token: &[u8], host: &[u8], url: &[u8], now: f64) -> bool {
    parse(token, now).is_some_and(|(expiry_ms, expected)| {
        // In constant time.
        code(nonce, expiry_ms, host, url).is_some_and(|code| code.verify_truncated_left(&expected).is_ok())
    })
}

impl L2 {
    /// Returns the token of a fetch of this host and URL that begins now, seconds since 1970; `None` before the first
    /// look-up, and with a v0.1 peer, which has no leases.
    #[must_use]
    pub fn sign_fetch(&self, host: &[u8], url: &[u8], now: f64) -> Option<String> {
        sign(&self.core.journal.nonce()?, host, url, now)
    }

    /// Returns true if and only if a request for this host and URL is the fetch of a cache with the same store and prefix: it
    /// carries a token of [`Self::sign_fetch`] that has not expired. The store is not asked.
    #[must_use]
    pub fn is_fetch(&self, token: &[u8], host: &[u8], url: &[u8], now: f64) -> bool {
        self.core.journal.nonce().is_some_and(|nonce| verify(&nonce, token, host, url, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: f64 = 1.8e9;

    #[test]
    fn a_token_is_of_one_fetch() {
        let token = sign(&[7; 16], b"example.com", b"/a", NOW).unwrap();
        let valid = |nonce: u8, token: &str, host: &str, url: &str, now| {
            verify(&[nonce; 16], token.as_bytes(), host.as_bytes(), url.as_bytes(), now)
        };
        assert!(token.len() <= MAX_LEN && valid(7, &token, "example.com", "/a", NOW));
        assert!(valid(7, &token, "example.com", "/a", NOW + 9.9));
        assert!(!valid(7, &token, "example.com", "/a", NOW + 10.1), "expired");
        assert!(!valid(7, &token, "example.com", "/a", NOW - 1.0), "of a time to come");
        assert!(!valid(7, &token, "example.com", "/b", NOW), "another URL");
        assert!(!valid(7, &token, "example.co", "m/a", NOW), "another host");
        assert!(!valid(8, &token, "example.com", "/a", NOW), "another prefix or store");
    }

    #[test]
    fn what_is_no_token() {
        let good = sign(&[7; 16], b"h", b"/", NOW).unwrap();
        let (expiry, code) = good.split_once('-').unwrap();
        let later = u64::from_str_radix(expiry, 16).unwrap() - 1;
        for bad in [
            "",
            "-",
            expiry,
            code,
            &format!("{later:x}-{code}"),
            &format!("{expiry}-{}", &code[..30]),
            &format!("{expiry}-+{}", &code[1..]),
            &format!("{expiry}-{code}0"),
            &format!("+{expiry}-{code}"),
            &format!("{expiry}-{}\u{e9}", &code[2..]),
            &"f".repeat(10_000),
        ] {
            assert!(!verify(&[7; 16], bad.as_bytes(), b"h", b"/", NOW), "{bad:?}");
        }
    }
}
