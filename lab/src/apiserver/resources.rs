//! The table of kinds that the embedded API server serves. A path or an `apiVersion` and `kind` come in, a row of the
//! table goes out.
//!
//! Pure. It holds no object and judges none: what a valid object looks like is `admit`'s subject, how a kind prints
//! is `table`'s.

/// One group and version under which a kind is served. The core group has the empty name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// API group, empty for core.
    pub group: &'static str,
    /// Version inside the group, for example `v1alpha2`.
    pub version: &'static str,
}

impl Served {
    /// The `apiVersion` that objects of this version carry.
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }
}

/// Everything that the server has to know about a kind besides its content.
#[derive(Debug)]
pub struct Row {
    /// Kind as objects carry it.
    pub kind: &'static str,
    /// Plural as paths carry it.
    pub plural: &'static str,
    /// Singular as kubectl accepts it.
    pub singular: &'static str,
    /// Short names that kubectl accepts.
    pub short_names: &'static [&'static str],
    /// Groups of kinds that kubectl expands, such as `all`.
    pub categories: &'static [&'static str],
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Served versions; objects are stored as the first.
    pub served: &'static [Served],
    /// Whether `/status` is a path of its own, which a write to the object does not change.
    pub has_status: bool,
    /// Whether Kubernetes counts `metadata.generation` for this kind.
    pub has_generation: bool,
    /// Whether a PUT without resourceVersion is allowed. Custom resources and leases refuse it.
    pub unconditional_put: bool,
    /// Field selectors besides `metadata.name` and `metadata.namespace`.
    pub fields: &'static [&'static str],
}

/// A kind that the server stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// core/v1 namespaces.
    Namespaces,
    /// core/v1 nodes.
    Nodes,
    /// core/v1 pods.
    Pods,
    /// core/v1 services.
    Services,
    /// core/v1 endpoints.
    Endpoints,
    /// core/v1 and events.k8s.io/v1 events, one store.
    Events,
    /// core/v1 configmaps.
    ConfigMaps,
    /// core/v1 secrets.
    Secrets,
    /// core/v1 serviceaccounts.
    ServiceAccounts,
    /// discovery.k8s.io/v1 endpointslices.
    EndpointSlices,
    /// coordination.k8s.io/v1 leases.
    Leases,
    /// split.smi-spec.io v1alpha1 (stored) and v1alpha2.
    TrafficSplits,
}

const CORE: Served = Served { group: "", version: "v1" };

/// A namespaced core kind; the rows below state only what differs.
const PLAIN: Row = Row {
    kind: "",
    plural: "",
    singular: "",
    short_names: &[],
    categories: &[],
    namespaced: true,
    served: &[CORE],
    has_status: false,
    has_generation: false,
    unconditional_put: true,
    fields: &[],
};

static NAMESPACES: Row = Row {
    kind: "Namespace",
    plural: "namespaces",
    singular: "namespace",
    short_names: &["ns"],
    namespaced: false,
    has_status: true,
    fields: &["status.phase"],
    ..PLAIN
};
static NODES: Row = Row {
    kind: "Node",
    plural: "nodes",
    singular: "node",
    short_names: &["no"],
    namespaced: false,
    has_status: true,
    fields: &["spec.unschedulable"],
    ..PLAIN
};
static PODS: Row = Row {
    kind: "Pod",
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    categories: &["all"],
    has_status: true,
    fields: &["spec.nodeName", "spec.serviceAccountName", "status.phase", "status.podIP"],
    ..PLAIN
};
static SERVICES: Row = Row {
    kind: "Service",
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    categories: &["all"],
    has_status: true,
    fields: &["spec.clusterIP", "spec.type"],
    ..PLAIN
};
static ENDPOINTS: Row =
    Row { kind: "Endpoints", plural: "endpoints", singular: "endpoints", short_names: &["ep"], ..PLAIN };
static EVENTS: Row = Row {
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    served: &[CORE, Served { group: "events.k8s.io", version: "v1" }],
    fields: &[
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "type",
        "reportingComponent",
    ],
    ..PLAIN
};
static CONFIG_MAPS: Row =
    Row { kind: "ConfigMap", plural: "configmaps", singular: "configmap", short_names: &["cm"], ..PLAIN };
