//! The file: records, each with its length and checksum, appended and synced before anything is answered.
//!
//! A file is `BANYAN-REGISTRY-1\n`, then frames of a length (4 bytes, little-endian), the CRC-32 of the length and the CRC-32
//! of the record (likewise), and the record. A whole state replaces the file by rename, so there is always one good file under the name: at the start,
//! when appended records outweigh the state, and after a failed write. A frame that the end cuts off was never answered,
//! and is dropped; any other damage is an error, since what came behind it can't be trusted.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use tracing::{info, warn};

use super::{
    record::{Record, Unsound},
    store::{STORE_BYTES_MAX, Store},
};

const MAGIC: &[u8] = b"BANYAN-REGISTRY-1\n";

/// The length and the two checksums before each record, in bytes. The length has one of its own: without it, a flipped bit
/// there would look like a last record that was cut off.
const HEADER_BYTES: usize = 12;

/// The longest record, in bytes: all keys deleted at once, as small as their messages are.
const RECORD_BYTES_MAX: usize = STORE_BYTES_MAX * 2;

/// A file below this many bytes is not worth replacing.
const REPLACE_BYTES_MIN: u64 = 1 << 20;

/// How many times the size of its state the file may have: it is then replaced once per as many bytes of writes.
const REPLACE_FACTOR: u64 = 4;

/// Why a file can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// Reading or writing failed.
    #[error("can't use the registry file {}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process has it.
    #[error("the registry file {} is in use by another registry: stop that one, or name another file with --file", .path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Not our file at all.
    #[error("{} is no registry file: name another with --file, or move this one away", .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// Ours, and damaged.
    #[error(
        "the registry file {} is damaged at byte {at} ({what}): put back a copy, or move it away to begin anew \
         (nodes that are alive register again by themselves)",
        .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        at: usize,
        /// How.
        what: String,
    },
}

/// An open file. It stays locked until it is dropped.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    file: File,
    bytes: u64,
    /// The size of the state when it was last written whole, in bytes.
    state_bytes: u64,
    /// Whether a write failed, so that nobody knows what the file ends with.
    uncertain: bool,
    _lock: File,
}

impl Log {
    /// Opens the file and reads its state, or makes it with an empty state whose history begins at `revision`.
    pub(super) fn open(path: &Path, revision: i64) -> Result<(Log, Store), FileError> {
        let failed = |source| FileError::Io { path: path.to_owned(), source };
        let lock_path = beside(path, "lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(FileError::InUse { path: path.to_owned() }),
            Err(fs::TryLockError::Error(source)) => return Err(failed(source)),
        }
        let store = match fs::read(path) {
            Ok(content) if !content.is_empty() => read(path, &content)?,
            Ok(_) => Store::new(revision),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Store::new(revision),
            Err(source) => return Err(failed(source)),
        };
        let file = write_whole(path, &store.to_records()).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        info!(path = %path.display(), revision = store.revision(), bytes, "opened the registry file");
        let log = Log { path: path.to_owned(), file, bytes, state_bytes: bytes, uncertain: false, _lock: lock };
        Ok((log, store))
    }

    /// Whether the next write has to be of the whole state.
    pub(super) fn wants_state(&self) -> bool {
        self.uncertain || self.bytes > REPLACE_BYTES_MIN.max(self.state_bytes * REPLACE_FACTOR)
    }

    /// Appends records; when it returns, they are on the disk.
    pub(super) fn append(&mut self, records: &[Record]) -> io::Result<()> {
        let frames = frames(records);
        let written = self.file.write_all(&frames).and_then(|()| self.file.sync_data());
        self.uncertain = written.is_err();
        self.bytes += frames.len() as u64;
        written
    }

    /// Replaces the file by the whole state; when it returns, it is on the disk.
    pub(super) fn replace(&mut self, state: &[Record]) -> io::Result<()> {
        // Until it has worked, what the file lacks would be lacking still behind an append.
        self.uncertain = true;
        self.file = write_whole(&self.path, state)?;
        self.bytes = self.file.metadata()?.len();
        self.state_bytes = self.bytes;
        self.uncertain = false;
        Ok(())
    }
}

