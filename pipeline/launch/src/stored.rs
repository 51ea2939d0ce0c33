//! What a stage leaves in the store: one object.

use std::marker::PhantomData;

use fcpipe_engine::{Digest, Identity, Kept, Object, Output};

/// An object, and in its type what it is.
pub(crate) struct Stored<What> {
    object: Object,
    what: PhantomData<fn() -> What>,
}

impl<What> Stored<What> {
    pub(crate) fn new(object: Object) -> Self {
        Stored {
            object,
            what: PhantomData,
        }
    }

    pub(crate) fn object(&self) -> &Object {
        &self.object
    }
}

impl<What: 'static> Output for Stored<What> {
    fn identity(&self) -> Identity {
        // What it is follows from its key: bytes are not hashed for that, and what is made again under
        // the same key is the same.
        let (key, name) = (self.object.id.key().digest(), self.object.id.name());
        let parts = [key.as_bytes().as_slice(), name.as_bytes()];
        Identity::new(Digest::of("fcpipe stored 1", &parts))
    }

    fn keep(&self) -> Option<Kept> {
        Some(Kept {
            body: serde_json::Value::Null,
            objects: vec![self.object.clone()],
        })
    }

    fn recall(kept: Kept) -> Option<Self> {
        match <[Object; 1]>::try_from(kept.objects) {
            Ok([object]) => Some(Stored::new(object)),
            Err(_) => None,
        }
    }
}