static SECRETS: Row = Row { kind: "Secret", plural: "secrets", singular: "secret", fields: &["type"], ..PLAIN };
static SERVICE_ACCOUNTS: Row = Row {
    kind: "ServiceAccount",
    plural: "serviceaccounts",
    singular: "serviceaccount",
    short_names: &["sa"],
    ..PLAIN
};
static ENDPOINT_SLICES: Row = Row {
    kind: "EndpointSlice",
    plural: "endpointslices",
    singular: "endpointslice",
    served: &[Served { group: "discovery.k8s.io", version: "v1" }],
    has_generation: true,
    ..PLAIN
};
static LEASES: Row = Row {
    kind: "Lease",
    plural: "leases",
    singular: "lease",
    served: &[Served { group: "coordination.k8s.io", version: "v1" }],
    unconditional_put: false,
    ..PLAIN
};
static TRAFFIC_SPLITS: Row = Row {
    kind: "TrafficSplit",
    plural: "trafficsplits",
    singular: "trafficsplit",
    short_names: &["ts"],
    served: &[
        Served { group: "split.smi-spec.io", version: "v1alpha1" },
        Served { group: "split.smi-spec.io", version: "v1alpha2" },
    ],
    has_generation: true,
    unconditional_put: false,
    ..PLAIN
};

impl Resource {
    /// Every kind, in the order in which discovery lists them.
    pub const ALL: [Self; 12] = [
        Self::Namespaces,
        Self::Nodes,
        Self::Pods,
        Self::Services,
        Self::Endpoints,
        Self::Events,
        Self::ConfigMaps,
        Self::Secrets,
        Self::ServiceAccounts,
        Self::EndpointSlices,
        Self::Leases,
        Self::TrafficSplits,
    ];

    /// The kind's row of the table.
    #[must_use]
    pub fn row(self) -> &'static Row {
        match self {
            Self::Namespaces => &NAMESPACES,
            Self::Nodes => &NODES,
            Self::Pods => &PODS,
            Self::Services => &SERVICES,
            Self::Endpoints => &ENDPOINTS,
            Self::Events => &EVENTS,
            Self::ConfigMaps => &CONFIG_MAPS,
            Self::Secrets => &SECRETS,
            Self::ServiceAccounts => &SERVICE_ACCOUNTS,
            Self::EndpointSlices => &ENDPOINT_SLICES,
            Self::Leases => &LEASES,
            Self::TrafficSplits => &TRAFFIC_SPLITS,
        }
    }

    /// The version in which objects of this kind are stored.
    #[must_use]
    pub fn stored(self) -> Served {
        self.row().served[0]
    }

    /// `plural` or `plural.group`, as messages of Kubernetes name a resource.
    #[must_use]
    pub fn qualified(self) -> String {
        qualify(self.row().plural, self.stored().group)
    }

    /// `Kind` or `Kind.group`, as messages of Kubernetes name a kind.
    #[must_use]
    pub fn qualified_kind(self) -> String {
        qualify(self.row().kind, self.stored().group)
    }

    /// The kind behind a path's group, version and plural.
    #[must_use]
    pub fn of_path(group: &str, version: &str, plural: &str) -> Option<(Self, Served)> {
        Self::find(|row, served| row.plural == plural && served.group == group && served.version == version)
    }

    /// The kind behind an object's `apiVersion` and `kind`.
    #[must_use]
    pub fn of_kind(api_version: &str, kind: &str) -> Option<(Self, Served)> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        Self::find(|row, served| row.kind == kind && served.group == group && served.version == version)
    }

    fn find(wanted: impl Fn(&Row, &Served) -> bool) -> Option<(Self, Served)> {
        Self::ALL.into_iter().find_map(|resource| {
            let row = resource.row();
            row.served.iter().find(|served| wanted(row, served)).map(|served| (resource, *served))
        })
    }
}

fn qualify(name: &str, group: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
}
