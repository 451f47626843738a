//! Counters. Each worker has its own set; a snapshot adds them up.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tollgate_flow::{ErrorClass, Interceptor, Side, TlsFailureKind};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        #[derive(Default)]
        pub(crate) struct Counters {
            $(pub $name: AtomicU64,)*
            pub latency: Histogram,
            pub failures: [[AtomicU64; CLASSES.len()]; 3],
            pub tls_failures: [[AtomicU64; TLS_KINDS.len()]; 2],
        }

        /// What a proxy has done since it started.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Metrics {
            $($(#[$doc])* pub $name: u64,)*
            /// Time from a request head to the end of its response.
            pub latency: LatencyHistogram,
            /// Failed flows by side (`client`, `upstream`, `proxy`) and class (`dns`, `connect`, …).
            pub failures: Vec<(&'static str, &'static str, u64)>,
            /// Failed TLS handshakes by side (`client`, `upstream`) and kind (`unknown_ca`, …).
            pub tls_failures: Vec<(&'static str, &'static str, u64)>,
            /// What interceptors count, as name of the interceptor, name of the counter, and value: an external scanner its
            /// questions, rules their budgets. Those of interceptors with the same name are added up.
            pub interceptors: Vec<(String, &'static str, u64)>,
        }

        impl Metrics {
            pub(crate) fn collect<'a>(all: impl Iterator<Item = &'a Counters>) -> Self {
                let mut sum = Self::default();
                let mut failures = [[0_u64; CLASSES.len()]; 3];
                let mut tls = [[0_u64; TLS_KINDS.len()]; 2];
                for counters in all {
                    $(sum.$name += counters.$name.load(Ordering::Relaxed);)*
                    counters.latency.add_to(&mut sum.latency);
                    add(&mut failures, &counters.failures);
                    add(&mut tls, &counters.tls_failures);
                }
                for (side, row) in ["client", "upstream", "proxy"].into_iter().zip(failures) {
                    for (class, count) in CLASSES.iter().zip(row).filter(|(_, c)| *c > 0) {
                        sum.failures.push((side, class.code(), count));
                    }
                }
                for (side, row) in ["client", "upstream"].into_iter().zip(tls) {
                    for (kind, count) in TLS_KINDS.iter().zip(row).filter(|(_, c)| *c > 0) {
                        sum.tls_failures.push((side, kind, count));
                    }
                }
                sum
            }

            pub(crate) fn count_interceptors<'a>(
                &mut self,
                all: impl Iterator<Item = &'a dyn Interceptor>,
            ) {
                for hook in all {
                    for (name, value) in hook.counters() {
                        let known = self
                            .interceptors
                            .iter_mut()
                            .find(|(by, known, _)| by == hook.name() && *known == name);
                        match known {
                            Some((.., sum)) => *sum = sum.saturating_add(value),
                            None => self.interceptors.push((hook.name().to_owned(), name, value)),
                        }
                    }
                }
            }

            /// Name and value of every plain counter and gauge, for exporters.
            pub fn values(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

counters! {
    /// Client connections accepted.
    connections_total,
    /// Client connections open now.
    connections_active,
    /// Times that accepting paused because the connection limit was reached.
    connections_delayed,
    /// Times that accepting failed (out of file descriptors, say); it is tried again.
    accept_errors,
    /// Flows begun.
    flows_total,
    /// Flows not ended yet.
    flows_active,
    /// Flows that completed.
    flows_completed,
    /// Flows that were answered here: refused by policy, or by an interceptor.
    flows_answered,
    /// Flows that failed.
    flows_failed,
    /// Connections tunnelled unopened.
    tunnels_total,
    /// Connections refused by policy.
    blocked_total,
    /// Bytes read from clients' sockets.
    client_bytes_in,
    /// Bytes written to clients' sockets.
    client_bytes_out,
    /// Bytes read from upstream sockets.
    upstream_bytes_in,
    /// Bytes written to upstream sockets.
    upstream_bytes_out,
    /// TLS handshakes completed with clients.
    client_handshakes,
    /// TLS handshakes completed with origins.
    upstream_handshakes,
    /// Those of them that resumed a session.
    upstream_resumptions,
    /// Upstream connections made.
    upstream_connects,
    /// Exchanges that used a pooled upstream connection.
    upstream_reused,
    /// Idle upstream connections now.
    upstream_idle,
    /// Idle upstream connections that were closed because the pool was full or they were too old.
    upstream_evicted,
    /// Exchanges that were sent again because a reused connection turned out to be dead.
    retries,
    /// Upstream connections accepted although their certificate failed verification.
    unverified_upstreams,
    /// Requests that went straight to their origin because the scanner of a sandwich was not there.
    scanner_bypassed,
    /// Datagrams that were dropped: to port 443, to a refused destination, or too many at once.
    datagrams_dropped,
    /// Hooks that panicked.
    hook_panics,
    /// Holds whose deadline passed.
    hold_timeouts,
    /// Bodies and WebSockets of which an observer did not see everything (a bound, or bytes that
    /// can't be read).
    observer_truncations,
    /// WebSockets whose messages somebody wanted.
    websockets_total,
    /// Texts and binary messages that passed in them.
    websocket_messages,
    /// Responses from which HTTP/3 or Encrypted Client Hello was taken.
    http3_hidden,
    /// DNS lookups made.
    dns_lookups,
    /// DNS lookups answered from the cache.
    dns_cache_hits,
}

const CLASSES: [ErrorClass; 12] = [
    ErrorClass::Dns,
    ErrorClass::Connect,
    ErrorClass::Tls,
    ErrorClass::Timeout,
    ErrorClass::Reset,
    ErrorClass::Protocol,
    ErrorClass::Limit,
    ErrorClass::Interceptor,
    ErrorClass::Shutdown,
    ErrorClass::Loop,
    ErrorClass::Blocked,
    ErrorClass::Unauthenticated,
];

const TLS_KINDS: [&str; 17] = [
    "unknown_ca",
    "pinned",
    "certificate_expired",
    "certificate_not_yet_valid",
    "certificate_wrong_host",
    "certificate_self_signed",
    "certificate_unknown_issuer",
    "certificate_revoked",
    "certificate_bad_signature",
    "certificate_wrong_purpose",
    "certificate_invalid",
    "client_certificate_required",
    "timeout",
    "eof_or_reset",
    "no_shared_parameters",
    "protocol",
    "minting",
];

impl Counters {
    pub fn failure(&self, side: Side, class: ErrorClass) {
        let row = match side {
            Side::Client => 0,
            Side::Upstream => 1,
            Side::Proxy => 2,
        };
        let column = CLASSES.iter().position(|c| *c == class).unwrap_or(0);
        if let Some(cell) = self.failures.get(row).and_then(|r| r.get(column)) {
            cell.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn tls_failure(&self, side: Side, kind: TlsFailureKind) {
        let row = usize::from(side != Side::Client);
        let column = TLS_KINDS.iter().position(|k| *k == kind.code());
        if let Some(cell) = self
            .tls_failures
            .get(row)
            .and_then(|r| r.get(column.unwrap_or(15)))
        {
            cell.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Adds one to a counter.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Adds to a counter.
pub(crate) fn add_to(counter: &AtomicU64, n: u64) {
    if n > 0 {
        counter.fetch_add(n, Ordering::Relaxed);
    }
}

/// Takes one from a gauge.
pub(crate) fn uncount(gauge: &AtomicU64) {
    gauge.fetch_sub(1, Ordering::Relaxed);
}

fn add<const N: usize, const M: usize>(to: &mut [[u64; N]; M], from: &[[AtomicU64; N]; M]) {
    for (to, from) in to.iter_mut().flatten().zip(from.iter().flatten()) {
        *to += from.load(Ordering::Relaxed);
    }
}

const BUCKETS: usize = 24;

/// Durations by powers of two microseconds.
#[derive(Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_micros: AtomicU64,
}

impl Histogram {
    pub fn record(&self, d: Duration) {
        let micros = u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        let bucket = (64 - micros.leading_zeros() as usize).min(BUCKETS - 1);
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_micros.fetch_add(micros, Ordering::Relaxed);
    }

    fn add_to(&self, sum: &mut LatencyHistogram) {
        for (to, from) in sum.buckets.iter_mut().zip(&self.buckets) {
            *to += from.load(Ordering::Relaxed);
        }
        sum.sum_micros = sum
            .sum_micros
            .saturating_add(self.sum_micros.load(Ordering::Relaxed));
    }
}

/// A histogram of durations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LatencyHistogram {
    /// Bucket `i` counts durations below 2^i microseconds (and not below 2^(i-1)); the last
    /// takes everything longer.
    pub buckets: [u64; BUCKETS],
    /// The sum of all, in microseconds.
    pub sum_micros: u64,
}

impl LatencyHistogram {
    /// How many durations were recorded.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// An upper bound of the given quantile (0.0 to 1.0); `None` while nothing was recorded.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = ((count as f64) * q.clamp(0.0, 1.0)).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (i, n) in self.buckets.iter().enumerate() {
            seen += n;
            if seen >= rank {
                return Some(Duration::from_micros(1 << i));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histogram_quantiles_bound_what_was_recorded() {
        let counters = Counters::default();
        for micros in [1, 3, 100, 100, 100, 5000] {
            counters.latency.record(Duration::from_micros(micros));
        }
        let metrics = Metrics::collect([&counters].into_iter());
        assert_eq!(metrics.latency.count(), 6);
        assert_eq!(
            metrics.latency.quantile(0.5),
            Some(Duration::from_micros(128))
        );
        assert_eq!(
            metrics.latency.quantile(1.0),
            Some(Duration::from_micros(8192))
        );
    }

    #[test]
    fn interceptors_of_one_name_are_added_up() {
        struct Counts(&'static str, u64);
        impl Interceptor for Counts {
            fn name(&self) -> &str {
                self.0
            }
            fn counters(&self) -> Vec<(&'static str, u64)> {
                vec![("asked", self.1), ("failed", u64::MAX)]
            }
        }
        struct CountsNothing;
        impl Interceptor for CountsNothing {}

        let all: [&dyn Interceptor; 4] = [
            &Counts("one", 1),
            &CountsNothing,
            &Counts("other", 2),
            &Counts("one", 4),
        ];
        let mut metrics = Metrics::default();
        metrics.count_interceptors(all.into_iter());
        assert_eq!(
            metrics.interceptors,
            [
                ("one".to_owned(), "asked", 5),
                ("one".to_owned(), "failed", u64::MAX),
                ("other".to_owned(), "asked", 2),
                ("other".to_owned(), "failed", u64::MAX),
            ]
        );
    }

    #[test]
    fn every_tls_kind_has_its_own_cell() {
        let counters = Counters::default();
        counters.tls_failure(Side::Client, TlsFailureKind::UnknownAuthority);
        counters.tls_failure(Side::Upstream, TlsFailureKind::Minting);
        let metrics = Metrics::collect([&counters].into_iter());
        assert_eq!(
            metrics.tls_failures,
            [("client", "unknown_ca", 1), ("upstream", "minting", 1)]
        );
    }
}
