//! Two places with an ocean between them: a group of servers in each, and a pool near each.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use diesel_replicated::multi_primary::setup_sql;
use diesel_replicated::testing::{ClusterError, LocalGroups, LocalNode};
use diesel_replicated::{Builder, MultiPrimaryPool, NodeConfig};

/// The places.
pub(crate) const PLACES: [&str; 2] = ["eu", "us"];

/// One way over the ocean takes so long.
const OCEAN: Duration = Duration::from_millis(40);

const TABLES: [&str; 3] = [
    include_str!("../../../migrations/2026-01-15-090000_create_users/up.sql"),
    include_str!("../../../migrations/2026-01-15-090001_create_posts/up.sql"),
    include_str!("../../../migrations/2026-01-15-090002_create_comments/up.sql"),
];

/// The servers of both places, and a pool near each.
pub(crate) struct World {
    groups: LocalGroups,
    pools: Vec<MultiPrimaryPool>,
    cut: AtomicBool,
}

impl World {
    pub(crate) async fn start() -> Result<Arc<Self>, super::Failure> {
        let groups = tokio::task::spawn_blocking(servers).await??;
        let mut pools = Vec::new();
        for place in PLACES {
            pools.push(pool(&groups, place).await?);
        }
        let cut = AtomicBool::new(false);
        let world = Self { groups, pools, cut };
        world.people().await?;
        Ok(Arc::new(world))
    }

    /// The pool of a process that runs in this place.
    pub(crate) fn pool(&self, place: &str) -> &MultiPrimaryPool {
        let at = PLACES.iter().position(|name| *name == place);
        &self.pools[at.unwrap_or(0)]
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }

    /// Cuts everything that crosses the ocean, or mends it.
    pub(crate) fn cut(&self, on: bool) {
        self.cut.store(on, Ordering::Release);
        for (from, to) in [(PLACES[0], PLACES[1]), (PLACES[1], PLACES[0])] {
            let clients = self.groups.group(from).into_iter();
            let clients = clients.flat_map(|group| group.nodes());
            let clients = clients.filter_map(|node| node.proxy().ok());
            for proxy in clients.chain(self.groups.cable(from, to)) {
                match on {
                    true => proxy.cut(),
                    false => {
                        proxy.heal();
                        proxy.delay(OCEAN);
                    }
                }
            }
        }
    }

    /// Users with a home each.
    async fn people(&self) -> Result<(), super::Failure> {
        let pool = &self.pools[0];
        for (id, name, home) in [(2, "Ada", "eu"), (4, "Edgar", "eu"), (3, "Grace", "us")] {
            let key = super::key(id);
            pool.place(&key, home).await?;
            let mut conn = pool.for_key(&key).await?;
            super::add_user(&mut conn, id, name).await?;
        }
        Ok(())
    }

    /// Ends the pools and then the servers.
    pub(crate) async fn close(self: Arc<Self>) {
        for pool in &self.pools {
            pool.close(Duration::from_secs(2)).await;
        }
        let _ = tokio::task::spawn_blocking(move || drop(self)).await;
    }
}

fn servers() -> Result<LocalGroups, ClusterError> {
    let mut builder = LocalGroups::builder().database("blog");
    for (number, place) in PLACES.into_iter().enumerate() {
        builder = builder.group(place, 1);
        for table in TABLES {
            builder = builder.schema_of(place, table);
        }
        // Numbers that the other place does not give.
        for table in ["users", "posts", "comments"] {
            let start = 10 + number;
            let disjoint =
                format!("ALTER SEQUENCE {table}_id_seq INCREMENT BY 2 START WITH {start} RESTART");
            builder = builder.schema_of(place, disjoint);
        }
        builder = builder.schema_of(place, setup_sql(place, PLACES[0]));
    }
    let groups = builder.start()?;
    for place in PLACES {
        let nodes = groups
            .group(place)
            .into_iter()
            .flat_map(|group| group.nodes());
        for node in nodes {
            node.proxy()?.delay(OCEAN);
        }
    }
    for (from, to) in [(PLACES[0], PLACES[1]), (PLACES[1], PLACES[0])] {
        if let Some(cable) = groups.cable(from, to) {
            cable.delay(OCEAN);
        }
    }
    Ok(groups)
}

/// A pool near `place`: the other place's servers are reached over the ocean.
async fn pool(groups: &LocalGroups, place: &str) -> Result<MultiPrimaryPool, super::Failure> {
    let mut builder = MultiPrimaryPool::builder()
        .local(place)
        .wait(Duration::from_secs(3));
    for other in PLACES {
        let nodes = groups
            .group(other)
            .into_iter()
            .flat_map(|group| group.nodes());
        let mut pool = Builder::default().failover_wait(Duration::from_secs(3));
        for node in nodes {
            let url = match other == place {
                true => node.url("blog"),
                false => node.proxied_url("blog")?,
            };
            pool = pool.node(NodeConfig::new(url).name(name(other, node)));
        }
        builder = builder.group(other, pool);
    }
    Ok(builder.build().await?)
}

fn name(place: &str, node: &LocalNode) -> String {
    format!("{place}-{}", node.name())
}
