//! The trust stores of this machine: put an authority in, take it out, look whether it is there.
//!
//! | store | how | needs |
//! |---|---|---|
//! | Linux system | a file in the distribution's anchor folder, then its refresh command | root |
//! | macOS login keychain | `security` | the user's consent |
//! | Windows user store | `certutil -user` | the user's consent |
//! | NSS databases (Chromium on Linux, Firefox) | NSS `certutil` | nothing |
//! | Java | `keytool`, on `cacerts` below `JAVA_HOME` | write access to the JDK |
//!
//! Nothing here asks for more rights than the process has: what it may not do comes back as [`Outcome::Manual`] with the
//! command for a person to run. Call it from a blocking thread; commands take up to seconds.

mod os;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use os::{Anchors, Command, Failure};

use crate::authority::Authority;

/// A place where clients look for authorities they trust.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Store {
    /// The operating system's.
    System,
    /// An NSS database folder (`cert9.db`).
    Nss(PathBuf),
    /// A Java keystore file.
    Java(PathBuf),
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => f.write_str("system store"),
            Self::Nss(dir) => write!(f, "NSS database {}", dir.display()),
            Self::Java(file) => write!(f, "Java keystore {}", file.display()),
        }
    }
}

/// What became of one store.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The authority was put in.
    Installed,
    /// The authority was taken out.
    Removed,
    /// It is in, and nothing was changed.
    Present,
    /// It is not in, and nothing was changed.
    Absent,
    /// It could not be done, or not looked up; a person can.
    Manual {
        /// What to run, with the rights that the store needs.
        command: String,
        /// Why it was not done here.
        reason: String,
    },
}

/// What became of each store that was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The stores in the order they were visited.
    pub stores: Vec<(Store, Outcome)>,
}

impl Report {
    /// Whether nothing is left for a person to do.
    pub fn is_complete(&self) -> bool {
        !self
            .stores
            .iter()
            .any(|(_, outcome)| matches!(outcome, Outcome::Manual { .. }))
    }
}

/// Puts the authority into every store of this machine and user. `cert_file` is its certificate as PEM, and stands in the
/// commands of the report.
pub fn install(authority: &Authority, cert_file: &Path) -> Report {
    TrustStores::of_this_machine().install(authority, cert_file)
}

/// Takes the authority out of every store of this machine and user.
pub fn uninstall(authority: &Authority) -> Report {
    TrustStores::of_this_machine().uninstall(authority)
}

/// Looks for the authority in every store of this machine and user.
pub fn status(authority: &Authority) -> Report {
    TrustStores::of_this_machine().status(authority)
}

/// Where to look for stores.
#[derive(Debug, Clone)]
pub struct TrustStores {
    /// The folder that is taken for `/`. Elsewhere than there, no command refreshes or reads the system store: an image
    /// that is being built gets the file, and runs the command itself.
    pub root: PathBuf,
    /// The user's home, for NSS databases and keychains.
    pub home: Option<PathBuf>,
    /// A Java installation.
    pub java_home: Option<PathBuf>,
}

impl TrustStores {
    /// `/`, the user's home and `JAVA_HOME`.
    pub fn of_this_machine() -> Self {
        Self {
            root: PathBuf::from("/"),
            home: std::env::home_dir(),
            java_home: std::env::var_os("JAVA_HOME")
                .filter(|home| !home.is_empty())
                .map(PathBuf::from),
        }
    }

    /// See [`install`].
    pub fn install(&self, authority: &Authority, cert_file: &Path) -> Report {
        self.visit(authority, &Action::Install(cert_file))
    }

    /// See [`uninstall`].
    pub fn uninstall(&self, authority: &Authority) -> Report {
        self.visit(authority, &Action::Uninstall)
    }

    /// See [`status`].
    pub fn status(&self, authority: &Authority) -> Report {
        self.visit(authority, &Action::Status)
    }

