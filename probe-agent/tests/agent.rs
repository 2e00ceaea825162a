//! The agent against a controller's side of the wire, over real loopback connections: its streams, the binary on a node
//! that cannot count, and (as root, on a kernel with BTF) the binary that counts real connections.

#[path = "agent/blind.rs"]
mod blind;
#[path = "agent/cluster.rs"]
mod cluster;
#[path = "agent/controller.rs"]
mod controller;
#[path = "agent/counting.rs"]
mod counting;
#[path = "agent/frames.rs"]
mod frames;
#[path = "agent/meshed.rs"]
mod meshed;
#[path = "agent/restart.rs"]
mod restart;
#[path = "agent/running.rs"]
mod running;
#[path = "agent/size.rs"]
mod size;
#[path = "agent/uplink.rs"]
mod uplink;
