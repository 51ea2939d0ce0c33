//! One entry of `mounts`, of either syntax, to a [`Mount`] of the model.

use std::path::Path;

use crate::draft::Draft;
use crate::error::{SpecError, quoted};
use crate::launch_file;
use crate::model::{Bind, Choice, Content, Mount, MountKind, Policy, Trust};
use crate::suggest;
use crate::text::{Doc, FieldPath};
use crate::values::{HostPath, IdMaps, ImagePath, Named, Owner, Text};

/// The mount options that are fcpipe's own begin with this.
const OWN: &str = "x-fcpipe.";
const OWN_OPTIONS: [&str; 7] = [
    "policy",
    "immutable",
    "digest",
    "trust",
    "exclude",
    "owner",
    "idmap",
];

/// Fields that only a bind mount has: each of these is one, too, and one more.
pub(crate) fn of_bind() -> impl Iterator<Item = &'static str> {
    OWN_OPTIONS.iter().copied().chain(["recursive"])
}

/// Flags of mount(8) that mean something on a bind mount of what is in the image; each also undoes the
/// other of its pair. Access-time flags form one group.
const FLAGS: &[(&str, &str)] = &[
    ("nosuid", "suid"),
    ("nodev", "dev"),
    ("noexec", "exec"),
    ("nosymfollow", "symfollow"),
    ("nodiratime", "diratime"),
];
const ATIME: &[&str] = &["noatime", "relatime", "strictatime"];
/// What other mount namespaces of the guest see of it; of several all are applied, in their order.
const PROPAGATION: &[&str] = &[
    "shared",
    "rshared",
    "slave",
    "rslave",
    "private",
    "rprivate",
    "unbindable",
    "runbindable",
];

/// What options say about a bind mount.
#[derive(Debug, Default)]
struct Options {
    bind: bool,
    recursive: bool,
    readonly: bool,
    flags: Vec<String>,
    /// `idmap` or `ridmap`.
    idmapped: bool,
    policy: Option<Policy>,
    immutable: bool,
    digest: Option<String>,
    trust: Option<Trust>,
    exclude: Vec<String>,
    owner: Option<Owner>,
    idmap: Option<IdMaps>,
    /// Index of the first option that begins with [`OWN`].
    own: Option<usize>,
}

impl Options {
    /// `path` leads to the list of options.
    fn read(doc: &Doc, path: &FieldPath, options: &[String]) -> Result<Options, SpecError> {
        let mut read = Options::default();
        for (index, option) in options.iter().enumerate() {
            if let Some(own) = option.strip_prefix(OWN) {
                read.own.get_or_insert(index);
                read.own_option(own)
                    .map_err(|fault| fault.at(doc, &path.index(index)))?;
                continue;
            }
            match option.as_str() {
                "bind" => read.bind = true,
                "rbind" => (read.bind, read.recursive) = (true, true),
                "ro" | "rro" => read.readonly = true,
                "rw" | "rrw" => read.readonly = false,
                "idmap" | "ridmap" => read.idmapped = true,
                other => read.flag(other),
            }
        }
        Ok(read)
    }

    /// Flags that a bind mount has no use for (a file system's own) are left out: the kernel ignores them there too.
    fn flag(&mut self, option: &str) {
        if PROPAGATION.contains(&option) {
            self.flags.push(option.to_owned());
            return;
        }
        // OCI's recursive forms (`rnosuid`): everything below is in the same image.
        let plain = option
            .strip_prefix('r')
            .filter(|rest| {
                ATIME.contains(rest) || FLAGS.iter().any(|(on, off)| on == rest || off == rest)
            })
            .unwrap_or(option);
        if ATIME.contains(&plain) {
            self.flags.retain(|flag| !ATIME.contains(&flag.as_str()));
            self.flags.push(plain.to_owned());
        } else if let Some((on, _)) = FLAGS.iter().find(|(on, off)| *on == plain || *off == plain) {
            self.flags.retain(|flag| flag != on);
            if *on == plain {
                self.flags.push(plain.to_owned());
            }
        }
    }

