//! What a field of a request may hold, said once: `fields.rs` reads by it, and `/openapi.json` documents by it.

use std::ops::RangeInclusive;

use serde_json::{Map, Value, json};

/// A field of requests.
pub(crate) struct Field<H> {
    pub(crate) name: &'static str,
    pub(crate) holds: H,
    /// What it means, for who reads the document.
    pub(crate) about: &'static str,
}

/// A number in a range.
pub(crate) struct Number(pub(crate) RangeInclusive<f64>);

/// An integer in a range.
pub(crate) struct Integer(pub(crate) RangeInclusive<i64>);

/// Yes or no.
pub(crate) struct Boolean;

/// A string of so many bytes.
pub(crate) struct Text(pub(crate) RangeInclusive<usize>);

/// What is not offered, but for values that say what happens anyway.
pub(crate) struct Refused {
    pub(crate) is_neutral: fn(&Value) -> bool,
    /// The same as a schema.
    pub(crate) neutral: fn() -> Value,
}

/// What has rules of its own: its schema.
pub(crate) struct Other(pub(crate) fn() -> Value);

/// What a field may hold, as a JSON schema; `null` counts as absent and is added.
pub(crate) trait Holds {
    fn schema(&self) -> Value;
}

impl Holds for Number {
    fn schema(&self) -> Value {
        json!({ "type": "number", "minimum": self.0.start(), "maximum": self.0.end() })
    }
}

impl Holds for Integer {
    fn schema(&self) -> Value {
        json!({ "type": "integer", "minimum": self.0.start(), "maximum": self.0.end() })
    }
}

impl Holds for Boolean {
    fn schema(&self) -> Value {
        json!({ "type": "boolean" })
    }
}

impl Holds for Text {
    fn schema(&self) -> Value {
        json!({ "type": "string", "minLength": self.0.start().min(&1), "maxLength": self.0.end() })
    }
}

impl Holds for Refused {
    fn schema(&self) -> Value {
        (self.neutral)()
    }
}

impl Holds for Other {
    fn schema(&self) -> Value {
        (self.0)()
    }
}

/// A field as the document shows it.
pub(crate) trait Documented: Sync {
    fn name(&self) -> &'static str;
    fn schema(&self) -> Value;
}

impl<H: Holds + Sync> Documented for Field<H> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn schema(&self) -> Value {
        json!({ "description": self.about, "anyOf": [self.holds.schema(), { "type": "null" }] })
    }
}

/// The schema of an object with these fields, and whichever others.
pub(crate) fn object_schema(fields: &[&[&dyn Documented]], required: &[&str]) -> Value {
    let properties: Map<String, Value> = fields
        .iter()
        .flat_map(|fields| fields.iter())
        .map(|field| {
            let mut schema = field.schema();
            if required.contains(&field.name()) {
                // Not null.
                schema["anyOf"] = json!([schema["anyOf"][0]]);
            }
            (field.name().to_owned(), schema)
        })
        .collect();
    json!({ "type": "object", "properties": properties, "required": required })
}
