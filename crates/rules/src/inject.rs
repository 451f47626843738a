//! Credentials that clients don't have: put in on the way out.

use std::fmt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tollgate_flow::{Flow, Scheme};

/// The longest credential, in bytes.
const MAX_SECRET: usize = 64 << 10;

/// Where a credential comes from.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum SecretSource {
    Env(String),
    File(PathBuf),
    /// For the shell; its standard output.
    Command(String),
}

impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "the environment variable {name}"),
            Self::File(path) => write!(f, "the file {}", path.display()),
            Self::Command(command) => write!(f, "the command '{command}'"),
        }
    }
}

impl SecretSource {
    /// Reads the credential, without white space at its end. Blocks.
    fn read(&self) -> Result<String, String> {
        let text = match self {
            Self::Env(name) => std::env::var(name).map_err(|error| error.to_string())?,
            Self::File(path) => std::fs::read_to_string(path).map_err(|error| error.to_string())?,
            Self::Command(command) => {
                let output = Command::new("sh")
                    .args(["-c", command])
                    .stdin(std::process::Stdio::null())
                    .stderr(std::process::Stdio::inherit())
                    .output()
                    .map_err(|error| error.to_string())?;
                if !output.status.success() {
                    return Err(format!("it failed: {}", output.status));
                }
                String::from_utf8(output.stdout).map_err(|_| "it printed no UTF-8".to_owned())?
            }
        };
        let text = text.trim_end();
        if text.is_empty() {
            return Err("it is empty".to_owned());
        }
        if text.len() > MAX_SECRET {
            return Err(format!("it is longer than {} KiB", MAX_SECRET >> 10));
        }
        Ok(text.to_owned())
    }
}

/// A credential that goes into a header, for one host and over TLS only.
pub(crate) struct Inject {
    /// `api.example.com`, or `*.example.com` for the names below.
    pub host: String,
    pub header: String,
    /// With `{}` where the credential goes.
    pub value: String,
    pub source: SecretSource,
    /// After this long a credential is fetched anew.
    pub refresh: Option<Duration>,
    /// Whether it may go out in plain text.
    pub plaintext: bool,
    known: Mutex<(String, Instant)>,
}

impl Inject {
    /// Fetches the credential for the first time.
    ///
    /// # Errors
    /// Why it can't be had, without it.
    pub fn new(
        host: String,
        header: String,
        value: String,
        source: SecretSource,
        refresh: Option<Duration>,
        plaintext: bool,
    ) -> Result<Self, String> {
        let secret = source
            .read()
            .map_err(|error| format!("no credential from {source}: {error}"))?;
        Ok(Self {
            host,
            header,
            value,
            source,
            refresh,
            plaintext,
            known: Mutex::new((secret, Instant::now())),
        })
    }

    /// Whether a request goes where the credential belongs: by what it is connected to, not by what it says.
    pub fn belongs(&self, flow: &Flow) -> bool {
        if flow.request.scheme != Scheme::Https && !self.plaintext {
            return false;
        }
        let host = &*flow.request.target.host;
        match self.host.strip_prefix("*.") {
            Some(domain) => host
                .strip_suffix(domain)
                .is_some_and(|name| name.ends_with('.') && name.len() > 1),
            None => host == self.host,
        }
    }

    /// Whether the credential has to be fetched before it is used.
    pub fn is_stale(&self) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        self.refresh.is_some_and(|after| known.1.elapsed() >= after)
    }

    /// Fetches the credential anew; at a failure the old one stays. Blocks.
    pub fn fetch(&self) -> Result<(), String> {
        let secret = self.source.read();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // Not again at once, whatever came of it.
        known.1 = Instant::now();
        known.0 = secret.map_err(|error| format!("no credential from {}: {error}", self.source))?;
        Ok(())
    }

    /// Puts the credential into a request, where only the origin sees it.
    pub fn apply(&self, flow: &mut Flow) -> Result<(), String> {
        let value = {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            self.value.replace("{}", &known.0)
        };
        flow.request
            .put_hidden_header(self.header.as_bytes(), value.as_bytes())
            .map_err(|_| format!("{} gives what can't stand in a header", self.source))
    }
}

/// Without the credential.
impl fmt::Debug for Inject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Inject({} to {} from {})",
            self.header, self.host, self.source
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::flow;

    fn inject(host: &str, source: SecretSource) -> Result<Inject, String> {
        Inject::new(
            host.into(),
            "Authorization".into(),
            "Bearer {}".into(),
            source,
            None,
            false,
        )
    }

    #[test]
    fn a_credential_goes_to_its_host_only() {
        let command = || SecretSource::Command("printf 'k-123\\n'".into());
        let one = inject("api.example.com", command()).unwrap();
        let below = inject("*.example.com", command()).unwrap();
        for (url, to_one, to_below) in [
            ("https://api.example.com/", true, true),
            ("https://www.example.com/", false, true),
            ("https://example.com/", false, false),
            ("https://evilexample.com/", false, false),
            ("http://api.example.com/", false, false),
        ] {
            assert_eq!(one.belongs(&flow("GET", url)), to_one, "{url}");
            assert_eq!(below.belongs(&flow("GET", url)), to_below, "{url}");
        }
        // What a request says of its host is no proof.
        let mut fronted = flow("GET", "https://evil.example/");
        fronted
            .request
            .headers_mut()
            .set(b"Host", b"api.example.com")
            .unwrap();
        assert!(!one.belongs(&fronted));
    }

    #[test]
    fn a_credential_is_nowhere_to_be_seen() {
        let inject = inject(
            "a.example",
            SecretSource::Command("printf 'k-%s' 123".into()),
        )
        .unwrap();
        let mut flow = flow("GET", "https://a.example/");
        inject.apply(&mut flow).unwrap();
        assert_eq!(flow.request.headers().get("authorization"), None);
        assert!(!format!("{inject:?} {flow:?}").contains("k-123"));
        let head = flow.request.wire_head();
        assert_eq!(
            head.headers.get("authorization"),
            Some(&b"Bearer k-123"[..])
        );
    }

    #[test]
    fn what_gives_no_credential_says_so() {
        for source in [
            SecretSource::Env("TOLLGATE_TEST_UNSET_VARIABLE".into()),
            SecretSource::File("/nonexistent/secret".into()),
            SecretSource::Command("exit 3".into()),
            SecretSource::Command("true".into()),
        ] {
            let error = inject("a.example", source.clone()).unwrap_err();
            assert!(error.contains(&source.to_string()), "{error}");
        }
    }
}
