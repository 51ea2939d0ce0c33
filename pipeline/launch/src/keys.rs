//! How types of the stages are written into keys: the stages don't know the engine.

use fcpipe_engine::{KeyValue, ValueWriter};
use fcpipe_spec::{Content, IdRange};

/// How a source's tree is read and mapped.
pub(crate) struct ContentValue<'a>(pub(crate) &'a Content);

impl KeyValue for ContentValue<'_> {
    fn write(&self, out: &mut ValueWriter) {
        let Content {
            exclude,
            owner,
            uid_map,
            gid_map,
        } = self.0;
        exclude.write(out);
        owner.map(|(uid, gid)| vec![uid, gid]).write(out);
        for map in [uid_map, gid_map] {
            let flat: Vec<u32> = map
                .iter()
                .flat_map(|&IdRange { inside, host, size }| [inside, host, size])
                .collect();
            flat.write(out);
        }
    }
}
