//! Nodes by service records, from a name server that this test is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use diesel_replicated::ReplicatedPool;
use diesel_replicated::config::HealthConfig;
use diesel_replicated::discovery::Srv;
use diesel_replicated::status::Degradation;
use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::SRV;
use hickory_proto::rr::{Name, RData, Record};
use parking_lot::Mutex;

use crate::support::{count, eventually, on, own_cluster};

const NAME: &str = "_postgresql._tcp.db.test.";

/// Priority, weight, port and target of each record, and how long they hold.
#[derive(Clone)]
struct Zone {
    records: Vec<(u16, u16, u16, &'static str)>,
    seconds: u32,
}

async fn name_server(zone: Arc<Mutex<Option<Zone>>>) -> SocketAddr {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            let question = Message::from_vec(&buffer[..length]).unwrap();
            let mut answer = Message::new();
            answer
                .set_id(question.id())
                .set_message_type(MessageType::Response)
                .set_recursion_available(true)
                .add_queries(question.queries().to_vec());
            // `None`: it answers nothing.
            let Some(zone) = zone.lock().clone() else {
                continue;
            };
            let asked = question.queries()[0].name().clone();
            if asked.to_ascii() == NAME {
                for (priority, weight, port, target) in zone.records {
                    let target = Name::from_ascii(target).unwrap();
                    let data = RData::SRV(SRV::new(priority, weight, port, target));
                    answer.add_answer(Record::from_rdata(asked.clone(), zone.seconds, data));
                }
            } else {
                answer.set_response_code(ResponseCode::NXDomain);
            }
            let bytes = answer.to_vec().unwrap();
            socket.send_to(&bytes, from).await.unwrap();
        }
    });
    address
}

async fn read_on(pool: &ReplicatedPool) -> String {
    let mut conn = pool.get().await.unwrap();
    count(&mut conn).await;
    conn.last_route().unwrap().node
}

async fn told(pool: &ReplicatedPool, what: &str) {
    eventually(&format!("it is told: {what}"), async || {
        let degraded = pool.status().degraded;
        let mut causes = degraded
            .iter()
            .filter(|d| d.reason == Degradation::Discovery);
        causes.any(|cause| cause.detail.contains(what))
    })
    .await;
}

// go-choria#1167: records are asked for once. servicetalk#1223: one target that cannot be resolved hides the others. A zone
// that is empty for a moment, a name server that is silent, a service that says that it is not there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn service_records_are_followed_with_their_times_and_nonsense_changes_nothing() {
    let local = own_cluster().await;
    let port = |name: &str| local.node(name).unwrap().port();
    let [primary, one, two] = ["primary", "replica-1", "replica-2"].map(port);
    let zone = |records: &[(u16, u16, u16, &'static str)], seconds| Zone {
        records: records.to_vec(),
        seconds,
    };
    let at = "localhost.";
    let first = zone(
        &[(0, 10, primary, at), (0, 10, one, at), (5, 10, two, at)],
        1,
    );
    let now = Arc::new(Mutex::new(Some(first)));
    let records = Srv::new(NAME, "postgres://postgres@/app?sslmode=disable")
        .name_server(name_server(Arc::clone(&now)).await);
    let quick = HealthConfig::default().interval(Duration::from_millis(200));
    let builder = ReplicatedPool::builder().health(quick);
    let pool = builder.discovery(records).build().await.unwrap();
    eventually("all are up", async || crate::support::all_up(&pool)).await;
    let name = |port: u16| format!("localhost:{port}");
    for _ in 0..20 {
        assert_eq!(read_on(&pool).await, name(one));
    }
    let nodes = || pool.status().nodes.len();
    *now.lock() = Some(zone(&[], 1));
    told(&pool, "cannot be had").await;
    *now.lock() = Some(zone(&[(0, 0, 0, ".")], 1));
    told(&pool, "no such service").await;
    *now.lock() = None;
    told(&pool, "cannot be had").await;
    assert_eq!(nodes(), 3);
    // A target that cannot be resolved is a node that is down.
    let last = zone(
        &[
            (0, 0, primary, at),
            (0, 0, two, at),
            (0, 0, 5432, "gone.test."),
        ],
        3600,
    );
    *now.lock() = Some(last);
    eventually("the other one serves", async || {
        read_on(&pool).await == name(two)
    })
    .await;
    assert_eq!(nodes(), 3);
    // Within the hour that these records hold: without a primary they are asked for at once.
    on(&local, |local| {
        local.wait_caught_up().unwrap();
        local.primary().kill().unwrap();
        local.replicas()[0].promote().unwrap();
    })
    .await;
    *now.lock() = Some(zone(&[(0, 0, one, at), (0, 0, two, at)], 3600));
    eventually("the next primary is found", async || {
        pool.status().primary == Some(name(one))
    })
    .await;
}

#[tokio::test]
async fn a_name_without_records_is_told_when_the_pool_is_built() {
    let zone = Zone {
        records: Vec::new(),
        seconds: 1,
    };
    let server = name_server(Arc::new(Mutex::new(Some(zone)))).await;
    let records = |name: &str| Srv::new(name, "postgres://app:hunter2@/app").name_server(server);
    for name in ["_other._tcp.db.test.", NAME] {
        let source = records(name);
        assert!(!format!("{source:?}").contains("hunter2"));
        let built = ReplicatedPool::builder().discovery(source).build().await;
        let error = built.unwrap_err().to_string();
        assert!(error.contains(name.trim_end_matches('.')), "{error}");
    }
}
