//! The grounds on which drills take place, and who plays there. In: a ground, and the addresses that a world gave its pods. Out: the world's
//! layout, and the Kubernetes objects that describe the cluster. What a run has of its own is in
//! [`crate::drill::objects`]. Pure: nobody is told here.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde_json::{Value, json};

use crate::drill::args::Shape;
use crate::drill::scenario::Players;
use crate::world::{Layout, NodeSpec, PodSpec};

/// The split, its apex Service and its primary backend: the workshop gives all three one name.
pub const PRIMARY: &str = "emoji-svc";
/// The secondary: the same Service of the other cluster, behind its gateway.
pub const SECONDARY: &str = "emoji-svc-west";
/// A backend in the other zones of the primary's own cluster, where a scenario has one.
pub const STANDBY: &str = "emoji-svc-standby";
/// Splitsecond's own namespace.
pub const SYSTEM_NAMESPACE: &str = "splitsecond";
/// Where applications listen.
pub const APP_PORT: u16 = 8080;
/// Where the gateway takes traffic: the port of Linkerd's.
pub const GATEWAY_PORT: u16 = 4143;
/// Where the gateway tells that it lives: the port of Linkerd's.
pub const GATEWAY_READY_PORT: u16 = 4191;
/// Where the controller takes reports.
pub const INGEST_PORT: u16 = 9443;
/// Where an agent answers.
pub const AGENT_ADMIN_PORT: u16 = 9910;

/// ClusterIPs, from a documentation range that no machine routes.
pub const PRIMARY_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10));
/// See [`PRIMARY_IP`].
pub const SECONDARY_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 11));

const CLIENT_NODES: usize = 3;
const BACKEND_NODES: usize = 3;
const WEST_NODE: &str = "west";
const WEST_ENDPOINTS: usize = 2;

/// What a cluster is built as: all scenarios of a drill take place on the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// One of the two shapes of the command line.
    Shape(Shape),
    /// The pods of that shape's eastern cluster on so many nodes, each both client and backend node. West stays as it
    /// is, but has no agent.
    Nodes(Shape, u32),
}

/// A split that a run watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchedSplit {
    /// In the run's namespace.
    pub name: String,
    /// The backend that it must or must not leave.
    pub primary: String,
    /// Where its traffic goes then.
    pub secondary: String,
}

/// Which pod plays which part, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cast {
    /// They send the load.
    pub clients: Vec<String>,
    /// Endpoints of the primary.
    pub primary: Vec<String>,
    /// Endpoints of the Service that the secondary mirrors.
    pub west: Vec<String>,
    /// The secondary's only endpoint.
    pub gateway: String,
    /// Endpoints of the primary where it is meshed.
    pub meshed: Vec<String>,
    /// Endpoints of the primary where it is in one zone only.
    pub zonal: Vec<String>,
    /// Endpoints of [`STANDBY`], in the other zones.
    pub standby: Vec<String>,
    /// Clients that count in no figure.
    pub bystanders: Vec<String>,
}

/// A ready endpoint as an EndpointSlice tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The pod's address.
    pub address: IpAddr,
    /// The pod: name and uid; none for a mirrored Service.
    pub pod: Option<(String, String)>,
    /// Node and zone; none for a mirrored Service.
    pub place: Option<(String, String)>,
}

impl Ground {
    /// For progress lines.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Shape(shape) => format!("shape {}", shape.name()),
            Self::Nodes(shape, 1) => format!("shape {} on one node", shape.name()),
            Self::Nodes(shape, count) => format!("shape {} on {count} nodes", shape.name()),
        }
    }

    /// Which pod plays which part, where all of them do.
    #[must_use]
    pub fn cast(self) -> Cast {
        match self {
            Self::Shape(shape) | Self::Nodes(shape, _) => shape.cast(),
        }
    }

    /// Nodes and pods for a world.
    #[must_use]
    pub fn layout(self) -> Layout {
        match self {
            Self::Shape(shape) => shape.layout(),
            Self::Nodes(shape, count) => shape.layout_on(count),
        }
    }

    /// Whether a node has an agent, where any has.
    #[must_use]
    pub fn has_agent(self, node: &str) -> bool {
        match self {
            Self::Shape(_) => true,
            Self::Nodes(..) => node != WEST_NODE,
        }
    }
}

