//! The zip format itself: [`write`] and [`read`] share nothing but the numbers here.
//!
//! Invariant of all that is written: what is not needed is not there, so the bytes of an archive are a function of its
//! entries; sizes that may not fit 32 bits are in zip64 fields, others never are.

pub(crate) mod read;
pub(crate) mod write;

pub(crate) const LOCAL: u32 = 0x0403_4b50;
pub(crate) const CENTRAL: u32 = 0x0201_4b50;
pub(crate) const DESCRIPTOR: u32 = 0x0807_4b50;
pub(crate) const END: u32 = 0x0605_4b50;
pub(crate) const END64: u32 = 0x0606_4b50;
pub(crate) const LOCATOR64: u32 = 0x0706_4b50;

/// Fixed lengths, signatures counted.
pub(crate) const LOCAL_LEN: usize = 30;
pub(crate) const CENTRAL_LEN: usize = 46;
pub(crate) const END_LEN: usize = 22;
pub(crate) const END64_LEN: usize = 56;
pub(crate) const LOCATOR64_LEN: usize = 20;

pub(crate) const FLAG_ENCRYPTED: u16 = 1;
pub(crate) const FLAG_DESCRIPTOR: u16 = 1 << 3;
pub(crate) const FLAG_UTF8: u16 = 1 << 11;

/// Extra fields.
pub(crate) const EXTRA_ZIP64: u16 = 1;
pub(crate) const EXTRA_TIME: u16 = 0x5455;
pub(crate) const EXTRA_OWNER: u16 = 0x7875;

/// "Made by" of Unix, in the upper byte.
pub(crate) const MADE_BY_UNIX: u8 = 3;

/// How an entry's bytes are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Stored,
    Deflated,
}

impl Method {
    pub(crate) fn number(self) -> u16 {
        match self {
            Method::Stored => 0,
            Method::Deflated => 8,
        }
    }
}
