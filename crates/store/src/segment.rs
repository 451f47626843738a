//! Segments: files of blocks, one frame after the other. They only grow, except that deleted blocks are overwritten.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::block::{Block, HEADER_BYTES, Header, LIVE, Seal, WIPED};

/// What a segment begins with; five bytes of its [`Seal`] follow.
const MAGIC: &[u8; 3] = b"TG3";

/// What a segment begins with whose frames have no seals.
const UNSEALED: &[u8; 8] = b"TGSEG\0\0\x02";

/// What segments began with before the first release.
const OLD_MAGIC: &[u8; 8] = b"TGSEG\0\0\x01";

/// Where the first frame begins.
pub(crate) const FIRST_FRAME: u64 = UNSEALED.len() as u64;

/// All segments of a store.
#[derive(Clone, Debug)]
pub(crate) enum SegmentDir {
    Disk(PathBuf),
    Memory(Arc<Mutex<BTreeMap<u64, Shared>>>),
}

type Shared = Arc<Mutex<Vec<u8>>>;

/// One segment, open.
#[derive(Debug)]
pub(crate) enum Segment {
    File(File),
    Memory(Shared),
}

/// What was found in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scanned {
    /// Where the last good frame ends.
    pub end: u64,
    /// Bytes before that which belong to no good frame.
    pub damaged: u64,
}

/// Where a block stands in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub offset: u64,
    /// The length of its header and first payload.
    pub heads: u64,
    pub length: u64,
}

impl SegmentDir {
    /// Makes a segment with nothing but its beginning.
    pub fn create(&self, id: u64) -> io::Result<Segment> {
        let mut segment = match self {
            Self::Disk(folder) => {
                let mut options = OpenOptions::new();
                options.read(true).write(true).create(true).truncate(true);
                Segment::File(private(&mut options).open(path(folder, id))?)
            }
            Self::Memory(all) => {
                let data = Shared::default();
                lock(all).insert(id, Arc::clone(&data));
                Segment::Memory(data)
            }
        };
        // The standard library's seeds are random: nobody who is recorded knows them.
        let salt = RandomState::new().hash_one(id).to_le_bytes();
        let begin: Vec<u8> = MAGIC.iter().chain(&salt).copied().take(8).collect();
        if let Err(error) = segment.write_at(0, &begin) {
            let _ = self.remove(id);
            return Err(error);
        }
        Ok(segment)
    }

    /// Opens a segment to read it, and to write to it if `write` says so.
    pub fn open(&self, id: u64, write: bool) -> io::Result<Segment> {
        match self {
            Self::Disk(folder) => {
                let mut options = OpenOptions::new();
                options.read(true).write(write);
                Ok(Segment::File(options.open(path(folder, id))?))
            }
            Self::Memory(all) => match lock(all).get(&id) {
                Some(data) => Ok(Segment::Memory(Arc::clone(data))),
                None => Err(io::ErrorKind::NotFound.into()),
            },
        }
    }

    pub fn remove(&self, id: u64) -> io::Result<()> {
        match self {
            Self::Disk(folder) => match fs::remove_file(path(folder, id)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                result => result,
            },
            Self::Memory(all) => {
                lock(all).remove(&id);
                Ok(())
            }
        }
    }

    /// The numbers of all segments, in order.
    pub fn list(&self) -> io::Result<Vec<u64>> {
        let mut ids = match self {
            Self::Disk(folder) => {
                let mut ids = Vec::new();
                for entry in fs::read_dir(folder)? {
                    let name = entry?.file_name();
                    let name = name.to_string_lossy();
                    let number: Option<u64> = name
                        .strip_prefix("segment-")
                        .and_then(|rest| rest.strip_suffix(".tgs"))
                        .and_then(|number| number.parse().ok());
                    ids.extend(number);
                }
                ids
            }
            Self::Memory(all) => lock(all).keys().copied().collect(),
        };
        ids.sort_unstable();
        Ok(ids)
    }
}

impl Segment {
    pub fn len(&self) -> io::Result<u64> {
        match self {
            Self::File(file) => Ok(file.metadata()?.len()),
            Self::Memory(data) => Ok(lock(data).len() as u64),
        }
    }