impl Cast {
    /// Those of the cast that a scenario wants on the stage.
    #[must_use]
    pub fn only(&self, players: Players) -> Self {
        match players {
            Players::AllOfShape => self.clone(),
            // Endpoints are dealt out to the nodes in turn: the first two are on two of them.
            Players::TwoEndpoints => Self { primary: self.primary.iter().take(2).cloned().collect(), ..self.clone() },
            Players::OneMeshed => Self { primary: self.meshed.iter().take(1).cloned().collect(), ..self.clone() },
            Players::TwoMeshed => Self { primary: self.meshed.clone(), ..self.clone() },
            // Clients are dealt out to the three client nodes in turn, and the first is in the primary's zone.
            Players::OneZone => Self {
                primary: self.zonal.clone(),
                bystanders: self.clients.iter().step_by(CLIENT_NODES).cloned().collect(),
                ..self.clone()
            },
            Players::MirrorsFirst | Players::MirrorsStandBy => self.clone(),
        }
    }
}

impl Players {
    /// The splits of a run, in the order of the report.
    #[must_use]
    pub fn splits(self) -> Vec<WatchedSplit> {
        let split = |name: &str, primary: &str, secondary: &str| WatchedSplit {
            name: name.to_owned(),
            primary: primary.to_owned(),
            secondary: secondary.to_owned(),
        };
        let mirrors = || (0..MIRRORS).map(|index| (local_name(index), mirror_name(index)));
        match self {
            Self::AllOfShape | Self::TwoEndpoints | Self::OneMeshed | Self::TwoMeshed => {
                vec![split(PRIMARY, PRIMARY, SECONDARY)]
            }
            Self::OneZone => vec![split(PRIMARY, PRIMARY, STANDBY)],
            Self::MirrorsFirst => mirrors().map(|(local, mirror)| split(&local, &mirror, &local)).collect(),
            Self::MirrorsStandBy => mirrors().map(|(local, mirror)| split(&local, &local, &mirror)).collect(),
        }
    }

    /// How many Services of west the gateway stands for.
    #[must_use]
    pub fn mirrors(self) -> u8 {
        match self {
            Self::MirrorsFirst | Self::MirrorsStandBy => MIRRORS,
            Self::AllOfShape | Self::TwoEndpoints | Self::OneMeshed | Self::TwoMeshed | Self::OneZone => 1,
        }
    }
}

/// Services mirrored through one gateway, where a scenario has many.
const MIRRORS: u8 = 20;

/// A local Service of many, also the split's and the apex's name: the first is [`PRIMARY`].
#[must_use]
pub fn local_name(index: u8) -> String {
    if index == 0 { PRIMARY.to_owned() } else { format!("{PRIMARY}-{}", index + 1) }
}

/// Its mirror from west: the service mirror appends the cluster's name.
#[must_use]
pub fn mirror_name(index: u8) -> String {
    format!("{}-west", local_name(index))
}

impl Shape {
    /// Pods per client node, and endpoints per backend node; the workshop has one of each in all.
    fn counts(self) -> (usize, usize) {
        match self {
            Self::Standard => (2 * CLIENT_NODES, 2 * BACKEND_NODES),
            Self::Workshop => (1, 1),
        }
    }

    /// Which pod plays which part.
    #[must_use]
    pub fn cast(self) -> Cast {
        let (clients, endpoints) = self.counts();
        let named = |name: &str, count: usize| (1..=count).map(|number| format!("{name}-{number}")).collect();
        Cast {
            clients: named("web", clients),
            primary: named("emoji", endpoints),
            west: named("emoji-west", WEST_ENDPOINTS),
            gateway: "gateway".to_owned(),
            meshed: named("meshed", 2),
            zonal: named("zonal", 2),
            standby: named("standby", BACKEND_NODES - 1),
            bystanders: Vec::new(),
        }
    }

    /// Nodes and pods for a world. Each zone of east has one client node and one backend node. Pods that play in some
    /// scenarios only stand empty in the others.
    #[must_use]
    pub fn layout(self) -> Layout {
        let mut nodes = Vec::new();
        for number in 0..CLIENT_NODES {
            nodes.push(NodeSpec { name: format!("client-{}", number + 1), zone: zone(number) });
        }
        for number in 0..BACKEND_NODES {
            nodes.push(NodeSpec { name: format!("backend-{}", number + 1), zone: zone(number) });
        }
        nodes.push(NodeSpec { name: WEST_NODE.to_owned(), zone: "west-a".to_owned() });
        let cast = self.cast();
        let mut pods = Vec::new();
        let mut place = |name: &String, node: String| {
            pods.push(PodSpec { name: name.clone(), node, uid: pod_uid(name) });
        };
        for (index, name) in cast.clients.iter().enumerate() {
            place(name, format!("client-{}", index % CLIENT_NODES + 1));
        }
        for (index, name) in cast.primary.iter().enumerate() {
            place(name, format!("backend-{}", index % BACKEND_NODES + 1));
        }
        for (index, name) in cast.meshed.iter().enumerate() {
            place(name, format!("backend-{}", index % BACKEND_NODES + 1));
        }
        for name in &cast.zonal {
            place(name, "backend-1".to_owned());
        }
        for (index, name) in cast.standby.iter().enumerate() {
            place(name, format!("backend-{}", index + 2));
        }
        for name in cast.west.iter().chain([&cast.gateway]) {
            place(name, WEST_NODE.to_owned());
        }
        Layout { nodes, pods, ..Layout::default() }
    }

