//! Orders to be promoted that come late.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use diesel_replicated::config::{HealthConfig, PromotionConfig};
use diesel_replicated::error::PromotionRefusal;
use diesel_replicated::testing::{LocalCluster, LocalNode};
use diesel_replicated::{Error, NodeConfig, ReplicatedPool};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::support::{always, eventually, on, own_cluster};

/// A network that holds back what has the server promote, until it is let go. Like a network, it delivers
/// it though whoever sent it has gone.
#[derive(Default)]
struct Holder {
    held: AtomicBool,
    let_go: Notify,
}

impl Holder {
    async fn before(node: &LocalNode) -> (Arc<Self>, u16) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, target) = (listener.local_addr().unwrap().port(), node.port());
        let holder = Arc::<Self>::default();
        let shared = Arc::clone(&holder);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", target)).await.unwrap();
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, to_server) = server.into_split();
                tokio::spawn(async move {
                    let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
                });
                let shared = Arc::clone(&shared);
                tokio::spawn(async move { shared.pass(&mut from_client, to_server).await });
            }
        });
        (holder, port)
    }

    async fn pass(
        &self,
        from: &mut tokio::net::tcp::OwnedReadHalf,
        mut to: tokio::net::tcp::OwnedWriteHalf,
    ) {
        let mut buffer = vec![0; 1 << 16];
        let mut next = false;
        while let Ok(length) = from.read(&mut buffer).await {
            let text = &buffer[..length];
            let orders = text.windows(10).any(|part| part == b"pg_promote");
            // What is only parsed is not run yet.
            let parses = orders && text[0] == b'P';
            if next || orders && !parses {
                self.held.store(true, Ordering::Release);
                self.let_go.notified().await;
                next = false;
            }
            next |= parses;
            if length == 0 || to.write_all(text).await.is_err() {
                return;
            }
        }
    }

    async fn holds(&self) {
        eventually("the order is on its way", || async {
            self.held.load(Ordering::Acquire)
        })
        .await;
    }
}

/// A pool with the first replica behind a network that holds back what promotes it.
async fn start(timeout: Duration) -> (Arc<LocalCluster>, ReplicatedPool, Arc<Holder>) {
    let local = own_cluster().await;
    let replica = &local.replicas()[0];
    let (holder, port) = Holder::before(replica).await;
    let url = replica
        .url("app")
        .replace(&format!(":{}/", replica.port()), &format!(":{port}/"));
    assert!(url.contains(&port.to_string()), "{url}");
    let node = |node: &LocalNode| NodeConfig::new(node.url("app")).name(node.name().to_owned());
    let pool = ReplicatedPool::builder()
        .primary(node(local.primary()))
        .replica(NodeConfig::new(url).name("replica-1"))
        .replica(node(&local.replicas()[1]))
        .health(HealthConfig::default().timeout(timeout))
        .promotion(PromotionConfig::default().witness_age(Duration::from_millis(300)))
        .build()
        .await
        .unwrap();
    (local, pool, holder)
}

async fn says(local: &Arc<LocalCluster>, question: &'static str) -> bool {
    on(local, move |local| {
        let rows = local.replicas()[0].sql("app", question);
        format!("{:?}", rows.unwrap()).contains("yes")
    })
    .await
}

const FOLLOWS: &str = "SELECT 'yes' FROM pg_stat_wal_receiver WHERE status = 'streaming'";
const IN_RECOVERY: &str = "SELECT 'yes' WHERE pg_is_in_recovery()";

async fn primary_comes_back(local: &Arc<LocalCluster>) {
    on(local, |local| local.primary().start().unwrap()).await;
    eventually("the replica hears of it", || says(local, FOLLOWS)).await;
}

/// Asks for the promotion until the nodes agree to it and the order is on its way.
async fn order(pool: &ReplicatedPool) -> Result<diesel_replicated::status::Promoted, Error> {
    loop {
        match pool.promote("replica-1").await {
            Err(Error::PromotionRefused { reasons })
                if !reasons
                    .iter()
                    .any(|reason| matches!(reason, PromotionRefusal::Outdated { .. })) =>
            {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            other => return other,
        }
    }
}

// patroni/patroni #2787, EnterpriseDB/repmgr #699, EnterpriseDB/repmgr #821: who promotes acts on what was
// true some time ago, beside a primary that has come back.
#[tokio::test]
async fn an_order_that_comes_ten_times_too_late_promotes_nobody() {
    let (local, pool, holder) = start(Duration::from_millis(300)).await;
    on(&local, |local| local.primary().kill().unwrap()).await;
    let ordered = tokio::spawn(async move { order(&pool).await });
    holder.holds().await;
    let given_up = ordered.await.unwrap();
    assert!(
        matches!(given_up, Err(Error::PromotionFailed { .. })),
        "{given_up:?}"
    );
    primary_comes_back(&local).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    holder.let_go.notify_one();
    eventually("the order was read", || async {
        local.replicas()[0].log().contains("order_is_outdated") || !says(&local, IN_RECOVERY).await
    })
    .await;
    always(
        "it is a standby beside the primary",
        Duration::from_secs(1),
        || async { says(&local, IN_RECOVERY).await },
    )
    .await;
}

#[tokio::test]
async fn an_order_is_void_once_the_replica_hears_of_the_primary_again() {
    // Whoever gave it would wait for long.
    let (local, pool, holder) = start(Duration::from_secs(20)).await;
    on(&local, |local| local.primary().kill().unwrap()).await;
    let ordered = tokio::spawn(async move { order(&pool).await });
    holder.holds().await;
    primary_comes_back(&local).await;
    on(&local, |local| {
        let write = "INSERT INTO users (name) VALUES ('heard')";
        local.primary().sql("app", write).unwrap();
    })
    .await;
    holder.let_go.notify_one();
    let refused = ordered.await.unwrap();
    let outdated = |reasons: &[PromotionRefusal]| matches!(reasons, [PromotionRefusal::Outdated { node, .. }] if node == "replica-1");
    assert!(
        matches!(&refused, Err(Error::PromotionRefused { reasons }) if outdated(reasons)),
        "{refused:?}"
    );
    assert!(
        says(&local, IN_RECOVERY).await,
        "promoted beside the primary"
    );
}

#[tokio::test]
async fn an_order_that_comes_a_little_late_is_obeyed() {
    let (local, pool, holder) = start(Duration::from_secs(20)).await;
    on(&local, |local| local.primary().kill().unwrap()).await;
    let ordered = tokio::spawn(async move { order(&pool).await });
    holder.holds().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    holder.let_go.notify_one();
    let promoted = ordered.await.unwrap().unwrap();
    assert_eq!(promoted.node, "replica-1");
}
