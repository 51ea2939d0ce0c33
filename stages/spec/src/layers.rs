//! The layers of a launch and where they come from: finding out what SPEC is, an OCI config into
//! the draft, annotations, and `--set`.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::draft::{Draft, Form, Mounted};
use crate::error::{SpecError, quoted};
use crate::launch_file::{self, LaunchFile, Settings};
use crate::linux;
use crate::machine::Said;
use crate::model::{IdRange, MountKind};
use crate::mounts;
use crate::oci::{self, Config};
use crate::suggest;
use crate::text::de::{self, Unknown};
use crate::text::{Doc, FieldPath, Key, Node, Syntax, Value};
use crate::values::{IdMaps, ImagePath, Text, add_range};
use crate::{MAX_SPEC, SpecFormat};

/// What fcpipe's own annotations begin with.
pub(crate) const ANNOTATION: &str = "dev.fcpipe.";

/// The version of the launch file's format.
const VERSION: u64 = 1;

/// A spec that has been parsed.
pub(crate) struct Opened {
    /// Absolute.
    pub(crate) file: PathBuf,
    pub(crate) doc: Doc,
    pub(crate) format: SpecFormat,
}

impl Opened {
    /// What relative paths in it are relative to.
    pub(crate) fn base(&self) -> &Path {
        self.file.parent().unwrap_or(Path::new("/"))
    }
}

/// Reads SPEC: a bundle's directory, or a file.
pub(crate) fn open(path: &Path) -> Result<Opened, SpecError> {
    let read_error = |file: &Path, source| SpecError::Read {
        file: file.to_owned(),
        source,
    };
    let path = std::path::absolute(path).map_err(|source| read_error(path, source))?;
    let directory = path.is_dir();
    let file = if directory {
        path.join("config.json")
    } else {
        path
    };
    let bytes = read_limited(&file).map_err(|source| read_error(&file, source))?;
    let Some(bytes) = bytes else {
        return Err(SpecError::TooLarge {
            file,
            limit: MAX_SPEC,
        });
    };
    let syntax = if directory {
        Syntax::Json
    } else {
        syntax(&file, &bytes)
    };
    let doc = Doc::parse(&file, bytes, syntax)?;
    let format = if directory || is_oci(&doc, syntax, &file) {
        SpecFormat::Oci
    } else {
        SpecFormat::LaunchFile
    };
    Ok(Opened { file, doc, format })
}

/// The file's bytes, or `None` where there are more than [`MAX_SPEC`].
fn read_limited(file: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    File::open(file)?
        .take(MAX_SPEC + 1)
        .read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= MAX_SPEC).then_some(bytes))
}

/// By the file's name; where that says nothing, JSON begins with `{`.
fn syntax(file: &Path, bytes: &[u8]) -> Syntax {
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("json") => Syntax::Json,
        Some("yaml" | "yml") => Syntax::Yaml,
        _ => match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
            Some(b'{') => Syntax::Json,
            _ => Syntax::Yaml,
        },
    }
}

/// An OCI config without its `ociVersion` must be told from a launch file, or the error would be about
/// something else.
fn is_oci(doc: &Doc, syntax: Syntax, file: &Path) -> bool {
    if syntax == Syntax::Yaml {
        return false;
    }
    let root = &doc.root;
    let launch = ["version", "bundle", "rootfs"];
    root.has("ociVersion")
        || (!launch.iter().any(|name| root.has(name))
            && (root.has("root") || file.ends_with("config.json")))
}

/// A `version` that this program does not know.
pub(crate) fn check_version(doc: &Doc, file: &LaunchFile) -> Result<(), SpecError> {
    match file.version {
        Some(version) if version != VERSION => Err(doc.invalid(
            &FieldPath::new("version"),
            format!("is {version}; this fcpipe reads version {VERSION} of the launch file"),
        )),
        _ => Ok(()),
    }
}