    fn own_option(&mut self, option: &str) -> Result<(), Fault> {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option, None),
        };
        if !OWN_OPTIONS.contains(&name) {
            return Err(Fault::Unknown(
                suggest::nearest(name, OWN_OPTIONS.iter().copied())
                    .map(|name| format!("{OWN}{name}")),
            ));
        }
        if name == "immutable" {
            self.immutable = match value {
                None | Some("true") => true,
                Some("false") => false,
                Some(other) => {
                    return Err(Fault::said(format!(
                        "expected true or false, found {}",
                        quoted(other)
                    )));
                }
            };
            return Ok(());
        }
        let Some(value) = value else {
            return Err(Fault::said(format!("needs a value: `{OWN}{name}=…`")));
        };
        match name {
            "policy" => match Policy::named(value) {
                Some(policy) => self.policy = Some(policy),
                None => return Err(Fault::choice::<Policy>(value)),
            },
            "trust" => match Trust::named(value) {
                Some(trust) => self.trust = Some(trust),
                None => return Err(Fault::choice::<Trust>(value)),
            },
            "digest" => self.digest = Some(declared(value).map_err(Fault::said)?),
            "exclude" => self.exclude.push(value.to_owned()),
            "owner" => self.owner = Some(value.parse().map_err(Fault::said)?),
            _ => self
                .idmap
                .get_or_insert_default()
                .add(value)
                .map_err(Fault::said)?,
        }
        Ok(())
    }
}

/// What is wrong with an option, before it has a place.
enum Fault {
    Unknown(Option<String>),
    Said(String, Option<String>),
}

impl Fault {
    fn said(problem: String) -> Fault {
        Fault::Said(problem, None)
    }

    fn choice<T: Choice>(value: &str) -> Fault {
        let names = T::NAMES.iter().copied();
        Fault::Said(
            format!(
                "{} is none of {}",
                quoted(value),
                suggest::listed(names.clone())
            ),
            suggest::nearest(value, names).map(|name| format!("did you mean `{name}`?")),
        )
    }

    fn at(self, doc: &Doc, path: &FieldPath) -> SpecError {
        let place = Box::new(doc.place(path));
        match self {
            Fault::Unknown(nearest) => SpecError::Unknown {
                place,
                what: "mount option",
                nearest,
            },
            Fault::Said(problem, hint) => SpecError::Invalid {
                place,
                problem,
                hint,
            },
        }
    }
}

/// What [`read`] found.
pub(crate) struct Read {
    pub(crate) mount: Mount,
    /// An `idmap` or `ridmap` option.
    pub(crate) idmapped: bool,
    /// The ids have been mapped by the mount's own words.
    pub(crate) own_map: bool,
}

