//! Sizes, times and bytes as text.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

/// Returns the present time, seconds since 1970.
pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Returns bytes as text that a terminal takes for text: control characters, and what is not UTF-8, are escaped.
pub(crate) fn printable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => bytes.escape_ascii().to_string(),
    }
}

/// Adds bytes to a JSON object as text; what is not UTF-8 is replaced in it, and `<name>_hex` then has all bytes.
pub(crate) fn insert_bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    object.insert(name.to_owned(), String::from_utf8_lossy(bytes).into());
    if std::str::from_utf8(bytes).is_err() {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        object.insert(format!("{name}_hex"), hex.into());
    }
}

/// Returns a number of bytes in the largest unit that it fills, such as `1.5G`.
pub(crate) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["", "K", "M", "G", "T"] {
        if value < 1024.0 || unit == "T" {
            return if unit.is_empty() || value >= 10.0 {
                format!("{value:.0}{unit}")
            } else {
                format!("{value:.1}{unit}")
            };
        }
        value /= 1024.0;
    }
    bytes.to_string()
}

/// Returns a number of seconds in the largest two units that it fills, such as `2h5m`.
pub(crate) fn duration(seconds: f64) -> String {
    // The cast saturates.
    let seconds = seconds.max(0.0).round() as u64;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m{}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h{minutes}m"),
        (days, hours, _) if days < 1000 => format!("{days}d{hours}h"),
        (days, ..) => format!("{days}d"),
    }
}

/// Returns a time as a date, with how long ago it was or will be.
pub(crate) fn date(seconds: f64, now: f64) -> String {
    // 9999 is the last year that a date expresses.
    let time = UNIX_EPOCH + Duration::from_secs((seconds.max(0.0) as u64).min(253_402_300_799));
    let date = httpdate::fmt_http_date(time);
    if seconds <= now {
        format!("{date} ({} ago)", duration(now - seconds))
    } else {
        format!("{date} (in {})", duration(seconds - now))
    }
}

/// Returns milliseconds of the store's as seconds.
pub(crate) fn seconds(milliseconds: i64) -> f64 {
    milliseconds as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times() {
        for (bytes, text) in [(0, "0"), (1023, "1023"), (1536, "1.5K"), (20 << 20, "20M"), (3 << 30, "3.0G")] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(size(u64::MAX), "16777216T");
        for (seconds, text) in [(-1.0, "0s"), (59.4, "59s"), (61.0, "1m1s"), (7500.0, "2h5m"), (90_000.0, "1d1h")] {
            assert_eq!(duration(seconds), text);
        }
        assert_eq!(date(0.0, 60.0), "Thu, 01 Jan 1970 00:00:00 GMT (1m0s ago)");
        assert_eq!(date(60.0, 0.0), "Thu, 01 Jan 1970 00:01:00 GMT (in 1m0s)");
        // Nothing that a record can say panics.
        for seconds in [f64::MIN, f64::MAX, f64::NAN] {
            date(seconds, 0.0);
            duration(seconds);
        }
    }

    #[test]
    fn bytes_never_reach_a_terminal_as_commands() {
        assert_eq!(printable("/ä".as_bytes()), "/ä");
        assert_eq!(printable(b"/\x1b[2J"), r"/\x1b[2J");
        assert_eq!(printable(b"/\xff"), r"/\xff");
        let mut object = Map::new();
        insert_bytes(&mut object, "uri", b"/\xff");
        assert_eq!(object["uri_hex"], "2fff");
    }
}
