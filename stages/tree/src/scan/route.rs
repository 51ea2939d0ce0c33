//! How a directory is reached from the source: its name and its parent's route.
//!
//! Routes share their beginnings, so a waiting directory costs its own name only. No descriptor is
//! held for one that waits: that is why 64 open files are enough for any tree.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::join;

#[derive(Debug)]
pub(super) struct Route {
    parent: Option<Arc<Route>>,
    name: CString,
}

impl Route {
    pub(super) fn root() -> Arc<Route> {
        Arc::new(Route {
            parent: None,
            name: CString::default(),
        })
    }

    pub(super) fn below(parent: &Arc<Route>, name: CString) -> Arc<Route> {
        Arc::new(Route {
            parent: Some(Arc::clone(parent)),
            name,
        })
    }

    pub(super) fn name(&self) -> &CString {
        &self.name
    }

    /// The names from the source down to here; none for the source.
    pub(super) fn names(&self) -> Vec<&[u8]> {
        let mut names = Vec::new();
        let mut at = self;
        while let Some(parent) = &at.parent {
            names.push(at.name.as_bytes());
            at = parent;
        }
        names.reverse();
        names
    }

    /// Relative to the source, of `name` in this directory; of the directory for an empty name.
    pub(super) fn relative(&self, name: &[u8]) -> Vec<u8> {
        let mut names = self.names();
        if !name.is_empty() {
            names.push(name);
        }
        names.join(&b'/')
    }

    /// On the host, for messages.
    pub(super) fn path(&self, source: &Path, name: &[u8]) -> PathBuf {
        join(source, &self.relative(name))
    }
}

impl Drop for Route {
    /// One by one: dropping a parent within its child would overflow the stack in a deep tree.
    fn drop(&mut self) {
        let mut parent = self.parent.take();
        while let Some(route) = parent {
            match Arc::try_unwrap(route) {
                Ok(mut route) => parent = route.parent.take(),
                Err(_) => break,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths() {
        let a = Route::below(&Route::root(), c"a".to_owned());
        let b = Route::below(&a, c"b".to_owned());
        assert_eq!(b.names(), [b"a", b"b"]);
        assert_eq!(b.relative(b"x"), b"a/b/x");
        assert_eq!(b.path(Path::new("/src"), b""), Path::new("/src/a/b"));
        assert_eq!(
            Route::root().path(Path::new("/src"), b""),
            Path::new("/src")
        );
    }

    #[test]
    fn row_16_a_deep_route_is_dropped_without_recursion() {
        let mut route = Route::root();
        for _ in 0..1_000_000 {
            route = Route::below(&route, c"d".to_owned());
        }
        drop(route);
    }
}