/// An OCI config into an empty draft.
pub(crate) fn oci(draft: &mut Draft, opened: &Opened) -> Result<(), SpecError> {
    let (doc, base) = (&opened.doc, opened.base());
    let config: Config = doc.read(Unknown::Ignore)?;
    check_oci_version(doc, config.oci_version.as_ref())?;

    let path = FieldPath::new("root.path");
    match config.root {
        None => return Err(doc.invalid(&FieldPath::new("root"), "is missing")),
        Some(oci::Root { path: None, .. }) => return Err(doc.invalid(&path, "is missing")),
        Some(oci::Root {
            path: Some(root),
            readonly,
        }) => {
            draft.root = Some(Said {
                value: root.below(base),
                place: doc.place(&path),
            });
            draft.root_readonly = readonly.unwrap_or(false);
        }
    }
    if let Some(process) = config.process {
        draft.process(doc, process)?;
    }
    // A config that speaks of no capabilities gives none, as runc reads it.
    draft.capabilities.get_or_insert_default();
    if let Some(hooks) = config.hooks {
        draft.hooks = linux::hooks(doc, hooks)?;
    }
    draft.names(doc, config.hostname, config.domainname)?;
    let mut linux_fields = config.linux.unwrap_or_default();
    linux::confinement(draft, doc, &FieldPath::new("linux"), &mut linux_fields)?;
    linux(draft, doc, base, linux_fields)?;
    for (index, mount) in config.mounts.into_iter().flatten().enumerate() {
        let path = FieldPath::new("mounts").index(index);
        oci_mount(draft, doc, base, &path, mount)?;
    }
    draft.annotations = config
        .annotations
        .unwrap_or_default()
        .into_iter()
        .map(|(name, value)| (name, value.unwrap_or_default()))
        .collect();
    let settings = annotations(doc)?;
    draft.settings(doc, base, settings, &Form::Annotations);
    Ok(())
}

/// Any version 1: the specification keeps to semantic versioning, so what is read here means the same in
/// all of them.
fn check_oci_version(doc: &Doc, version: Option<&Text>) -> Result<(), SpecError> {
    let path = FieldPath::new("ociVersion");
    let Some(Text(version)) = version else {
        return Err(doc.invalid_with_hint(
            &path,
            "is missing, so this is no OCI config",
            "add the version of the OCI Runtime Specification, such as \"1.2.0\"",
        ));
    };
    let core = version.split(['-', '+']).next().unwrap_or_default();
    let numbers: Vec<&str> = core.split('.').collect();
    let well_formed = numbers.len() == 3
        && numbers
            .iter()
            .all(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()));
    if !well_formed {
        return Err(doc.invalid(&path, format!("{} is no version", quoted(version))));
    }
    if numbers[0] != "1" {
        return Err(doc.invalid(
            &path,
            format!("is {}; this fcpipe reads versions 1.x", quoted(version)),
        ));
    }
    Ok(())
}

