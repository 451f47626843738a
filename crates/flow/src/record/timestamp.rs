use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A moment: seconds since 1970-01-01 UTC, as flow files hold them.
///
/// It remembers whether it was written as an integer, so that a file comes out as it went in.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Timestamp {
    seconds: f64,
    integer: bool,
}

impl Timestamp {
    /// A moment from seconds since the epoch.
    pub const fn new(seconds: f64) -> Self {
        Self {
            seconds,
            integer: false,
        }
    }

    /// The same, written as an integer. Beyond 2⁵³ the number is rounded.
    pub const fn integer(seconds: i64) -> Self {
        Self {
            seconds: seconds as f64,
            integer: true,
        }
    }

    /// Seconds since the epoch.
    pub const fn seconds(self) -> f64 {
        self.seconds
    }

    /// Whether it is written as an integer.
    pub const fn is_integer(self) -> bool {
        self.integer
    }

    /// A later moment.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self::new(self.seconds + duration.as_secs_f64())
    }

    /// The time from an earlier moment to this one; `None` if it isn't earlier, or no number.
    pub fn since(self, earlier: Self) -> Option<Duration> {
        Duration::try_from_secs_f64(self.seconds - earlier.seconds).ok()
    }
}

/// To the microsecond, which is what a double holds at today's times.
impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::new(since.as_micros() as f64 / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_counted_from_the_epoch() {
        let time = UNIX_EPOCH + Duration::from_micros(1_700_000_000_123_456);
        let moment = Timestamp::from(time);
        assert_eq!(moment.seconds(), 1_700_000_000.123_456);
        let later = moment.after(Duration::from_millis(1500));
        assert!((later.since(moment).unwrap().as_secs_f64() - 1.5).abs() < 1e-6);
        assert_eq!(moment.since(later), None);
        assert_eq!(Timestamp::new(f64::NAN).since(moment), None);
    }
}
