//! Services and EndpointSlices with only the fields that the agent reads. Pure.
//!
//! A page of 500 full objects takes several times its own text in memory, most of it managed fields, pod references and
//! topology. What is left out here is also not checked: an object is undecodable only where it matters.

use std::borrow::Cow;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::{Deserialize, Deserializer};

use super::project::SERVICE_NAME;

/// A Service's addresses and ports.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct SlimService {
    #[serde(deserialize_with = "metadata")]
    metadata: ObjectMeta,
    #[serde(default)]
    pub(super) spec: SlimSpec,
}

/// What a Service says of itself.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SlimSpec {
    #[serde(rename = "clusterIP")]
    pub(super) cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    pub(super) cluster_ips: Option<Vec<String>>,
    pub(super) ports: Option<Vec<SlimPort>>,
}

/// An EndpointSlice's addresses and ports.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct SlimSlice {
    #[serde(deserialize_with = "metadata")]
    metadata: ObjectMeta,
    pub(super) endpoints: Option<Vec<SlimEndpoint>>,
    pub(super) ports: Option<Vec<SlimPort>>,
}

/// One endpoint: all of its addresses lead to the same Pod.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SlimEndpoint {
    pub(super) addresses: Vec<String>,
    pub(super) node_name: Option<String>,
}

/// A port of either.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct SlimPort {
    pub(super) name: Option<String>,
    pub(super) port: Option<i32>,
    pub(super) protocol: Option<String>,
}

/// Names, the resource version that a watch goes on from, and the one label that matters.
fn metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Slim {
        name: Option<String>,
        namespace: Option<String>,
        resource_version: Option<String>,
        labels: Option<Labels>,
    }
    #[derive(Deserialize)]
    struct Labels {
        #[serde(rename = "kubernetes.io/service-name")]
        service: Option<String>,
    }
    let Slim { name, namespace, resource_version, labels } = Slim::deserialize(deserializer)?;
    let service = labels.and_then(|labels| labels.service);
    let labels = service.map(|service| [(SERVICE_NAME.to_owned(), service)].into());
    Ok(ObjectMeta { name, namespace, resource_version, labels, ..ObjectMeta::default() })
}

/// The same kind of object, in the eyes of the API.
macro_rules! is_a {
    ($slim:ty, $full:ty) => {
        impl Resource for $slim {
            type DynamicType = ();
            type Scope = NamespaceResourceScope;

            fn kind((): &()) -> Cow<'_, str> {
                <$full as Resource>::kind(&())
            }

            fn group((): &()) -> Cow<'_, str> {
                <$full as Resource>::group(&())
            }

            fn version((): &()) -> Cow<'_, str> {
                <$full as Resource>::version(&())
            }

            fn plural((): &()) -> Cow<'_, str> {
                <$full as Resource>::plural(&())
            }

            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

is_a!(SlimService, Service);
is_a!(SlimSlice, EndpointSlice);
