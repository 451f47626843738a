//! Reload and shutdown.

use std::sync::Mutex;
use std::sync::mpsc;
use std::time::Duration;

use tollgate_engine::{Config, ConfigError, HostPattern, ProxyError, Roots};
use tollgate_flow::{ErrorClass, Interest, OutcomeKind, Side, TlsVersion};

use crate::support::*;

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

fn connect(origin: &Origin) -> String {
    let authority = origin.authority();
    format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n")
}

#[test]
fn a_reload_is_in_force_for_new_connections_and_not_for_old_ones() {
    let origin = Origin::echo_path(Identity::Good);
    let proxy = start(config());
    let mut old = proxy.tls(&origin);
    old.exchange(get("/")).unwrap();
    let mut changed = (*proxy.handle.current_config()).clone();
    changed.policy.block = vec![HostPattern::new("localhost").unwrap()];
    proxy.handle.reload(changed.clone()).unwrap();
    assert_eq!(*proxy.handle.current_config(), changed);
    let refused = proxy.plain().exchange(connect(&origin)).unwrap();
    assert_eq!(refused.status(), 403);
    assert_eq!(old.exchange(get("/still")).unwrap().text(), "/still");
    changed.policy.block.clear();
    proxy.handle.reload(changed).unwrap();
    assert_eq!(proxy.tls(&origin).exchange(get("/")).unwrap().status(), 200);
}

#[test]
fn a_reload_does_not_use_what_an_older_configuration_verified() {
    let origin = Origin::echo_path(Identity::SelfSigned);
    let mut lax = config();
    lax.tls.insecure = true;
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(lax.clone(), [recorder.clone()]);
    let mut before = proxy.tls(&origin);
    before.exchange(get("/")).unwrap();
    let mut strict = lax;
    strict.tls.insecure = false;
    proxy.handle.reload(strict).unwrap();
    // What the old connection gives back now is of no use to new ones either.
    before.exchange(get("/")).unwrap();
    before.finish();
    before.read_to_end();
    recorder.closed(1);
    assert_eq!(proxy.tls(&origin).exchange(get("/")).unwrap().status(), 502);
    assert_eq!(proxy.metrics().upstream_idle, 0);
}

#[test]
fn a_field_that_cannot_change_is_named_and_nothing_changes() {
    let proxy = start(config());
    let before = proxy.handle.current_config();
    type Case = (&'static str, fn(&mut Config));
    let changes: [Case; 5] = [
        ("workers", |c| c.workers = 2),
        ("process_attribution", |c| c.process_attribution = false),
        ("limits.connections", |c| c.limits.connections = 7),
        ("limits.dns_entries", |c| c.limits.dns_entries = 7),
        ("timeouts.dns_cache", |c| c.timeouts.dns_cache = SHORT),
    ];
    for (name, change) in changes {
        let mut changed = (*before).clone();
        changed.policy.block = vec![HostPattern::new("*").unwrap()];
        change(&mut changed);
        match proxy.handle.reload(changed) {
            Err(ProxyError::Config(ConfigError::NotReloadable(field))) => assert_eq!(field, name),
            other => panic!("{name}: {other:?}"),
        }
        assert_eq!(proxy.handle.current_config(), before);
    }
}

#[test]
fn a_configuration_that_cannot_be_loaded_is_an_error_that_names_the_file() {
    let proxy = start(config());
    let before = proxy.handle.current_config();
    let mut broken = (*before).clone();
    broken.tls.roots = Roots::Files(vec!["does/not/exist.pem".into()]);
    let error = proxy.handle.reload(broken).unwrap_err().to_string();
    assert!(error.contains("does/not/exist.pem"), "{error}");
    assert_eq!(proxy.handle.current_config(), before);

    let mut contradictory = (*before).clone();
    contradictory.tls.client_versions.min = TlsVersion::Tls13;
    contradictory.tls.client_versions.max = TlsVersion::Tls12;
    assert!(matches!(
        proxy.handle.reload(contradictory),
        Err(ProxyError::Config(ConfigError::Tls(_)))
    ));
}

#[test]
fn nothing_to_listen_at_is_an_error() {
    let mut config = config();
    config.listen.clear();
    assert!(try_start(config, []).is_err());
}

/// Begins a response, and ends it when told.
fn in_flight() -> (Origin, mpsc::Sender<()>, mpsc::Receiver<()>) {
    let (go, goes) = mpsc::channel::<()>();
    let (begun, begins) = mpsc::channel();
    let (goes, begun) = (Mutex::new(goes), Mutex::new(begun));
    let origin = Origin::script(Identity::Good, move |wire, _| {
        wire.read_request()?;
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\npart")?;
        begun.lock().unwrap().send(()).unwrap();
        if goes.lock().unwrap().recv().is_ok() {
            wire.send("rest")?;
        }
        wire.read_to_end();
        Ok(())
    });
    (origin, go, begins)
}

#[test]
fn a_shutdown_lets_a_response_end_and_closes_what_is_idle() {
    let (origin, go, begins) = in_flight();
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config(), [recorder.clone()]);
    let address = proxy.handle.local_addr();
    let mut busy = proxy.tls(&origin);
    let idle_origin = Origin::echo_path(Identity::Good);
    let mut idle = proxy.tls(&idle_origin);
    idle.exchange(get("/")).unwrap();
    let mut silent = proxy.plain();
    wait_until("all are accepted", || {
        proxy.metrics().connections_active == 3
    });
    busy.send(get("/")).unwrap();
    begins.recv().unwrap();
    let shutdown = std::thread::spawn(move || proxy.shutdown(PATIENCE));
    assert_eq!(idle.read_to_end(), (Vec::new(), Ending::Clean));
    assert_eq!(silent.read_to_end().0, b"");
    wait_until("nobody listens", || {
        std::net::TcpStream::connect(address).is_err()
    });
    assert!(!shutdown.is_finished());
    go.send(()).unwrap();
    let response = busy.read_response("GET").unwrap();
    assert_eq!(response.text(), "partrest");
    busy.read_to_end();
    let end = shutdown.join().unwrap();
    assert!(end.drained);
    assert_eq!(
        (end.aborted_connections, end.metrics.connections_active),
        (0, 0)
    );
    for outcome in recorder.ends(2) {
        assert_eq!(outcome.kind, OutcomeKind::Completed);
    }
}

