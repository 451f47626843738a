//! Who may use the proxy: HTTP's Basic authentication (RFC 7617) and that of SOCKS5 (RFC 1929).

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::{digest, hmac};
use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use tokio::sync::Semaphore;
use tollgate_flow::{Credentials, ErrorClass, FlowError, Reply, Side};

use crate::mode::Mode;
use crate::reply;
use crate::session::Session;

/// Who may use the proxy.
///
/// ```
/// use tollgate_engine::ProxyAuth;
///
/// let auth: ProxyAuth = "anna:secret".parse()?;
/// assert_ne!(auth, "any".parse()?);
/// # Ok::<(), tollgate_engine::InvalidAuth>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProxyAuth {
    /// Whoever gives a user and a password, whichever.
    Any,
    /// One user with one password.
    Single(Credentials),
    /// Those in an Apache password file: bcrypt (`htpasswd -B`) and SHA-1 (`htpasswd -s`).
    Users(Arc<HashMap<String, PasswordHash>>),
    /// Whoever has these credentials, and those that something else lets in.
    Also(Credentials, Arc<ProxyAuth>),
}

/// One line's hash in a password file.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(Hash);

#[derive(Clone, PartialEq, Eq)]
enum Hash {
    Bcrypt(String),
    Sha1([u8; digest::SHA1_OUTPUT_LEN]),
}

/// The text says nobody, or its file can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidAuth {
    /// Neither `user:password`, `any` nor `@file`.
    #[error("expected user:password, any, or @FILE (an htpasswd file)")]
    Syntax,
    /// mitmproxy's LDAP, which isn't here.
    #[error("LDAP exists in mitmproxy but Tollgate doesn't have it yet")]
    Ldap,
    /// The password file can't be read.
    #[error("password file {path}: {error}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A line of the password file can't be used.
    #[error("password file {path}, line {line}: {problem}")]
    Line {
        /// The file.
        path: PathBuf,
        /// Its number, from 1.
        line: usize,
        /// What is wrong.
        problem: &'static str,
    },
}

/// The system has no randomness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the system has no randomness")]
pub struct NoRandomness;

/// mitmproxy's `proxyauth`: `user:password`, `any`, or `@file`.
impl FromStr for ProxyAuth {
    type Err = InvalidAuth;

    fn from_str(text: &str) -> Result<Self, InvalidAuth> {
        if text == "any" {
            return Ok(Self::Any);
        }
        if let Some(path) = text.strip_prefix('@') {
            return Self::htpasswd(Path::new(path));
        }
        if text.starts_with("ldap:") || text.starts_with("ldaps:") {
            return Err(InvalidAuth::Ldap);
        }
        Credentials::parse(text)
            .filter(|c| !c.user.is_empty())
            .map(Self::Single)
            .ok_or(InvalidAuth::Syntax)
    }
}

impl ProxyAuth {
    /// The same, and a user of the program's own, whose password nobody else knows: for requests that the program
    /// itself sends through its proxy.
    ///
    /// # Errors
    /// Where the system has no randomness.
    pub fn with_own(self, user: &str) -> Result<(Self, Credentials), NoRandomness> {
        let mut secret = [0; 32];
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| NoRandomness)?;
        let own = Credentials {
            user: user.to_owned(),
            password: BASE64.encode(secret),
        };
        Ok((Self::Also(own.clone(), Arc::new(self)), own))
    }

    /// Reads an Apache password file.
    ///
    /// # Errors
    /// [`InvalidAuth::File`] and [`InvalidAuth::Line`].
    pub fn htpasswd(path: &Path) -> Result<Self, InvalidAuth> {
        let text = std::fs::read_to_string(path).map_err(|error| InvalidAuth::File {
            path: path.to_owned(),
            error,
        })?;
        let mut users = HashMap::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let error = |problem| InvalidAuth::Line {
                path: path.to_owned(),
                line: number + 1,
                problem,
            };
            let (user, hash) = line.split_once(':').ok_or_else(|| error("no colon"))?;
            users.insert(
                user.to_owned(),
                PasswordHash(Hash::parse(hash).map_err(error)?),
            );
        }
        Ok(Self::Users(Arc::new(users)))
    }
}

impl Hash {
    fn parse(text: &str) -> Result<Self, &'static str> {
        if let Some(encoded) = text.strip_prefix("{SHA}") {
            let hash = BASE64
                .decode(encoded)
                .map_err(|_| "the SHA-1 hash is no base64")?;
            return hash
                .try_into()
                .map(Self::Sha1)
                .map_err(|_| "the SHA-1 hash has the wrong length");
        }
        if ["$2a$", "$2b$", "$2x$", "$2y$"]
            .iter()
            .any(|p| text.starts_with(p))
        {
            return text
                .parse::<bcrypt::HashParts>()
                .map(|_| Self::Bcrypt(text.to_owned()))
                .map_err(|_| "the bcrypt hash is malformed");
        }
        Err("only bcrypt (htpasswd -B) and SHA-1 (htpasswd -s) are known")
    }

    /// Takes as long as the hash was made to take.
    fn verify(&self, password: &str) -> bool {
        match self {
            Self::Bcrypt(hash) => bcrypt::verify(password, hash).unwrap_or(false),
            Self::Sha1(hash) => {
                let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, password.as_bytes());
                verify_slices_are_equal(digest.as_ref(), hash).is_ok()
            }
        }
    }
}

