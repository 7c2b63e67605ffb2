//! A request's JSON object, read field by field, so that every error names the field and says what would be right.

use std::{fmt::Display, ops::RangeInclusive};

use serde_json::{Map, Value};

use super::Error;

/// The fields that were not read yet. `null` counts as absent; fields that nobody reads are ignored.
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    /// # Errors
    /// When the body is not JSON (says where), or not an object.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, Error> {
        if body.is_empty() {
            return Err(Error::invalid("the body is empty: send a JSON object"));
        }
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Fields(fields)),
            Ok(other) => Err(Error::invalid(format!("the body must be a JSON object, not {}", kind(&other)))),
            Err(error) => Err(Error::invalid(format!("the body is not valid JSON: {error}"))),
        }
    }

    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    pub(crate) fn number(&mut self, name: &'static str, range: RangeInclusive<f64>) -> Result<Option<f64>, Error> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(expected(name, &format_args!("a number from {} to {}", range.start(), range.end()), &value)),
        }
    }

    pub(crate) fn integer(&mut self, name: &'static str, range: RangeInclusive<i64>) -> Result<Option<i64>, Error> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match whole(&value) {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(expected(name, &format_args!("an integer from {} to {}", range.start(), range.end()), &value)),
        }
    }

    pub(crate) fn boolean(&mut self, name: &'static str) -> Result<Option<bool>, Error> {
        let Some(value) = self.take(name) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| expected(name, &"true or false", &value))
    }

    pub(crate) fn string(&mut self, name: &'static str, bytes_max: usize) -> Result<Option<String>, Error> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) if text.len() <= bytes_max => Ok(Some(text)),
            Some(value) => Err(expected(name, &format_args!("a string of at most {bytes_max} bytes"), &value)),
        }
    }

    pub(crate) fn object(&mut self, name: &'static str) -> Result<Option<Fields>, Error> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(Fields(fields))),
            Some(value) => Err(expected(name, &"an object", &value)),
        }
    }

    /// Refuses a parameter that is not offered, unless it says what happens anyway.
    pub(crate) fn refuse(&mut self, name: &'static str, is_neutral: impl Fn(&Value) -> bool) -> Result<(), Error> {
        match self.take(name) {
            Some(value) if !is_neutral(&value) => {
                Err(Error::parameter(name, format!("'{name}' is not offered here: leave it out")))
            }
            _ => Ok(()),
        }
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

    fn fields(body: &str) -> Fields {
        Fields::parse(body.as_bytes()).unwrap()
    }

    fn text(error: Error) -> String {
        serde_json::to_string(&error.shape()).unwrap()
    }

    #[test]
    fn errors_name_the_field_and_the_range() {
        let error = text(fields(r#"{"temperature": 9}"#).number("temperature", 0.0..=2.0).unwrap_err());
        assert_eq!(
            error,
            r#"{"error":{"message":"'temperature' must be a number from 0 to 2, not 9","type":"invalid_request_error","param":"temperature","code":null}}"#
        );
        let error = text(fields(r#"{"n": "two"}"#).integer("n", 1..=8).unwrap_err());
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
        assert_eq!(fields(r#"{"n": null}"#).integer("n", 1..=8).unwrap(), None);
        assert_eq!(fields(r#"{"n": 4.0}"#).integer("n", 1..=8).unwrap(), Some(4));
        assert!(fields(r#"{"n": 4.5}"#).integer("n", 1..=8).is_err());
        assert!(fields(r#"{"n": 18446744073709551615}"#).integer("n", 1..=8).is_err());
    }

    proptest! {
        #[test]
        fn parsing_never_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Fields::parse(&body);
        }
    }
}
