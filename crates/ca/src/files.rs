//! The authority's folder.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use aws_lc_rs::rand;

use crate::authority::{Authority, AuthorityParams};
use crate::error::CaError;
use crate::leaf::unix_now;

/// The names of the files in an authority's folder, where `X` is `tollgate` or `mitmproxy`:
///
/// | file | content | mode |
/// |---|---|---|
/// | `X-ca.pem` | private key (PKCS#8) and certificate: the one file that is read | 0600 |
/// | `X-ca.p12` | the same as PKCS#12, empty password | 0600 |
/// | `X-ca-cert.pem`, `X-ca-cert.cer` | the certificate as PEM, under both names | 0644 |
/// | `X-ca-cert.p12` | the certificate as PKCS#12, empty password | 0644 |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Naming {
    /// `tollgate-ca.pem` and so on.
    #[default]
    Tollgate,
    /// `mitmproxy-ca.pem` and so on: shares an authority with mitmproxy.
    Mitmproxy,
}

impl Naming {
    /// The file with key and certificate.
    pub fn key_file(self, dir: &Path) -> PathBuf {
        self.path(dir, "ca.pem")
    }

    /// The public certificate as PEM: the file to hand out.
    pub fn cert_file(self, dir: &Path) -> PathBuf {
        self.path(dir, "ca-cert.pem")
    }

    fn path(self, dir: &Path, suffix: &str) -> PathBuf {
        let stem = match self {
            Self::Tollgate => "tollgate",
            Self::Mitmproxy => "mitmproxy",
        };
        dir.join(format!("{stem}-{suffix}"))
    }
}

const SECRET: u32 = 0o600;
const PUBLIC: u32 = 0o644;
/// A chain of certificates takes a few kilobytes.
const MAX_FILE: u64 = 1 << 20;

/// See [`Authority::open_or_create`].
pub(crate) fn open_or_create(
    dir: &Path,
    naming: Naming,
    params: &AuthorityParams,
) -> Result<(Authority, bool), CaError> {
    let path = naming.key_file(dir);
    if let Some(authority) = open(&path)? {
        write_missing_public_files(&authority, dir, naming);
        return Ok((authority, false));
    }
    create_dir(dir)?;
    let authority = Authority::generate(params)?;
    let temporary = Temporary::write(&path, SECRET, key_file_text(&authority)?.as_bytes())?;
    if !temporary.publish_new()? {
        // Another process was faster, and its authority is the one.
        let authority = open(&path)?
            .ok_or_else(|| CaError::io("open", &path)(io::ErrorKind::NotFound.into()))?;
        write_missing_public_files(&authority, dir, naming);
        return Ok((authority, false));
    }
    write_copies(&authority, dir, naming)?;
    Ok((authority, true))
}

/// See [`Authority::rotate`].
pub(crate) fn rotate(
    dir: &Path,
    naming: Naming,
    params: &AuthorityParams,
) -> Result<Authority, CaError> {
    create_dir(dir)?;
    let path = naming.key_file(dir);
    let authority = Authority::generate(params)?;
    let temporary = Temporary::write(&path, SECRET, key_file_text(&authority)?.as_bytes())?;
    keep_backup(&path)?;
    temporary.replace()?;
    write_copies(&authority, dir, naming)?;
    Ok(authority)
}

/// A text file of at most 1 MiB. Comments around the PEM sections may be in any encoding.
pub(crate) fn read(path: &Path) -> Result<String, CaError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes))
        .map_err(CaError::io("read", path))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(CaError::Malformed {
            what: "PEM file",
            reason: "it is larger than 1 MiB".to_owned(),
        }
        .in_file(path));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Replaces a leading `~` or `~/` by the home folder, when there is one.
pub(crate) fn expand_home(path: &Path) -> PathBuf {
    match (path.strip_prefix("~"), std::env::home_dir()) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.to_path_buf(),
    }
}

