//! Where flows are kept, and how much of them.

use std::path::PathBuf;
use std::time::Duration;

/// Where flows are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In memory, until the process ends.
    Memory,
    /// In a folder, which is made (0700) if it isn't there. Files in it are 0600: they hold what passed, secrets
    /// included.
    Disk(PathBuf),
}

/// How a store keeps flows. Every limit has a default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// Where flows are kept.
    pub place: Place,
    /// The most that segments and database may take, in bytes. At the bound the oldest segment goes. It is looked at
    /// once a second, so that a burst can pass it by what is written in that time. Default: 1 GiB on disk, 64 MiB in
    /// memory.
    pub max_bytes: u64,
    /// How long a flow is kept. `None`: until its room is needed. Default: 7 days.
    pub max_age: Option<Duration>,
    /// The most flows that wait to be written. At the bound new ones are dropped, and counted. Default: 16 384.
    pub queue_flows: usize,
    /// The most bytes that wait to be written; otherwise the same. Default: 32 MiB.
    pub queue_bytes: usize,
    /// zstd's level, -7 to 19. At 1, only long repetitions are looked for. Default: 1.
    pub compression_level: i32,
}

impl StoreConfig {
    /// The defaults, at a place.
    pub fn new(place: Place) -> Self {
        let max_bytes = match place {
            Place::Memory => 64 << 20,
            Place::Disk(_) => 1 << 30,
        };
        Self {
            place,
            max_bytes,
            max_age: Some(Duration::from_secs(7 * 24 * 3600)),
            queue_flows: 16 * 1024,
            queue_bytes: 32 << 20,
            compression_level: 1,
        }
    }

    /// When a segment is closed and the next one begun: a sixteenth of the room, between 64 KiB and 16 MiB.
    pub(crate) fn segment_bytes(&self) -> u64 {
        (self.max_bytes / 16).clamp(64 << 10, 16 << 20)
    }
}
