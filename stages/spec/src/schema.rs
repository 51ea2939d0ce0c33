//! The launch file's form as a JSON Schema, made from the structs that read it: for editors, and for
//! programs that write launch files. It says which fields there are and what they look like; what only the
//! whole can tell (overlaps, limits of the host) is for [`load`](crate::load) to say.

use std::borrow::Cow;

use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::addresses::{Domain, Ip, Listed, Net, Pool, TapPrefix};
use crate::launch_file::{LaunchFile, Rootfs};
use crate::model::{Choice, Trust};
use crate::values::{ByteSize, HostPath, IdMaps, Named, Owner, Text};

/// The schema of a launch file (JSON Schema, draft 2020-12).
#[must_use]
pub fn launch_file_schema() -> serde_json::Value {
    let mut closed = RecursiveTransform(|schema: &mut Schema| {
        // A field that is not known is an error, here as in a launch file.
        if schema.get("properties").is_some() {
            schema.insert("additionalProperties".to_owned(), false.into());
        }
    });
    let mut schema = SchemaSettings::draft2020_12()
        .into_generator()
        .into_root_schema_for::<LaunchFile>();
    closed.transform(&mut schema);
    schema.insert("title".to_owned(), "fcpipe launch file".into());
    schema.to_value()
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
        "pattern": "^[0-9]+:[0-9]+$",
        "description": "UID:GID",
        "examples": ["1000:1000"]
    };
    ByteSize: {
        "oneOf": [
            {"type": "integer", "minimum": 0},
            {"type": "string", "pattern": "^[0-9]+\\s*(B|[KkMmGgTt]|[KMGT]iB)?$"}
        ],
        "description": "Bytes: a whole number, alone or with KiB, MiB, GiB or TiB (also K, M, G, T). Powers of 1024.",
        "examples": ["512MiB"]
    };
    IdMaps: {
        "anyOf": [
            {"type": "string", "pattern": "^([ug]:)?[0-9]+:[0-9]+:[0-9]+$"},
            {
                "type": "array",
                "items": {"type": "string", "pattern": "^([ug]:)?[0-9]+:[0-9]+:[0-9]+$"}
            }
        ],
        "description": "INSIDE:HOST:SIZE, with u: or g: before it for users or groups alone; or a list of these.",
        "examples": ["0:100000:65536"]
    };
    Ip: {"type": "string", "anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]};
    Net: {
        "type": "string",
        "pattern": "^[0-9A-Fa-f.:]+/[0-9]+$",
        "description": "An address with its prefix.",
        "examples": ["192.168.1.7/24"]
    };
    Domain: {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,253}$"};
    Pool: {
        "type": "string",
        "pattern": "^[0-9.]+/[0-9]+$",
        "description": "A network of IPv4.",
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
                {"type": "array", "items": generator.subschema_for::<T>()},
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
