//! A file's bytes without a copy: mapped, or in the binary.

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};

use memmap2::Mmap;

/// Bytes that do not change.
pub(crate) enum Bytes {
    Mapped(Mmap),
    Bundled(&'static [u8]),
}

impl Bytes {
    /// Maps a file.
    pub(crate) fn map(file: &File) -> io::Result<Bytes> {
        // SAFETY: what a map shows changes when somebody writes to the file, which would make the numbers read from it other
        // numbers, and raise SIGBUS where it is cut short. Nobody writes to it: a cache blob is replaced by renaming a new file
        // over it, which leaves this one as it is, and a model's folder is the operator's, who is told in the guide to replace
        // files and never to edit them in place. Every byte pattern is a valid number, so no value read is ever invalid.
        #[allow(unsafe_code)]
        let mapped = unsafe { Mmap::map(file) };
        mapped.map(Bytes::Mapped)
    }

    /// The memory of a part is not needed for now: what was read and is packed should not count twice. Reading it again brings
    /// it back.
    pub(crate) fn let_go(&self, part: Range<usize>) {
        #[cfg(unix)]
        if let Bytes::Mapped(map) = self {
            let (start, end) = (part.start.min(map.len()), part.end.min(map.len()));
            // SAFETY: the map is of a file and never written to, so dropped pages come back with the same content, also under
            // the eyes of somebody who reads them; the part lies in the map.
            #[allow(unsafe_code)]
            let advised =
                unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end.saturating_sub(start)) };
            // Advice: a system that does not take it has the pages for longer.
            drop(advised);
        }
        #[cfg(not(unix))]
        let _ = part;
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Bundled(bytes) => bytes,
        }
    }
}
