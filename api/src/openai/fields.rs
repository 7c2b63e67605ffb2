//! A request's JSON object, read field by field, so that every error names the field and says what would be right.

use std::fmt::Display;

use serde_json::{Map, Value};

use super::{
    Error,
    field::{Boolean, Field, Integer, Number, Other, Refused, Text},
};

/// The fields that were not read yet. `null` counts as absent; fields that nobody reads are ignored.
pub(crate) struct Fields {
    left: Map<String, Value>,
    /// Names that were asked for, which the document must know.
    #[cfg(test)]
    pub(crate) asked: std::collections::BTreeSet<String>,
}

impl From<Map<String, Value>> for Fields {
    fn from(left: Map<String, Value>) -> Self {
        Fields {
            left,
            #[cfg(test)]
            asked: Default::default(),
        }
    }
}

impl Fields {
    /// # Errors
    /// When the body is not JSON (says where), or not an object.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, Error> {
        if body.is_empty() {
            return Err(Error::invalid("the body is empty: send a JSON object"));
        }
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(fields.into()),
            Ok(other) => Err(Error::invalid(format!("the body must be a JSON object, not {}", kind(&other)))),
            Err(error) => Err(Error::invalid(format!("the body is not valid JSON: {error}"))),
        }
    }

    /// What has rules of its own, which the caller keeps to.
    pub(crate) fn other(&mut self, field: &Field<Other>) -> Option<Value> {
        self.take(field.name)
    }

    pub(crate) fn number(&mut self, field: &Field<Number>) -> Result<Option<f64>, Error> {
        let Some(value) = self.take(field.name) else { return Ok(None) };
        let range = &field.holds.0;
        match value.as_f64() {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(expected(field.name, &format_args!("a number from {} to {}", range.start(), range.end()), &value)),
        }
    }

    pub(crate) fn integer(&mut self, field: &Field<Integer>) -> Result<Option<i64>, Error> {
        let Some(value) = self.take(field.name) else { return Ok(None) };
        let range = &field.holds.0;
        match whole(&value) {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(expected(field.name, &format_args!("an integer from {} to {}", range.start(), range.end()), &value)),
        }
    }

    pub(crate) fn boolean(&mut self, field: &Field<Boolean>) -> Result<Option<bool>, Error> {
        let Some(value) = self.take(field.name) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| expected(field.name, &"true or false", &value))
    }

    pub(crate) fn text(&mut self, field: &Field<Text>) -> Result<Option<String>, Error> {
        match self.take(field.name) {
            None => Ok(None),
            Some(Value::String(text)) if field.holds.0.contains(&text.len()) => Ok(Some(text)),
            Some(value) => {
                let (least, most) = (field.holds.0.start(), field.holds.0.end());
                Err(expected(field.name, &format_args!("a string of {least} to {most} bytes"), &value))
            }
        }
    }

    pub(crate) fn object(&mut self, field: &Field<Other>) -> Result<Option<Fields>, Error> {
        match self.take(field.name) {
            None => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(fields.into())),
            Some(value) => Err(expected(field.name, &"an object", &value)),
        }
    }

    /// Refuses a parameter that is not offered, unless it says what happens anyway.
    pub(crate) fn refuse(&mut self, field: &Field<Refused>) -> Result<(), Error> {
        let name = field.name;
        match self.take(name) {
            Some(value) if !(field.holds.is_neutral)(&value) => {
                Err(Error::parameter(name, format!("'{name}' is not offered here: leave it out")))
            }
            _ => Ok(()),
        }
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        #[cfg(test)]
        self.asked.insert(name.to_owned());
        self.left.remove(name).filter(|value| !value.is_null())
    }
}

/// The error of a value that is not what it should be.
pub(crate) fn expected(name: &str, what: &dyn Display, got: &Value) -> Error {
    Error::parameter(name.to_owned(), format!("'{name}' must be {what}, not {}", kind(got)))
}

/// An integer, also when it is written as 16.0.
pub(crate) fn whole(value: &Value) -> Option<i64> {
    // 2⁵³: beyond it a float is no longer one certain integer.
    let from_float = |number: f64| (number.fract() == 0.0 && number.abs() <= 9_007_199_254_740_992.0).then_some(number as i64);
    value.as_i64().or_else(|| value.as_f64().filter(|_| value.is_f64()).and_then(from_float))
}

/// What a value is, for people. Numbers are shown; texts are not, as they may be a prompt.
fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "a boolean".to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => format!("a string of {} bytes", text.len()),
        Value::Array(items) if items.is_empty() => "an empty list".to_owned(),
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(_) => "an object".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    static TEMPERATURE: Field<Number> = Field { name: "temperature", holds: Number(0.0..=2.0), about: "" };
    static N: Field<Integer> = Field { name: "n", holds: Integer(1..=8), about: "" };

    fn fields(body: &str) -> Fields {
        Fields::parse(body.as_bytes()).unwrap()
    }

    fn text(error: Error) -> String {
        serde_json::to_string(&error.shape()).unwrap()
    }

    #[test]
    fn errors_name_the_field_and_the_range() {
        let error = text(fields(r#"{"temperature": 9}"#).number(&TEMPERATURE).unwrap_err());
        assert_eq!(
            error,
            r#"{"error":{"message":"'temperature' must be a number from 0 to 2, not 9","type":"invalid_request_error","param":"temperature","code":null}}"#
        );
        let error = text(fields(r#"{"n": "two"}"#).integer(&N).unwrap_err());
        assert!(error.contains("'n' must be an integer from 1 to 8, not a string of 3 bytes"), "{error}");
    }

    #[test]
    fn malformed_json_says_where() {
        let error = text(Fields::parse(b"{\"model\":\n  oops}").err().unwrap());
        assert!(error.contains("line 2 column 3"), "{error}");
        assert!(text(Fields::parse(b"[1]").err().unwrap()).contains("must be a JSON object, not a list of 1"));
        assert!(text(Fields::parse(b"").err().unwrap()).contains("empty"));
        assert!(Fields::parse(format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)).as_bytes()).is_err());
        assert!(Fields::parse(br#"{"a": 1e999}"#).is_err());
    }

    #[test]
    fn null_is_absent_and_whole_floats_are_integers() {
        assert_eq!(fields(r#"{"n": null}"#).integer(&N).unwrap(), None);
        assert_eq!(fields(r#"{"n": 4.0}"#).integer(&N).unwrap(), Some(4));
        assert!(fields(r#"{"n": 4.5}"#).integer(&N).is_err());
        assert!(fields(r#"{"n": 18446744073709551615}"#).integer(&N).is_err());
    }

    proptest! {
        #[test]
        fn parsing_never_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Fields::parse(&body);
        }
    }
}
