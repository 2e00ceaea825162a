//! Failures as Kubernetes answers them: what went wrong comes in, a `Status` object with the code, reason, details
//! and causes that kubectl and kube-rs look at goes out.
//!
//! Pure. It does not decide that something is wrong. Texts and reasons follow `k8s.io/apimachinery/pkg/api/errors` and
//! `pkg/util/validation/field`, because clients and people match on them.

use std::fmt;

use serde_json::{Value, json};

use super::resources::Resource;

/// A refused request: HTTP code, machine-readable reason, message, and the object that it is about.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    code: u16,
    reason: &'static str,
    message: String,
    details: Option<Box<Details>>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Details {
    group: &'static str,
    kind: &'static str,
    name: String,
    causes: Vec<FieldError>,
    retry_after_s: u32,
}

/// One thing wrong with one field of an object.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FieldError {
    reason: &'static str,
    field: String,
    body: String,
}

impl FieldError {
    /// The field has to be there.
    pub(crate) fn required(field: impl Into<String>, detail: &str) -> Self {
        let body = if detail.is_empty() { "Required value".to_owned() } else { format!("Required value: {detail}") };
        Self { reason: "FieldValueRequired", field: field.into(), body }
    }

    /// The field's value is not allowed.
    pub(crate) fn invalid(field: impl Into<String>, value: &str, detail: &str) -> Self {
        Self {
            reason: "FieldValueInvalid",
            field: field.into(),
            body: format!("Invalid value: {}: {detail}", Value::from(value)),
        }
    }

    /// The field has another JSON type than the schema says. Custom resources answer so.
    pub(crate) fn type_of(field: impl Into<String>, wanted: &str, found: &Value) -> Self {
        let field = field.into();
        let found = json_type(found);
        let body = format!("Invalid value: \"{found}\": {field} in body must be of type {wanted}: \"{found}\"");
        Self { reason: "FieldValueTypeInvalid", field, body }
    }

    /// The field's value is not in the closed list of values.
    pub(crate) fn unsupported(field: impl Into<String>, value: &str, supported: &[&str]) -> Self {
        let supported: Vec<String> = supported.iter().map(|value| format!("\"{value}\"")).collect();
        let body = format!("Unsupported value: {}: supported values: {}", Value::from(value), supported.join(", "));
        Self { reason: "FieldValueNotSupported", field: field.into(), body }
    }

    /// The field must not be set here.
    pub(crate) fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self { reason: "FieldValueForbidden", field: field.into(), body: format!("Forbidden: {detail}") }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.field, self.body)
    }
}

