//! The launch file's form as a JSON Schema, made from the structs that read it: for editors, and for
//! programs that write launch files. It says which fields there are and what they look like; what only the
//! whole can tell (overlaps, limits of the host) is for [`load`](crate::load) to say.

use std::borrow::Cow;

use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use serde_json::{Value, json};

use crate::addresses::{Domain, Ip, LIST_MAX, Listed, Net, Pool, TapPrefix};
use crate::launch_file::{LaunchFile, Rootfs};
use crate::model::{Choice, Policy, Trust};
use crate::values::{ByteSize, HostPath, IdMaps, Named, Owner, Text};

/// The schema of a launch file (JSON Schema, draft 2020-12).
#[must_use]
pub fn launch_file_schema() -> Value {
    let mut closed = RecursiveTransform(|schema: &mut Schema| {
        // A field that is not known is an error, here as in a launch file. What has no type is a condition on an object.
        if schema.get("properties").is_some() && schema.get("type").is_some() {
            schema.insert("additionalProperties".to_owned(), false.into());
        }
        // What must be there must be something.
        let required = schema.get("required").and_then(Value::as_array);
        for name in required.cloned().unwrap_or_default() {
            let field = name.as_str().map(|name| format!("/properties/{name}"));
            if let Some(field) = field.and_then(|field| schema.pointer_mut(&field)) {
                for word in ["type", "enum"] {
                    if let Some(list) = field.get_mut(word).and_then(Value::as_array_mut) {
                        list.retain(|one| *one != json!("null") && !one.is_null());
                    }
                }
            }
        }
        // A number's format is a word that validators need not know.
        let most = match schema.get("format").and_then(Value::as_str) {
            Some("uint32") => json!(u32::MAX),
            Some("uint64") => json!(u64::MAX),
            _ => return,
        };
        schema.ensure_object().entry("maximum").or_insert(most);
    });
    let mut schema = SchemaSettings::draft2020_12()
        .into_generator()
        .into_root_schema_for::<LaunchFile>();
    closed.transform(&mut schema);
    schema.insert("title".to_owned(), "fcpipe launch file".into());
    schema.to_value()
}

/// A mount's destination: some path, and not only of what is the root itself.
pub(crate) const DESTINATION: &str = "^(?!(/|\\.{1,2}(/|$))*$)[^\\u0000]+$";
/// What a source is known by: some text.
pub(crate) const DECLARED: &str = "^[^\\u0000]*[^\\u0000\\s][^\\u0000]*$";
const OWNER: &str = "[0-9]+:[0-9]+";
/// None of it empty.
const ID_RANGE: &str = "([ug]:)?[0-9]+:[0-9]+:0*[1-9][0-9]*";

/// Where a file's root and process come from: a bundle has both.
pub(crate) fn roots() -> Value {
    let there = |name: &str, what: Value| json!({"required": [name], "properties": {name: what}});
    let path = there("path", json!({"type": "string"}));
    let args = there("args", json!({"type": "array"}));
    json!([
        there("bundle", json!({"type": "string"})),
        {
            "required": ["rootfs", "process"],
            "properties": {"rootfs": {"anyOf": [{"type": "string"}, path]}, "process": args}
        }
    ])
}

/// When a mount is a bind mount.
pub(crate) fn bind() -> Value {
    json!({"anyOf": [
        {"properties": {"type": {"enum": ["bind", "", null]}}},
        {
            "required": ["options"],
            "properties": {"options": {"type": "array", "contains": {"enum": ["bind", "rbind"]}}}
        }
    ]})
}

pub(crate) fn of_bind() -> Value {
    json!({"required": ["source"], "properties": {"source": {"type": "string", "minLength": 1}}})
}

/// A mount of the guest's own has nothing of a source.
pub(crate) fn of_guest() -> Value {
    let mut fields = serde_json::Map::new();
    for name in crate::mounts::of_bind() {
        fields.insert(name.to_owned(), json!({"type": "null"}));
    }
    fields.insert("type".to_owned(), json!({"not": {"const": "none"}}));
    fields.insert(
        "options".to_owned(),
        json!({"items": {"pattern": format!("^(?!{OWN})")}}),
    );
    json!({"properties": fields})
}

const OWN: &str = "x-fcpipe\\.";