/// `None` when there is no file; anything else that keeps it from being used is an error.
fn open(path: &Path) -> Result<Option<Authority>, CaError> {
    let text = match read(path) {
        Err(CaError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        other => other?,
    };
    warn_if_others_can_read(path);
    let authority = Authority::parse_pem(&text).map_err(|error| error.in_file(path))?;
    authority
        .check_validity(unix_now())
        .map_err(|error| error.in_file(path))?;
    Ok(Some(authority))
}

fn key_file_text(authority: &Authority) -> Result<String, CaError> {
    Ok(authority.key_pem()? + &authority.cert_pem())
}

/// Every file but the one that counts.
fn write_copies(authority: &Authority, dir: &Path, naming: Naming) -> Result<(), CaError> {
    Temporary::write(&naming.path(dir, "ca.p12"), SECRET, &authority.p12("")?)?.replace()?;
    for (suffix, content) in public_files(authority)? {
        Temporary::write(&naming.path(dir, suffix), PUBLIC, &content)?.replace()?;
    }
    Ok(())
}

/// A start that was interrupted, or a tidy user, may have left only the key file. The folder may also be read-only, which
/// is no reason not to start.
fn write_missing_public_files(authority: &Authority, dir: &Path, naming: Naming) {
    let write = || {
        let missing = |suffix| !naming.path(dir, suffix).exists();
        if !PUBLIC_FILES.into_iter().any(missing) {
            return Ok(());
        }
        for (suffix, content) in public_files(authority)? {
            if missing(suffix) {
                Temporary::write(&naming.path(dir, suffix), PUBLIC, &content)?.publish_new()?;
            }
        }
        Ok::<_, CaError>(())
    };
    if let Err(error) = write() {
        tracing::debug!("public copies of the authority's certificate not written: {error}");
    }
}

const PUBLIC_FILES: [&str; 3] = ["ca-cert.pem", "ca-cert.cer", "ca-cert.p12"];

fn public_files(authority: &Authority) -> Result<[(&'static str, Vec<u8>); 3], CaError> {
    let [pem, cer, p12] = PUBLIC_FILES;
    let text = authority.cert_pem().into_bytes();
    Ok([
        (pem, text.clone()),
        (cer, text),
        (p12, authority.cert_p12()?),
    ])
}

/// Leaves the file in place, so that there is no moment without an authority.
fn keep_backup(path: &Path) -> Result<(), CaError> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".bak-{}", unix_now()));
    // A second rotation within one second must not lose the first one's key.
    for count in 0u32.. {
        let mut candidate = name.clone();
        if count > 0 {
            candidate.push(format!("-{count}"));
        }
        let backup = PathBuf::from(candidate);
        match fs::hard_link(path, &backup) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(_) => {
                return copy_secret(path, &backup)
                    .map_err(CaError::io("keep a backup as", &backup));
            }
        }
    }
    Ok(())
}

/// For file systems without hard links.
fn copy_secret(from: &Path, to: &Path) -> io::Result<()> {
    let mut bytes = Vec::new();
    File::open(from)?.take(MAX_FILE).read_to_end(&mut bytes)?;
    let mut file = create_new(to, SECRET)?;
    file.write_all(&bytes)?;
    file.sync_all()
}

/// A complete file beside the place where it belongs; removed unless it gets there.
struct Temporary {
    path: PathBuf,
    target: PathBuf,
    mode: u32,
}

impl Temporary {
    fn write(target: &Path, mode: u32, content: &[u8]) -> Result<Self, CaError> {
        let mut random = [0; 8];
        rand::fill(&mut random).map_err(|_| CaError::Crypto("naming a temporary file"))?;
        let mut name = target.as_os_str().to_owned();
        name.push(format!(".{:016x}.tmp", u64::from_be_bytes(random)));
        let path = PathBuf::from(name);
        let mut file = create_new(&path, mode).map_err(CaError::io("create", &path))?;
        let temporary = Self {
            path,
            target: target.to_path_buf(),
            mode,
        };
        file.write_all(content)
            .and_then(|()| file.sync_all())
            .map_err(CaError::io("write", &temporary.path))?;
        Ok(temporary)
    }

    /// Gives the file its name if that is free; false when it is taken.
    fn publish_new(self) -> Result<bool, CaError> {
        match fs::hard_link(&self.path, &self.target) {
            Ok(()) => {
                self.sync_dir();
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            // No hard links here: the name is still taken by only one, though a reader might meet a half-written file.
            Err(_) => self.copy_new().map_err(CaError::io("create", &self.target)),
        }
    }

    /// Gives the file its name, whatever had it before.
    fn replace(self) -> Result<(), CaError> {
        fs::rename(&self.path, &self.target).map_err(CaError::io("replace", &self.target))?;
        self.sync_dir();
        Ok(())
    }

    fn copy_new(&self) -> io::Result<bool> {
        let content = fs::read(&self.path)?;
        let mut file = match create_new(&self.target, self.mode) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            other => other?,
        };
        file.write_all(&content)?;
        file.sync_all()?;
        Ok(true)
    }