impl Status {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None }
    }

    fn about(mut self, resource: Resource, name: &str) -> Self {
        let details = self.details.get_or_insert_default();
        details.group = resource.stored().group;
        details.kind = resource.row().plural;
        name.clone_into(&mut details.name);
        self
    }

    /// 404: no such object.
    #[must_use]
    pub fn not_found(resource: Resource, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{} \"{name}\" not found", resource.qualified())).about(resource, name)
    }

    /// 404: no such path.
    pub(crate) fn no_such_path() -> Self {
        let mut status = Self::new(404, "NotFound", "the server could not find the requested resource");
        status.details = Some(Box::default());
        status
    }

    /// 409: the name is taken.
    pub(crate) fn already_exists(resource: Resource, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{} \"{name}\" already exists", resource.qualified()))
            .about(resource, name)
    }

    /// 409: the object is not the one that the writer saw.
    pub(crate) fn conflict(resource: Resource, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", resource.qualified());
        Self::new(409, "Conflict", message).about(resource, name)
    }

    /// 409: somebody else wrote since the writer's read.
    pub(crate) fn modified(resource: Resource, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(resource, name, why)
    }

    /// 422: the object breaks the rules of its kind, field by field.
    pub(crate) fn invalid(resource: Resource, name: &str, causes: Vec<FieldError>) -> Self {
        Self::invalid_kind(resource.stored().group, resource.row().kind, &resource.qualified_kind(), name, causes)
    }

    /// 422: the options of a list or watch contradict what this server can do.
    pub(crate) fn invalid_list_options(causes: Vec<FieldError>) -> Self {
        Self::invalid_kind("meta.k8s.io", "ListOptions", "ListOptions.meta.k8s.io", "", causes)
    }

    fn invalid_kind(
        group: &'static str,
        kind: &'static str,
        qualified: &str,
        name: &str,
        causes: Vec<FieldError>,
    ) -> Self {
        let texts: Vec<String> = causes.iter().map(ToString::to_string).collect();
        let texts = if texts.len() == 1 { texts.join("") } else { format!("[{}]", texts.join(", ")) };
        let mut status = Self::new(422, "Invalid", format!("{qualified} \"{name}\" is invalid: {texts}"));
        status.details = Some(Box::new(Details { group, kind, name: name.to_owned(), causes, retry_after_s: 0 }));
        status
    }

    /// 422: a JSON patch that parses but cannot be applied, for example because a `test` failed. The real server says
    /// no more than this either.
    pub(crate) fn patch_not_applicable() -> Self {
        let mut status = Self::new(422, "Invalid", "the server rejected our request due to an error in our request");
        status.details = Some(Box::default());
        status
    }

    /// 400: the request does not make sense.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 403: never allowed.
    pub(crate) fn forbidden(resource: Resource, name: &str, why: &str) -> Self {
        let message = format!("{} \"{name}\" is forbidden: {why}", resource.qualified());
        Self::new(403, "Forbidden", message).about(resource, name)
    }

    /// 405: the path exists, the verb does not.
    pub(crate) fn method_not_allowed() -> Self {
        let mut status =
            Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource");
        status.details = Some(Box::default());
        status
    }

    /// 406: the client accepts nothing that this server speaks.
    pub(crate) fn not_acceptable() -> Self {
        Self::new(406, "NotAcceptable", "only the following media types are accepted: application/json")
    }

    /// 413: the body exceeds `limit_bytes`.
    pub(crate) fn too_large(limit_bytes: usize) -> Self {
        let message = format!("Request entity too large: limit is {limit_bytes}");
        Self::new(413, "RequestEntityTooLarge", message)
    }

    /// 415: the body is in a format that this server does not read.
    pub(crate) fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 410: a watch from a version that is no longer retained.
    pub(crate) fn version_too_old(asked: u64, oldest: u64) -> Self {
        Self::new(410, "Expired", format!("too old resource version: {asked} ({oldest})"))
    }

    /// 410: a list, or a later page of one, that shows a version that is no longer retained.
    pub(crate) fn list_too_old(is_later_page: bool) -> Self {
        let message = if is_later_page {
            "The provided continue parameter is too old to display a consistent list result. You must start a new list \
             without the continue parameter."
        } else {
            "The resourceVersion for the provided list is too old."
        };
        Self::new(410, "Expired", message)
    }

    /// 504: a list at a version that does not exist yet.
    pub(crate) fn version_too_large(asked: u64, current: u64) -> Self {
        let message = format!("Timeout: Too large resource version: {asked}, current: {current}");
        let mut status = Self::new(504, "Timeout", message);
        let cause = FieldError {
            reason: "ResourceVersionTooLarge",
            field: String::new(),
            body: "Too large resource version".to_owned(),
        };
        status.details = Some(Box::new(Details { causes: vec![cause], retry_after_s: 1, ..Details::default() }));
        status
    }

    /// A refusal that a test scripts, for example 500 `InternalError` or 429 `TooManyRequests`.
    #[must_use]
    pub fn scripted(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(code, reason, message)
    }

    /// HTTP status code.
    #[must_use]
    pub fn code(&self) -> u16 {
        self.code
    }

    /// Machine-readable reason, for example `Conflict`.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.reason
    }

    /// The object that goes over the wire.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if let Some(details) = &self.details {
            status["details"] = details.to_json();
        }
        status
    }
}

impl Details {
    /// Go leaves empty fields out, and so does this.
    fn to_json(&self) -> Value {
        let mut details = serde_json::Map::new();
        for (field, text) in [("name", self.name.as_str()), ("group", self.group), ("kind", self.kind)] {
            if !text.is_empty() {
                details.insert(field.to_owned(), text.into());
            }
        }
        if !self.causes.is_empty() {
            details.insert("causes".to_owned(), self.causes.iter().map(FieldError::to_json).collect());
        }
        if self.retry_after_s > 0 {
            details.insert("retryAfterSeconds".to_owned(), self.retry_after_s.into());
        }
        Value::Object(details)
    }
}

impl FieldError {
    fn to_json(&self) -> Value {
        let mut cause = json!({ "reason": self.reason, "message": self.body });
        if !self.field.is_empty() {
            cause["field"] = self.field.as_str().into();
        }
        cause
    }
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({} {})", self.message, self.code, self.reason)
    }
}

impl std::error::Error for Status {}

fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
