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
        out.label("exclude");
        exclude.write(out);
        out.label("owner");
        owner.map(|(uid, gid)| vec![uid, gid]).write(out);
        for (name, map) in [("uids", uid_map), ("gids", gid_map)] {
            out.label(name);
            let flat: Vec<u32> = map
                .iter()
                .flat_map(|&IdRange { inside, host, size }| [inside, host, size])
                .collect();
            flat.write(out);
        }
    }
}

#[cfg(test)]
mod tests {
    use fcpipe_engine::KeyValue as _;

    use super::*;

    #[test]
    fn what_a_source_s_options_are_is_said_in_words() {
        let content = Content {
            exclude: vec![".git".to_owned()],
            owner: Some((0, 7)),
            ..Content::default()
        };
        let mut out = ValueWriter::default();
        ContentValue(&content).write(&mut out);
        assert_eq!(
            out.words(),
            "exclude [.git], owner [0, 7], uids [], gids []"
        );
    }
}
