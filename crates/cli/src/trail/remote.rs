//! Takes verdicts elsewhere, beside whoever decides: a bounded queue, a thread, and patience with an end.

use std::convert::Infallible;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// What waits; more is dropped and counted.
const QUEUE: usize = 4096;
/// The first pause after a failure, and the longest.
const PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long deliveries may go on when the program ends.
const LAST: Duration = Duration::from_secs(3);

/// Where events go.
pub trait Deliver: Send + 'static {
    /// What one delivers.
    type Event: Send + 'static;

    /// What it is called in the log.
    fn name(&self) -> String;

    /// The most events of one delivery, and how long the first of them waits for others.
    fn batch(&self) -> (usize, Duration);

    /// Delivers some. `dropped`: how many were lost since the last delivery.
    ///
    /// # Errors
    /// When that failed.
    fn deliver(&mut self, events: &[Self::Event], dropped: u64) -> Result<(), Failure>;
}

/// What is wrong with a delivery.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// It may work later.
    Later(String),
    /// These events will never be taken.
    Never(String),
}

/// The way to one place. Dropping it delivers what waits, for three seconds at most.
#[derive(Debug)]
pub struct Remote<E> {
    name: String,
    sender: Mutex<Option<SyncSender<E>>>,
    worker: Mutex<Option<Worker>>,
    shared: Arc<Shared>,
}

/// The thread that delivers.
#[derive(Debug)]
struct Worker {
    thread: Thread,
    /// Closed when it ends.
    ended: Receiver<Infallible>,
}

#[derive(Debug, Default)]
struct Shared {
    dropped: AtomicU64,
    /// When deliveries end, because the program does.
    until: OnceLock<Instant>,
}

impl Shared {
    fn is_over(&self) -> bool {
        self.until
            .get()
            .is_some_and(|&until| Instant::now() >= until)
    }
}