    fn visit(&self, authority: &Authority, action: &Action<'_>) -> Report {
        let name = anchor_name(authority);
        let system = self
            .system(authority, &name, action)
            .map(|outcome| (Store::System, outcome));
        let nss = self.nss_databases().into_iter().map(|dir| {
            let database = format!("sql:{}", dir.display());
            let certutil = |args: &[&str]| {
                Command::new("certutil", args)
                    .arg("-d")
                    .arg(&database)
                    .arg("-n")
                    .arg(&name)
            };
            let commands = Commands {
                probe: Some(Command::new("certutil", &["-L", "-d", &database])),
                find: certutil(&["-L"]),
                add: certutil(&["-A", "-t", "C,,", "-a"]).input(authority.cert_pem(), "-i"),
                remove: certutil(&["-D"]),
            };
            (Store::Nss(dir), commands.perform(action))
        });
        let java = self.java_keystore().map(|(keytool, file)| {
            let store = |args: &[&str]| {
                Command::new(&keytool, args)
                    .arg("-storepass")
                    .arg("changeit")
                    .arg("-keystore")
                    .arg(&file)
            };
            let keytool = |args: &[&str]| store(args).arg("-alias").arg(&name);
            let commands = Commands {
                probe: Some(store(&["-list"])),
                find: keytool(&["-list"]),
                add: keytool(&["-importcert", "-noprompt"]).input(authority.cert_pem(), "-file"),
                remove: keytool(&["-delete"]),
            };
            (Store::Java(file.clone()), commands.perform(action))
        });
        Report {
            stores: system.into_iter().chain(nss).chain(java).collect(),
        }
    }

    fn system(&self, authority: &Authority, name: &str, action: &Action<'_>) -> Option<Outcome> {
        if cfg!(target_os = "macos") {
            return Some(os::macos(authority, self.home.as_deref()).perform(action));
        }
        if cfg!(windows) {
            return Some(os::windows(authority).perform(action));
        }
        let Some(anchors) = Anchors::find(&self.root) else {
            let reason = "no known folder for trust anchors".to_owned();
            let command = "add the certificate as your distribution's manual says".to_owned();
            return Some(Outcome::Manual { command, reason });
        };
        Some(self.linux(&anchors, authority, name, action))
    }

    fn linux(
        &self,
        anchors: &Anchors,
        authority: &Authority,
        name: &str,
        action: &Action<'_>,
    ) -> Outcome {
        let file = anchors.dir.join(format!("{name}.{}", anchors.extension));
        let pem = authority.cert_pem();
        let present = fs::read_to_string(&file).is_ok_and(|text| text == pem);
        let quoted = os::quote(&file);
        let (changed, done, by_hand, arguments) = match action {
            Action::Status => {
                return if present {
                    Outcome::Present
                } else {
                    Outcome::Absent
                };
            }
            Action::Install(_) if present => return Outcome::Present,
            Action::Uninstall if !file.exists() => return Outcome::Absent,
            Action::Install(cert) => {
                let by_hand = format!("install -m 644 {} {quoted}", os::quote(cert));
                (
                    os::write_anchor(&file, &pem),
                    Outcome::Installed,
                    by_hand,
                    anchors.refresh_arguments,
                )
            }
            Action::Uninstall => (
                fs::remove_file(&file),
                Outcome::Removed,
                format!("rm {quoted}"),
                anchors.refresh_after_removal,
            ),
        };
        let refresh = Command::new(anchors.refresh, arguments);
        let command = format!("{by_hand} && {}", refresh.shown(None));
        if let Err(error) = changed {
            return Outcome::Manual {
                command,
                reason: error.to_string(),
            };
        }
        if self.root != Path::new("/") {
            return done;
        }
        let Err(failure) = refresh.run() else {
            return done;
        };
        // Back to how it was: a file without its refresh would pass for an installed (or removed) authority next time.
        let undone = if done == Outcome::Installed {
            fs::remove_file(&file)
        } else {
            os::write_anchor(&file, &pem)
        };
        if let Err(error) = undone {
            tracing::warn!("{} left as it is: {error}", file.display());
        }
        Outcome::Manual {
            command,
            reason: failure.to_string(),
        }
    }

    fn nss_databases(&self) -> Vec<PathBuf> {
        let Some(home) = &self.home else {
            return Vec::new();
        };
        let mut databases: Vec<PathBuf> = [".pki/nssdb", "snap/chromium/current/.pki/nssdb"]
            .iter()
            .map(|dir| home.join(dir))
            .collect();
        for profiles in [
            ".mozilla/firefox",
            "snap/firefox/common/.mozilla/firefox",
            "Library/Application Support/Firefox/Profiles",
        ] {
            let mut found: Vec<_> = fs::read_dir(home.join(profiles))
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path())
                .collect();
            found.sort();
            databases.extend(found);
        }
        databases.retain(|dir| dir.join("cert9.db").is_file());
        databases
    }

    /// `keytool` and the keystore: Java 9 and later, or a JDK 8.
    fn java_keystore(&self) -> Option<(PathBuf, PathBuf)> {
        let home = self.java_home.as_deref()?;
        let file = ["lib/security/cacerts", "jre/lib/security/cacerts"]
            .iter()
            .map(|path| home.join(path))
            .find(|path| path.is_file())?;
        Some((home.join("bin").join("keytool"), file))
    }
}