/// Parses a file's content.
fn read(path: &Path, content: &[u8]) -> Result<Store, FileError> {
    let Some(mut rest) = content.strip_prefix(MAGIC) else {
        return Err(FileError::Foreign { path: path.to_owned() });
    };
    let at = |rest: &[u8]| content.len() - rest.len();
    let damaged = |at, what: String| FileError::Damaged { path: path.to_owned(), at, what };
    let mut store: Option<Store> = None;
    while !rest.is_empty() {
        let (record, behind) = match take_frame(rest) {
            Frame::Whole { record, behind } => (record, behind),
            Frame::CutOff => {
                warn!(path = %path.display(), at = at(rest), "dropped a last record that was never finished");
                break;
            }
            Frame::Damaged => return Err(damaged(at(rest), "the checksum does not match".into())),
        };
        let taken = match &mut store {
            Some(store) => store.replay(record, Duration::ZERO),
            none => Store::from_record(record).map(|first| *none = Some(first)),
        };
        taken.map_err(|unsound: Unsound| damaged(at(rest), unsound.to_string()))?;
        rest = behind;
    }
    // The state is written before the name points to the file, so a file without one was cut by somebody else.
    store.ok_or_else(|| damaged(content.len(), "it ends before its first record".into()))
}

enum Frame<'a> {
    Whole { record: &'a [u8], behind: &'a [u8] },
    CutOff,
    Damaged,
}

fn take_frame(content: &[u8]) -> Frame<'_> {
    // After a power failure a file may have got its length and not its content.
    if content.iter().all(|byte| *byte == 0) {
        return Frame::CutOff;
    }
    let Some((header, rest)) = content.split_at_checked(HEADER_BYTES) else { return Frame::CutOff };
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte));
    let (length, of_length, of_record) = (number(&header[..4]) as usize, number(&header[4..8]), number(&header[8..]));
    if crc32fast::hash(&header[..4]) != of_length || length == 0 || length > RECORD_BYTES_MAX {
        return Frame::Damaged;
    }
    let Some((record, behind)) = rest.split_at_checked(length) else { return Frame::CutOff };
    if crc32fast::hash(record) == of_record { Frame::Whole { record, behind } } else { Frame::Damaged }
}

fn frames(records: &[Record]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for record in records {
        let record = record.bytes();
        let length = u32::try_from(record.len()).expect("a record is shorter than 4 GiB").to_le_bytes();
        bytes.extend_from_slice(&length);
        bytes.extend_from_slice(&crc32fast::hash(&length).to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(record).to_le_bytes());
        bytes.extend_from_slice(record);
    }
    bytes
}

/// Writes a new file and puts it in the old one's place.
fn write_whole(path: &Path, state: &[Record]) -> io::Result<File> {
    let new = beside(path, "new");
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).open(&new)?;
    file.write_all(MAGIC)?;
    file.write_all(&frames(state))?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    // The rename itself is on the disk once the folder is.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()?;
    Ok(file)
}

