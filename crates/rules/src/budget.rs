//! How much may go to a host within a time.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hashbrown::HashMap;

/// The most hosts that a budget counts for; then those whose time is over are forgotten, and if there are none, the
/// next host gets nothing.
const MAX_HOSTS: usize = 4096;

/// Requests and bytes that each host may get within a time.
#[derive(Debug)]
pub(crate) struct Budget {
    pub requests: Option<u64>,
    pub upload: Option<u64>,
    pub per: Duration,
    used: Mutex<HashMap<String, Used>>,
}

#[derive(Debug)]
struct Used {
    since: Instant,
    requests: u64,
    upload: u64,
}

/// It is used up; so long it lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exhausted(pub Duration);

impl Budget {
    pub fn new(requests: Option<u64>, upload: Option<u64>, per: Duration) -> Self {
        Self {
            requests,
            upload,
            per,
            used: Mutex::default(),
        }
    }

    /// Takes a request to a host.
    pub fn request(&self, host: &str, now: Instant) -> Result<(), Exhausted> {
        self.take(host, now, 1, 0)
    }

    /// Takes bytes of a request to a host.
    pub fn upload(&self, host: &str, bytes: u64, now: Instant) -> Result<(), Exhausted> {
        self.take(host, now, 0, bytes)
    }

    fn take(&self, host: &str, now: Instant, requests: u64, upload: u64) -> Result<(), Exhausted> {
        let mut all = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if !all.contains_key(host) && all.len() >= MAX_HOSTS {
            all.retain(|_, used| now.saturating_duration_since(used.since) < self.per);
            if all.len() >= MAX_HOSTS {
                return Err(Exhausted(self.per));
            }
        }
        let used = all.entry_ref(host).or_insert_with(|| Used {
            since: now,
            requests: 0,
            upload: 0,
        });
        let age = now.saturating_duration_since(used.since);
        if age >= self.per {
            *used = Used {
                since: now,
                requests: 0,
                upload: 0,
            };
        }
        let left = self
            .per
            .saturating_sub(now.saturating_duration_since(used.since));
        let over = |limit: Option<u64>, used: u64, more: u64| {
            more > 0 && limit.is_some_and(|limit| used.saturating_add(more) > limit)
        };
        // A request finds a used-up upload closed, too.
        let no_upload_left = requests > 0 && self.upload.is_some_and(|limit| used.upload >= limit);
        if over(self.requests, used.requests, requests)
            || over(self.upload, used.upload, upload)
            || no_upload_left
        {
            used.upload = used.upload.saturating_add(upload);
            return Err(Exhausted(left));
        }
        used.requests = used.requests.saturating_add(requests);
        used.upload = used.upload.saturating_add(upload);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_host_has_its_own_and_it_comes_back() {
        let budget = Budget::new(Some(2), Some(100), Duration::from_secs(10));
        let now = Instant::now();
        for host in ["a", "b"] {
            assert_eq!(budget.request(host, now), Ok(()));
            assert_eq!(budget.request(host, now), Ok(()));
            let later = now + Duration::from_secs(4);
            assert_eq!(
                budget.request(host, later),
                Err(Exhausted(Duration::from_secs(6)))
            );
            assert_eq!(budget.request(host, now + Duration::from_secs(10)), Ok(()));
        }
    }

    #[test]
    fn bytes_that_are_too_many_close_it() {
        let budget = Budget::new(None, Some(100), Duration::from_secs(10));
        let now = Instant::now();
        assert_eq!(budget.request("a", now), Ok(()));
        assert_eq!(budget.upload("a", 60, now), Ok(()));
        assert!(budget.upload("a", 60, now).is_err());
        assert!(budget.request("a", now).is_err());
        assert_eq!(budget.request("b", now), Ok(()));
    }

    #[test]
    fn the_table_is_bounded() {
        let budget = Budget::new(Some(1), None, Duration::from_secs(10));
        let now = Instant::now();
        for i in 0..MAX_HOSTS {
            assert_eq!(budget.request(&i.to_string(), now), Ok(()));
        }
        assert!(budget.request("one more", now).is_err());
        assert_eq!(
            budget.request("one more", now + Duration::from_secs(11)),
            Ok(())
        );
    }
}