fn linux(draft: &mut Draft, doc: &Doc, base: &Path, linux: oci::Linux) -> Result<(), SpecError> {
    let path = FieldPath::new("linux");
    let mut user_namespace = false;
    let mut seen = HashSet::new();
    for (index, namespace) in linux.namespaces.into_iter().flatten().enumerate() {
        let path = path.key("namespaces").index(index);
        let Some(Text(kind)) = namespace.kind else {
            return Err(doc.invalid(&path.key("type"), "is missing"));
        };
        if seen.contains(&kind) {
            return Err(doc.invalid(
                &path.key("type"),
                format!("{} is listed twice", quoted(&kind)),
            ));
        }
        let named = namespace.path.filter(|path| !path.0.is_empty());
        match (kind.as_str(), named) {
            ("network", Some(Text(netns))) => draft.network.netns = Some(base.join(netns)),
            ("user", _) => user_namespace = true,
            (_, Some(Text(_))) => draft.warn(
                doc,
                &path.key("path"),
                "is ignored: a namespace of the host cannot be joined from a VM; the guest has one of its own",
            ),
            _ => {}
        }
        seen.insert(kind);
    }

    let maps = IdMaps {
        uid: id_map(doc, &path.key("uidMappings"), linux.uid_mappings)?,
        gid: id_map(doc, &path.key("gidMappings"), linux.gid_mappings)?,
    };
    if user_namespace {
        draft.user_namespace = maps;
    } else if maps != IdMaps::default() {
        let text = "is ignored, for linux.namespaces names no user namespace";
        let field = if maps.uid.is_empty() {
            "gidMappings"
        } else {
            "uidMappings"
        };
        draft.warn(doc, &path.key(field), text);
    }

    if let Some(Text(cgroups)) = linux.cgroups_path.filter(|path| !path.0.is_empty()) {
        let normal = ImagePath::normal(&cgroups);
        draft.cgroups_path = Some(if normal.relative {
            normal.path.components().skip(1).collect()
        } else {
            normal.path
        });
    }

    let resources = linux.resources.unwrap_or_default();
    let cpu = resources.cpu.unwrap_or_default();
    let said = |dotted: &str| doc.place(&FieldPath::new(dotted));
    draft.machine.quota = cpu.quota.map(|value| Said {
        value,
        place: said("linux.resources.cpu.quota"),
    });
    draft.machine.period = cpu.period.map(|value| Said {
        value,
        place: said("linux.resources.cpu.period"),
    });
    draft.machine.limit = resources
        .memory
        .and_then(|memory| memory.limit)
        .map(|value| Said {
            value,
            place: said("linux.resources.memory.limit"),
        });
    Ok(())
}

fn id_map(
    doc: &Doc,
    path: &FieldPath,
    mappings: Option<Vec<oci::IdMapping>>,
) -> Result<Vec<IdRange>, SpecError> {
    let mut map = Vec::new();
    for (index, mapping) in mappings.into_iter().flatten().enumerate() {
        let range = IdRange {
            inside: mapping.container,
            host: mapping.host,
            size: mapping.size,
        };
        add_range(&mut map, range).map_err(|problem| doc.invalid(&path.index(index), problem))?;
    }
    Ok(map)
}

fn oci_mount(
    draft: &mut Draft,
    doc: &Doc,
    base: &Path,
    path: &FieldPath,
    mount: oci::Mount,
) -> Result<(), SpecError> {
    let disk_to_host = IdMaps {
        uid: id_map(doc, &path.key("uidMappings"), mount.uid_mappings)?,
        gid: id_map(doc, &path.key("gidMappings"), mount.gid_mappings)?,
    };
    let fields = launch_file::Mount {
        source: mount.source,
        destination: mount.destination,
        fstype: mount.fstype,
        options: mount.options,
        ..launch_file::Mount::default()
    };
    let read = mounts::read(draft, doc, path, base, fields, false)?;
    let mut mounted = Mounted {
        mount: read.mount,
        mapped: read.own_map,
    };
    if let (MountKind::Bind(bind), false) = (&mut mounted.mount.kind, read.own_map) {
        // An idmapped mount: `containerID` is the id on disk, `hostID` what the host then sees of it
        // (mount_setattr(2)); without ranges of its own it has those of the user namespace.
        let mut disk_to_host = disk_to_host;
        if read.idmapped && disk_to_host == IdMaps::default() {
            disk_to_host = draft.user_namespace.clone();
        }
        if disk_to_host != IdMaps::default() {
            mounted.mapped = true;
            bind.content.uid_map = seen_inside(&disk_to_host.uid, &draft.user_namespace.uid);
            bind.content.gid_map = seen_inside(&disk_to_host.gid, &draft.user_namespace.gid);
        }
    }
    draft.mounts.push(mounted);
    Ok(())
}

