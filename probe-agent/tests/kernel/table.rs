//! What each node's kernel sees while application, proxy, pod and node die in turn, as a table: measured here, and compared
//! with the one that is written down in `docs/meshed-pods.md`.

use std::fmt::Write as _;

use probe_agent::kernel::PROXY_UID;

use super::{APP_UID, talk};
use crate::{
    REFUSED, RESET, UNREACHABLE,
    client::Client,
    world::{Counter, SERVER, SERVER6, Space, Sum, World, pause_ms},
};

const PORT: u16 = 8005;

const CLIENT: &str = "198.51.100.2";
const CLIENT6: &str = "2001:db8:1::2";

const WRITTEN: &str = include_str!("../../../docs/meshed-pods.md");

const HEAD: &str = "\
| what died | application's own hop | its proxy's connection | unmeshed client's connection | self-hop | meshed client gets | unmeshed client gets |
| --- | --- | --- | --- | --- | --- | --- |
";

/// A meshed client and an unmeshed one on one node, a meshed server on another, and who counts there.
///
/// Fields are dropped in this order: processes before the probes that look at them, the world last.
struct Mesh {
    app: Client,
    unmeshed: Client,
    client_proxy: Option<Client>,
    server_app: Option<Client>,
    server_proxy: Option<Client>,
    /// The client's node.
    here: Counter,
    /// Of that, only the proxy's sockets.
    proxys: Counter,
    /// The server's node: index 0 everybody's connects, index 1 self-hops.
    there: Counter,
    world: World,
}

impl Mesh {
    fn new() -> Self {
        let mut world = World::new();
        world.add_second_pod();
        for space in [Space::Client, Space::Server] {
            world.redirect(space, PROXY_UID);
        }
        let [mut here, mut proxys, mut there] =
            ["here", "here/pod/proxy", "there"].map(|cgroup| world.probe_of(cgroup));
        for counter in [&mut here, &mut proxys, &mut there] {
            counter.count_patiently(0, SERVER, PORT);
        }
        there.count_self_hops(1, SERVER, PORT);
        let mut mesh = Self {
            app: world.process(Space::Client, "here/pod/app", APP_UID),
            unmeshed: world.process(Space::Second, "here/unmeshed", APP_UID),
            client_proxy: None,
            server_app: None,
            server_proxy: None,
            here,
            proxys,
            there,
            world,
        };
        let mut proxy = mesh.world.process(Space::Client, "here/pod/proxy", PROXY_UID);
        proxy.stand_between(CLIENT, CLIENT6);
        mesh.client_proxy = Some(proxy);
        mesh.start_server_app();
        mesh.start_server_proxy();
        // Before a pod's proxy was seen its application counts as any client: that is another test's matter.
        assert_eq!(talk(&mut mesh.app, SERVER, PORT), "an answer");
        mesh
    }

    fn start_server_app(&mut self) {
        let mut app = self.world.process(Space::Server, "there/pod/app", APP_UID);
        app.serve(PORT);
        self.server_app = Some(app);
    }

    fn start_server_proxy(&mut self) {
        let mut proxy = self.world.process(Space::Server, "there/pod/proxy", PROXY_UID);
        proxy.stand_between(SERVER, SERVER6);
        self.server_proxy = Some(proxy);
    }

