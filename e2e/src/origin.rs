//! nginx as the origin.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::LIMIT;
use crate::net::{End, Net};
use crate::pki::Pki;
use crate::process::{Process, command};

/// How often a port that was free may turn out to be taken when nginx wants it.
const ATTEMPTS: usize = 5;

/// nginx on three free ports: HTTP/1.1, HTTP/2 without TLS, and HTTPS with both. It serves the files of a folder, and
///
/// * `/protocol`: the protocol of the request as nginx sees it, `HTTP/1.1` or `HTTP/2.0`;
/// * `PUT /upload/…`: a file that [`Origin::read`] reads.
pub struct Origin {
    _process: Process,
    pki: Pki,
    http: SocketAddr,
    h2c: SocketAddr,
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
        let (dir, pki) = folder();
        for _ in 0..ATTEMPTS {
            let [http, h2c, https] = free_ports();
            // Says that what answers on the port is this nginx, and no one who took the port meanwhile.
            let token = format!("nginx {} {}", http.port(), dir.path().display());
            let mut process = launch(
                command("nginx"),
                dir.path(),
                &pki,
                [http, h2c, https],
                &token,
            );
            if process.becomes(|| ask(http).is_ok_and(|answer| answer.ends_with(&token))) {
                return Self {
                    _process: process,
                    pki,
                    http,
                    h2c,
                    https,
                    dir,
                };
            }
        }
        panic!("nginx did not start in {ATTEMPTS} attempts");
    }

    /// Starts it at the origin's end of a network of the test's own, on ports 80, 8080 and 443, at `[::]`.
    ///
    /// # Panics
    /// If it doesn't start.
    #[must_use]
    pub fn start_in(net: &Net) -> Self {
        let (dir, pki) = folder();
        let [http, h2c, https] =
            [80, 8080, 443].map(|port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)));
        let token = "nginx";
        let nginx = net.command(End::Origin, "nginx");
        let mut process = launch(nginx, dir.path(), &pki, [http, h2c, https], token);
        let ready = || {
            let mut curl = net.command(End::Origin, "curl");
            curl.args(["--disable", "--silent", "http://127.0.0.1/ready"]);
            Process::run(curl, LIMIT).text() == token
        };
        assert!(process.becomes(ready), "nginx did not start");
        Self {
            _process: process,
            pki,
            http,
            h2c,
            https,
            dir,
        }
    }

    /// The URL of a path over TLS.
    pub fn https(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.https.port())
    }

    /// The URL of a path without TLS.
    pub fn http(&self, path: &str) -> String {
        format!("http://localhost:{}{path}", self.http.port())
    }

    /// The URL of a path without TLS, where only HTTP/2 is spoken.
    pub fn h2c(&self, path: &str) -> String {
        format!("http://localhost:{}{path}", self.h2c.port())
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

/// A folder with what nginx needs.
fn folder() -> (TempDir, Pki) {
    let dir = tempfile::tempdir().unwrap();
    for folder in ["root", "root/upload", "temporary"] {
        fs::create_dir(dir.path().join(folder)).unwrap();
    }
    let pki = Pki::create(dir.path());
    (dir, pki)
}

fn launch(
    mut nginx: Command,
    dir: &Path,
    pki: &Pki,
    ports: [SocketAddr; 3],
    token: &str,
) -> Process {
    fs::write(dir.join("nginx.conf"), config(dir, pki, ports, token)).unwrap();
    nginx.arg("-p").arg(dir);
    nginx.args(["-e", "stderr", "-c", "nginx.conf"]);
    Process::start(nginx)
}

/// Ports of 127.0.0.1 that are free now.
pub(crate) fn free_ports<const N: usize>() -> [SocketAddr; N] {
    // All are bound before one is let go, so that they differ.
    [0; N]
        .map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap())
        .map(|listener| listener.local_addr().unwrap())
}

fn ask(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /ready HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(4096).read_to_string(&mut answer)?;
    Ok(answer)
}

fn config(dir: &Path, pki: &Pki, ports: [SocketAddr; 3], token: &str) -> String {
    let [http, h2c, https] = ports;
    let (cert, key) = (pki.cert(), pki.key());
    let (cert, key, dir) = (cert.display(), key.display(), dir.display());
    // nginx asks for the two versions of IP one by one, unless told otherwise.
    let both = if http.is_ipv6() { " ipv6only=off" } else { "" };
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
        listen {http}{both};
        listen {h2c} http2{both};
        listen {https} ssl http2{both};
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
