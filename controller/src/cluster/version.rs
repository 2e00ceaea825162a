//! Which version of TrafficSplit the server serves.
//!
//! In: the server's discovery. Out: the version to watch and write in. A cluster without the CRD is waited for: linkerd-smi
//! may be installed after us. Deliberately no conversion: the CRD has none either, so an object reads the same in both.

use std::time::Duration;

use kube::Client;
use kube::core::{ApiResource, GroupVersionKind};

use super::retry::Backoff;
use super::watch::Chain;
use crate::clock;
use crate::state::progress::{Progress, Watch};

/// The API group of TrafficSplit.
const GROUP: &str = "split.smi-spec.io";

/// Its resource name.
const PLURAL: &str = "trafficsplits";

/// How long a discovery request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// A version of `split.smi-spec.io` that we speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SplitVersion {
    /// The CRD's storage version: weights are integers or texts.
    V1Alpha1,
    /// Weights are numbers.
    V1Alpha2,
}

impl SplitVersion {
    /// Best first: what is written in the storage version needs no second thought when it is read in the other.
    const PREFERRED: [Self; 2] = [Self::V1Alpha1, Self::V1Alpha2];

    /// Its name in paths.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::V1Alpha1 => "v1alpha1",
            Self::V1Alpha2 => "v1alpha2",
        }
    }

    /// Group and version, as objects name them.
    pub(crate) fn api_version(self) -> String {
        format!("{GROUP}/{}", self.as_str())
    }

    /// For dynamic requests.
    pub(crate) fn resource(self) -> ApiResource {
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, self.as_str(), "TrafficSplit"), PLURAL)
    }

    /// The path of one object.
    pub(crate) fn path(self, namespace: &str, name: &str) -> String {
        format!("/apis/{GROUP}/{}/namespaces/{namespace}/{PLURAL}/{name}", self.as_str())
    }
}

/// Waits until the server serves a version that we speak.
pub(super) async fn negotiate(client: &Client, progress: &Progress) -> SplitVersion {
    let mut backoff = Backoff::new(clock::monotonic().0);
    let mut told = String::new();
    loop {
        let trouble = match ask(client).await {
            Ok(Some(version)) => {
                tracing::info!(version = version.as_str(), "TrafficSplits are served");
                return version;
            }
            Ok(None) => "the TrafficSplit CRD (split.smi-spec.io, v1alpha1 or v1alpha2) is not served: waiting for it"
                .to_owned(),
            Err(error) => error,
        };
        // Once per change: a missing CRD may be missing for days.
        if told != trouble {
            tracing::warn!(error = %trouble, "TrafficSplits cannot be watched yet");
            told.clone_from(&trouble);
        }
        progress.on_trouble(Watch::TrafficSplits, trouble);
        backoff.pause().await;
    }
}

async fn ask(client: &Client) -> Result<Option<SplitVersion>, String> {
    for version in SplitVersion::PREFERRED {
        let api_version = version.api_version();
        match tokio::time::timeout(REQUEST_TIMEOUT, client.list_api_group_resources(&api_version)).await {
            Ok(Ok(list)) if list.resources.iter().any(|resource| resource.name == PLURAL) => return Ok(Some(version)),
            Ok(Ok(_)) => {}
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => {}
            Ok(Err(error)) => return Err(format!("discovery failed: {}", Chain(&error))),
            Err(_) => return Err(format!("discovery had no answer within {REQUEST_TIMEOUT:?}")),
        }
    }
    Ok(None)
}
