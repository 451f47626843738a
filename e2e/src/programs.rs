//! Which programs this machine has.

use std::env;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Ends the test early unless all of these programs are installed; under `CI=true` or `TOLLGATE_E2E=1` it fails instead.
///
/// Not all names are programs: `"python-venv"` is the Python that [`python_venv`](crate::programs::python_venv) gives,
/// `"python-sdks"` the client libraries of model providers in it, `"python-mcp"` the MCP SDK, `"node-sdks"` those in
/// [`node_folder`](crate::programs::node_folder), `"mitmproxy-venv"` the Python of
/// [`mitmproxy_venv`](crate::programs::mitmproxy_venv), `"example-NAME"` an example program of the workspace, and `"root"` the
/// right to make network namespaces.
#[macro_export]
macro_rules! require {
    ($($program:literal),+ $(,)?) => {
        $(
            if !$crate::programs::available($program) {
                return;
            }
        )+
    };
}

/// Where a program is: on `PATH`, or where Debian keeps what only administrators run.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// A Python with what stands in `e2e/requirements.txt`: `TOLLGATE_E2E_VENV/bin/python`, by default in `target/e2e-venv`.
///
/// `.ci/run` makes it; by hand:
/// `python3 -m venv target/e2e-venv && target/e2e-venv/bin/pip install -r e2e/requirements.txt`.
pub fn python_venv() -> PathBuf {
    venv().join("bin/python")
}

/// A Python with mitmproxy, whose requirements contradict others': `bin/python` in the same folder's name with `-mitmproxy`
/// behind it, with what stands in `e2e/requirements-mitmproxy.txt`.
pub fn mitmproxy_venv() -> PathBuf {
    let mut folder = venv().into_os_string();
    folder.push("-mitmproxy");
    PathBuf::from(folder).join("bin/python")
}

fn venv() -> PathBuf {
    folder("TOLLGATE_E2E_VENV", "e2e-venv")
}

/// The folder whose `node_modules` hold what stands in `e2e/node/package-lock.json`: `TOLLGATE_E2E_NODE`, by default
/// `target/e2e-node`.
///
/// `.ci/run` makes it; by hand: `cp -r e2e/node target/e2e-node && npm ci --prefix target/e2e-node`.
pub fn node_folder() -> PathBuf {
    folder("TOLLGATE_E2E_NODE", "e2e-node")
}

/// What this variable of the environment names, by default `target/NAME`.
fn folder(variable: &str, name: &str) -> PathBuf {
    env::var_os(variable).map_or_else(
        || {
            let profile = profile_dir();
            profile.parent().unwrap_or(&profile).join(name)
        },
        PathBuf::from,
    )
}

/// The packages of the official client libraries of model providers.
const SDKS: [&str; 7] = [
    "anthropic",
    "openai",
    "google/genai",
    "boto3",
    "cohere",
    "mistralai",
    "ollama",
];

/// The same for Node.js.
const NODE_SDKS: [&str; 8] = [
    "@anthropic-ai/sdk",
    "@anthropic-ai/bedrock-sdk",
    "@aws-sdk/client-bedrock-runtime",
    "@google/genai",
    "@mistralai/mistralai",
    "cohere-ai",
    "ollama",
    "openai",
];

/// Whether the Python of [`python_venv`] has this package.
fn python_has(package: &str) -> bool {
    let venv = python_venv();
    let library = venv.ancestors().nth(2).map(|venv| venv.join("lib"));
    let versions = library.and_then(|library| library.read_dir().ok());
    versions.is_some_and(|mut versions| {
        versions.any(|version| {
            version.is_ok_and(|version| version.path().join("site-packages").join(package).is_dir())
        })
    })
}

/// An example program of the workspace; `cargo test --workspace` builds them all.
pub fn example(name: &str) -> PathBuf {
    profile_dir().join("examples").join(name)
}

/// For [`require!`]: whether a program is there. Says so on standard error if it isn't.
///
/// # Panics
/// If it isn't, and every test must run.
pub fn available(program: &str) -> bool {
    let found = match (program, program.strip_prefix("example-")) {
        ("python-venv", _) => python_venv().is_file(),
        ("python-mcp", _) => python_has("mcp"),
        ("mitmproxy-venv", _) => mitmproxy_venv().is_file(),
        ("python-sdks", _) => SDKS.iter().all(|package| python_has(package)),
        ("node-sdks", _) => {
            let modules = node_folder().join("node_modules");
            NODE_SDKS
                .iter()
                .all(|package| modules.join(package).is_dir())
        }
        ("root", _) => fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0),
        (_, Some(name)) => example(name).is_file(),
        _ => find(program).is_some(),
    };
    let must = env::var("CI").is_ok_and(|value| value == "true")
        || env::var("TOLLGATE_E2E").is_ok_and(|value| value == "1");
    assert!(
        found || !must,
        "this test needs `{program}`, which is not installed; .ci/run shows how to install it"
    );
    if !found {
        let test = std::thread::current();
        let test = test.name().unwrap_or("a test");
        // Past the capture of output: a skipped test passes, and should be seen to be skipped.
        let _ = writeln!(io::stderr(), "skipped {test}: it needs `{program}`");
    }
    found
}

/// The folder of the profile that this test was built with: `target/debug`, say.
pub(crate) fn profile_dir() -> PathBuf {
    let test = env::current_exe().expect("the path of this test");
    // target/debug/deps/curl-0123456789abcdef
    test.ancestors()
        .nth(2)
        .map(Path::to_owned)
        .expect("a test lies two folders deep in a target folder")
}