/// `path` leads to the mount; relative sources are below `base`.
pub(crate) fn read(
    draft: &mut Draft,
    doc: &Doc,
    path: &FieldPath,
    base: &Path,
    mount: launch_file::Mount,
    bind_unless_typed: bool,
) -> Result<Read, SpecError> {
    let destination = destination(draft, doc, path, mount.destination.map(|text| text.0))?;
    let options: Vec<String> = mount
        .options
        .unwrap_or_default()
        .into_iter()
        .map(|option| option.0)
        .collect();
    let said = Options::read(doc, &path.key("options"), &options)?;
    let fstype = mount.fstype.map(|text| text.0).unwrap_or_default();
    let bind = said.bind || fstype == "bind" || (fstype.is_empty() && bind_unless_typed);
    if !bind {
        let no_bind =
            |field: FieldPath| doc.invalid(&field, "means something on a bind mount only");
        let there = [
            mount.policy.is_some(),
            mount.immutable.is_some(),
            mount.digest.is_some(),
            mount.trust.is_some(),
            mount.exclude.is_some(),
            mount.owner.is_some(),
            mount.idmap.is_some(),
            mount.recursive.is_some(),
        ];
        for (name, there) in of_bind().zip(there) {
            if there {
                return Err(no_bind(path.key(name)));
            }
        }
        if let Some(index) = said.own {
            return Err(no_bind(path.key("options").index(index)));
        }
        if fstype.is_empty() || fstype == "none" {
            return Err(doc.invalid_with_hint(
                &path.key("type"),
                "there is neither a file system type nor `bind`",
                "a host directory needs the option `bind` or `rbind`",
            ));
        }
        let mut options = options;
        if let Some(readonly) = mount.readonly {
            options.push(if readonly { "ro" } else { "rw" }.to_owned());
        }
        return Ok(Read {
            mount: Mount {
                destination,
                kind: MountKind::Guest {
                    source: mount.source.map_or_else(|| fstype.clone(), |text| text.0),
                    fstype,
                    options,
                },
            },
            idmapped: false,
            own_map: false,
        });
    }

    let source = match mount.source {
        None => return Err(doc.invalid(&path.key("source"), "is missing; a bind mount needs one")),
        Some(text) => text
            .0
            .parse::<HostPath>()
            .map_err(|problem| doc.invalid(&path.key("source"), problem))?
            .below(base),
    };
    let digest = match mount.digest {
        Some(Text(text)) => {
            Some(declared(&text).map_err(|problem| doc.invalid(&path.key("digest"), problem))?)
        }
        None => said.digest,
    };
    let mut exclude = said.exclude;
    exclude.extend(mount.exclude.into_iter().flatten().map(|text| text.0));
    let maps = mount.idmap.or(said.idmap);
    let own_map = maps.is_some();
    let maps = maps.unwrap_or_default();
    Ok(Read {
        mount: Mount {
            destination,
            kind: MountKind::Bind(Bind {
                source,
                recursive: mount.recursive.unwrap_or(said.recursive),
                readonly: mount.readonly.unwrap_or(said.readonly),
                policy: mount
                    .policy
                    .map(|Named(policy)| policy)
                    .or(said.policy)
                    .unwrap_or_default(),
                immutable: mount.immutable.unwrap_or(said.immutable),
                digest,
                trust: mount
                    .trust
                    .map(|Named(trust)| trust)
                    .or(said.trust)
                    .unwrap_or_default(),
                flags: said.flags,
                content: Content {
                    exclude,
                    owner: mount.owner.or(said.owner).map(|Owner(uid, gid)| (uid, gid)),
                    uid_map: maps.uid,
                    gid_map: maps.gid,
                },
            }),
        },
        idmapped: said.idmapped,
        own_map,
    })
}

/// A digest that a user declares: any text but none.
fn declared(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("says nothing: it should be what the source is known by".to_owned());
    }
    Ok(text.to_owned())
}

/// As OCI and runc do: a relative destination is deprecated and taken from `/`, and `..` never
/// leads out of the root. The root itself is `root.path` and is no destination: a mount over it would
/// hide every byte of the rootfs.
fn destination(
    draft: &mut Draft,
    doc: &Doc,
    path: &FieldPath,
    text: Option<String>,
) -> Result<std::path::PathBuf, SpecError> {
    let path = path.key("destination");
    let text = text.filter(|text| !text.is_empty());
    let Some(text) = text else {
        return Err(doc.invalid(&path, "is missing"));
    };
    let normal = ImagePath::normal(&text);
    if normal.path == Path::new("/") {
        return Err(doc.invalid_with_hint(
            &path,
            format!(
                "{} is the root itself, which a mount can't cover",
                quoted(&text)
            ),
            "what should be the root belongs in `root.path` (`rootfs` in a launch file)",
        ));
    }
    if normal.relative {
        draft.warn(
            doc,
            &path,
            format!(
                "{} is relative, which is deprecated; it is taken from /",
                quoted(&text)
            ),
        );
    }
    if normal.climbs {
        let place = crate::error::shown(&normal.path);
        draft.warn(
            doc,
            &path,
            format!("{} holds `..`; it is {place}", quoted(&text)),
        );
    }
    Ok(normal.path)
}
