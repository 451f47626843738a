//! Signals, where there are some.

use std::io;

/// Waits for the wish to end the program: SIGTERM, SIGINT (Ctrl-C) or, as the terminal goes away, SIGHUP.
pub struct Stop(platform::Stop);

impl Stop {
    /// From now on, those signals end nothing by themselves.
    ///
    /// # Errors
    /// When the system doesn't let us.
    pub fn listen() -> io::Result<Self> {
        platform::Stop::listen().map(Self)
    }

    /// Waits for the next one.
    pub async fn requested(&mut self) {
        self.0.requested().await;
    }
}

#[cfg(unix)]
pub use platform::Passed;

#[cfg(unix)]
mod platform {
    use std::future::poll_fn;
    use std::io;
    use std::task::Poll;

    use tokio::signal::unix::{Signal, SignalKind, signal};

    pub struct Stop(Any);

    impl Stop {
        pub fn listen() -> io::Result<Self> {
            Any::listen(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP]).map(Self)
        }

        pub async fn requested(&mut self) {
            self.0.next().await;
        }
    }

    /// The signals that are passed on to a child.
    pub struct Passed(Any);

    impl Passed {
        /// From now on, those signals do nothing by themselves.
        ///
        /// # Errors
        /// When the system doesn't let us.
        pub fn listen() -> io::Result<Self> {
            Any::listen(&[
                libc::SIGTERM,
                libc::SIGINT,
                libc::SIGHUP,
                libc::SIGQUIT,
                libc::SIGUSR1,
                libc::SIGUSR2,
            ])
            .map(Self)
        }

        /// Waits for the next one, and gives its number.
        pub async fn next(&mut self) -> i32 {
            self.0.next().await
        }
    }

    struct Any(Vec<(i32, Signal)>);

    impl Any {
        fn listen(numbers: &[i32]) -> io::Result<Self> {
            numbers
                .iter()
                .map(|&number| Ok((number, signal(SignalKind::from_raw(number))?)))
                .collect::<io::Result<_>>()
                .map(Self)
        }

        async fn next(&mut self) -> i32 {
            poll_fn(|context| {
                for (number, signal) in &mut self.0 {
                    if signal.poll_recv(context).is_ready() {
                        return Poll::Ready(*number);
                    }
                }
                Poll::Pending
            })
            .await
        }
    }
}

#[cfg(not(unix))]
mod platform {
    use std::io;

    pub struct Stop;

    impl Stop {
        pub fn listen() -> io::Result<Self> {
            Ok(Self)
        }

        pub async fn requested(&mut self) {
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}
