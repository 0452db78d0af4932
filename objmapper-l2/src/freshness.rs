//! Arithmetic of time (RFC 9111, section 4.2, with varnishd's grace and keep).

use crate::head::Head;

impl Head {
    /// Whether it may be served without asking the origin.
    #[must_use]
    pub fn is_fresh(&self, now: f64) -> bool {
        now < self.t_origin + f64::from(self.ttl)
    }

    /// Whether it may be served while the origin is asked, or does not answer.
    #[must_use]
    pub fn in_grace(&self, now: f64) -> bool {
        now < self.grace_end()
    }

    /// Until when it may be served while the origin is asked, or does not answer.
    pub(crate) fn grace_end(&self) -> f64 {
        self.t_origin + f64::from(self.ttl) + f64::from(self.grace)
    }

    /// When it is of no more use: neither fresh, nor in grace, nor kept for revalidation.
    #[must_use]
    pub fn end(&self) -> f64 {
        self.t_origin + f64::from(self.ttl) + f64::from(self.grace) + f64::from(self.keep)
    }

    /// Seconds since the origin made it, at least 0 (clocks of machines differ).
    #[must_use]
    pub fn age(&self, now: f64) -> f64 {
        (now - self.t_origin).max(0.0)
    }

    /// Whether the origin can be asked if this is still what it would say. As varnishd does, only of a 200: a 304 to
    /// anything else would say that there is something now.
    #[must_use]
    pub fn has_validator(&self) -> bool {
        self.status == 200 && (self.headers.get(b"etag").is_some() || self.last_modified().is_some())
    }

    /// The Last-Modified date, if it is a strong validator: at least a second before Date (RFC 9110, section 8.8.2.2).
    /// What was made within that second may have been changed once more in it, without another date.
    #[must_use]
    pub fn last_modified(&self) -> Option<&[u8]> {
        let time = |name: &[u8]| {
            let text = self.headers.get(name)?;
            Some((text, httpdate::parse_http_date(std::str::from_utf8(text).ok()?).ok()?))
        };
        let ((text, modified), (_, date)) = (time(b"last-modified")?, time(b"date")?);
        date.duration_since(modified).is_ok_and(|age| age.as_secs() >= 1).then_some(text)
    }

    /// Whether the origin may be asked to confirm it.
    pub(crate) fn is_renewable(&self, now: f64) -> bool {
        self.has_validator() && now < self.end()
    }

    /// When the store may drop it, in milliseconds since 1970; 0 is never: one that can be renewed is of use for as long
    /// as it is renewed, and goes when the store needs its room.
    pub(crate) fn expires_ms(&self) -> i64 {
        let can_be_renewed = self.has_validator() && self.grace + self.keep > 0.0;
        if can_be_renewed { 0 } else { self.end_ms() }
    }

    /// [`Self::end`] in milliseconds since 1970, rounded up; at least 1.
    pub(crate) fn end_ms(&self) -> i64 {
        // Saturates, and NaN cannot be: what comes from a record is finite.
        ((self.end() * 1000.0).ceil() as i64).max(1)
    }
}
