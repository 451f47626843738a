//! What a command must find in its environment for its traffic to go through the proxy, and to trust it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tollgate_ca::Authority;

/// Makes Node.js before 24.5 use the proxy, which it does not by itself.
const NODE_PRELOAD: &str = include_str!("../assets/tollgate-node.cjs");

/// Where systems keep the authorities that they trust, in one PEM file.
const SYSTEM_BUNDLES: [&str; 8] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/usr/local/etc/ssl/cert.pem",
    "/usr/local/share/certs/ca-root-nss.crt",
    "/opt/homebrew/etc/ca-certificates/cert.pem",
];

/// The files that the variables point at, in a folder that only this user can enter. They are gone when it is dropped.
pub struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    /// Writes them.
    ///
    /// # Errors
    /// When the folder for temporary files can't be written.
    pub fn create(authority: &Authority) -> io::Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("tollgate-");
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700));
        let files = Self {
            dir: builder.tempdir()?,
        };
        let own = authority.cert_pem();
        fs::write(files.cert(), &own)?;
        let mut bundle = fs::File::create(files.bundle())?;
        bundle.write_all(own.as_bytes())?;
        bundle.write_all(&system_roots())?;
        fs::write(files.node_preload(), NODE_PRELOAD)?;
        let p12 = authority.cert_p12().map_err(io::Error::other)?;
        fs::write(files.trust_store(), p12)?;
        Ok(files)
    }

    /// The authority's certificate alone.
    fn cert(&self) -> PathBuf {
        self.dir.path().join("tollgate-ca-cert.pem")
    }

    /// The authority's certificate and those that the system trusts.
    fn bundle(&self) -> PathBuf {
        self.dir.path().join("ca-bundle.pem")
    }

    /// The authority's certificate for Java.
    fn trust_store(&self) -> PathBuf {
        self.dir.path().join("tollgate-ca-cert.p12")
    }

    fn node_preload(&self) -> PathBuf {
        self.dir.path().join("tollgate-node.cjs")
    }
}

/// The variables to set; `inherited` gives those that are there already.
pub fn variables(
    proxy: SocketAddr,
    files: &Files,
    inherited: impl Fn(&str) -> Option<OsString>,
) -> Vec<(&'static str, OsString)> {
    let url = OsString::from(format!("http://{proxy}"));
    let bundle = files.bundle().into_os_string();
    let mut variables = Vec::new();
    // Who reads which case differs; curl takes HTTP_PROXY in lower case only.
    for name in [
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "CARGO_HTTP_PROXY",
    ] {
        variables.push((name, url.clone()));
    }
    // Exceptions would go past the proxy unseen.
    for name in ["NO_PROXY", "no_proxy"] {
        variables.push((name, OsString::new()));
    }
    for name in [
        // OpenSSL and all that is built on it (Python's ssl, Ruby, PHP, wget), Go, and Rust (rustls and native-tls).
        "SSL_CERT_FILE",
        "CURL_CA_BUNDLE",
        "REQUESTS_CA_BUNDLE",
        "PIP_CERT",
        "GIT_SSL_CAINFO",
        "CARGO_HTTP_CAINFO",
        "AWS_CA_BUNDLE",
        "DENO_CERT",
        "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    ] {
        variables.push((name, bundle.clone()));
    }
    variables.push(("NODE_EXTRA_CA_CERTS", files.cert().into_os_string()));
    // From Node.js 24.5 (and 22.21) on this is enough; before, the preload does it.
    variables.push(("NODE_USE_ENV_PROXY", OsString::from("1")));
    let preload = [
        OsString::from("--require"),
        node_word(&files.node_preload()),
    ];
    variables.push((
        "NODE_OPTIONS",
        joined(
            inherited("NODE_OPTIONS")
                .filter(|options| !options.is_empty())
                .into_iter()
                .chain(preload),
        ),
    ));
    // Java says on standard error that it has read this, so only those who have Java get it.
    if on_path("java", inherited("PATH")) || inherited("JAVA_HOME").is_some() {
        variables.push((
            "JAVA_TOOL_OPTIONS",
            java_options(proxy, files, inherited("JAVA_TOOL_OPTIONS")),
        ));
    }
    variables
}

fn java_options(proxy: SocketAddr, files: &Files, inherited: Option<OsString>) -> OsString {
    let (host, port) = (proxy.ip(), proxy.port());
    let mut store = OsString::from("-Djavax.net.ssl.trustStore=");
    store.push(java_word(&files.trust_store()));
    let own = [
        format!("-Dhttp.proxyHost={host}").into(),
        format!("-Dhttp.proxyPort={port}").into(),
        format!("-Dhttps.proxyHost={host}").into(),
        format!("-Dhttps.proxyPort={port}").into(),
        // By default, Java goes past a proxy for this machine's own addresses.
        "-Dhttp.nonProxyHosts=".into(),
        store,
        "-Djavax.net.ssl.trustStoreType=PKCS12".into(),
        "-Djavax.net.ssl.trustStorePassword=".into(),
    ];
    joined(
        inherited
            .filter(|options| !options.is_empty())
            .into_iter()
            .chain(own),
    )
}