enum Action<'a> {
    Install(&'a Path),
    Uninstall,
    Status,
}

/// A store that is served by commands alone.
struct Commands {
    /// Succeeds whenever the store can be read at all: a store that can't be must not pass for one without the authority.
    probe: Option<Command>,
    find: Command,
    add: Command,
    remove: Command,
}

impl Commands {
    fn perform(&self, action: &Action<'_>) -> Outcome {
        let manual = |command: &Command, failure: Failure| {
            let file = if let Action::Install(file) = action {
                Some(*file)
            } else {
                None
            };
            Outcome::Manual {
                command: command.shown(file),
                reason: failure.to_string(),
            }
        };
        let present = match self.find.run() {
            Ok(()) => Ok(true),
            Err(Failure::Refused(_)) => self
                .probe
                .as_ref()
                .map_or(Ok(()), Command::run)
                .map(|()| false),
            Err(failure) => Err(failure),
        };
        let present = match present {
            Ok(present) => present,
            Err(failure) => {
                let wanted = match action {
                    Action::Install(_) => &self.add,
                    Action::Uninstall => &self.remove,
                    Action::Status => &self.find,
                };
                return manual(wanted, failure);
            }
        };
        match (action, present) {
            (Action::Install(_) | Action::Status, true) => Outcome::Present,
            (Action::Uninstall | Action::Status, false) => Outcome::Absent,
            (Action::Install(_), false) => self.add.run().map_or_else(
                |failure| manual(&self.add, failure),
                |()| Outcome::Installed,
            ),
            (Action::Uninstall, true) => self.remove.run().map_or_else(
                |failure| manual(&self.remove, failure),
                |()| Outcome::Removed,
            ),
        }
    }
}