    /// Writes at a place, which is at most the end.
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::File(file) => {
                file.seek(SeekFrom::Start(offset))?;
                file.write_all(bytes)
            }
            Self::Memory(data) => {
                let mut data = lock(data);
                let offset = usize::try_from(offset).map_err(io::Error::other)?;
                let end = offset + bytes.len();
                if data.len() < end {
                    data.resize(end, 0);
                }
                match data.get_mut(offset..end) {
                    Some(slot) => slot.copy_from_slice(bytes),
                    None => return Err(io::ErrorKind::InvalidInput.into()),
                }
                Ok(())
            }
        }
    }

    /// Reads exactly so many bytes. What a file doesn't hold is not reserved.
    pub fn read_at(&mut self, offset: u64, length: u64) -> io::Result<Vec<u8>> {
        match self {
            Self::File(file) => {
                file.seek(SeekFrom::Start(offset))?;
                let mut bytes = Vec::with_capacity(length.min(1 << 20) as usize);
                file.take(length).read_to_end(&mut bytes)?;
                if (bytes.len() as u64) < length {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(bytes)
            }
            Self::Memory(data) => {
                let data = lock(data);
                let slice = usize::try_from(offset).ok().and_then(|begin| {
                    let end = begin.checked_add(usize::try_from(length).ok()?)?;
                    data.get(begin..end)
                });
                let slice = slice.ok_or(io::ErrorKind::UnexpectedEof)?;
                Ok(slice.to_vec())
            }
        }
    }

    pub fn truncate(&mut self, length: u64) -> io::Result<()> {
        match self {
            Self::File(file) => file.set_len(length),
            Self::Memory(data) => {
                lock(data).truncate(usize::try_from(length).unwrap_or(usize::MAX));
                Ok(())
            }
        }
    }

    /// What its frames are sealed with. `None` when it does not begin as segments do.
    pub fn seal(&mut self) -> Option<Seal> {
        let begin = self.read_at(0, FIRST_FRAME).ok()?;
        if begin == UNSEALED {
            return Some(Seal::Zero);
        }
        let salt = begin.strip_prefix(MAGIC)?;
        let salt = salt.iter().fold(0, |all, byte| all << 8 | u64::from(*byte));
        Some(Seal::Salt(salt))
    }

    /// Seals a frame, and writes it at a place, which is at most the end.
    pub fn write_frame(&mut self, offset: u64, frame: &mut [u8]) -> io::Result<()> {
        let seal = self.seal().ok_or(io::ErrorKind::InvalidData)?;
        seal.put(offset, frame);
        self.write_at(offset, frame)
    }

    /// Goes over the frames from `offset` on and hands out each whole block. What is damaged in between is passed over.
    pub fn scan(
        &mut self,
        offset: u64,
        mut found: impl FnMut(Frame, Block),
    ) -> io::Result<Scanned> {
        let length = self.len()?;
        let seal = self.seal().ok_or(io::ErrorKind::InvalidData)?;
        let mut scanned = Scanned {
            end: offset,
            damaged: 0,
        };
        let mut at = offset;
        loop {
            match self.frame(at, length, seal)? {
                Some((frame, block)) => {
                    scanned.damaged += at - scanned.end;
                    if let Some(block) = block {
                        found(frame, block);
                    }
                    at += frame.length;
                    scanned.end = at;
                }
                None => match self.next_magic(at + 1, length)? {
                    Some(next) => at = next,
                    None => return Ok(scanned),
                },
            }
        }
    }

    /// The frame at a place, and its block if it has not been deleted. `None`: it is no good one.
    fn frame(
        &mut self,
        offset: u64,
        end: u64,
        seal: Seal,
    ) -> io::Result<Option<(Frame, Option<Block>)>> {
        let Some(header) = self.header(offset, seal)? else {
            return Ok(None);
        };
        let length = header.frame_bytes();
        if end.saturating_sub(offset) < length {
            return Ok(None);
        }
        let frame = Frame {
            offset,
            heads: header.heads_bytes(),
            length,
        };
        if header.block == 0 {
            return Ok(Some((frame, None)));
        }
        let block = Block::parse(&self.read_at(offset, length)?).ok();
        Ok(block.map(|block| (frame, Some(block))))
    }

    /// Where the next thing stands that looks like the beginning of a frame.
    fn next_magic(&mut self, mut from: u64, end: u64) -> io::Result<Option<u64>> {
        const STEP: u64 = 64 << 10;
        while from < end {
            let length = STEP.min(end - from);
            let bytes = self.read_at(from, length)?;
            let found = bytes
                .windows(4)
                .position(|window| window == LIVE || window == WIPED);
            if let Some(at) = found {
                return Ok(Some(from + at as u64));
            }
            if length < STEP {
                return Ok(None);
            }
            // It may lie across the seam.
            from += length - 3;
        }
        Ok(None)
    }

    fn header(&mut self, offset: u64, seal: Seal) -> io::Result<Option<Header>> {
        match self.read_at(offset, HEADER_BYTES as u64) {
            Ok(bytes) => Ok(Header::parse(&bytes).filter(|_| seal.is_on(offset, &bytes))),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Whether a file is a segment in a form that is no longer read.
pub(crate) fn is_old_segment(path: &Path) -> io::Result<bool> {
    let mut begin = Vec::new();
    File::open(path)?
        .take(FIRST_FRAME)
        .read_to_end(&mut begin)?;
    Ok(begin == OLD_MAGIC)
}

fn path(folder: &Path, id: u64) -> PathBuf {
    folder.join(format!("segment-{id:08}.tgs"))
}

/// For its owner's eyes only, where the platform has that.
pub(crate) fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options
}

pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
