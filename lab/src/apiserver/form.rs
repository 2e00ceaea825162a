//! The form of an answer: an Accept header and objects come in, the JSON that goes over the wire comes out. Pure.
//!
//! Three forms: whole objects, Tables (what kubectl prints), and metadata alone. Everything is JSON; a client that
//! takes only protobuf or CBOR is refused.

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::convert;
use super::object::meta;
use super::resources::{Resource, Served};
use super::status::Status;
use super::table;

/// What a Table's rows carry of their objects besides the cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowObject {
    None,
    Metadata,
    Object,
}

/// How objects are shown to this client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Object,
    Metadata,
    Table(RowObject),
}

/// The kind and version of what is shown, and when: ages in Tables are relative to it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    pub(crate) resource: Resource,
    pub(crate) served: Served,
    pub(crate) form: Form,
    pub(crate) now: Timestamp,
}

impl Form {
    /// Picks the first form in the Accept header that this server speaks. `include_object` is the query option of
    /// Tables.
    pub(crate) fn negotiate(accept: &str, include_object: &str) -> Result<Self, Status> {
        let row_object = match include_object {
            "None" => RowObject::None,
            "Object" => RowObject::Object,
            _ => RowObject::Metadata,
        };
        if accept.is_empty() {
            return Ok(Self::Object);
        }
        accept.split(',').find_map(|range| Self::of_range(range, row_object)).ok_or_else(Status::not_acceptable)
    }

    fn of_range(range: &str, row_object: RowObject) -> Option<Self> {
        let mut parts = range.split(';').map(str::trim);
        if !matches!(parts.next(), Some("application/json" | "application/*" | "*/*")) {
            return None;
        }
        let parameters: Vec<(&str, &str)> = parts.filter_map(|part| part.split_once('=')).collect();
        let parameter =
            |wanted: &str| parameters.iter().find(|(name, _)| *name == wanted).map_or("", |(_, value)| *value);
        match (parameter("as"), parameter("g"), parameter("v")) {
            ("", ..) => Some(Self::Object),
            ("Table", "meta.k8s.io", "v1") => Some(Self::Table(row_object)),
            ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", "v1") => Some(Self::Metadata),
            _ => None,
        }
    }
}

impl View {
    /// One object, from its stored version.
    pub(crate) fn one(&self, stored: &Value) -> Value {
        match self.form {
            Form::Object => convert::to_served(self.resource, self.served, stored.clone()),
            Form::Metadata => metadata_of(stored),
            Form::Table(row_object) => {
                let metadata = json!({ "resourceVersion": meta(stored, "resourceVersion") });
                self.table(metadata, vec![self.row(stored, row_object)])
            }
        }
    }

    /// A list with its metadata.
    pub(crate) fn list<'a>(&self, stored: impl Iterator<Item = &'a Value>, metadata: Value) -> Value {
        let (kind, api_version) = match self.form {
            Form::Object => (format!("{}List", self.resource.row().kind), self.served.api_version()),
            Form::Metadata => ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1".to_owned()),
            Form::Table(row_object) => {
                return self.table(metadata, stored.map(|object| self.row(object, row_object)).collect());
            }
        };
        let objects: Vec<Value> = stored.map(|object| self.one(object)).collect();
        json!({ "kind": kind, "apiVersion": api_version, "metadata": metadata, "items": objects })
    }

    /// A watch bookmark: nothing but a revision, in the clothes of the watched kind.
    pub(crate) fn bookmark(&self, revision: u64) -> Value {
        let (kind, api_version) = match self.form {
            Form::Object => (self.resource.row().kind, self.served.api_version()),
            Form::Metadata | Form::Table(_) => ("PartialObjectMetadata", "meta.k8s.io/v1".to_owned()),
        };
        let metadata = json!({ "resourceVersion": revision.to_string(), "creationTimestamp": null });
        json!({ "kind": kind, "apiVersion": api_version, "metadata": metadata })
    }

    fn table(&self, metadata: Value, rows: Vec<Value>) -> Value {
        json!({
            "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
            "columnDefinitions": table::definitions(self.resource), "rows": rows,
        })
    }

    fn row(&self, stored: &Value, row_object: RowObject) -> Value {
        let mut row = json!({ "cells": table::cells(self.resource, stored, self.now) });
        match row_object {
            RowObject::None => {}
            RowObject::Metadata => row["object"] = metadata_of(stored),
            RowObject::Object => row["object"] = convert::to_served(self.resource, self.served, stored.clone()),
        }
        row
    }
}

fn metadata_of(stored: &Value) -> Value {
    json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": stored["metadata"] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_form_that_is_spoken_wins() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        for (accept, form) in [
            ("", Form::Object),
            ("*/*", Form::Object),
            (kubectl, Form::Table(RowObject::Metadata)),
            ("application/vnd.kubernetes.protobuf,application/json", Form::Object),
            ("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", Form::Metadata),
        ] {
            assert_eq!(Form::negotiate(accept, "").unwrap(), form, "{accept}");
        }
        assert_eq!(Form::negotiate("application/vnd.kubernetes.protobuf", "").unwrap_err().code(), 406);
    }
}
