//! Handles to nodes: small integers, with the type of the value for the compiler.

use std::marker::PhantomData;
use std::{fmt, hash};

/// A node's place in the vectors of one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NodeId {
    /// Which run of this process; a handle must not be used with another.
    pub(crate) run: u32,
    /// Position in the order of adding.
    pub(crate) index: u32,
}

impl NodeId {
    pub(crate) const fn at(self) -> usize {
        self.index as usize
    }
}

/// A node of a running graph whose value is a `T`.
///
/// Only adding a node gives one, and a node's inputs are handles that exist already, so a graph has no cycle.
pub struct Node<T> {
    id: NodeId,
    // `fn() -> T`: a handle is Send, Sync and Copy whatever the value is.
    value: PhantomData<fn() -> T>,
}

impl<T> Node<T> {
    pub(crate) const fn new(id: NodeId) -> Self {
        Self {
            id,
            value: PhantomData,
        }
    }

    pub(crate) const fn id(&self) -> NodeId {
        self.id
    }
}

impl<T> Clone for Node<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Node<T> {}

impl<T> PartialEq for Node<T> {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl<T> Eq for Node<T> {}

impl<T> hash::Hash for Node<T> {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        self.id.hash(state);
    }
}

impl<T> fmt::Debug for Node<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Node({})", self.id.index)
    }
}