    /// The same pods of east, dealt out in turn to so many nodes.
    fn layout_on(self, count: u32) -> Layout {
        let count = usize::try_from(count).unwrap_or(1).max(1);
        let mut nodes: Vec<NodeSpec> = (0..count)
            .map(|number| NodeSpec { name: format!("node-{}", number + 1), zone: zone(number % 3) })
            .collect();
        nodes.push(NodeSpec { name: WEST_NODE.to_owned(), zone: "west-a".to_owned() });
        let cast = self.cast();
        let east = cast.clients.iter().chain(&cast.primary).chain(&cast.meshed).enumerate();
        let east = east.map(|(turn, name)| (name, format!("node-{}", turn % count + 1)));
        let west = cast.west.iter().chain([&cast.gateway]).map(|name| (name, WEST_NODE.to_owned()));
        let pods = east.chain(west).map(|(name, node)| PodSpec { name: name.clone(), node, uid: pod_uid(name) });
        Layout { pods: pods.collect(), nodes, ..Layout::default() }
    }
}

/// Zones of east: a, b, c.
fn zone(number: usize) -> String {
    format!("east-{}", char::from(b'a' + u8::try_from(number % 26).unwrap_or(0)))
}

/// A uid of the usual form from a name: the first eight bytes of its FNV-1a hash, so that equal shapes have equal uids.
fn pod_uid(name: &str) -> String {
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let (high, low) = (hash >> 32, hash & 0xffff_ffff);
    format!("{high:08x}-{:04x}-4{:03x}-8000-{low:08x}0000", low >> 16, low & 0xfff)
}

/// What stands as long as the cluster: the nodes, and Splitsecond's own namespace and headless Services.
#[must_use]
pub fn cluster_objects(
    controller: IpAddr,
    nodes: &[(String, String, IpAddr)],
    has_agent: impl Fn(&str) -> bool,
) -> Vec<Value> {
    let mut objects = vec![namespace(SYSTEM_NAMESPACE, &json!({}))];
    for (name, zone, address) in nodes {
        objects.push(node(name, zone, *address));
    }
    objects.push(headless("splitsecond-controller", "ingest", INGEST_PORT));
    let replica = Endpoint { address: controller, pod: None, place: None };
    objects.push(slice(SYSTEM_NAMESPACE, "splitsecond-controller", "ingest", INGEST_PORT, &[replica]));
    if nodes.iter().any(|(name, ..)| has_agent(name)) {
        objects.push(headless("splitsecond-agent", "admin", AGENT_ADMIN_PORT));
        let endpoints: Vec<Endpoint> = nodes
            .iter()
            .filter(|(name, ..)| has_agent(name))
            .map(|(name, zone, address)| Endpoint {
                address: *address,
                pod: Some((format!("splitsecond-agent-{name}"), pod_uid(&format!("splitsecond-agent-{name}")))),
                place: Some((name.clone(), zone.clone())),
            })
            .collect();
        objects.push(slice(SYSTEM_NAMESPACE, "splitsecond-agent", "admin", AGENT_ADMIN_PORT, &endpoints));
    }
    objects
}

/// The name of a Service's only slice.
#[must_use]
pub fn slice_name(service: &str) -> String {
    format!("{service}-1")
}

/// Makes every endpoint of a slice ready, or none, as the pods' end does.
pub fn set_ready(slice: &mut Value, ready: bool) {
    if let Some(endpoints) = slice.get_mut("endpoints").and_then(Value::as_array_mut) {
        for endpoint in endpoints {
            endpoint["conditions"] = json!({"ready": ready, "serving": ready, "terminating": !ready});
        }
    }
}

/// Where the primary's applications listen.
#[must_use]
pub fn app_addresses(endpoints: &[Endpoint]) -> Vec<SocketAddr> {
    endpoints.iter().map(|endpoint| SocketAddr::new(endpoint.address, APP_PORT)).collect()
}