    /// Makes the name survive a power cut, where a folder can be opened for that.
    fn sync_dir(&self) {
        if let Some(Err(error)) = self
            .target
            .parent()
            .map(|dir| File::open(dir).and_then(|dir| dir.sync_all()))
        {
            tracing::trace!("folder not synced: {error}");
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Gone already when it was renamed.
        let _ = fs::remove_file(&self.path);
    }
}

fn create_new(path: &Path, mode: u32) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    os::set_mode(&mut options, mode);
    options.open(path)
}

fn create_dir(dir: &Path) -> Result<(), CaError> {
    os::create_private_dir(dir).map_err(CaError::io("create", dir))
}

fn warn_if_others_can_read(path: &Path) {
    if os::others_can_read(path) {
        tracing::warn!(
            "{} can be read by other users; `chmod 600` it",
            path.display()
        );
    }
}

#[cfg(unix)]
mod os {
    use std::fs::{self, DirBuilder, OpenOptions};
    use std::io;
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
    use std::path::Path;

    pub(super) fn set_mode(options: &mut OpenOptions, mode: u32) {
        options.mode(mode);
    }

    /// A folder that exists keeps its mode.
    pub(super) fn create_private_dir(dir: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)
    }

    pub(super) fn others_can_read(path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0)
    }
}

/// Elsewhere files inherit the access rights of their folder, normally one below the user's profile.
#[cfg(not(unix))]
mod os {
    use std::fs::{self, OpenOptions};
    use std::io;
    use std::path::Path;

    pub(super) fn set_mode(_options: &mut OpenOptions, _mode: u32) {}