    /// What one exchange of the meshed client and one of the unmeshed are counted as, as a row of the table.
    fn row(&mut self, what: &str) -> String {
        let (here, proxys, there) = (settled(&self.here, 0), settled(&self.proxys, 0), settled(&self.there, 0));
        let self_hops = settled(&self.there, 1);
        let meshed_gets = talk(&mut self.app, SERVER, PORT);
        let meshed = settled(&self.here, 0);
        let proxys = less(&settled(&self.proxys, 0), &proxys);
        let own_hop = less(&less(&meshed, &here), &proxys);
        let between = settled(&self.there, 1);
        let unmeshed_gets = talk(&mut self.unmeshed, SERVER, PORT);
        let unmeshed = less(&settled(&self.here, 0), &meshed);
        let self_hop = less(&settled(&self.there, 1), &between);
        if proxys.attempts == 1 {
            assert_eq!(less(&between, &self_hops), self_hop, "the application is asked for either client alike");
        }
        assert_eq!(settled(&self.there, 0), there, "nobody on the server's node dials it but its proxy");
        self.here.check_no_loss();
        self.there.check_no_loss();
        let cells = [&words(&own_hop), &words(&proxys), &words(&unmeshed), &words(&self_hop)];
        let mut row = format!("| {what} |");
        for cell in cells.into_iter().map(String::as_str).chain([meshed_gets, unmeshed_gets]) {
            write!(row, " {cell} |").expect("fits in memory");
        }
        row.push('\n');
        row
    }
}

/// The sum, once all that was begun has ended.
fn settled(counter: &Counter, index: u32) -> Sum {
    // A flow ends after its connect, and its reset or FIN may still be on its way.
    pause_ms(50);
    counter.wait(index, |sum| sum.outstanding == 0)
}

/// What was counted between two sums of settled counters.
fn less(now: &Sum, before: &Sum) -> Sum {
    let by_cause = |now: [u64; 4], before: [u64; 4]| std::array::from_fn(|cause| now[cause] - before[cause]);
    Sum {
        attempts: now.attempts - before.attempts,
        established: now.established - before.established,
        established_late: now.established_late - before.established_late,
        cancelled: now.cancelled - before.cancelled,
        cancelled_late: now.cancelled_late - before.cancelled_late,
        failed: by_cause(now.failed, before.failed),
        failed_late: by_cause(now.failed_late, before.failed_late),
        flows_answered: now.flows_answered - before.flows_answered,
        outstanding: 0,
        outstanding_late: 0,
    }
}

/// How one connection was counted.
#[track_caller]
fn words(sum: &Sum) -> String {
    if *sum == Sum::default() {
        return "not counted".to_owned();
    }
    assert_eq!((sum.attempts, sum.ended()), (1, 1), "one connection is one sample: {sum:?}");
    let late = sum.cancelled_late + sum.established_late + sum.failed_late.iter().sum::<u64>();
    let connect = [
        (sum.established, "established"),
        (sum.failed[REFUSED], "**refused**"),
        (sum.failed[UNREACHABLE], "**unreachable**"),
        (late, "**no answer**"),
    ];
    let flow = [(sum.flows_answered, "answered"), (sum.failed[RESET], "**reset**")];
    let words = connect.into_iter().chain(flow).filter(|(count, _)| *count == 1).map(|(_, word)| word);
    words.collect::<Vec<_>>().join(", ")
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn what_each_kernel_sees_is_what_is_written() {
    let mut mesh = Mesh::new();
    let mut table = HEAD.to_owned();
    table += &mesh.row("nothing");
    mesh.server_app = None;
    table += &mesh.row("server's application");
    mesh.start_server_app();
    mesh.server_proxy = None;
    table += &mesh.row("server's proxy");
    mesh.server_app = None;
    table += &mesh.row("both, the pod lives");
    mesh.start_server_app();
    mesh.start_server_proxy();
    table += &mesh.row("nothing any more");
    mesh.world.cut_node(true);
    table += &mesh.row("server's node, silently");
    mesh.world.cut_node(false);
    mesh.client_proxy = None;
    table += &mesh.row("meshed client's own proxy");
    let mut proxy = mesh.world.process(Space::Client, "here/pod/proxy", PROXY_UID);
    proxy.stand_between(CLIENT, CLIENT6);
    mesh.client_proxy = Some(proxy);
    mesh.world.remove_server();
    table += &mesh.row("server's pod, removed");
    println!("{table}");
    assert!(WRITTEN.contains(&table), "docs/meshed-pods.md says otherwise; measured:\n{table}");
}
