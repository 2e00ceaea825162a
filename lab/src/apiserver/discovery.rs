//! Discovery: a path comes in, the document with which kubectl and client libraries find kinds and versions goes out.
//! Pure.
//!
//! Aggregated discovery is not spoken; clients fall back to these. The OpenAPI documents hold no schemas: they only
//! say that writes take `fieldValidation` and `dryRun`, without which kubectl refuses to create anything.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::resources::{Resource, Row, Served};

const VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// The document at this path, if there is one, over the kinds that are served now.
pub(crate) fn document(path: &str, kinds: &[Resource]) -> Option<Value> {
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    match segments[..] {
        ["version"] => Some(version()),
        ["api"] => Some(core_versions()),
        ["apis"] => Some(groups(kinds)),
        ["apis", name] => group(kinds, name).map(|mut group| {
            group["kind"] = "APIGroup".into();
            group["apiVersion"] = "v1".into();
            group
        }),
        ["api", version] => resources(kinds, served_as(kinds, "", version)?),
        ["apis", group, version] => resources(kinds, served_as(kinds, group, version)?),
        ["openapi", "v3"] => Some(openapi_index(kinds)),
        ["openapi", "v3", "api", version] => Some(openapi(kinds, served_as(kinds, "", version)?)),
        ["openapi", "v3", "apis", group, version] => Some(openapi(kinds, served_as(kinds, group, version)?)),
        _ => None,
    }
}

/// The version whose API the generated types and the rules in `admit` follow.
fn version() -> Value {
    json!({
        "major": "1", "minor": "33", "gitVersion": "v1.33.0+splitsecond.lab", "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc", "platform": "linux/amd64",
    })
}

fn core_versions() -> Value {
    json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] })
}

fn all_served(kinds: &[Resource]) -> impl Iterator<Item = (Resource, Served)> + '_ {
    kinds.iter().flat_map(|resource| resource.row().served.iter().map(|served| (*resource, *served)))
}

fn served_as(kinds: &[Resource], group: &str, version: &str) -> Option<Served> {
    all_served(kinds).map(|(_, served)| served).find(|served| served.group == group && served.version == version)
}

fn groups(kinds: &[Resource]) -> Value {
    let mut names: Vec<&str> =
        all_served(kinds).map(|(_, served)| served.group).filter(|name| !name.is_empty()).collect();
    names.sort_unstable();
    names.dedup();
    let groups: Value = names.into_iter().filter_map(|name| group(kinds, name)).collect();
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
}

/// A group with its versions, the newest first; that one is preferred.
fn group(kinds: &[Resource], name: &str) -> Option<Value> {
    let mut versions: Vec<&str> =
        all_served(kinds).filter(|(_, served)| served.group == name).map(|(_, served)| served.version).collect();
    versions.sort_unstable();
    versions.dedup();
    let of_group = |version: &&str| json!({ "groupVersion": format!("{name}/{version}"), "version": version });
    let versions: Vec<Value> = versions.iter().rev().map(of_group).collect();
    let preferred = versions.first().filter(|_| !name.is_empty())?.clone();
    Some(json!({ "name": name, "versions": versions, "preferredVersion": preferred }))
}

fn resources(kinds: &[Resource], served: Served) -> Option<Value> {
    let rows: Vec<&Row> =
        all_served(kinds).filter(|(_, found)| *found == served).map(|(found, _)| found.row()).collect();
    let mut listed = Vec::new();
    for row in rows {
        let mut resource = json!({
            "name": row.plural, "singularName": row.singular, "namespaced": row.namespaced, "kind": row.kind,
            "verbs": VERBS,
        });
        if !row.short_names.is_empty() {
            resource["shortNames"] = row.short_names.into();
        }
        if !row.categories.is_empty() {
            resource["categories"] = row.categories.into();
        }
        listed.push(resource);
        if row.has_status {
            listed.push(json!({
                "name": format!("{}/status", row.plural), "singularName": "", "namespaced": row.namespaced,
                "kind": row.kind, "verbs": ["get", "patch", "update"],
            }));
        }
    }
    let version = served.api_version();
    Some(json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": listed }))
}

fn api_path(served: Served) -> String {
    if served.group.is_empty() { "api/v1".to_owned() } else { format!("apis/{}/{}", served.group, served.version) }
}

fn openapi_index(kinds: &[Resource]) -> Value {
    let paths: BTreeMap<String, Value> = all_served(kinds)
        .map(|(_, served)| api_path(served))
        .map(|path| (path.clone(), json!({ "serverRelativeURL": format!("/openapi/v3/{path}") })))
        .collect();
    json!({ "paths": paths })
}

fn openapi(kinds: &[Resource], served: Served) -> Value {
    let parameter = |name: &str| json!({ "name": name, "in": "query", "schema": { "type": "string" } });
    let mut paths = BTreeMap::new();
    for (resource, _) in all_served(kinds).filter(|(_, found)| *found == served) {
        let row = resource.row();
        let scope = if row.namespaced { "namespaces/{namespace}/" } else { "" };
        let operation = json!({
            "parameters": [parameter("dryRun"), parameter("fieldValidation")],
            "responses": { "200": { "description": "OK" } },
            "x-kubernetes-group-version-kind":
                { "group": served.group, "version": served.version, "kind": row.kind },
        });
        let path = format!("/{}/{scope}{}/{{name}}", api_path(served), row.plural);
        paths.insert(path, json!({ "patch": operation }));
    }
    let title = "Splitsecond lab";
    json!({ "openapi": "3.0.0", "info": { "title": title, "version": "v1.33.0" }, "paths": paths, "components": {} })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_served_version_is_found_from_the_top() {
        let groups = document("/apis", &Resource::ALL).unwrap();
        for group in groups["groups"].as_array().unwrap() {
            assert!(document(&format!("/apis/{}", group["name"].as_str().unwrap()), &Resource::ALL).is_some());
            for version in group["versions"].as_array().unwrap() {
                let path = format!("/apis/{}", version["groupVersion"].as_str().unwrap());
                let listed = document(&path, &Resource::ALL).unwrap();
                assert!(!listed["resources"].as_array().unwrap().is_empty(), "{path}");
                assert!(document(&format!("/openapi/v3{path}"), &Resource::ALL).is_some(), "{path}");
            }
        }
    }

    #[test]
    fn the_newer_split_version_is_preferred_as_in_a_cluster() {
        let group = document("/apis/split.smi-spec.io", &Resource::ALL).unwrap();
        assert_eq!(group["preferredVersion"]["version"], "v1alpha2");
        assert!(
            document("/apis/apps", &Resource::ALL).is_none() && document("/apis/apps/v1", &Resource::ALL).is_none()
        );
    }

    #[test]
    fn a_kind_that_is_not_served_is_not_named() {
        let kinds: Vec<_> = Resource::ALL.into_iter().filter(|kind| *kind != Resource::TrafficSplits).collect();
        assert!(document("/apis/split.smi-spec.io", &kinds).is_none());
        assert!(document("/apis/split.smi-spec.io/v1alpha1", &kinds).is_none());
        assert!(!document("/apis", &kinds).unwrap().to_string().contains("smi-spec"));
    }
}
