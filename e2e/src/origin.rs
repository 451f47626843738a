//! nginx as the origin.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::LIMIT;
use crate::pki::Pki;
use crate::process::{Process, command};

/// How often a port that was free may turn out to be taken when nginx wants it.
const ATTEMPTS: usize = 5;

/// nginx on two free ports: HTTP, and HTTPS with HTTP/1.1 and HTTP/2. It serves the files of a folder, and
///
/// * `/protocol`: the protocol of the request as nginx sees it, `HTTP/1.1` or `HTTP/2.0`;
/// * `PUT /upload/…`: a file that [`Origin::read`] reads.
pub struct Origin {
    _process: Process,
    pki: Pki,
    http: SocketAddr,
    https: SocketAddr,
    dir: TempDir,
}

impl Origin {
    /// Starts it. Needs `nginx` and `openssl`.
    ///
    /// # Panics
    /// If it doesn't start.
    #[must_use]
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["root", "root/upload", "temporary"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let pki = Pki::create(dir.path());
        for _ in 0..ATTEMPTS {
            let [http, https] = free_ports();
            // Says that what answers on the port is this nginx, and no one who took the port meanwhile.
            let token = format!("nginx {} {}", http.port(), dir.path().display());
            let config = config(dir.path(), &pki, http, https, &token);
            fs::write(dir.path().join("nginx.conf"), config).unwrap();
            let mut nginx = command("nginx");
            nginx.arg("-p").arg(dir.path());
            nginx.args(["-e", "stderr", "-c", "nginx.conf"]);
            let mut process = Process::start(nginx);
            if answers(&mut process, http, &token) {
                return Self {
                    _process: process,
                    pki,
                    http,
                    https,
                    dir,
                };
            }
        }
        panic!("nginx did not start in {ATTEMPTS} attempts");
    }

    /// The URL of a path over TLS.
    pub fn https(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.https.port())
    }

    /// The URL of a path without TLS.
    pub fn http(&self, path: &str) -> String {
        format!("http://localhost:{}{path}", self.http.port())
    }

    /// `localhost:PORT` of the port with TLS.
    pub fn authority(&self) -> String {
        format!("localhost:{}", self.https.port())
    }

    /// The certificate of the authority that signed the origin's (PEM).
    pub fn ca(&self) -> PathBuf {
        self.pki.ca()
    }

    /// The folder whose files it serves.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Puts a file where `path` finds it.
    ///
    /// # Panics
    /// If it can't be written.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        fs::write(self.file(path), content).unwrap();
    }

    /// Reads a file that was uploaded.
    ///
    /// # Panics
    /// If it isn't there.
    pub fn read(&self, path: &str) -> Vec<u8> {
        fs::read(self.file(path)).unwrap()
    }

    /// A folder for the test's own files, not served.
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    fn file(&self, path: &str) -> PathBuf {
        self.root().join(path.trim_start_matches('/'))
    }
}

/// Two ports that are free now.
fn free_ports() -> [SocketAddr; 2] {
    // Both are bound before one is let go, so that they differ.
    [0, 0]
        .map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap())
        .map(|listener| listener.local_addr().unwrap())
}

/// Waits until nginx answers with the token; `false` when it has given up.
fn answers(process: &mut Process, address: SocketAddr, token: &str) -> bool {
    let deadline = Instant::now() + LIMIT;
    // Nobody is there yet, or somebody else is: its end would be news, and else there is time for another try.
    while Instant::now() < deadline && !process.has_ended(Duration::from_millis(10)) {
        if ask(address).is_ok_and(|answer| answer.ends_with(token)) {
            return true;
        }
    }
    false
}

fn ask(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /ready HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(4096).read_to_string(&mut answer)?;
    Ok(answer)
}

fn config(dir: &Path, pki: &Pki, http: SocketAddr, https: SocketAddr, token: &str) -> String {
    let (cert, key) = (pki.cert(), pki.key());
    let (cert, key, dir) = (cert.display(), key.display(), dir.display());
    // One process in the foreground: there is nobody to be left behind, and no other user who can't read the folder.
    format!(
        r#"daemon off;
master_process off;
pid "{dir}/nginx.pid";
error_log stderr warn;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path "{dir}/temporary/body";
    proxy_temp_path "{dir}/temporary/proxy";
    fastcgi_temp_path "{dir}/temporary/fastcgi";
    uwsgi_temp_path "{dir}/temporary/uwsgi";
    scgi_temp_path "{dir}/temporary/scgi";
    default_type application/octet-stream;
    types {{
        text/html html;
        text/css css;
        text/javascript js;
        application/json json;
        image/svg+xml svg;
    }}
    server {{
        listen {http};
        listen {https} ssl http2;
        server_name localhost;
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_certificate "{cert}";
        ssl_certificate_key "{key}";
        root "{dir}/root";
        location = /ready {{ return 200 "{token}"; }}
        location = /protocol {{ default_type text/plain; return 200 "$server_protocol"; }}
        location /upload/ {{ dav_methods PUT; client_max_body_size 64m; }}
    }}
}}
"#
    )
}
