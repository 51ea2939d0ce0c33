//! Where fcpipe keeps things, unless options or the environment say otherwise.
//!
//! The system's directories for root, the user's own (XDG base directories) for everybody else. Cache and
//! state lie side by side so that a machine's disk can be a reflink of an image.

use std::path::{Path, PathBuf};

use crate::arguments::Global;

#[derive(Debug, Clone)]
pub(crate) struct Directories {
    pub(crate) cache: PathBuf,
    pub(crate) data: PathBuf,
    pub(crate) state: PathBuf,
}

impl Directories {
    /// # Errors
    /// Where a directory is neither given nor to be found: no HOME, and not root. Where others decide what is in the data
    /// directory: programs are run from there, and files are written. The other two are judged by who opens them.
    pub(crate) fn resolve(global: &Global) -> Result<Self, String> {
        let root = rustix::process::geteuid().is_root();
        let pick = |given: &Option<PathBuf>, system: &str, xdg: &str, home: &str| {
            if let Some(dir) = given {
                // Children run in directories of their own: a relative path would mean another place.
                return std::path::absolute(dir).map_err(|e| format!("{}: {e}", dir.display()));
            }
            if root {
                return Ok(PathBuf::from(system));
            }
            let absolute = |name| {
                std::env::var_os(name)
                    .map(PathBuf::from)
                    .filter(|p: &PathBuf| p.is_absolute())
            };
            absolute(xdg)
                .or_else(|| absolute("HOME").map(|dir| dir.join(home)))
                .map(|dir| dir.join("fcpipe"))
                .ok_or_else(|| {
                    // All at once, so that nobody has to try three times.
                    "HOME is not set: name directories with --cache-dir, --data-dir and --state-dir"
                        .to_owned()
                })
        };
        let found = Directories {
            cache: pick(
                &global.cache_dir,
                "/var/cache/fcpipe",
                "XDG_CACHE_HOME",
                ".cache",
            )?,
            data: pick(
                &global.data_dir,
                "/var/lib/fcpipe",
                "XDG_DATA_HOME",
                ".local/share",
            )?,
            state: pick(
                &global.state_dir,
                "/var/lib/fcpipe/state",
                "XDG_STATE_HOME",
                ".local/state",
            )?,
        };
        fcpipe_engine::secure_path(&found.data).map_err(|e| fcpipe_engine::chain(&e))?;
        Ok(found)
    }
}

/// Makes a directory that only its owner may enter.
pub(crate) fn make_private(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
}