/// `registry.db` → `registry.db.lock`.
fn beside(path: &Path, extension: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(extension);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use etcd_client::proto::PbPutRequest;
    use proptest::prelude::*;

    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn put(store: &mut Store, key: &str, lease: i64) {
        let request = PbPutRequest { key: key.into(), value: b"value".to_vec(), lease, ..PbPutRequest::default() };
        store.put(request).unwrap();
    }

    /// A file whose first half is a state and whose second half was appended.
    fn sample(path: &Path) -> Store {
        let (mut log, mut store) = Log::open(path, 100).unwrap();
        store.grant(7, 10, NOW).unwrap();
        put(&mut store, "a", 7);
        put(&mut store, "b", 0);
        log.append(&store.take_journal()).unwrap();
        log.replace(&store.to_records()).unwrap();
        put(&mut store, "c", 7);
        store.grant(8, 10, NOW).unwrap();
        put(&mut store, "a", 8);
        store.revoke(7).unwrap();
        store.compact(102).unwrap();
        log.append(&store.take_journal()).unwrap();
        store
    }

    #[test]
    fn a_file_gives_back_keys_revision_and_leases() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("registry");
        let store = sample(&path);
        let (_log, again) = Log::open(&path, 1).unwrap();
        assert_eq!(again.revision(), store.revision());
        assert_eq!(again.to_records(), store.to_records());
    }

    #[test]
    fn a_file_is_one_servers_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("registry");
        let first = Log::open(&path, 1).unwrap();
        assert!(matches!(Log::open(&path, 1), Err(FileError::InUse { .. })));
        drop(first);
        assert!(Log::open(&path, 1).is_ok());
    }

    #[test]
    fn foreign_and_unusable_files_are_refused_with_a_reason() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("registry");
        fs::write(&path, "a letter to my aunt").unwrap();
        assert!(matches!(Log::open(&path, 1), Err(FileError::Foreign { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"a letter to my aunt", "and left alone");
        assert!(matches!(Log::open(&folder.path().join("no/such/folder"), 1), Err(FileError::Io { .. })));
        assert!(matches!(Log::open(folder.path(), 1), Err(FileError::Io { .. })));
    }

    #[test]
    fn what_a_crash_cut_off_is_dropped_and_nothing_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("registry");
        let last = sample(&path).revision();
        let content = fs::read(&path).unwrap();
        let state = content.len() - 1 - (0..content.len()).rev().find(|cut| read(&path, &content[..*cut]).is_err()).unwrap();
        assert!(state > 0, "the appended half can be cut anywhere");
        let mut revisions: Vec<i64> =
            (0..=content.len()).filter_map(|cut| read(&path, &content[..cut]).ok()).map(|store| store.revision()).collect();
        assert!(revisions.is_sorted());
        revisions.dedup();
        assert_eq!(revisions.last(), Some(&last));
        assert_eq!(revisions.len(), 4, "the state, two puts and a revocation");
        let zeros = [&content[..], &[0; 100]].concat();
        assert_eq!(read(&path, &zeros).unwrap().revision(), last);
    }

    #[test]
    fn a_write_that_failed_is_made_up_for_by_the_whole_state() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("registry");
        let (mut log, mut store) = Log::open(&path, 1).unwrap();
        put(&mut store, "before", 0);
        log.append(&store.take_journal()).unwrap();
        // What every write to a full disk says.
        let good = std::mem::replace(&mut log.file, OpenOptions::new().write(true).open("/dev/full").unwrap());
        put(&mut store, "lost", 0);
        let error = log.append(&store.take_journal()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(log.wants_state(), "the next write is of everything");
        assert_eq!(read(&path, &fs::read(&path).unwrap()).unwrap().revision(), 2, "the file is as it was");
        drop(good);
        put(&mut store, "after", 0);
        store.take_journal();
        log.replace(&store.to_records()).unwrap();
        assert!(!log.wants_state());
        drop(log);
        let (_log, again) = Log::open(&path, 1).unwrap();
        assert_eq!(again.to_records(), store.to_records());
    }

    #[test]
    fn a_file_that_outgrew_its_state_wants_to_be_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, mut store) = Log::open(&folder.path().join("registry"), 1).unwrap();
        let mut writes = 0;
        while !log.wants_state() {
            let value = vec![b'x'; 1 << 16];
            store.put(PbPutRequest { key: b"k".to_vec(), value, ..PbPutRequest::default() }).unwrap();
            log.append(&store.take_journal()).unwrap();
            writes += 1;
            assert!(writes < 1000);
        }
        log.replace(&store.to_records()).unwrap();
        assert!(!log.wants_state() && log.bytes < 1 << 17);
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_noticed(at in 0.0..1.0f64, bit in 0..8u32) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("registry");
            sample(&path);
            let mut content = fs::read(&path).unwrap();
            let at = (at * content.len() as f64) as usize;
            content[at] ^= 1 << bit;
            prop_assert!(read(&path, &content).is_err());
        }

        #[test]
        fn any_bytes_may_lie_in_a_file(content in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = read(Path::new("file"), &content);
            let _ = read(Path::new("file"), &[MAGIC, &content].concat());
        }

        /// Past the checksum, as a wrong program could have written it.
        #[test]
        fn any_records_are_a_state_or_an_error(records in proptest::collection::vec(
            (prop::sample::select(b"BKCGRTx".as_slice()), proptest::collection::vec(any::<u8>(), 0..24)), 0..6,
        )) {
            let mut store = sample(&tempfile::tempdir().unwrap().path().join("registry"));
            for (kind, message) in records {
                let record = [&[kind], message.as_slice()].concat();
                let _ = Store::from_record(&record);
                if store.replay(&record, NOW).is_err() {
                    break;
                }
            }
        }
    }
}