    pub(super) fn create_private_dir(dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)
    }

    pub(super) fn others_can_read(_path: &Path) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    fn params() -> AuthorityParams {
        AuthorityParams::default()
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_new_folder_gets_all_files_and_the_next_start_reads_them() {
        for (naming, stem) in [
            (Naming::Tollgate, "tollgate"),
            (Naming::Mitmproxy, "mitmproxy"),
        ] {
            let root = tempfile::tempdir().unwrap();
            let dir = root.path().join("a/b");
            let (made, created) = open_or_create(&dir, naming, &params()).unwrap();
            assert!(created);
            let expected = [
                "ca-cert.cer",
                "ca-cert.p12",
                "ca-cert.pem",
                "ca.p12",
                "ca.pem",
            ];
            assert_eq!(
                names(&dir),
                expected.map(|suffix| format!("{stem}-{suffix}"))
            );
            let (opened, created) = open_or_create(&dir, naming, &params()).unwrap();
            assert!(!created);
            assert_eq!(opened.fingerprint_sha256(), made.fingerprint_sha256());
            assert_eq!(
                fs::read_to_string(naming.cert_file(&dir)).unwrap(),
                made.cert_pem()
            );
        }
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_reads_keys() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("ca");
        open_or_create(&dir, Naming::Tollgate, &params()).unwrap();
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(dir.clone()), 0o700);
        assert_eq!(mode(dir.join("tollgate-ca.pem")), 0o600);
        assert_eq!(mode(dir.join("tollgate-ca.p12")), 0o600);
    }

    #[test]
    fn missing_public_files_come_back_and_the_secret_copy_does_not() {
        let dir = tempfile::tempdir().unwrap();
        open_or_create(dir.path(), Naming::Tollgate, &params()).unwrap();
        for gone in [
            "tollgate-ca.p12",
            "tollgate-ca-cert.cer",
            "tollgate-ca-cert.p12",
        ] {
            fs::remove_file(dir.path().join(gone)).unwrap();
        }
        open_or_create(dir.path(), Naming::Tollgate, &params()).unwrap();
        assert_eq!(
            names(dir.path()),
            [
                "tollgate-ca-cert.cer",
                "tollgate-ca-cert.p12",
                "tollgate-ca-cert.pem",
                "tollgate-ca.pem"
            ]
        );
    }

    #[test]
    fn starts_at_the_same_moment_end_with_one_authority() {
        let dir = tempfile::tempdir().unwrap();
        let barrier = Barrier::new(8);
        let results: Vec<_> = std::thread::scope(|scope| {
            let start = || {
                barrier.wait();
                let (authority, created) =
                    open_or_create(dir.path(), Naming::Tollgate, &params()).unwrap();
                (authority.fingerprint_sha256(), created)
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        assert_eq!(results.iter().filter(|(_, created)| *created).count(), 1);
        assert!(
            results
                .iter()
                .all(|(fingerprint, _)| *fingerprint == results[0].0)
        );
        assert_eq!(names(dir.path()).len(), 5, "no temporary file stays behind");
    }

    #[test]
    fn the_way_without_hard_links_also_takes_a_name_once() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("x");
        assert!(
            Temporary::write(&target, SECRET, b"one")
                .unwrap()
                .copy_new()
                .unwrap()
        );
        assert!(
            !Temporary::write(&target, SECRET, b"two")
                .unwrap()
                .copy_new()
                .unwrap()
        );
        assert_eq!(fs::read(&target).unwrap(), b"one");
        assert_eq!(names(dir.path()), ["x"]);
    }

    #[test]
    fn a_broken_file_is_named_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        open_or_create(dir.path(), Naming::Tollgate, &params()).unwrap();
        let path = Naming::Tollgate.key_file(dir.path());
        let whole = fs::read(&path).unwrap();
        // Every truncation: inside the key, between key and certificate, inside the certificate, of nearly nothing.
        for cut in (0..whole.len() - 1).step_by(7).chain([whole.len() - 2]) {
            fs::write(&path, &whole[..cut]).unwrap();
            let error = open_or_create(dir.path(), Naming::Tollgate, &params()).unwrap_err();
            assert!(
                matches!(error, CaError::File { .. }),
                "cut at {cut}: {error}"
            );
            assert!(error.to_string().contains("tollgate-ca.pem"));
            assert_eq!(fs::read(&path).unwrap(), whole[..cut]);
        }
        fs::write(&path, vec![b'x'; MAX_FILE as usize + 1]).unwrap();
        assert!(
            open_or_create(dir.path(), Naming::Tollgate, &params())
                .unwrap_err()
                .to_string()
                .contains("1 MiB")
        );
    }

    #[test]
    fn a_folder_in_the_file_s_place_is_an_error_too() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(Naming::Tollgate.key_file(dir.path())).unwrap();
        let error = open_or_create(dir.path(), Naming::Tollgate, &params()).unwrap_err();
        assert!(matches!(error, CaError::Io { .. }), "{error}");
    }

    #[test]
    fn an_expired_authority_is_refused_and_rotation_replaces_it() {
        let dir = tempfile::tempdir().unwrap();
        let year = 365 * 24 * 3600;
        let old = Authority::generate_at(
            &AuthorityParams {
                validity_days: 30,
                ..params()
            },
            unix_now() - year,
        )
        .unwrap();
        let path = Naming::Tollgate.key_file(dir.path());
        let old_text = key_file_text(&old).unwrap();
        fs::write(&path, &old_text).unwrap();
        let error = open_or_create(dir.path(), Naming::Tollgate, &params()).unwrap_err();
        assert!(
            matches!(&error, CaError::File { cause, .. } if matches!(**cause, CaError::Expired { .. })),
            "{error}"
        );

        let first = rotate(dir.path(), Naming::Tollgate, &params()).unwrap();
        let second = rotate(dir.path(), Naming::Tollgate, &params()).unwrap();
        assert_ne!(first.fingerprint_sha256(), second.fingerprint_sha256());
        let (opened, _) = open_or_create(dir.path(), Naming::Tollgate, &params()).unwrap();
        assert_eq!(opened.fingerprint_sha256(), second.fingerprint_sha256());
        let backups: Vec<String> = names(dir.path())
            .into_iter()
            .filter(|name| name.contains(".bak-"))
            .collect();
        assert_eq!(backups.len(), 2, "{backups:?}");
        assert!(
            backups
                .iter()
                .any(|name| fs::read_to_string(dir.path().join(name)).unwrap() == old_text)
        );
    }

    #[test]
    fn rotation_works_in_an_empty_folder() {
        let root = tempfile::tempdir().unwrap();
        rotate(&root.path().join("new"), Naming::Mitmproxy, &params()).unwrap();
        assert_eq!(names(&root.path().join("new")).len(), 5);
    }

    #[test]
    fn home_is_expanded_only_in_front() {
        let home = std::env::home_dir().unwrap();
        assert_eq!(
            expand_home(Path::new("~/.tollgate")),
            home.join(".tollgate")
        );
        assert_eq!(expand_home(Path::new("/a/~/b")), Path::new("/a/~/b"));
        assert_eq!(expand_home(Path::new("~user/x")), Path::new("~user/x"));
    }
}
