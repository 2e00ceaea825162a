//! Paths: the path of a request comes in, the collection or object that it names goes out. Pure.

use super::resources::{Resource, Served};

/// What a path of the API names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route<'a> {
    /// All objects of a kind, or those of one namespace.
    Collection { resource: Resource, served: Served, namespace: Option<&'a str> },
    /// One object. The namespace is empty for cluster-scoped kinds.
    Object { resource: Resource, served: Served, namespace: &'a str, name: &'a str },
    /// The status of one object.
    Status { resource: Resource, served: Served, namespace: &'a str, name: &'a str },
}

impl<'a> Route<'a> {
    /// The kind that it is about.
    pub(crate) fn resource(self) -> Resource {
        match self {
            Self::Collection { resource, .. } | Self::Object { resource, .. } | Self::Status { resource, .. } => {
                resource
            }
        }
    }

    pub(crate) fn parse(path: &'a str) -> Option<Self> {
        let mut segments: Vec<&str> = path.trim_matches('/').split('/').collect();
        let prefix = if segments.first() == Some(&"api") { 2 } else { 3 };
        if segments.len() <= prefix || segments.iter().any(|segment| segment.is_empty()) {
            return None;
        }
        let rest = segments.split_off(prefix);
        let (group, version) = match segments[..] {
            ["api", version] => ("", version),
            ["apis", group, version] => (group, version),
            _ => return None,
        };
        let find = |plural: &str, namespaced: bool| {
            Resource::of_path(group, version, plural).filter(|(resource, _)| resource.row().namespaced == namespaced)
        };
        match rest[..] {
            [plural] => {
                let (resource, served) = Resource::of_path(group, version, plural)?;
                Some(Self::Collection { resource, served, namespace: None })
            }
            // `namespaces/a/status` is the status of a namespace, and `namespaces/a/pods` the pods in it.
            ["namespaces", namespace, plural] if plural != "status" => {
                let (resource, served) = find(plural, true)?;
                Some(Self::Collection { resource, served, namespace: Some(namespace) })
            }
            ["namespaces", namespace, plural, name] => {
                let (resource, served) = find(plural, true)?;
                Some(Self::Object { resource, served, namespace, name })
            }
            ["namespaces", namespace, plural, name, "status"] => {
                let (resource, served) = find(plural, true).filter(|(resource, _)| resource.row().has_status)?;
                Some(Self::Status { resource, served, namespace, name })
            }
            [plural, name] => {
                let (resource, served) = find(plural, false)?;
                Some(Self::Object { resource, served, namespace: "", name })
            }
            [plural, name, "status"] => {
                let (resource, served) = find(plural, false).filter(|(resource, _)| resource.row().has_status)?;
                Some(Self::Status { resource, served, namespace: "", name })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(path: &str, wanted: Option<(&str, &str, &str)>) {
        let found = Route::parse(path).map(|route| match route {
            Route::Collection { resource, namespace, .. } => (resource.row().plural, namespace.unwrap_or("*"), "*"),
            Route::Object { resource, namespace, name, .. } => (resource.row().plural, namespace, name),
            Route::Status { namespace, name, .. } => ("status", namespace, name),
        });
        assert_eq!(found, wanted, "{path}");
    }

    #[test]
    fn paths_name_collections_objects_and_status() {
        check("/api/v1/services", Some(("services", "*", "*")));
        check("/api/v1/namespaces", Some(("namespaces", "*", "*")));
        check("/api/v1/namespaces/a", Some(("namespaces", "", "a")));
        check("/api/v1/namespaces/a/status", Some(("status", "", "a")));
        check("/api/v1/namespaces/a/services", Some(("services", "a", "*")));
        check("/api/v1/namespaces/a/services/web", Some(("services", "a", "web")));
        check("/api/v1/namespaces/a/services/web/status", Some(("status", "a", "web")));
        check("/apis/split.smi-spec.io/v1alpha2/namespaces/a/trafficsplits/web", Some(("trafficsplits", "a", "web")));
        check("/apis/events.k8s.io/v1/namespaces/a/events", Some(("events", "a", "*")));
        check("/api/v1/nodes/n", Some(("nodes", "", "n")));
    }

    #[test]
    fn other_paths_name_nothing() {
        for path in [
            "/",
            "/api",
            "/api/v1",
            "/api/v2/services",
            "/apis/split.smi-spec.io/v1alpha3/trafficsplits",
            "/api/v1/services/web",
            "/api/v1/namespaces/a/nodes",
            "/api/v1/namespaces/a/configmaps/m/status",
            "/api/v1/namespaces//services",
            "/api/v1/namespaces/a/services/web/status/more",
        ] {
            check(path, None);
        }
    }
}
