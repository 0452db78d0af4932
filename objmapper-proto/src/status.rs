//! Status codes of responses.

use crate::error::Malformed;

macro_rules! status {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal;)*) => {
        /// Status of a response. `0x00` to `0x22` are v0.1's, `0x30` and on are the extensions'.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Status {
            $($(#[$doc])* $name = $code,)*
        }

        impl TryFrom<u8> for Status {
            type Error = Malformed;

            fn try_from(code: u8) -> Result<Self, Malformed> {
                match code {
                    $($code => Ok(Self::$name),)*
                    _ => Err(Malformed::Unknown { field: "status", value: code.into() }),
                }
            }
        }

        impl std::fmt::Display for Status {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self { $(Self::$name => $text,)* })
            }
        }

        impl Status {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];
        }
    };
}

status! {
    /// The request was carried out.
    Ok = 0x00, "ok";
    /// There is no such object.
    NotFound = 0x01, "not found";
    /// The request breaks a rule of the protocol; the connection stays.
    InvalidRequest = 0x02, "invalid request";
    /// The mode byte stands for nothing.
    InvalidMode = 0x03, "invalid mode";
    /// The URI is too long.
    UriTooLong = 0x04, "URI too long";
    /// The operation or mode is not offered.
    Unsupported = 0x05, "unsupported";
    /// The server failed within.
    Internal = 0x10, "internal error";
    /// The server's storage failed.
    Storage = 0x11, "storage error";
    /// The server is out of memory.
    Memory = 0x12, "out of memory";
    /// There was no outcome in time.
    Timeout = 0x13, "timeout";
    /// The server cannot serve now.
    Unavailable = 0x14, "unavailable";
    /// The peer broke the protocol.
    Protocol = 0x20, "protocol error";
    /// The peer speaks another version.
    Version = 0x21, "version not supported";
    /// A capability that was not negotiated.
    Capability = 0x22, "capability not negotiated";
    /// A precondition failed, or the URI was deleted after the private object was created.
    Conflict = 0x30, "conflict";
    /// A process still holds a writable descriptor or mapping of the object.
    Busy = 0x31, "busy: still open for writing";
    /// The session is unknown, or the connection has none.
    UnknownSession = 0x32, "unknown session";
    /// The handle or lease is unknown.
    UnknownHandle = 0x33, "unknown handle";
    /// The tier is full of objects that cannot be evicted.
    Full = 0x34, "tier full";
    /// The server does not serve this client: its user or group is on no allow-list.
    Refused = 0x35, "refused";
}

impl Status {
    /// The byte on the wire.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }
}
