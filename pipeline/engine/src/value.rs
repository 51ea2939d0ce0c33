//! What a node's value is to the engine: an identity to put into keys, and perhaps a form that a record keeps.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::store::Object;

/// What a value is, as a digest of the whole and digests of named parts.
///
/// A *facet* is a part that a consumer may depend on alone: a scan's names and metadata apart from its
/// inode numbers and times. A stage that reads one facet doesn't run again when only another one changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The whole value. Must change whenever a facet changes.
    pub digest: Digest,
    /// Its named parts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    facets: BTreeMap<String, Digest>,
}

impl Identity {
    /// A value without facets.
    pub const fn new(digest: Digest) -> Self {
        Self {
            digest,
            facets: BTreeMap::new(),
        }
    }

    /// The same with one facet more.
    #[must_use]
    pub fn with_facet(mut self, name: &str, digest: Digest) -> Self {
        self.facets.insert(name.to_owned(), digest);
        self
    }

    /// The digest of the facet of this name.
    pub fn facet(&self, name: &str) -> Option<Digest> {
        self.facets.get(name).copied()
    }
}

/// What a record keeps of a value: a small JSON body, and objects of the store.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Whatever `recall` needs besides the objects. Small: it is read at every hit.
    pub body: serde_json::Value,
    /// Objects that were published by the stage that made the value.
    pub objects: Vec<Object>,
}

/// The value of a probe or stage.
///
/// There are two sorts. One can be *recalled*: `keep` gives its record's body and `recall` makes it from that,
/// without opening an object. The other is *made again*: `keep` gives nothing, the record holds the identity
/// alone, and on a hit the stage runs only if a consumer that has to run asks for the value.
/// Such a value must not hold objects: those of its second making end with the process.
pub trait Output: Sized + Send + Sync + 'static {
    /// What the value is. Asked once, after the step ran.
    fn identity(&self) -> Identity;

    /// What a record keeps; `None` for a value that is made again.
    fn keep(&self) -> Option<Kept> {
        None
    }

    /// The value from its record. `None` (a body that this program doesn't understand) makes the lookup a miss.
    fn recall(kept: Kept) -> Option<Self> {
        let _ = kept;
        None
    }
}
