//! Reading and writing the few fields of an object that every kind has. Pure; it knows no kind and judges nothing.

use serde_json::{Map, Value};

/// The text behind a JSON pointer, empty when it is absent or not a text.
pub(crate) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The list behind a JSON pointer, empty when it is absent or not a list.
pub(crate) fn items<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// A field of `metadata` as text, empty when absent.
pub(crate) fn meta<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get("metadata").and_then(|metadata| metadata.get(field)).and_then(Value::as_str).unwrap_or_default()
}

/// The object's `metadata`, created when absent.
///
/// # Panics
/// When `object` is not a JSON object; decoding lets none through.
pub(crate) fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    let fields = object.as_object_mut().expect("a decoded object is a JSON object");
    let metadata = fields.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    if !metadata.is_object() {
        *metadata = Value::Object(Map::new());
    }
    metadata.as_object_mut().expect("it was made an object just now")
}

/// Sets a field of `metadata`.
pub(crate) fn set_meta(object: &mut Value, field: &str, value: impl Into<Value>) {
    metadata_mut(object).insert(field.to_owned(), value.into());
}

/// Copies a top-level field from one object to another, or removes it where the source has none.
pub(crate) fn carry(from: &Value, to: &mut Value, field: &str) {
    copy_field(from.as_object(), to.as_object_mut(), field);
}

/// Copies a field of `metadata` from one object to another, or removes it where the source has none.
pub(crate) fn carry_meta(from: &Value, to: &mut Value, field: &str) {
    copy_field(from.get("metadata").and_then(Value::as_object), Some(metadata_mut(to)), field);
}

fn copy_field(from: Option<&Map<String, Value>>, to: Option<&mut Map<String, Value>>, field: &str) {
    let Some(to) = to else { return };
    match from.and_then(|from| from.get(field)) {
        Some(value) => to.insert(field.to_owned(), value.clone()),
        None => to.remove(field),
    };
}