fn joined(words: impl Iterator<Item = OsString>) -> OsString {
    let mut all = OsString::new();
    for word in words {
        if !all.is_empty() {
            all.push(" ");
        }
        all.push(word);
    }
    all
}

/// NODE_OPTIONS splits at spaces but for those in double quotes, where a backslash escapes.
fn node_word(path: &Path) -> OsString {
    match path.to_str() {
        Some(text) if text.contains([' ', '"', '\\']) => {
            format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\"")).into()
        }
        _ => path.as_os_str().to_owned(),
    }
}

/// JAVA_TOOL_OPTIONS splits at spaces but for those in quotes.
fn java_word(path: &Path) -> OsString {
    match path.to_str() {
        Some(text) if text.contains(' ') => format!("\"{text}\"").into(),
        _ => path.as_os_str().to_owned(),
    }
}

fn on_path(program: &str, path: Option<OsString>) -> bool {
    path.is_some_and(|path| {
        std::env::split_paths(&path)
            .any(|dir| dir.join(program).is_file() || dir.join(format!("{program}.exe")).is_file())
    })
}

/// The authorities that programs trust so far, for what they do beside the proxy. Empty where they are in no file.
fn system_roots() -> Vec<u8> {
    let own = std::env::var_os("SSL_CERT_FILE").filter(|file| !file.is_empty());
    own.iter()
        .map(OsString::as_os_str)
        .chain(SYSTEM_BUNDLES.iter().map(OsStr::new))
        .find_map(|file| fs::read(file).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tollgate_ca::AuthorityParams;

    use super::*;

    fn files() -> Files {
        Files::create(&Authority::generate(&AuthorityParams::default()).unwrap()).unwrap()
    }

    fn given(files: &Files, inherited: &[(&str, &str)]) -> HashMap<&'static str, String> {
        let inherited: HashMap<_, _> = inherited.iter().copied().collect();
        variables("127.0.0.1:4321".parse().unwrap(), files, |name| {
            inherited.get(name).map(OsString::from)
        })
        .into_iter()
        .map(|(name, value)| (name, value.into_string().unwrap()))
        .collect()
    }

    #[test]
    fn every_family_of_programs_is_told() {
        let files = files();
        let variables = given(&files, &[]);
        for name in ["HTTP_PROXY", "https_proxy", "ALL_PROXY", "CARGO_HTTP_PROXY"] {
            assert_eq!(variables[name], "http://127.0.0.1:4321");
        }
        assert_eq!(variables["NO_PROXY"], "");
        let bundle = fs::read_to_string(&variables["SSL_CERT_FILE"]).unwrap();
        let own = fs::read_to_string(&variables["NODE_EXTRA_CA_CERTS"]).unwrap();
        assert!(bundle.starts_with(&own) && own.starts_with("-----BEGIN CERTIFICATE"));
        assert!(!variables.contains_key("JAVA_TOOL_OPTIONS"));
    }

    #[test]
    fn what_was_there_stays() {
        let files = files();
        let variables = given(
            &files,
            &[
                ("NODE_OPTIONS", "--no-warnings"),
                ("JAVA_HOME", "/java"),
                ("JAVA_TOOL_OPTIONS", "-Xmx1g"),
            ],
        );
        assert!(variables["NODE_OPTIONS"].starts_with("--no-warnings --require "));
        assert!(variables["JAVA_TOOL_OPTIONS"].starts_with("-Xmx1g -Dhttp.proxyHost=127.0.0.1 "));
    }

    #[cfg(unix)]
    #[test]
    fn the_files_are_private_and_go_away() {
        use std::os::unix::fs::PermissionsExt as _;

        let files = files();
        let dir = files.dir.path().to_owned();
        assert_eq!(
            fs::metadata(&dir).unwrap().permissions().mode() & 0o777,
            0o700
        );
        drop(files);
        assert!(!dir.exists());
    }

    #[test]
    fn paths_with_spaces_are_quoted() {
        assert_eq!(node_word(Path::new("/a b/c")), "\"/a b/c\"");
        assert_eq!(node_word(Path::new("/a/c")), "/a/c");
        assert_eq!(java_word(Path::new("/a b/c")), "\"/a b/c\"");
    }
}