pub(super) fn namespace(name: &str, annotations: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "annotations": annotations}})
}

fn node(name: &str, zone: &str, address: IpAddr) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone,
        }},
        "status": {
            "addresses": [{"type": "InternalIP", "address": address}],
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
        },
    })
}

pub(super) fn service(namespace: &str, name: &str, cluster_ip: IpAddr) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": namespace, "name": name, "labels": {"app": PRIMARY}},
        "spec": {
            "type": "ClusterIP", "clusterIP": cluster_ip, "clusterIPs": [cluster_ip], "ipFamilies": ["IPv4"],
            "ports": [{"name": "grpc", "port": APP_PORT, "targetPort": APP_PORT, "protocol": "TCP"}],
        },
    })
}

fn headless(name: &str, port_name: &str, port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": SYSTEM_NAMESPACE, "name": name, "labels": {"app.kubernetes.io/name": name}},
        "spec": {
            "type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"], "ipFamilies": ["IPv4"],
            "ports": [{"name": port_name, "port": port, "targetPort": port, "protocol": "TCP"}],
        },
    })
}

pub(super) fn slice(namespace: &str, service: &str, port_name: &str, port: u16, endpoints: &[Endpoint]) -> Value {
    let entry = |endpoint: &Endpoint| {
        let mut entry = json!({
            "addresses": [endpoint.address],
            "conditions": {"ready": true, "serving": true, "terminating": false},
        });
        if let Some((name, uid)) = &endpoint.pod {
            entry["targetRef"] = json!({"kind": "Pod", "namespace": namespace, "name": name, "uid": uid});
        }
        if let Some((node, zone)) = &endpoint.place {
            entry["nodeName"] = json!(node);
            entry["zone"] = json!(zone);
        }
        entry
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": namespace, "name": slice_name(service), "labels": {
            "kubernetes.io/service-name": service,
            "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        }},
        "addressType": "IPv4",
        "ports": [{"name": port_name, "port": port, "protocol": "TCP"}],
        "endpoints": endpoints.iter().map(entry).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn standard_has_two_clients_and_two_endpoints_on_each_node_of_east() {
        let layout = Shape::Standard.layout();
        let mut pods: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for pod in &layout.pods {
            let plays_always = ["web-", "emoji-", "gateway"].iter().any(|prefix| pod.name.starts_with(prefix));
            if plays_always {
                pods.entry(pod.node.as_str()).or_default().push(&pod.name);
            }
        }
        assert_eq!(layout.nodes.len(), 7);
        for number in 1..=3 {
            assert_eq!(pods[format!("client-{number}").as_str()].len(), 2);
            assert_eq!(pods[format!("backend-{number}").as_str()].len(), 2);
        }
        assert_eq!(pods["west"], ["emoji-west-1", "emoji-west-2", "gateway"]);
    }

    #[test]
    fn the_workshop_has_the_same_nodes_and_one_of_each() {
        let (workshop, standard) = (Shape::Workshop.layout(), Shape::Standard.layout());
        assert_eq!(workshop.nodes, standard.nodes);
        let cast = Shape::Workshop.cast();
        assert_eq!((cast.clients.len(), cast.primary.len(), cast.west.len()), (1, 1, 2));
    }

    #[test]
    fn two_endpoints_are_on_two_nodes() {
        let ground = Ground::Shape(Shape::Standard);
        let cast = ground.cast().only(Players::TwoEndpoints);
        let layout = ground.layout();
        let node_of = |name: &String| layout.pods.iter().find(|pod| pod.name == *name).map(|pod| pod.node.clone());
        let nodes: Vec<_> = cast.primary.iter().map(node_of).collect();
        assert_eq!(nodes, [Some("backend-1".to_owned()), Some("backend-2".to_owned())]);
        assert_eq!((cast.clients.len(), cast.west.len()), (6, 2));
    }

    #[test]
    fn the_meshed_are_on_two_nodes_and_the_zonal_in_one_zone_with_their_bystanders() {
        let ground = Ground::Shape(Shape::Standard);
        let layout = ground.layout();
        let zone_of = |name: &String| {
            let pod = layout.pods.iter().find(|pod| pod.name == *name).expect("a pod of the cast");
            let node = layout.nodes.iter().find(|node| node.name == pod.node).expect("a node of the layout");
            (node.name.as_str(), node.zone.as_str())
        };
        let zones = |names: &[String]| names.iter().map(|name| zone_of(name).1).collect::<Vec<_>>();
        let meshed = ground.cast().only(Players::TwoMeshed).primary;
        assert_eq!(meshed.iter().map(|name| zone_of(name).0).collect::<Vec<_>>(), ["backend-1", "backend-2"]);
        let cast = ground.cast().only(Players::OneZone);
        assert_eq!(zones(&cast.primary), ["east-a", "east-a"]);
        assert_eq!(zones(&cast.standby), ["east-b", "east-c"]);
        assert_eq!(zones(&cast.bystanders), ["east-a", "east-a"]);
        let others: Vec<String> = cast.clients.iter().filter(|name| !cast.bystanders.contains(name)).cloned().collect();
        assert!(zones(&others).iter().all(|zone| *zone != "east-a") && others.len() == 4);
    }

    #[test]
    fn few_nodes_carry_the_same_pods_and_west_has_no_agent() {
        for count in [1, 2, 3, 10] {
            let ground = Ground::Nodes(Shape::Standard, count);
            let layout = ground.layout();
            assert_eq!(layout.nodes.len(), count as usize + 1);
            let cast = ground.cast();
            let on = |node: &str, names: &[String]| {
                layout.pods.iter().filter(|pod| pod.node == node && names.contains(&pod.name)).count()
            };
            let nodes: Vec<&str> = layout.nodes.iter().map(|node| node.name.as_str()).collect();
            for node in nodes.iter().filter(|node| **node != "west") {
                assert!(ground.has_agent(node));
                if count <= 3 {
                    assert_eq!(
                        (on(node, &cast.clients), on(node, &cast.primary)),
                        (6 / count as usize, 6 / count as usize)
                    );
                } else {
                    assert!(on(node, &cast.clients) + on(node, &cast.primary) >= 1, "{node}");
                }
            }
            assert!(!ground.has_agent("west"));
        }
    }

    #[test]
    fn mirrors_come_in_pairs_of_two_names() {
        let first = Players::MirrorsFirst.splits();
        let standby = Players::MirrorsStandBy.splits();
        assert_eq!((first.len(), standby.len()), (20, 20));
        assert_eq!((first[0].name.as_str(), first[0].primary.as_str()), ("emoji-svc", "emoji-svc-west"));
        assert_eq!((first[19].primary.as_str(), first[19].secondary.as_str()), ("emoji-svc-20-west", "emoji-svc-20"));
        assert_eq!(standby[0].primary, "emoji-svc");
    }

    #[test]
    fn uids_differ_and_have_the_usual_form() {
        let layout = Shape::Standard.layout();
        let mut uids: Vec<&str> = layout.pods.iter().map(|pod| pod.uid.as_str()).collect();
        uids.sort_unstable();
        uids.dedup();
        assert_eq!(uids.len(), layout.pods.len());
        for uid in uids {
            let parts: Vec<usize> = uid.split('-').map(str::len).collect();
            assert_eq!(parts, [8, 4, 4, 4, 12], "{uid}");
        }
    }

    #[test]
    fn a_slice_names_pod_node_and_zone_and_can_lose_its_readiness() {
        let endpoint = Endpoint {
            address: "198.18.4.2".parse().unwrap(),
            pod: Some(("emoji-1".into(), "uid-1".into())),
            place: Some(("backend-1".into(), "east-a".into())),
        };
        let ready = slice("ns", PRIMARY, "grpc", APP_PORT, &[endpoint]);
        assert_eq!(ready["endpoints"][0]["targetRef"]["uid"], "uid-1");
        assert_eq!(ready["endpoints"][0]["nodeName"], "backend-1");
        assert_eq!(ready["endpoints"][0]["zone"], "east-a");
        let mut gone = ready.clone();
        set_ready(&mut gone, false);
        assert_eq!(gone["endpoints"][0]["conditions"]["ready"], false);
        assert_eq!(gone["endpoints"][0]["addresses"], ready["endpoints"][0]["addresses"]);
        set_ready(&mut gone, true);
        assert_eq!(gone, ready);
    }

    #[test]
    fn without_agents_nothing_tells_of_agents() {
        let control: IpAddr = "198.51.100.250".parse().unwrap();
        let nodes = [("client-1".to_owned(), "east-a".to_owned(), "198.51.100.1".parse().unwrap())];
        let names = |agents| -> Vec<String> {
            let objects = cluster_objects(control, &nodes, |_| agents);
            objects.iter().map(|object| object["metadata"]["name"].as_str().unwrap_or_default().to_owned()).collect()
        };
        assert!(names(true).contains(&"splitsecond-agent".to_owned()));
        assert!(!names(false).contains(&"splitsecond-agent".to_owned()));
    }
}
