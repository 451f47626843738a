//! Where files are.

use std::env;
use std::path::PathBuf;

use anyhow::Context as _;

/// Replaces a leading `~/` by the home folder, as mitmproxy does in its options.
pub fn expand_home(path: &str) -> PathBuf {
    match (path.strip_prefix('~'), env::home_dir()) {
        (Some(""), Some(home)) => home,
        (Some(rest), Some(home)) if rest.starts_with('/') => {
            home.join(rest.trim_start_matches('/'))
        }
        _ => PathBuf::from(path),
    }
}

/// The folder that keeps the authority: `$XDG_DATA_HOME/tollgate` or `~/.local/share/tollgate`; on macOS and Windows the
/// place that those give to programs.
///
/// # Errors
/// When no home folder is known.
pub fn default_data_dir() -> anyhow::Result<PathBuf> {
    // The XDG specification says to ignore a relative path.
    let absolute = |name| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    if let Some(base) = absolute("XDG_DATA_HOME") {
        return Ok(base.join("tollgate"));
    }
    if cfg!(windows)
        && let Some(base) = absolute("APPDATA")
    {
        return Ok(base.join("tollgate"));
    }
    let home = env::home_dir()
        .filter(|home| home.is_absolute())
        .context("no home folder is known; say where to keep the authority with --data-dir")?;
    Ok(if cfg!(target_os = "macos") {
        home.join("Library/Application Support/tollgate")
    } else {
        home.join(".local/share/tollgate")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_home_folder_is_put_in() {
        let home = env::home_dir().unwrap();
        assert_eq!(expand_home("~"), home);
        assert_eq!(expand_home("~/a/b"), home.join("a/b"));
        assert_eq!(expand_home("~other/a"), PathBuf::from("~other/a"));
        assert_eq!(expand_home("/a/~"), PathBuf::from("/a/~"));
    }
}
