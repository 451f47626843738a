//! A judge that remembers what it told, and a server on a free port.

use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tollgate_remote::{Ended, Judge, Server};
use tollgate_screen::scan::Scanner;
use tollgate_screen::{Screen, ScreenConfig, Verdict};

/// The longest wait of a test that works.
pub const LIMIT: Duration = Duration::from_secs(60);

/// A token that every scanner knows, and no scanner of source code.
pub fn secret() -> String {
    format!("AKIA{}", "Y3T6DKCNFLR2QWZ4")
}

/// What a judge has told.
pub type Told = Arc<Mutex<Vec<Verdict>>>;

/// A judge with the scanners that are built in.
pub fn judge(config: ScreenConfig) -> (Judge, Told) {
    judge_by(Screen::new(Scanner::builtin(), config))
}

/// A judge that asks this screen.
pub fn judge_by(screen: Screen) -> (Judge, Told) {
    let verdicts = Told::default();
    let told = Arc::clone(&verdicts);
    let tell = move |verdict: &Verdict| told.lock().unwrap().push(verdict.clone());
    let judge = Judge::new(screen, Scanner::builtin(), Arc::new(tell));
    (judge, verdicts)
}

/// A server that runs.
pub struct Running {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: JoinHandle<Ended>,
}

impl Running {
    /// Runs the server that this makes, with a listener on a free port.
    pub fn start(server: impl FnOnce(TcpListener) -> Server + Send + 'static) -> Self {
        let (tell, told) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                tell.send(listener.local_addr().unwrap()).unwrap();
                let stopped = async {
                    let _ = stopped.await;
                };
                server(listener).run(stopped, LIMIT).await
            })
        });
        Self {
            address: told.recv().unwrap(),
            stop: Some(stop),
            thread,
        }
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        stream
    }

    /// Tells it to end.
    pub fn stop(&mut self) {
        drop(self.stop.take());
    }

    /// Ends it, and waits for that.
    pub fn end(mut self) -> Ended {
        self.stop();
        self.thread.join().unwrap()
    }
}