impl<E: Send + 'static> Remote<E> {
    /// Starts the thread that delivers.
    ///
    /// # Errors
    /// When the system gives none.
    pub fn start(deliver: impl Deliver<Event = E>) -> std::io::Result<Self> {
        let (sender, queue) = sync_channel(QUEUE);
        let (ends, ended) = sync_channel(0);
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        let name = deliver.name();
        let thread = std::thread::Builder::new()
            .name("tollgate-verdicts".to_owned())
            .spawn(move || {
                let _ends: SyncSender<Infallible> = ends;
                run(deliver, &queue, &own);
            })?;
        let worker = Worker {
            thread: thread.thread().clone(),
            ended,
        };
        Ok(Self {
            name,
            sender: Mutex::new(Some(sender)),
            worker: Mutex::new(Some(worker)),
            shared,
        })
    }

    /// Delivers an event, later. Never waits.
    pub fn send(&self, event: E) {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = sender
            .as_ref()
            .is_some_and(|sender| sender.try_send(event).is_ok());
        if !sent {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes no more, and delivers what waits, for three seconds.
    pub fn close(&self) {
        self.close_within(LAST);
    }

    fn close_within(&self, patience: Duration) {
        let _ = self.shared.until.set(Instant::now() + patience);
        let sender = &self.sender;
        drop(sender.lock().unwrap_or_else(PoisonError::into_inner).take());
        let worker = &self.worker;
        let worker = worker.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(worker) = worker else {
            return;
        };
        worker.thread.unpark();
        // It ends by itself, unless somebody lets it wait for an answer.
        let ended = worker.ended.recv_timeout(patience + 2 * PAUSE);
        if ended == Err(RecvTimeoutError::Timeout) {
            tracing::error!(
                "{}: verdicts are lost: it does not answer, and the program ends",
                self.name
            );
        }
    }
}

impl<E> Drop for Remote<E> {
    fn drop(&mut self) {
        let _ = self.shared.until.set(Instant::now() + LAST);
        let worker = self
            .worker
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(worker) = worker {
            worker.thread.unpark();
        }
    }
}

/// Connects to the first address of a name that takes it.
///
/// # Errors
/// That of the last address, or of the name.
pub fn connect_any<T>(
    name: impl ToSocketAddrs,
    mut connect: impl FnMut(SocketAddr) -> std::io::Result<T>,
) -> std::io::Result<T> {
    let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
    for address in name.to_socket_addrs()? {
        match connect(address) {
            Ok(connection) => return Ok(connection),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn run<D: Deliver>(mut to: D, queue: &Receiver<D::Event>, shared: &Shared) {
    let (most, window) = to.batch();
    let mut failing = false;
    while let Ok(first) = queue.recv() {
        let mut events = vec![first];
        let until = Instant::now() + window;
        while events.len() < most {
            match queue.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(event) => events.push(event),
                Err(_) => break,
            }
        }
        let mut pause = PAUSE;
        let dropped = shared.dropped.swap(0, Ordering::Relaxed);
        let lost = loop {
            if shared.is_over() {
                break Some("the program ends".to_owned());
            }
            let why = match to.deliver(&events, dropped) {
                Ok(()) => break None,
                Err(Failure::Never(why)) => break Some(why),
                Err(Failure::Later(why)) => why,
            };
            if !std::mem::replace(&mut failing, true) {
                tracing::error!("{}: verdicts wait: {why}", to.name());
            }
            if shared.until.get().is_some() {
                pause = PAUSE;
            }
            std::thread::park_timeout(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        };
        match lost {
            None => failing = false,
            Some(why) => {
                let lost = events.len() as u64;
                shared.dropped.fetch_add(dropped + lost, Ordering::Relaxed);
                // What the end has cost is said once.
                if !shared.is_over() {
                    tracing::error!("{}: verdicts are lost: {why}", to.name());
                }
            }
        }
    }
    let dropped = shared.dropped.load(Ordering::Relaxed);
    if dropped > 0 {
        tracing::error!("{}: {dropped} verdicts were not delivered", to.name());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Sender, channel};

    struct Counting {
        failures: usize,
        told: Sender<(Vec<u32>, u64)>,
    }

    impl Deliver for Counting {
        type Event = u32;

        fn name(&self) -> String {
            "test".to_owned()
        }

        fn batch(&self) -> (usize, Duration) {
            (3, Duration::ZERO)
        }

        fn deliver(&mut self, events: &[u32], dropped: u64) -> Result<(), Failure> {
            if self.failures > 0 {
                self.failures -= 1;
                return Err(Failure::Later("not now".to_owned()));
            }
            if events.contains(&13) {
                return Err(Failure::Never("not that".to_owned()));
            }
            self.told.send((events.to_vec(), dropped)).unwrap();
            Ok(())
        }
    }

    #[test]
    fn what_fails_is_tried_again_and_what_is_refused_is_counted() {
        let (told, seen) = channel();
        let remote = Remote::start(Counting { failures: 2, told }).unwrap();
        remote.send(1);
        assert_eq!(seen.recv().unwrap(), (vec![1], 0));
        remote.send(13);
        remote.send(2);
        // With 13 in its company, 2 may be lost as well: then the next one says so.
        remote.close();
        remote.send(3);
        let rest: Vec<_> = seen.iter().collect();
        assert!(rest.is_empty() || rest == [(vec![2], 1)], "{rest:?}");
        assert!(remote.shared.dropped.load(Ordering::Relaxed) >= 1);
    }

    #[test]
    fn an_address_that_takes_no_connection_is_not_the_only_one() {
        use std::net::{TcpListener, TcpStream};
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr();
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let open = server.local_addr().unwrap();
        let stream = connect_any(&[closed.unwrap(), open][..], TcpStream::connect).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), open);
        let nowhere: &[SocketAddr] = &[];
        assert!(connect_any(nowhere, TcpStream::connect).is_err());
    }

    #[test]
    fn who_does_not_answer_does_not_keep_the_program() {
        struct Slow(Sender<Vec<u32>>, Receiver<()>);
        impl Deliver for Slow {
            type Event = u32;
            fn name(&self) -> String {
                "slow".to_owned()
            }
            fn batch(&self) -> (usize, Duration) {
                (1, Duration::ZERO)
            }
            fn deliver(&mut self, events: &[u32], _: u64) -> Result<(), Failure> {
                self.0.send(events.to_vec()).unwrap();
                let _ = self.1.recv();
                Ok(())
            }
        }
        let (began, begun) = channel();
        let (go, wait) = channel();
        let remote = Remote::start(Slow(began, wait)).unwrap();
        remote.send(1);
        remote.send(2);
        assert_eq!(begun.recv().unwrap(), [1]);
        // The first delivery goes on for as long as it likes.
        remote.close_within(Duration::ZERO);
        drop(go);
        // And there is no time for a second one.
        assert_eq!(begun.iter().count(), 0);
        assert_eq!(remote.shared.dropped.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_queue_that_is_full_drops_and_never_waits() {
        struct Stuck(Receiver<()>);
        impl Deliver for Stuck {
            type Event = u32;
            fn name(&self) -> String {
                "stuck".to_owned()
            }
            fn batch(&self) -> (usize, Duration) {
                (1, Duration::ZERO)
            }
            fn deliver(&mut self, _: &[u32], _: u64) -> Result<(), Failure> {
                let _ = self.0.recv();
                Ok(())
            }
        }
        let (go, wait) = channel();
        let remote = Remote::start(Stuck(wait)).unwrap();
        for event in 0..QUEUE as u32 + 10 {
            remote.send(event);
        }
        // The thread has taken one at most.
        let dropped = remote.shared.dropped.load(Ordering::Relaxed);
        assert!((9..=10).contains(&dropped), "{dropped}");
        drop(go);
    }
}
