//! Nodes by service records, from a name server that this test is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use diesel_replicated::config::HealthConfig;
use diesel_replicated::discovery::{Discovery, Srv};
use diesel_replicated::status::Degradation;
use diesel_replicated::{NodeConfig, ReplicatedPool};
use hickory_proto::op::{Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};
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
    serve(move |asked| {
        let zone = zone.lock().clone()?;
        if asked.name().to_ascii() != NAME {
            return Some(Err(ResponseCode::NXDomain));
        }
        let records = zone.records.into_iter();
        let record = |(priority, weight, port, target)| {
            let data = SRV::new(priority, weight, port, name(target));
            Record::from_rdata(asked.name().clone(), zone.seconds, RData::SRV(data))
        };
        Some(Ok(records.map(record).collect()))
    })
    .await
}

/// A name server. `None`: it answers nothing.
async fn serve(
    answer_to: impl Fn(&Query) -> Option<Result<Vec<Record>, ResponseCode>> + Send + 'static,
) -> SocketAddr {
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
            match answer_to(&question.queries()[0]) {
                None => continue,
                Some(Ok(records)) => {
                    answer.add_answers(records);
                }
                Some(Err(code)) => {
                    answer.set_response_code(code);
                }
            }
            let bytes = answer.to_vec().unwrap();
            socket.send_to(&bytes, from).await.unwrap();
        }
    });
    address
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
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

/// A name server with an alias. It tells the records behind the alias with it, if `whole`, and then the address of a server,
/// too, as Consul does.
async fn with_alias(whole: bool) -> SocketAddr {
    let real = name("_postgresql._tcp.real.test.");
    let records = move |target: &str, port| {
        let data = RData::SRV(SRV::new(0, 5, port, name(target)));
        Record::from_rdata(real.clone(), 30, data)
    };
    serve(move |asked| {
        let records = vec![records("db1.test.", 5432), records("db2.test.", 5433)];
        let real = records[0].name().clone();
        let is_alias = asked.name().to_ascii() == NAME;
        let alias = Record::from_rdata(name(NAME), 30, RData::CNAME(CNAME(real.clone())));
        Some(match asked.query_type() {
            RecordType::SRV if is_alias && whole => {
                let address = RData::A(A::new(10, 0, 0, 2));
                let address = Record::from_rdata(name("db2.test."), 30, address);
                Ok([vec![alias], records, vec![address]].concat())
            }
            RecordType::SRV | RecordType::CNAME if is_alias => Ok(vec![alias]),
            RecordType::SRV if *asked.name() == real => Ok(records),
            _ => Err(ResponseCode::NXDomain),
        })
    })
    .await
}

#[tokio::test]
async fn records_behind_an_alias_are_found_whether_they_come_with_it_or_not() {
    let node = |at: &str| NodeConfig::new(format!("postgres://app:hunter2@{at}/app")).weight(5);
    let expected = [node("db1.test:5432"), node("db2.test:5433")];
    for whole in [true, false] {
        let source = Srv::new(NAME, "postgres://app:hunter2@/app");
        let source = source.name_server(with_alias(whole).await);
        let mut found = source.nodes().await.unwrap();
        found.sort_by(|a, b| a.url.cmp(&b.url));
        assert_eq!(found, expected);
    }
}

#[tokio::test]
async fn an_alias_of_itself_ends() {
    let server = serve(|asked| {
        let alias = RData::CNAME(CNAME(asked.name().clone()));
        Some(Ok(vec![Record::from_rdata(
            asked.name().clone(),
            30,
            alias,
        )]))
    });
    let source = Srv::new(NAME, "postgres://app@/app").name_server(server.await);
    let refused = source.nodes().await.unwrap_err().to_string();
    assert!(refused.contains("cannot be had"), "{refused}");
}

async fn source_of(records: &[(u16, u16, u16, &'static str)]) -> Srv {
    let zone = Zone {
        records: records.to_vec(),
        seconds: 3600,
    };
    let server = name_server(Arc::new(Mutex::new(Some(zone)))).await;
    Srv::new(NAME, "postgres://app@/app").name_server(server)
}

// The system's resolver, which looks for the host, takes a name only as the domain name system has it.
#[tokio::test]
async fn an_internationalised_target_stays_as_the_name_system_has_it() {
    let source = source_of(&[(0, 1, 5432, "xn--bcher-kva.test.")]).await;
    let expected = NodeConfig::new("postgres://app@xn--bcher-kva.test:5432/app").weight(1);
    assert_eq!(source.nodes().await.unwrap(), [expected]);
}

#[tokio::test]
async fn records_that_no_pool_takes_are_asked_for_again_before_their_time() {
    let twice = [(0, 1, 5432, "db1.test."), (1, 1, 5432, "db1.test.")];
    let source = source_of(&twice).await;
    let refused = source.nodes().await.unwrap_err().to_string();
    assert!(
        refused.contains("two nodes named `db1.test:5432`"),
        "{refused}"
    );
    let again = tokio::time::timeout(Duration::from_secs(60), source.changed());
    again.await.unwrap();
}