#[test]
fn a_shutdown_past_its_deadline_cuts_what_is_stuck_and_says_so() {
    let (origin, _go, begins) = in_flight();
    let recorder = Recorder::new(Interest::HEADS);
    let proxy = start_with(config(), [recorder.clone()]);
    let mut client = proxy.tls(&origin);
    client.send(get("/")).unwrap();
    begins.recv().unwrap();
    client.read_until(b"part").unwrap();
    let end = proxy.shutdown(SHORT);
    assert!(!end.drained);
    assert_eq!(end.aborted_connections, 1);
    let metrics = &end.metrics;
    assert_eq!((metrics.connections_active, metrics.flows_active), (0, 0));
    assert_ne!(client.read_to_end().1, Ending::Clean);
    let ends = recorder.ends(1);
    assert_eq!(ends.len(), 1);
    let error = ends[0].error.clone().unwrap();
    assert_eq!(
        (error.side, error.class),
        (Side::Proxy, ErrorClass::Shutdown)
    );
    assert_eq!(recorder.closed(1).len(), 1);
}

#[test]
fn dropping_the_handle_stops_the_proxy() {
    let (origin, _go, begins) = in_flight();
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config(), [recorder.clone()]);
    let mut client = proxy.tls(&origin);
    client.send(get("/")).unwrap();
    begins.recv().unwrap();
    drop(proxy);
    client.read_to_end();
    recorder.closed(1);
    assert_eq!(recorder.ends(1).len(), 1);
}

#[test]
fn a_shutdown_without_connections_is_immediate() {
    let proxy = start(config());
    let end = proxy.shutdown(Duration::from_secs(3600));
    assert!(end.drained);
}

#[test]
fn several_workers_serve_on_one_port() {
    let origin = Origin::echo_path(Identity::Good);
    let mut config = config();
    config.workers = 3;
    let proxy = start(config);
    assert_eq!(proxy.handle.local_addrs().len(), 1);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10 {
                    assert_eq!(proxy.tls(&origin).exchange(get("/x")).unwrap().text(), "/x");
                }
            });
        }
    });
    let end = proxy.shutdown(PATIENCE);
    assert!(end.drained);
    assert_eq!(end.metrics.flows_completed, 40);
}

#[test]
fn on_the_callers_runtime_it_serves_the_same() {
    let origin = Origin::echo_path(Identity::Good);
    let (started, starts) = mpsc::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let caller = std::thread::spawn(move || {
        block_on(async {
            let proxy = tollgate_engine::Proxy::builder()
                .config(config())
                .runtime(tollgate_engine::Runtime::Current)
                .build()
                .unwrap();
            let handle = proxy.start().await.unwrap();
            let trust = client_config(&[handle.authority().cert_der().clone()]);
            started.send((handle.local_addr(), trust)).unwrap();
            stopped.await.unwrap();
            assert!(!handle.is_finished());
            handle.shutdown(PATIENCE).await
        })
    });
    let (address, trust) = starts.recv().unwrap();
    let mut client = Wire::connect(address);
    assert_eq!(client.exchange(connect(&origin)).unwrap().status(), 200);
    let mut client = client.tls_client(trust, "localhost").unwrap();
    assert_eq!(client.exchange(get("/x")).unwrap().text(), "/x");
    stop.send(()).unwrap();
    assert_eq!(client.read_to_end(), (Vec::new(), Ending::Clean));
    assert!(caller.join().unwrap().drained);
}
