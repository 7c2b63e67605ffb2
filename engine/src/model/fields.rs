//! config.json, field by field: what is missing or makes no sense is refused by its name.

use serde_json::Value;

use crate::LoadError;

/// No known model is near these sizes; beyond them a config.json is damaged or hostile.
const SIZE_MAX: u64 = 1 << 24;

/// The fields of config.json, or of an object in it.
#[derive(Clone)]
pub(super) struct Fields<'a> {
    json: &'a Value,
    /// What messages call the file.
    path: &'a str,
    /// Whose fields these are, in messages.
    family: &'static str,
}

impl<'a> Fields<'a> {
    pub(super) fn new(json: &'a Value, path: &'a str, family: &'static str) -> Fields<'a> {
        Fields { json, path, family }
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        self.json.get(name).filter(|value| !value.is_null())
    }

    /// Whether it is there, and not null.
    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// A number of things: at least one.
    pub(super) fn size(&self, name: &str, default: Option<usize>) -> Result<usize, LoadError> {
        let value = match self.get(name) {
            None => default.map(|default| default as u64).ok_or_else(|| self.missing(name))?,
            Some(value) => value.as_u64().ok_or_else(|| self.invalid(format!("{name} must be a whole number, not {value}")))?,
        };
        if (1..=SIZE_MAX).contains(&value) {
            Ok(value as usize)
        } else {
            Err(self.invalid(format!("{name} must be from 1 to {SIZE_MAX}, not {value}")))
        }
    }

    /// A finite number.
    pub(super) fn number(&self, name: &str, default: Option<f64>) -> Result<f64, LoadError> {
        match self.get(name) {
            None => default.ok_or_else(|| self.missing(name)),
            Some(value) => value.as_f64().ok_or_else(|| self.invalid(format!("{name} must be a number, not {value}"))),
        }
    }

    /// What a norm adds to a variance.
    pub(super) fn epsilon(&self, name: &str, default: f64) -> Result<f64, LoadError> {
        match self.number(name, Some(default)) {
            Ok(epsilon) if (0.0..=1.0).contains(&epsilon) => Ok(epsilon),
            _ => Err(self.invalid(format!("{name} must be a number from 0 to 1"))),
        }
    }

    pub(super) fn flag(&self, name: &str, default: bool) -> Result<bool, LoadError> {
        let invalid = |value| self.invalid(format!("{name} must be true or false, not {value}"));
        self.get(name).map_or(Ok(default), |value| value.as_bool().ok_or_else(|| invalid(value)))
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>, LoadError> {
        let text = |value: &'a Value| value.as_str().ok_or_else(|| self.invalid(format!("{name} must be a text, not {value}")));
        self.get(name).map(text).transpose()
    }

    /// A list of texts; empty where it is missing.
    pub(super) fn texts(&self, name: &str) -> Result<Vec<&'a str>, LoadError> {
        let Some(value) = self.get(name) else { return Ok(Vec::new()) };
        let texts = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        texts.ok_or_else(|| self.invalid(format!("{name} must be a list of texts, not {value}")))
    }

    /// The fields of an object.
    pub(super) fn object(&self, name: &str) -> Result<Option<Fields<'a>>, LoadError> {
        match self.get(name) {
            None => Ok(None),
            Some(json) if json.is_object() => Ok(Some(Fields { json, ..self.clone() })),
            Some(value) => Err(self.invalid(format!("{name} must be an object, not {value}"))),
        }
    }

    fn missing(&self, name: &str) -> LoadError {
        self.invalid(format!("{name} is missing; {} needs it", self.family))
    }

    /// What the file says makes no sense.
    pub(super) fn invalid(&self, message: String) -> LoadError {
        LoadError::Invalid { path: self.path.to_owned(), message }
    }

    /// What the file asks for is not there.
    pub(super) fn unsupported(&self, what: &str) -> LoadError {
        LoadError::Unsupported(format!("{} asks for {what}", self.path))
    }
}