/// Shows users at most.
impl fmt::Debug for ProxyAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("Any"),
            Self::Single(_) => f.write_str("Single(…)"),
            Self::Users(users) => write!(f, "Users({} of them)", users.len()),
            Self::Also(_, others) => write!(f, "Also(…, {others:?})"),
        }
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(…)")
    }
}

/// How many passwords were found right that are remembered, and for how long: bcrypt takes some
/// fifty milliseconds by intention, which a browser's every connection should not cost.
const REMEMBERED: usize = 1024;
const REMEMBER: Duration = Duration::from_secs(300);
/// Hashes of passwords that are computed at once.
const AT_ONCE: usize = 2;

/// Remembers which credentials were right, by a keyed digest; shared by the workers of a proxy.
pub(crate) struct Verified {
    key: hmac::Key,
    right: Mutex<HashMap<[u8; 32], Instant>>,
    computing: Semaphore,
}

impl Verified {
    /// # Errors
    /// Where the system has no randomness.
    pub fn new() -> Result<Self, aws_lc_rs::error::Unspecified> {
        let mut key = [0; 32];
        aws_lc_rs::rand::fill(&mut key)?;
        Ok(Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, &key),
            right: Mutex::default(),
            computing: Semaphore::new(AT_ONCE),
        })
    }

    /// Whether these are the credentials of somebody who may use the proxy.
    pub async fn check(&self, auth: &ProxyAuth, given: &Credentials) -> bool {
        let is = |expected: &Credentials| {
            let same = |a: &str, b: &str| {
                // Digests of one length: what is compared takes the same time for all.
                let digest = |text: &str| hmac::sign(&self.key, text.as_bytes());
                verify_slices_are_equal(digest(a).as_ref(), digest(b).as_ref()).is_ok()
            };
            let user = same(&expected.user, &given.user);
            let password = same(&expected.password, &given.password);
            user && password
        };
        let mut auth = auth;
        while let ProxyAuth::Also(expected, others) = auth {
            if is(expected) {
                return true;
            }
            auth = others;
        }
        match auth {
            ProxyAuth::Any => true,
            ProxyAuth::Also(..) => false,
            ProxyAuth::Single(expected) => is(expected),
            ProxyAuth::Users(users) => {
                let Some(hash) = users.get(&given.user) else {
                    return false;
                };
                self.check_hash(hash, given).await
            }
        }
    }

    async fn check_hash(&self, hash: &PasswordHash, given: &Credentials) -> bool {
        let mut context = hmac::Context::with_key(&self.key);
        if let Hash::Bcrypt(hash) = &hash.0 {
            context.update(hash.as_bytes());
        }
        context.update(&[0]);
        context.update(given.password.as_bytes());
        let mut digest = [0; 32];
        digest.copy_from_slice(context.sign().as_ref());
        let now = Instant::now();
        let known = self.lock().get(&digest).is_some_and(|until| *until > now);
        if known && matches!(hash.0, Hash::Bcrypt(_)) {
            return true;
        }
        // Waiting is bounded by the number of connections.
        let Ok(_permit) = self.computing.acquire().await else {
            return false;
        };
        let (hash, password) = (hash.0.clone(), given.password.clone());
        let right = tokio::task::spawn_blocking(move || hash.verify(&password))
            .await
            .unwrap_or(false);
        if right {
            let mut remembered = self.lock();
            if remembered.len() >= REMEMBERED {
                remembered.retain(|_, until| *until > now);
                if remembered.len() >= REMEMBERED {
                    remembered.clear();
                }
            }
            remembered.insert(digest, now + REMEMBER);
        }
        right
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<[u8; 32], Instant>> {
        self.right.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The field in which a client shows who it is, and the status of a request that doesn't: 407 where
/// we are known to be a proxy, else 401. `None` where nobody is asked.
pub(crate) fn asked(session: &Session) -> Option<(&'static str, u16)> {
    session.live.config.auth.as_ref()?;
    match *session.mode {
        Mode::Regular | Mode::Upstream(_) => Some(("proxy-authorization", 407)),
        Mode::Reverse(_) | Mode::Transparent => Some(("authorization", 401)),
        // SOCKS asks by itself, and what returns was let in elsewhere.
        Mode::Socks5 | Mode::Return => None,
    }
}

/// What is to be done with a request whose client was asked who it is.
pub(crate) enum Admitted {
    /// It passes as it is.
    AsItIs,
    /// It passes without the field, which was meant for us.
    WithoutField,
}

/// Lets a request pass, or says what its client gets. What a client has shown holds for its
/// connection: later requests need not show it again.
pub(crate) async fn admit(
    session: &Session,
    value: Option<&[u8]>,
    status: u16,
) -> Result<Admitted, (u16, FlowError)> {
    let Some(auth) = &session.live.config.auth else {
        return Ok(Admitted::AsItIs);
    };
    let known = session.info.user().is_some();
    let given = value.and_then(basic);
    if known && (status == 407 || given.is_none()) {
        // For a proxy the field is taken off anyhow; another value of 401's is for the origin.
        return Ok(Admitted::AsItIs);
    }
    let verified = &session.worker.shared.verified;
    match given {
        Some(given) if verified.check(auth, &given).await => {
            session.info.set_user(given.user.into());
            Ok(Admitted::WithoutField)
        }
        _ if known => Ok(Admitted::AsItIs),
        given => {
            let what = match given {
                Some(_) => "user and password are not right",
                None => "a user and a password are asked for",
            };
            Err((
                status,
                FlowError::new(Side::Client, ErrorClass::Unauthenticated, what),
            ))
        }
    }
}

/// The reply to a request that is refused with a status; it asks for credentials where that is the
/// reason.
pub(crate) fn refusal(status: u16, error: &FlowError) -> Reply {
    let mut reply = reply::with_status(status, error);
    let name: &[u8] = match status {
        407 => b"Proxy-Authenticate",
        401 => b"WWW-Authenticate",
        _ => return reply,
    };
    // A constant that is a valid header.
    let _ = reply.headers.append(name, b"Basic realm=\"Tollgate\"");
    reply
}

/// Reads `Basic <base64 of user:password>`.
fn basic(value: &[u8]) -> Option<Credentials> {
    let (scheme, rest) = value.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let decoded = BASE64.decode(rest.trim_ascii()).ok()?;
    Credentials::parse(&String::from_utf8_lossy(&decoded))
}

/// Writes `Basic <base64 of user:password>`.
pub(crate) fn basic_value(credentials: &Credentials) -> String {
    let plain = format!("{}:{}", credentials.user, credentials.password);
    format!("Basic {}", BASE64.encode(plain))
}

/// RFC 4648 section 4, read with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(text: &str) -> Credentials {
        Credentials::parse(text).unwrap()
    }

    #[test]
    fn basic_is_read_as_it_is_written() {
        assert_eq!(
            basic_value(&credentials("Aladdin:open sesame")),
            "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
        );
        for text in ["a:", "a:b", "a:bc", "a:bcd:e", "ü:ß"] {
            let value = basic_value(&credentials(text));
            assert_eq!(basic(value.as_bytes()), Some(credentials(text)), "{value}");
            let bare = value.trim_end_matches('=').replace("Basic", "bAsIc");
            assert_eq!(basic(bare.as_bytes()), Some(credentials(text)), "{bare}");
        }
        for bad in ["", "Basic", "Basic !", "Basic QQ", "Bearer QTpC", "Basic Q"] {
            assert_eq!(basic(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn password_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("htpasswd");
        let bcrypt = bcrypt::hash("open", 4).unwrap();
        // SHA-1 of "sesame".
        let text = format!("# users\nanna:{bcrypt}\n\nbert:{{SHA}}CEo1Ae3vaEXy8eQZjsOiuBz1xrw=\n");
        std::fs::write(&path, text).unwrap();
        let auth: ProxyAuth = format!("@{}", path.display()).parse().unwrap();
        let check = |text: &str| {
            let verified = Verified::new().unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap();
            let (first, again) = runtime.block_on(async {
                let given = credentials(text);
                (
                    verified.check(&auth, &given).await,
                    verified.check(&auth, &given).await,
                )
            });
            assert_eq!(first, again);
            first
        };
        assert!(check("anna:open"));
        assert!(!check("anna:close"));
        assert!(!check("carl:open"));
        assert!(check("bert:sesame"));
        assert!(!check("bert:open"));
        for (line, part) in [
            ("anna", "no colon"),
            ("anna:$apr1$x$y", "bcrypt"),
            ("anna:$2y$nonsense", "malformed"),
            ("anna:{SHA}AAAA", "length"),
        ] {
            std::fs::write(&path, line).unwrap();
            let error = ProxyAuth::htpasswd(&path).unwrap_err().to_string();
            assert!(error.contains("line 1") && error.contains(part), "{error}");
        }
        assert!("@/nowhere/at/all".parse::<ProxyAuth>().is_err());
    }

    #[test]
    fn no_secret_is_shown() {
        let auth: ProxyAuth = "anna:hunter2".parse().unwrap();
        assert!(!format!("{auth:?}").contains("hunter2"));
        assert!(matches!(
            "ldap:x".parse::<ProxyAuth>(),
            Err(InvalidAuth::Ldap)
        ));
        assert!(matches!(
            "anna".parse::<ProxyAuth>(),
            Err(InvalidAuth::Syntax)
        ));
    }
}
