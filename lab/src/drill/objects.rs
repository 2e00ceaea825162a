//! What a run has of its own in the API server: a namespace, Services, their slices, splits, as the workshop, Kubernetes
//! and Linkerd's service mirror write them. In: who plays and where they are. Out: objects, and what the nodes translate.
//! Pure: nobody is told here.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde_json::{Value, json};

use crate::drill::scenario::Players;
use crate::drill::shape::{
    APP_PORT, Endpoint, GATEWAY_PORT, PRIMARY_IP, SECONDARY, SECONDARY_IP, STANDBY, WatchedSplit, app_addresses,
    local_name, mirror_name, namespace, service, slice,
};
use crate::load::wire::FIRST_BYTE_ANNOTATION;

/// The ClusterIP of [`STANDBY`], from the documentation range of the others.
const STANDBY_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 12));

/// The west cluster's identity that its gateway proves; nobody asks for it here.
const GATEWAY_IDENTITY: &str = "linkerd-gateway.linkerd-multicluster.serviceaccount.identity.linkerd.cluster.local";

/// Who is where in a run.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// Of all objects.
    pub namespace: &'a str,
    /// Who plays.
    pub players: Players,
    /// Endpoints of the primary, or of the local backends that share them.
    pub local: &'a [Endpoint],
    /// Endpoints of [`STANDBY`].
    pub standby: &'a [Endpoint],
    /// The gateway's address.
    pub gateway: IpAddr,
}

/// A Service with its endpoints.
struct Backend {
    name: String,
    cluster_ip: IpAddr,
    /// The gateway's first byte for it, where it is a mirror.
    mirror: Option<u8>,
    endpoints: Vec<Endpoint>,
}

impl Scene<'_> {
    /// In the order in which they have to be created.
    #[must_use]
    pub fn objects(&self) -> Vec<Value> {
        let mut objects = vec![namespace(self.namespace, &json!({"linkerd.io/inject": "enabled"}))];
        for backend in self.backends() {
            objects.extend(self.service_and_slice(&backend));
        }
        objects.extend(self.splits());
        objects
    }

    /// ClusterIPs and ports, and where the nodes send what is dialled there.
    #[must_use]
    pub fn services(&self) -> Vec<(IpAddr, u16, Vec<SocketAddr>)> {
        let translated = |backend: Backend| {
            let to = match backend.mirror {
                Some(_) => vec![SocketAddr::new(self.gateway, GATEWAY_PORT)],
                None => app_addresses(&backend.endpoints),
            };
            (backend.cluster_ip, APP_PORT, to)
        };
        self.backends().into_iter().map(translated).collect()
    }

    fn backends(&self) -> Vec<Backend> {
        let mut backends = Vec::new();
        for index in 0..self.players.mirrors() {
            let (local_ip, mirror_ip) = cluster_ips(index);
            let local =
                Backend { name: local_name(index), cluster_ip: local_ip, mirror: None, endpoints: self.local.to_vec() };
            let gateway = Endpoint { address: self.gateway, pod: None, place: None };
            let mirror = Backend {
                name: mirror_name(index),
                cluster_ip: mirror_ip,
                mirror: Some(index),
                endpoints: vec![gateway],
            };
            backends.extend([local, mirror]);
        }
        if self.players == Players::OneZone {
            let endpoints = self.standby.to_vec();
            backends.push(Backend { name: STANDBY.to_owned(), cluster_ip: STANDBY_IP, mirror: None, endpoints });
        }
        backends
    }

    fn service_and_slice(&self, backend: &Backend) -> [Value; 2] {
        let mut object = service(self.namespace, &backend.name, backend.cluster_ip);
        let Some(index) = backend.mirror else {
            object["metadata"]["labels"]["mirror.linkerd.io/exported"] = json!("true");
            return [object, slice(self.namespace, &backend.name, "grpc", APP_PORT, &backend.endpoints)];
        };
        let remote = format!("{}.{}.svc.cluster.local", local_name(index), self.namespace);
        object["metadata"]["labels"]["mirror.linkerd.io/mirrored-service"] = json!("true");
        object["metadata"]["labels"]["mirror.linkerd.io/cluster-name"] = json!("west");
        object["metadata"]["annotations"] = json!({
            "mirror.linkerd.io/remote-svc-fq-name": remote, "mirror.linkerd.io/remote-resource-version": "1",
        });
        // The service mirror writes Endpoints; Kubernetes' own mirroring controller makes the slice from them, with
        // their labels and annotations.
        let mut mirrored = slice(self.namespace, &backend.name, "grpc", GATEWAY_PORT, &backend.endpoints);
        mirrored["metadata"]["labels"]["mirror.linkerd.io/mirrored-service"] = json!("true");
        mirrored["metadata"]["labels"]["mirror.linkerd.io/cluster-name"] = json!("west");
        mirrored["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] =
            json!("endpointslicemirroring-controller.k8s.io");
        mirrored["metadata"]["annotations"] = json!({
            FIRST_BYTE_ANNOTATION: index.to_string(),
            "mirror.linkerd.io/remote-svc-fq-name": remote,
            "mirror.linkerd.io/remote-gateway-identity": GATEWAY_IDENTITY,
        });
        [object, mirrored]
    }

    fn splits(&self) -> Vec<Value> {
        let of_pair = |split: WatchedSplit| {
            let mut backends = vec![split.primary.clone(), split.secondary];
            if self.players == Players::OneZone {
                backends.push(SECONDARY.to_owned());
            }
            self.split(&split.name, &split.primary, &backends)
        };
        self.players.splits().into_iter().map(of_pair).collect()
    }

    fn split(&self, name: &str, primary: &str, backends: &[String]) -> Value {
        let weighed =
            backends.iter().map(|backend| json!({"service": backend, "weight": u8::from(backend == primary)}));
        json!({
            "apiVersion": "split.smi-spec.io/v1alpha1", "kind": "TrafficSplit",
            "metadata": {
                "namespace": self.namespace, "name": name,
                "labels": {"failover.linkerd.io/controlled-by": "linkerd-failover"},
                "annotations": {"failover.linkerd.io/primary-service": primary},
            },
            "spec": {"service": name, "backends": weighed.collect::<Vec<_>>()},
        })
    }
}

