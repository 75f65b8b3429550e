//! Synchronous Diesel in an r2d2 pool, without a runtime of its own.

use std::hint::black_box;

use diesel::connection::LoadConnection;
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::r2d2::{ConnectionManager, Pool, R2D2Connection};
use diesel_async::AsyncPgConnection;
use diesel_async::async_connection_wrapper::AsyncConnectionWrapper;
use diesel_replicated::SyncConnection;

use super::common::items;
use super::contenders::{Contender, SETTLED, WARM_UP, Where};

/// Gets a connection and reads one row, so many times after the first ones.
pub(crate) fn perform(contender: Contender, operations: u64, place: &Where) {
    match contender {
        Contender::SyncR2d2 => {
            read::<AsyncConnectionWrapper<AsyncPgConnection>>(&place.primary, operations);
        }
        _ => read::<SyncConnection>(&ours(place), operations),
    }
}

/// One URL for all. What watches the servers goes by the clock, as for the others.
fn ours(place: &Where) -> String {
    let hosts = place.replicas.split(' ').map(|url| {
        let (_, host) = url.split_once('@').unwrap();
        host.split_once('/').unwrap().0
    });
    let hosts: String = hosts.map(|host| format!(",{host}")).collect();
    let (primary, database) = place.primary.rsplit_once('/').unwrap();
    let seldom = "health_interval=60s&health_timeout=60s";
    format!("{primary}{hosts}/{database}?sslmode=disable&{seldom}")
}

fn read<C>(url: &str, operations: u64)
where
    C: R2D2Connection + LoadConnection<Backend = Pg> + 'static,
{
    let builder = Pool::builder().max_size(1).test_on_check_out(false);
    let pool = builder.build(ConnectionManager::<C>::new(url)).unwrap();
    for number in 0..WARM_UP + operations {
        if number == WARM_UP {
            std::thread::sleep(SETTLED);
        }
        let key = i32::try_from(1 + number * 37 % 1000).unwrap();
        let mut conn = pool.get().unwrap();
        let row = items::table.find(key).get_result(&mut conn);
        black_box::<(i32, String)>(row.unwrap());
    }
}