/// Ids on disk → ids inside: through an idmapped mount, then through the user namespace. An empty map
/// changes nothing.
fn seen_inside(mount: &[IdRange], user_namespace: &[IdRange]) -> Vec<IdRange> {
    if mount.is_empty() {
        return user_namespace.to_vec();
    }
    let through = mount.iter().map(|range| IdRange {
        inside: range.host,
        host: range.inside,
        size: range.size,
    });
    if user_namespace.is_empty() {
        return through.collect();
    }
    let mut map = Vec::new();
    for first in through {
        for second in user_namespace {
            let start = first.inside.max(second.host);
            let end = (first.inside + first.size).min(second.host + second.size);
            if start < end {
                map.push(IdRange {
                    inside: second.inside + (start - second.host),
                    host: first.host + (start - first.inside),
                    size: end - start,
                });
            }
        }
    }
    map
}

/// `dev.fcpipe.SECTION.KEY` annotations as the settings of a launch file.
fn annotations(doc: &Doc) -> Result<Settings, SpecError> {
    let mut tree = empty(doc.root.at);
    if let Some(Node {
        value: Value::Map(entries),
        ..
    }) = doc.root.get("annotations")
    {
        for (key, node) in entries {
            let (Some(dotted), Value::Text(text)) =
                (key.name.strip_prefix(ANNOTATION), &node.value)
            else {
                continue;
            };
            let value = Node {
                at: node.at,
                value: Value::Plain(text.clone()),
            };
            put(&mut tree, dotted, key.at, value).map_err(|problem| {
                doc.invalid(&FieldPath::new("annotations").key(&key.name), problem)
            })?;
        }
    }
    de::read(&tree, Unknown::Refuse).map_err(|error| {
        doc.type_error(
            error,
            |path| FieldPath::new("annotations").key(&format!("{ANNOTATION}{}", path.dotted())),
            "annotation",
        )
    })
}

/// `--set` options as a small launch file.
pub(crate) fn overrides(options: &[String]) -> Result<(Doc, LaunchFile), SpecError> {
    let mut tree = empty(0);
    for option in options {
        let refuse = |problem: String| SpecError::Override {
            text: option.clone(),
            problem,
        };
        let Some((key, text)) = option.split_once('=') else {
            return Err(refuse("has no `=`".to_owned()));
        };
        let value = Doc::override_value(text).map_err(refuse)?;
        put(&mut tree, key, 0, value).map_err(refuse)?;
    }
    let doc = Doc::of_overrides(tree);
    let file: LaunchFile = doc.read(Unknown::Refuse)?;
    for (name, there) in [
        ("version", file.version.is_some()),
        ("bundle", file.bundle.is_some()),
    ] {
        if there {
            return Err(doc.invalid(&FieldPath::new(name), "can't be set from outside the file"));
        }
    }
    Ok((doc, file))
}

fn empty(at: usize) -> Node {
    Node {
        at,
        value: Value::Map(Vec::new()),
    }
}

/// Puts a value where `dotted` leads, and makes the objects on the way. The later of two counts.
fn put(tree: &mut Node, dotted: &str, at: usize, value: Node) -> Result<(), String> {
    let keys: Vec<&str> = dotted.split('.').collect();
    if keys.iter().any(|key| key.is_empty()) {
        return Err(format!(
            "{} is no name; sections are {}",
            quoted(dotted),
            suggest::listed(["machine", "disk", "network"])
        ));
    }
    // Deeper than any field there is; what follows would walk down it.
    if keys.len() > 8 {
        return Err(format!("{} has too many parts", quoted(dotted)));
    }
    let mut node = tree;
    for key in &keys {
        let Value::Map(entries) = &mut node.value else {
            return Err(format!("part of {} has a value already", quoted(dotted)));
        };
        let index = match entries.iter().position(|(known, _)| known.name == *key) {
            Some(index) => index,
            // More than any object has, and finding one is a search.
            None if entries.len() >= 64 => {
                return Err(format!("{} is one of too many", quoted(dotted)));
            }
            None => {
                let name = (*key).to_owned();
                entries.push((Key { at, name }, empty(at)));
                entries.len() - 1
            }
        };
        node = &mut entries[index].1;
    }
    *node = value;
    Ok(())
}