/// Distinct for each authority, so that one can be taken out while its successor stays.
fn anchor_name(authority: &Authority) -> String {
    let digits = authority
        .fingerprint_sha256()
        .map(|byte| format!("{byte:02x}"))
        .concat();
    format!("tollgate-ca-{}", digits.get(..16).unwrap_or(&digits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::AuthorityParams;

    fn authority() -> Authority {
        Authority::generate(&AuthorityParams::default()).unwrap()
    }

    fn stores(root: &Path) -> TrustStores {
        TrustStores {
            root: root.to_path_buf(),
            home: None,
            java_home: None,
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_system_store_of_each_family_takes_and_gives_back_a_file() {
        for (dir, extension) in [
            ("usr/local/share/ca-certificates", "crt"),
            ("etc/pki/ca-trust/source/anchors", "pem"),
            ("etc/ca-certificates/trust-source/anchors", "crt"),
            ("usr/share/pki/trust/anchors", "pem"),
        ] {
            let root = tempfile::tempdir().unwrap();
            let dir = root.path().join(dir);
            fs::create_dir_all(&dir).unwrap();
            let (authority, stores, cert) = (authority(), stores(root.path()), Path::new("ca.pem"));
            let only = |report: Report| {
                report
                    .stores
                    .into_iter()
                    .map(|(_, outcome)| outcome)
                    .collect::<Vec<_>>()
            };
            assert_eq!(only(stores.status(&authority)), [Outcome::Absent]);
            assert_eq!(only(stores.install(&authority, cert)), [Outcome::Installed]);
            assert_eq!(only(stores.install(&authority, cert)), [Outcome::Present]);
            let file = fs::read_dir(&dir).unwrap().next().unwrap().unwrap().path();
            assert_eq!(file.extension().unwrap(), extension);
            assert_eq!(fs::read_to_string(file).unwrap(), authority.cert_pem());
            assert_eq!(only(stores.status(&authority)), [Outcome::Present]);
            assert_eq!(only(stores.uninstall(&authority)), [Outcome::Removed]);
            assert_eq!(only(stores.uninstall(&authority)), [Outcome::Absent]);
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_cannot_be_done_comes_back_as_a_command() {
        let root = tempfile::tempdir().unwrap();
        let report = stores(root.path()).install(&authority(), Path::new("ca.pem"));
        assert!(!report.is_complete());

        // A folder stands where the file belongs: not even root can write it.
        let authority = authority();
        let dir = root.path().join("usr/local/share/ca-certificates");
        fs::create_dir_all(dir.join(format!("{}.crt", anchor_name(&authority)))).unwrap();
        let report = stores(root.path()).install(&authority, Path::new("it's.pem"));
        let [(Store::System, Outcome::Manual { command, .. })] = report.stores.as_slice() else {
            panic!("{report:?}")
        };
        assert!(
            command.starts_with(r"install -m 644 'it'\''s.pem' "),
            "{command}"
        );
        assert!(command.ends_with(" && update-ca-certificates"), "{command}");
    }

    #[test]
    fn an_nss_database_takes_and_gives_back_the_authority() {
        let home = tempfile::tempdir().unwrap();
        let database = home.path().join(".pki/nssdb");
        fs::create_dir_all(&database).unwrap();
        let made = std::process::Command::new("certutil")
            .args([
                "-N",
                "--empty-password",
                "-d",
                &format!("sql:{}", database.display()),
            ])
            .output();
        if !made.is_ok_and(|output| output.status.success()) {
            println!("skipped: no NSS certutil here");
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let stores = TrustStores {
            home: Some(home.path().to_path_buf()),
            ..stores(root.path())
        };
        exercise(&stores, &Store::Nss(database));
    }

    #[test]
    fn a_java_keystore_takes_and_gives_back_the_authority() {
        let java = tempfile::tempdir().unwrap();
        let Some(keytool) = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .map(|dir| dir.join("keytool"))
            .find(|path| path.is_file())
        else {
            println!("skipped: no keytool here");
            return;
        };
        let file = java.path().join("lib/security/cacerts");
        fs::create_dir_all(java.path().join("bin")).unwrap();
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(
            keytool.canonicalize().unwrap(),
            java.path().join("bin/keytool"),
        )
        .unwrap();
        #[cfg(not(unix))]
        fs::copy(keytool, java.path().join("bin/keytool")).unwrap();
        let seed = authority();
        let seed_file = java.path().join("seed.pem");
        fs::write(&seed_file, seed.cert_pem()).unwrap();
        let made = std::process::Command::new(java.path().join("bin/keytool"))
            .args([
                "-importcert",
                "-noprompt",
                "-storepass",
                "changeit",
                "-alias",
                "seed",
                "-file",
            ])
            .arg(&seed_file)
            .arg("-keystore")
            .arg(&file)
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let root = tempfile::tempdir().unwrap();
        let stores = TrustStores {
            java_home: Some(java.path().to_path_buf()),
            ..stores(root.path())
        };
        exercise(&stores, &Store::Java(file));
    }

    /// A keystore with another password, say: "not there" would be a lie that leaves the authority trusted.
    #[cfg(unix)]
    #[test]
    fn a_store_that_cannot_be_read_is_not_called_empty() {
        let refuses = |succeed: bool| Command::new(if succeed { "true" } else { "false" }, &[]);
        let commands = |probe| Commands {
            probe: Some(refuses(probe)),
            find: refuses(false),
            add: refuses(false),
            remove: refuses(false),
        };
        assert_eq!(commands(true).perform(&Action::Uninstall), Outcome::Absent);
        assert!(matches!(
            commands(false).perform(&Action::Uninstall),
            Outcome::Manual { .. }
        ));
        assert!(matches!(
            commands(false).perform(&Action::Status),
            Outcome::Manual { .. }
        ));
    }

    fn exercise(stores: &TrustStores, store: &Store) {
        let authority = authority();
        let cert = Path::new("ca.pem");
        let outcome = |report: Report| {
            report
                .stores
                .into_iter()
                .find(|(found, _)| found == store)
                .map(|(_, outcome)| outcome)
                .unwrap()
        };
        assert_eq!(outcome(stores.status(&authority)), Outcome::Absent);
        assert_eq!(
            outcome(stores.install(&authority, cert)),
            Outcome::Installed
        );
        assert_eq!(outcome(stores.install(&authority, cert)), Outcome::Present);
        assert_eq!(outcome(stores.status(&authority)), Outcome::Present);
        assert_eq!(outcome(stores.uninstall(&authority)), Outcome::Removed);
        assert_eq!(outcome(stores.uninstall(&authority)), Outcome::Absent);
    }
}
