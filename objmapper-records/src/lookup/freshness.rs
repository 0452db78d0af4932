//! Arithmetic of time (RFC 9111, section 4.2, with varnishd's grace and keep).

use crate::record::head::Head;

impl Head {
    /// Returns true if it may be served without asking the origin.
    #[must_use]
    pub fn is_fresh(&self, now: f64) -> bool {
        now < self.t_origin + f64::from(self.ttl)
    }

    /// Returns true if it may be served while the origin is asked, or does not answer. Also true while it is fresh.
    #[must_use]
    pub fn in_grace(&self, now: f64) -> bool {
        now < self.grace_end()
    }

    /// Ends the time for which it is fresh at `at`, seconds since 1970, if that is earlier. Grace and keep stay.
    pub(crate) fn end_freshness(&mut self, at: f64) {
        self.ttl = self.ttl.min((at - self.t_origin).max(0.0) as f32);
    }

    /// Returns the end of grace, seconds since 1970.
    pub(crate) fn grace_end(&self) -> f64 {
        self.t_origin + f64::from(self.ttl) + f64::from(self.grace)
    }

    /// Returns when it expires, seconds since 1970: it is neither fresh, nor in grace, nor kept for revalidation any
    /// more.
    #[must_use]
    pub fn end(&self) -> f64 {
        self.t_origin + f64::from(self.ttl) + f64::from(self.grace) + f64::from(self.keep)
    }

    /// Returns its age in seconds, at least 0 (clocks of machines differ).
    #[must_use]
    pub fn age(&self, now: f64) -> f64 {
        (now - self.t_origin).max(0.0)
    }

    /// Returns true if it can be revalidated by a conditional request. As in varnishd, only a 200 can: a 304 does not
    /// confirm another status.
    #[must_use]
    pub fn has_validator(&self) -> bool {
        self.status == 200 && (self.headers.get(b"etag").is_some() || self.last_modified().is_some())
    }

    /// Returns the Last-Modified date, if it is a strong validator: at least a second before Date (RFC 9110, section
    /// 8.8.2.2). A resource may change again within the second of its date, without another date.
    #[must_use]
    pub fn last_modified(&self) -> Option<&[u8]> {
        let time = |name: &[u8]| {
            let text = self.headers.get(name)?;
            Some((text, httpdate::parse_http_date(std::str::from_utf8(text).ok()?).ok()?))
        };
        let ((text, modified), (_, date)) = (time(b"last-modified")?, time(b"date")?);
        date.duration_since(modified).is_ok_and(|age| age.as_secs() >= 1).then_some(text)
    }

    /// Returns true if it has a validator and has not expired.
    pub(crate) fn is_renewable(&self, now: f64) -> bool {
        self.has_validator() && now < self.end()
    }

    /// Returns when the store may drop it, in milliseconds since 1970. 0 is never: a record that can be renewed stays
    /// until the store needs its room.
    pub(crate) fn expires_ms(&self) -> i64 {
        let can_be_renewed = self.has_validator() && self.grace + self.keep > 0.0;
        if can_be_renewed { 0 } else { self.end_ms() }
    }

    /// Returns [`Self::end`] in milliseconds since 1970, rounded up; at least 1.
    pub(crate) fn end_ms(&self) -> i64 {
        // The cast saturates. There is no NaN: the numbers of a record are finite.
        ((self.end() * 1000.0).ceil() as i64).max(1)
    }
}