/// A mount's option: somebody else's, or one of ours as it is read.
pub(crate) fn option() -> Value {
    let own = [
        "immutable(=(true|false))?".to_owned(),
        format!("policy=({})", Policy::NAMES.join("|")),
        format!("trust=({})", Trust::NAMES.join("|")),
        "digest=.*\\S.*".to_owned(),
        "exclude=.*".to_owned(),
        format!("owner={OWNER}"),
        format!("idmap={ID_RANGE}"),
    ];
    let own = own.join("|");
    text(&format!("^((?!{OWN})[^\\u0000]*|{OWN}({own}))$"))
}

pub(crate) fn text(pattern: &str) -> Value {
    json!({"type": "string", "pattern": pattern})
}

/// A value that is written as text: its name, its description, and the rest of its schema.
macro_rules! texts {
    ($($type:ident: $schema:tt;)*) => {
        $(impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        })*
    };
}

texts! {
    Text: {"type": "string", "pattern": "^[^\\u0000]*$"};
    HostPath: {
        "type": "string",
        "minLength": 1,
        "pattern": "^[^\\u0000]*$",
        "description": "A path on the host; where it is relative, to the file that holds it."
    };
    Owner: {
        "type": "string",
        "pattern": (format!("^{OWNER}$")),
        "description": "UID:GID",
        "examples": ["1000:1000"]
    };
    ByteSize: {
        "oneOf": [
            {"type": "integer", "minimum": 0, "maximum": (u64::MAX)},
            {"type": "string", "pattern": "^[0-9]+\\s*(B|[KkMmGgTt]|[KMGT]iB)?$"}
        ],
        "description": "Bytes: a whole number, alone or with KiB, MiB, GiB or TiB (also K, M, G, T). Powers of 1024.",
        "examples": ["512MiB"]
    };
    IdMaps: {
        "anyOf": [
            {"type": "string", "pattern": (format!("^{ID_RANGE}$"))},
            {
                "type": "array",
                "items": {"type": "string", "pattern": (format!("^{ID_RANGE}$"))}
            }
        ],
        "description": "INSIDE:HOST:SIZE, with u: or g: before it for users or groups alone; or a list of these.",
        "examples": ["0:100000:65536"]
    };
    Ip: {
        "type": "string",
        "anyOf": [
            {"format": "ipv4", "pattern": "^[0-9]{1,3}(\\.[0-9]{1,3}){3}$"},
            {"format": "ipv6", "pattern": "^[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*$"}
        ]
    };
    Net: {
        "type": "string",
        "anyOf": [
            {"pattern": "^[0-9.]+/([0-9]|[12][0-9]|3[0-2])$"},
            {"pattern": "^[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*/([0-9]|[1-9][0-9]|1[01][0-9]|12[0-8])$"}
        ],
        "description": "An address with its prefix.",
        "examples": ["192.168.1.7/24"]
    };
    Domain: {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,253}$"};
    Pool: {
        "type": "string",
        "pattern": "^[0-9.]+/([0-9]|[12][0-9]|30)$",
        "description": "A network of IPv4 with room for guests.",
        "examples": ["10.213.0.0/16"]
    };
    TapPrefix: {"type": "string", "pattern": "^[A-Za-z0-9_][A-Za-z0-9_-]{0,9}$"};
}

impl<T: JsonSchema> JsonSchema for Listed<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("Listed{}", T::schema_name()).into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                {"type": "array", "items": generator.subschema_for::<T>(), "maxItems": LIST_MAX},
                {"type": "string", "description": "The items, with commas between them."}
            ]
        })
    }
}

impl<T: Choice> JsonSchema for Named<T> {
    fn schema_name() -> Cow<'static, str> {
        T::NAMES.join("|").into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "enum": T::NAMES})
    }
}

/// By hand, as it is read by hand.
impl JsonSchema for Rootfs {
    fn schema_name() -> Cow<'static, str> {
        "Rootfs".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let path = generator.subschema_for::<HostPath>();
        json_schema!({
            "description": "The root file system: a path, or an object.",
            "anyOf": [
                path,
                {
                    "type": "object",
                    "properties": {
                        "path": path,
                        "readonly": generator.subschema_for::<Option<bool>>(),
                        "trust": generator.subschema_for::<Option<Named<Trust>>>(),
                        "exclude": generator.subschema_for::<Option<Vec<Text>>>(),
                        "owner": generator.subschema_for::<Option<Owner>>(),
                        "idmap": generator.subschema_for::<Option<IdMaps>>(),
                    }
                }
            ]
        })
    }
}
