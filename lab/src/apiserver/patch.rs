//! Patches: an object and the body of a PATCH come in, the patched object goes out. Pure; whether the result is valid
//! is decided by whoever stores it.
//!
//! Merge patch (RFC 7396) and JSON patch (RFC 6902) only. Strategic merge and server-side apply need the schema of
//! every kind and belong to the real API server; they are answered 415.

use serde_json::Value;

use super::status::Status;

/// Operations that one JSON patch may hold, as in `k8s.io/apiserver`.
const JSON_PATCH_OPERATIONS_LIMIT: usize = 10_000;

const MERGE: &str = "application/merge-patch+json";
const JSON: &str = "application/json-patch+json";

/// The two kinds of patch that this server knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PatchFormat {
    Merge,
    Json,
}

impl PatchFormat {
    /// Reads the format from a request's Content-Type.
    pub(crate) fn of_content_type(content_type: &str) -> Result<Self, Status> {
        match content_type.split(';').next().map(str::trim) {
            Some(MERGE) => Ok(Self::Merge),
            Some(JSON) => Ok(Self::Json),
            _ => Err(Status::unsupported_media_type(&[JSON, MERGE])),
        }
    }

    /// Applies a patch to an object.
    pub(crate) fn apply(self, mut object: Value, body: &[u8]) -> Result<Value, Status> {
        match self {
            Self::Merge => {
                let patch: Value = serde_json::from_slice(body).map_err(|error| undecodable(&error))?;
                if !patch.is_object() {
                    return Err(Status::bad_request("error decoding patch: a merge patch is a JSON object"));
                }
                json_patch::merge(&mut object, &patch);
            }
            Self::Json => {
                let patch: json_patch::Patch = serde_json::from_slice(body).map_err(|error| undecodable(&error))?;
                if patch.0.len() > JSON_PATCH_OPERATIONS_LIMIT {
                    return Err(Status::too_large(JSON_PATCH_OPERATIONS_LIMIT));
                }
                json_patch::patch(&mut object, &patch).map_err(|error| {
                    tracing::debug!(%error, "JSON patch does not apply");
                    Status::patch_not_applicable()
                })?;
            }
        }
        if object.is_object() { Ok(object) } else { Err(Status::patch_not_applicable()) }
    }
}

fn undecodable(error: &serde_json::Error) -> Status {
    Status::bad_request(format!("error decoding patch: {error}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_merge_patch_replaces_lists_and_removes_nulls() {
        let object = json!({ "metadata": { "annotations": { "a": "1", "b": "2" } }, "spec": { "backends": [1, 2] } });
        let patch = br#"{"metadata":{"annotations":{"a":null}},"spec":{"backends":[3]}}"#;
        let patched = PatchFormat::Merge.apply(object, patch).unwrap();
        assert_eq!(patched, json!({ "metadata": { "annotations": { "b": "2" } }, "spec": { "backends": [3] } }));
    }

    #[test]
    fn a_failed_test_operation_is_answered_422_invalid() {
        let object = json!({ "metadata": { "resourceVersion": "7" } });
        let patch =
            br#"[{"op":"test","path":"/metadata/resourceVersion","value":"6"},{"op":"add","path":"/x","value":1}]"#;
        let status = PatchFormat::Json.apply(object, patch).unwrap_err();
        assert_eq!((status.code(), status.reason()), (422, "Invalid"));
    }

    #[test]
    fn formats_that_need_a_schema_are_answered_415() {
        for content_type in ["application/strategic-merge-patch+json", "application/apply-patch+yaml", ""] {
            assert_eq!(PatchFormat::of_content_type(content_type).unwrap_err().code(), 415);
        }
    }
}