/// Of a local backend and of its mirror.
fn cluster_ips(index: u8) -> (IpAddr, IpAddr) {
    let ip = |last: u8| IpAddr::V4(Ipv4Addr::new(203, 0, 113, last));
    if index == 0 { (PRIMARY_IP, SECONDARY_IP) } else { (ip(100 + index), ip(150 + index)) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn mk_endpoint(address: &str) -> Endpoint {
        Endpoint { address: address.parse().unwrap(), pod: None, place: None }
    }

    fn mk_scene(players: Players, local: &[Endpoint]) -> Scene<'_> {
        Scene { namespace: "emojivoto", players, local, standby: local, gateway: "198.18.7.4".parse().unwrap() }
    }

    fn of_kind(objects: &[Value], kind: &str) -> Vec<Value> {
        objects.iter().filter(|object| object["kind"] == kind).cloned().collect()
    }

    #[test]
    fn the_split_is_the_workshops() {
        let endpoints = [mk_endpoint("198.18.4.2")];
        let objects = mk_scene(Players::AllOfShape, &endpoints).objects();
        let split = &of_kind(&objects, "TrafficSplit")[0];
        assert_eq!(split["spec"]["service"], "emoji-svc");
        assert_eq!(split["spec"]["backends"][0], json!({"service": "emoji-svc", "weight": 1}));
        assert_eq!(split["spec"]["backends"][1], json!({"service": "emoji-svc-west", "weight": 0}));
        assert_eq!(split["metadata"]["labels"]["failover.linkerd.io/controlled-by"], "linkerd-failover");
        assert_eq!(split["metadata"]["annotations"]["failover.linkerd.io/primary-service"], "emoji-svc");
        assert_eq!(objects.len(), 6);
    }

    #[test]
    fn a_zonal_split_has_a_standby_and_the_mirror() {
        let endpoints = [mk_endpoint("198.18.4.2")];
        let objects = mk_scene(Players::OneZone, &endpoints).objects();
        let backends = of_kind(&objects, "TrafficSplit")[0]["spec"]["backends"].clone();
        let names: Vec<&str> = backends.as_array().unwrap().iter().filter_map(|one| one["service"].as_str()).collect();
        assert_eq!(names, ["emoji-svc", "emoji-svc-standby", "emoji-svc-west"]);
    }

    #[test]
    fn twenty_mirrors_share_a_gateway_and_nothing_else() {
        let endpoints = [mk_endpoint("198.18.4.2")];
        let scene = mk_scene(Players::MirrorsFirst, &endpoints);
        let objects = scene.objects();
        assert_eq!(of_kind(&objects, "Service").len(), 40);
        let splits = of_kind(&objects, "TrafficSplit");
        assert_eq!(splits.len(), 20);
        assert_eq!(splits[1]["spec"]["backends"][0], json!({"service": "emoji-svc-2-west", "weight": 1}));
        assert_eq!(splits[1]["spec"]["service"], "emoji-svc-2");
        assert_eq!(splits[1]["metadata"]["annotations"]["failover.linkerd.io/primary-service"], "emoji-svc-2-west");
        let addresses: BTreeSet<IpAddr> = scene.services().into_iter().map(|(ip, ..)| ip).collect();
        assert_eq!(addresses.len(), 40);
        let bytes: BTreeSet<String> = of_kind(&objects, "EndpointSlice")
            .iter()
            .filter_map(|slice| Some(slice["metadata"]["annotations"][FIRST_BYTE_ANNOTATION].as_str()?.to_owned()))
            .collect();
        assert_eq!(bytes.len(), 20);
    }
}
