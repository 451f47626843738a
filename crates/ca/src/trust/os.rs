//! What differs by platform. All of it compiles everywhere; only the caller asks which platform this is.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use aws_lc_rs::digest;

use super::Commands;
use crate::authority::Authority;

/// A Linux distribution's folder for trust anchors.
pub(super) struct Anchors {
    pub(super) dir: PathBuf,
    /// The refresh commands look at this ending.
    pub(super) extension: &'static str,
    pub(super) refresh: &'static str,
    pub(super) refresh_arguments: &'static [&'static str],
    pub(super) refresh_after_removal: &'static [&'static str],
}

impl Anchors {
    /// The first family whose folder exists.
    pub(super) fn find(root: &Path) -> Option<Self> {
        type Family = (
            &'static str,
            &'static str,
            &'static str,
            &'static [&'static str],
            &'static [&'static str],
        );
        const FAMILIES: [Family; 4] = [
            // Fedora, RHEL and their kin.
            (
                "etc/pki/ca-trust/source/anchors",
                "pem",
                "update-ca-trust",
                &["extract"],
                &["extract"],
            ),
            // Debian, Ubuntu, Alpine. Only `--fresh` drops the links of a certificate that is gone.
            (
                "usr/local/share/ca-certificates",
                "crt",
                "update-ca-certificates",
                &[],
                &["--fresh"],
            ),
            // Arch.
            (
                "etc/ca-certificates/trust-source/anchors",
                "crt",
                "trust",
                &["extract-compat"],
                &["extract-compat"],
            ),
            // SUSE.
            (
                "usr/share/pki/trust/anchors",
                "pem",
                "update-ca-certificates",
                &[],
                &[],
            ),
        ];
        FAMILIES.into_iter().find_map(
            |(dir, extension, refresh, refresh_arguments, refresh_after_removal)| {
                let dir = root.join(dir);
                dir.is_dir().then_some(Self {
                    dir,
                    extension,
                    refresh,
                    refresh_arguments,
                    refresh_after_removal,
                })
            },
        )
    }
}

/// The user's login keychain; macOS asks the user before it trusts.
pub(super) fn macos(authority: &Authority, home: Option<&Path>) -> Commands {
    let keychain = home
        .unwrap_or(Path::new("/"))
        .join("Library/Keychains/login.keychain-db");
    let hash = sha1_hex(authority);
    Commands {
        probe: None,
        // Trust settings, not mere presence, would need the output of `dump-trust-settings`, which has no stable form.
        find: Command::new("security", &["verify-cert", "-L", "-l", "-c"])
            .file(authority.cert_pem()),
        add: Command::new("security", &["add-trusted-cert", "-r", "trustRoot", "-k"])
            .arg(&keychain)
            .file(authority.cert_pem()),
        remove: Command::new("security", &["delete-certificate", "-t", "-Z", &hash]).arg(&keychain),
    }
}

/// The user's root store; Windows asks the user before it trusts.
pub(super) fn windows(authority: &Authority) -> Commands {
    let hash = sha1_hex(authority);
    let certutil = |verb: &str| Command::new("certutil.exe", &["-user", verb, "Root"]);
    Commands {
        probe: Some(certutil("-store")),
        find: certutil("-verifystore").arg(&hash),
        add: certutil("-addstore").file(authority.cert_pem()),
        remove: certutil("-delstore").arg(&hash),
    }
}

/// A command line, and what it reads.
pub(super) struct Command {
    program: OsString,
    arguments: Vec<OsString>,
    input: Option<Input>,
}

struct Input {
    text: String,
    /// `None`: it only reads files, named by the last argument. Else it also reads its standard input, and the switch
    /// names a file in the command for a person.
    switch: Option<&'static str>,
}

/// Why a command did nothing.
pub(super) enum Failure {
    /// It could not be started, or not be fed.
    NotRun(String),
    /// It ran and said no.
    Refused(String),
}

impl Command {
    pub(super) fn new(program: impl AsRef<OsStr>, arguments: &[&str]) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            arguments: arguments.iter().map(OsString::from).collect(),
            input: None,
        }
    }

    pub(super) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Feeds text to the standard input; a person gives a file with `switch` instead.
    pub(super) fn input(mut self, text: String, switch: &'static str) -> Self {
        self.input = Some(Input {
            text,
            switch: Some(switch),
        });
        self
    }

    /// Names a file with this text as the last argument.
    pub(super) fn file(mut self, text: String) -> Self {
        self.input = Some(Input { text, switch: None });
        self
    }

    pub(super) fn run(&self) -> Result<(), Failure> {
        let mut command = std::process::Command::new(&self.program);
        command
            .args(&self.arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .stdin(Stdio::null());
        let mut temporary = None;
        match &self.input {
            Some(Input {
                switch: Some(_), ..
            }) => {
                command.stdin(Stdio::piped());
            }
            Some(Input { text, switch: None }) => {
                let file =
                    PublicFile::write(text).map_err(|error| Failure::NotRun(error.to_string()))?;
                command.arg(&file.0);
                temporary = Some(file);
            }
            None => {}
        }
        let program = self.program.display();
        let failed = |error: std::io::Error| Failure::NotRun(format!("{program}: {error}"));
        let mut child = command.spawn().map_err(failed)?;
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), &self.input) {
            // One certificate fits into a pipe. A command that closes it early says why in its output.
            let _ = stdin.write_all(input.text.as_bytes());
        }
        let output = child.wait_with_output().map_err(failed)?;
        drop(temporary);
        if output.status.success() {
            return Ok(());
        }
        let said = [output.stderr, output.stdout]
            .map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned());
        let said = said
            .into_iter()
            .find(|text| !text.is_empty())
            .unwrap_or_default();
        Err(Failure::Refused(format!(
            "{program}: {}: {said}",
            output.status
        )))
    }

    /// The command as a person types it, with the certificate's file where it reads one.
    pub(super) fn shown(&self, cert_file: Option<&Path>) -> String {
        let mut words: Vec<String> = std::iter::once(&self.program)
            .chain(&self.arguments)
            .map(|word| quote(Path::new(word)))
            .collect();
        if let Some(input) = &self.input {
            words.extend(input.switch.map(str::to_owned));
            words.push(quote(
                cert_file.unwrap_or(Path::new("tollgate-ca-cert.pem")),
            ));
        }
        words.join(" ")
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::NotRun(reason) | Self::Refused(reason)) = self;
        f.write_str(reason)
    }
}

/// Readable for all whatever the umask is: the distribution links to this very file.
pub(super) fn write_anchor(path: &Path, pem: &str) -> std::io::Result<()> {
    std::fs::write(path, pem)?;
    #[cfg(unix)]
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    Ok(())
}

/// Quotes for a POSIX shell, only where needed.
pub(super) fn quote(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-=:,+@".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// A certificate in a file of its own, removed after use. It holds nothing secret.
struct PublicFile(PathBuf);

impl PublicFile {
    fn write(text: &str) -> std::io::Result<Self> {
        let mut random = [0; 8];
        aws_lc_rs::rand::fill(&mut random)
            .map_err(|_| std::io::Error::other("no random numbers"))?;
        let path = std::env::temp_dir().join(format!(
            "tollgate-ca-{:016x}.pem",
            u64::from_be_bytes(random)
        ));
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)?;
        let this = Self(path);
        file.write_all(text.as_bytes())?;
        Ok(this)
    }
}

impl Drop for PublicFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// How macOS and Windows name a certificate.
fn sha1_hex(authority: &Authority) -> String {
    let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, authority.cert_der());
    hash.as_ref()
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect()
}
