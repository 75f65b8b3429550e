//! Groups that are away, gone, or come back.

use std::time::Duration;

use diesel_replicated::multi_primary::{Finding, GroupStatus};
use diesel_replicated::testing::{LocalGroups, LocalNode};
use diesel_replicated::{Consistency, ErrorExt, MultiPrimaryPool, Outcome};

use crate::support::{SUM, groups, groups_by, number, pool, pool_that_waits, route, rows, write};

/// Akka's documentation (akka-sdk 711) warns that what a lost region wrote last is replicated when it returns, in no order
/// with what was written since.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_lost_group_wrote_last_is_shown_and_never_applied_by_itself() {
    let groups = groups(&["eu", "us"]);
    let pool = pool_that_waits(&groups, "eu", Duration::from_secs(2)).await;
    for key in ["ada", "bob"] {
        pool.place(key, "us").await.unwrap();
        let mut conn = pool.for_key(key).await.unwrap();
        write(&mut conn, i64::try_from(key.len()).unwrap(), "both")
            .await
            .unwrap();
    }
    groups.wait_applied().unwrap();
    // The ocean cable breaks, and then the group goes down.
    for (from, to) in [("us", "eu"), ("eu", "us")] {
        groups.cable(from, to).unwrap().cut();
    }
    let mut conn = pool.for_key("ada").await.unwrap();
    write(&mut conn, 3, "late").await.unwrap();
    write(&mut conn, 4, "late").await.unwrap();
    let near_us = pool_that_waits(&groups, "us", Duration::from_secs(2)).await;
    let mut late = near_us.for_key("ada").await.unwrap();
    write(&mut late, 4, "late").await.unwrap();
    let us = groups.group("us").unwrap();
    us.primary().kill().unwrap();
    let before = rows(
        groups.group("eu").unwrap().primary(),
        "SELECT sum(n) FROM notes",
    );
    let forced = pool.force_move_home("us", "eu").await.unwrap();
    assert_eq!((forced.keys, forced.survivors.len()), (2, 1));
    // A session that has written what is lost is told, rather than shown an older state.
    let error = number(&mut conn, SUM).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotRun);
    let mut fresh = pool.for_key("ada").await.unwrap();
    assert_eq!(number(&mut fresh, SUM).await.unwrap().to_string(), before);
    write(&mut fresh, 3, "new").await.unwrap();
    assert_eq!(route(&fresh).0, "eu");
    comes_back(&groups, &pool).await;
    // Near the group that is back, what it alone has is shown to nobody, and who has written it is told there, too.
    let error = number(&mut late, SUM).await.unwrap_err();
    assert!(
        error.to_string().contains("no group has applied"),
        "{error}"
    );
    for key in [Some("ada"), None] {
        let mut conn = match key {
            Some(key) => near_us.for_key(key).await.unwrap(),
            None => near_us.get().await.unwrap(),
        };
        number(&mut conn, SUM).await.unwrap();
        assert_eq!(route(&conn).0, "eu");
    }
    is_taken_back(&groups, &pool, near_us).await;
}

/// The group that was given up is there again.
async fn comes_back(groups: &LocalGroups, pool: &MultiPrimaryPool) {
    let us = groups.group("us").unwrap();
    us.primary().start().unwrap();
    for (from, to) in [("us", "eu"), ("eu", "us")] {
        groups.cable(from, to).unwrap().heal();
    }
    let home = "SELECT home FROM diesel_replicated.homes WHERE key = 'ada'";
    while rows(us.primary(), home) != "eu" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let late = loop {
        match pool.late_writes("us", "eu").await {
            Ok(late) => break late,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    let told: Vec<_> = late
        .iter()
        .map(|it| (it.kind, it.table.as_str(), it.row[0].1.clone()))
        .collect();
    let row = |id: &str| Some(id.to_owned());
    assert_eq!(
        told,
        [
            ("update", "public.notes", row("3")),
            ("insert", "public.notes", row("4")),
            ("update", "public.notes", row("4"))
        ]
    );
    let eu = groups.group("eu").unwrap().primary();
    assert_eq!(rows(eu, "SELECT count(*) FROM notes WHERE id = 4"), "0");
    let status = pool.check(Duration::from_secs(5)).await;
    let from_us = &status[0].directions[0];
    assert!(!from_us.enabled && from_us.from == "us", "{from_us:?}");
    // Whoever still believes in the old home is refused there.
    let other = pool_that_waits(groups, "us", Duration::from_secs(2)).await;
    // As morphium 371: there is no moment at which a node that is not whole serves reads.
    let mut conn = other.get().await.unwrap();
    number(&mut conn, SUM).await.unwrap();
    assert_eq!(route(&conn).0, "eu");
    let mut conn = other.for_key("ada").await.unwrap();
    write(&mut conn, 5, "ada").await.unwrap();
    assert_eq!(route(&conn).0, "eu");
}

/// By the steps of the guide. Morphium 352 and harper 2193: a node that is copied anew is empty to its readers, or loses in
/// silence what it alone has.
async fn is_taken_back(groups: &LocalGroups, pool: &MultiPrimaryPool, near_us: MultiPrimaryPool) {
    // Nobody who reads there sees that it is empty for a while.
    let reading = tokio::spawn(async move {
        let mut before = 0;
        loop {
            let mut conn = near_us.get().await.unwrap();
            if let Ok(sum) = number(&mut conn, SUM).await {
                assert!(
                    sum >= before,
                    "{sum} after {before} by {:?}",
                    conn.last_route()
                );
                before = sum;
                if route(&conn).0 == "us" {
                    return;
                }
            }
            crate::support::pause().await;
        }
    });
    let [eu, us] = ["eu", "us"].map(|name| groups.primary_of(name).unwrap());
    let subscribe = |to: &LocalNode, from: &str, name: &str, copy: bool| {
        let port = groups.cable(from, name).unwrap().port();
        let sql = format!(
            "CREATE SUBSCRIPTION from_{from} CONNECTION 'host=127.0.0.1 port={port} user=postgres dbname=app' \
             PUBLICATION everything WITH (origin = none, copy_data = {copy}, synchronous_commit = on, slot_name = 'to_{name}')"
        );
        to.sql("app", &sql).unwrap();
    };
    us.sql("app", "DROP SUBSCRIPTION from_eu").unwrap();
    us.sql("app", "TRUNCATE notes, counters, diesel_replicated.homes")
        .unwrap();
    subscribe(us, "eu", "us", true);
    let copies = |it: &Finding| matches!(it, Finding::Copying { .. });
    while findings(&pool.check(Duration::from_secs(5)).await, "us")
        .iter()
        .any(copies)
    {
        crate::support::pause().await;
    }
    eu.sql("app", "DROP SUBSCRIPTION from_us").unwrap();
    subscribe(eu, "us", "eu", false);
    reading.await.unwrap();
    while pool.move_home(["ada"], "us").await.is_err() {
        crate::support::pause().await;
    }
    let mut conn = pool.for_key("ada").await.unwrap();
    write(&mut conn, 6, "ada").await.unwrap();
    assert_eq!(route(&conn).0, "us");
    groups.wait_applied().unwrap();
    let all = "SELECT string_agg(notes::text, ' ' ORDER BY id) FROM notes";
    assert_eq!(rows(us, all), rows(eu, all));
    assert_eq!(rows(us, "SELECT count(*) FROM notes WHERE id = 4"), "0");
}

/// Cosmos's client (azure-cosmos-dotnet-v3 2489) goes on with another region for minutes, or for ever.
#[tokio::test(flavor = "multi_thread")]
async fn reads_stay_near_while_the_home_is_away_and_return_when_the_near_group_was() {
    let groups = groups(&["eu", "us"]);
    let pool = pool_that_waits(&groups, "eu", Duration::from_secs(2)).await;
    pool.place("ada", "us").await.unwrap();
    groups.wait_applied().unwrap();
    let mut conn = pool.for_key("ada").await.unwrap();
    number(&mut conn, SUM).await.unwrap();
    let us = groups.group("us").unwrap();
    for node in us.nodes() {
        node.kill().unwrap();
    }
    for _ in 0..20 {
        number(&mut conn, SUM).await.unwrap();
        assert_eq!(route(&conn).0, "eu");
    }
    for node in us.nodes() {
        node.start().unwrap();
    }
    let eu = groups.group("eu").unwrap();
    for node in eu.nodes() {
        node.kill().unwrap();
    }
    while number(&mut conn, SUM).await.is_err() {
        crate::support::pause().await;
    }
    assert_eq!(route(&conn).0, "us");
    for node in eu.nodes() {
        node.start().unwrap();
    }
    while route(&conn).0 != "eu" {
        crate::support::pause().await;
        number(&mut conn, SUM).await.unwrap();
    }
}

fn findings(status: &[GroupStatus], name: &str) -> Vec<Finding> {
    let mut status = status.iter();
    let status = status.find(|status| status.name == name).unwrap();
    status.findings.clone()
}

/// Row loss and stopped workers that nobody saw: pglogical 31, 40, 210, orioledb 672, pgactive 105.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_as_it_must_be_is_named() {
    let groups = groups(&["eu", "us"]);
    let pool = pool(&groups, "eu").await;
    let eu = groups.group("eu").unwrap().primary();
    let us = groups.group("us").unwrap().primary();
    let status = pool.check(Duration::from_secs(5)).await;
    assert_eq!(status.len(), 2);
    for group in &status {
        assert_eq!(group.error, None);
        assert_eq!(group.findings, []);
        assert!(group.directions[0].enabled && group.directions[0].applies);
    }
    let ddl = "CREATE TABLE numbered (id serial, text text); CREATE UNLOGGED TABLE apart (id int); \
        ALTER PUBLICATION everything SET (publish = 'insert')";
    eu.sql("app", ddl).unwrap();
    us.sql(
        "app",
        "CREATE TABLE numbered (id bigserial PRIMARY KEY, text text)",
    )
    .unwrap();
    us.sql(
        "app",
        "ALTER SUBSCRIPTION from_eu SET (synchronous_commit = off)",
    )
    .unwrap();
    let status = pool.check(Duration::from_secs(5)).await;
    let in_eu = findings(&status, "eu");
    let table = "numbered".to_owned();
    assert!(
        in_eu.contains(&Finding::NoReplicaIdentity(table.clone())),
        "{in_eu:?}"
    );
    let group = "us".to_owned();
    assert!(
        in_eu.contains(&Finding::TableDiffers { table, group }),
        "{in_eu:?}"
    );
    let in_us = findings(&status, "us");
    assert!(in_eu.contains(&Finding::PublishesNotAll("everything".to_owned())));
    eu.sql(
        "app",
        "ALTER PUBLICATION everything SET (publish = 'insert, update, delete, truncate')",
    )
    .unwrap();
    // It came after the subscription.
    let (table, subscription) = ("numbered".to_owned(), "from_eu".to_owned());
    let late = Finding::NotSubscribed {
        table,
        subscription,
    };
    assert!(in_us.contains(&late), "{in_us:?}");
    let commits = Finding::CommitsBeforeDisk("from_eu".to_owned());
    assert!(in_us.contains(&commits), "{in_us:?}");
    sequences_become_disjoint(&groups, &pool, [in_eu, in_us]).await;
    conflicts_are_counted(&groups, &pool).await;
    // A group that is away is named, and the others are told.
    us.kill().unwrap();
    let status = pool.check(Duration::from_secs(2)).await;
    assert!(status[1].error.is_some() && status[0].error.is_none());
}

/// The SQL that is told makes the sequences disjoint.
async fn sequences_become_disjoint(
    groups: &LocalGroups,
    pool: &MultiPrimaryPool,
    found: [Vec<Finding>; 2],
) {
    for (name, found) in ["eu", "us"].into_iter().zip(found) {
        let node = groups.group(name).unwrap().primary();
        for finding in found {
            if let Finding::SequenceCollides(_, sql) = finding {
                node.sql("app", &sql).unwrap();
            }
        }
    }
    let status = pool.check(Duration::from_secs(5)).await;
    let collides = |it: &Finding| matches!(it, Finding::SequenceCollides(..));
    assert!(!findings(&status, "eu").iter().any(collides));
}

/// A row that somebody has written past the pool.
async fn conflicts_are_counted(groups: &LocalGroups, pool: &MultiPrimaryPool) {
    let nodes = ["eu", "us"].map(|name| groups.group(name).unwrap().primary());
    let cables = [("eu", "us"), ("us", "eu")];
    let cables = cables.map(|(from, to)| groups.cable(from, to).unwrap());
    cables.iter().for_each(|cable| cable.cut());
    for node in nodes {
        node.sql("app", "INSERT INTO notes VALUES (7, 'past', 1)")
            .unwrap();
    }
    cables.iter().for_each(|cable| cable.heal());
    let counts = groups.group("eu").unwrap().major_version() >= 18;
    loop {
        let status = pool.check(Duration::from_secs(5)).await;
        let direction = &status[0].directions[0];
        if direction.errors > 0 && (!counts || direction.conflicts.contains_key("insert_exists")) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// patroni 1056 and 1749, `pg_failover_slots` 10, xtdb 5828: a subscription ends with the server that it came from, and nobody
/// notices.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_failover_without_its_slot_keys_do_not_move_and_reads_go_home() {
    let builder = LocalGroups::builder().without_failover_slots();
    let groups = groups_by(builder, &["eu", "us"]);
    let pool = pool_that_waits(&groups, "us", Duration::from_secs(3)).await;
    pool.place("ada", "eu").await.unwrap();
    let mut conn = pool.for_key("ada").await.unwrap();
    write(&mut conn, 1, "ada").await.unwrap();
    groups.wait_applied().unwrap();
    let warned = pool.check(Duration::from_secs(5)).await;
    let slot = Finding::SlotWithoutFailover("to_us".to_owned());
    assert!(findings(&warned, "eu").contains(&slot), "{warned:?}");
    groups.fail_over("eu").unwrap();
    while write(&mut conn, 1, "ada").await.is_err() {
        conn = pool.for_key("ada").await.unwrap();
        crate::support::pause().await;
    }
    assert_eq!(number(&mut conn, SUM).await.unwrap(), 2);
    assert_eq!(route(&conn).0, "eu");
    let error = pool.move_home(["ada"], "us").await.unwrap_err();
    assert!(error.to_string().contains("nothing was moved"), "{error}");
    let status = pool.check(Duration::from_secs(5)).await;
    assert!(!status[1].directions[0].applies, "{status:?}");
}

/// As in cosmos 2489: a process that took no part in the forced move still believes in the group that is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_believes_in_a_lost_group_finds_who_took_over() {
    let groups = groups(&["eu", "us"]);
    let pool = pool_that_waits(&groups, "eu", Duration::from_secs(10)).await;
    let other = pool_that_waits(&groups, "eu", Duration::from_secs(10)).await;
    pool.place("ada", "us").await.unwrap();
    let mut conn = other.for_key("ada").await.unwrap();
    write(&mut conn, 1, "ada").await.unwrap();
    groups.wait_applied().unwrap();
    for node in groups.group("us").unwrap().nodes() {
        node.kill().unwrap();
    }
    pool.force_move_home("us", "eu").await.unwrap();
    let mut conn = other.for_key("ada").await.unwrap();
    while write(&mut conn, 1, "ada").await.is_err() {
        conn = other.for_key("ada").await.unwrap();
        crate::support::pause().await;
    }
    assert_eq!(route(&conn).0, "eu");
    assert_eq!(number(&mut conn, SUM).await.unwrap(), 2);
}

/// Found by histories with failovers, neighbours of spock 46: a subscriber gets a commit that still waits for a synchronous standby, and the
/// primary does not show that yet.
#[tokio::test(flavor = "multi_thread")]
async fn the_home_shows_no_less_than_a_session_has_seen_near_while_commits_wait_for_a_standby() {
    let groups = groups_by(
        LocalGroups::builder().without_failover_slots(),
        &["eu", "us"],
    );
    let pool = pool(&groups, "eu").await;
    pool.place("ada", "us").await.unwrap();
    groups.wait_applied().unwrap();
    let standby = &groups.group("us").unwrap().replicas()[0];
    standby.freeze();
    let mut writer = pool.for_key("ada").await.unwrap();
    let writing = tokio::spawn(async move { write(&mut writer, 1, "ada").await });
    let mut conn = pool.for_key("ada").await.unwrap();
    while number(&mut conn, SUM).await.unwrap() == 0 {
        crate::support::pause().await;
    }
    assert_eq!(route(&conn).0, "eu");
    for _ in 0..2 {
        let strong = &mut conn.with_consistency(Consistency::Strong);
        let error = number(strong, SUM).await.unwrap_err();
        assert!(error.to_string().contains("synchronous"), "{error}");
        assert_eq!(error.outcome(), Outcome::NotRun);
    }
    standby.thaw();
    writing.await.unwrap().unwrap();
    let strong = &mut conn.with_consistency(Consistency::Strong);
    assert_eq!(number(strong, SUM).await.unwrap(), 1);
}

/// Found by histories with failovers: while the group is down, nobody can tell what a session has seen there.
#[tokio::test(flavor = "multi_thread")]
async fn time_does_not_go_back_while_a_group_fails_over_whose_rows_a_session_has_seen() {
    let groups = groups(&["eu", "us"]);
    let pool = pool(&groups, "eu").await;
    pool.place("ada", "us").await.unwrap();
    let mut writer = pool.for_key("ada").await.unwrap();
    write(&mut writer, 1, "ada").await.unwrap();
    groups.wait_applied().unwrap();
    let cable = groups.cable("us", "eu").unwrap();
    cable.cut();
    write(&mut writer, 1, "ada").await.unwrap();
    let mut conn = pool.for_key("ada").await.unwrap();
    assert_eq!(
        number(&mut conn.with_consistency(Consistency::Strong), SUM)
            .await
            .unwrap(),
        2
    );
    let us = groups.group("us").unwrap().primary();
    us.kill().unwrap();
    // The near group would answer at once.
    let fresh = &mut pool.get().await.unwrap();
    assert_eq!(number(fresh, SUM).await.unwrap(), 1);
    let reading = tokio::spawn(async move { (number(&mut conn, SUM).await, conn) });
    // Others are told by now that the primary is down.
    while pool.group("us").unwrap().status().takes_writes {
        crate::support::pause().await;
    }
    us.start().unwrap();
    cable.heal();
    let (seen, _) = reading.await.unwrap();
    assert_eq!(seen.unwrap(), 2);
}

/// xtdb 5828, multigres 1394: with its slots on the standby, a failover of one group is no matter of the others.
#[tokio::test(flavor = "multi_thread")]
async fn a_failover_within_a_group_is_followed_by_the_others() {
    let groups = groups(&["eu", "us"]);
    if groups.group("eu").unwrap().major_version() < 17 {
        return;
    }
    let pool = pool_that_waits(&groups, "us", Duration::from_secs(30)).await;
    for (key, home) in [("ada", "eu"), ("bob", "us")] {
        pool.place(key, home).await.unwrap();
        let mut conn = pool.for_key(key).await.unwrap();
        write(&mut conn, 1, "both").await.unwrap();
    }
    groups.wait_applied().unwrap();
    let session = pool.session();
    let mut conn = session.for_key("ada").await.unwrap();
    write(&mut conn, 2, "ada").await.unwrap();
    let promoted = groups.fail_over("eu").unwrap();
    // A connection whose state was lost with its server says so, and another one is taken.
    while write(&mut conn, 3, "ada").await.is_err() {
        conn = session.for_key("ada").await.unwrap();
        crate::support::pause().await;
    }
    let sum = number(&mut conn, SUM).await.unwrap();
    assert_eq!(sum, 4);
    // It comes to the other group again, and what that writes comes here.
    while route(&conn).0 != "us" {
        crate::support::pause().await;
        assert_eq!(number(&mut conn, SUM).await.unwrap(), sum);
    }
    let mut bob = session.for_key("bob").await.unwrap();
    write(&mut bob, 4, "bob").await.unwrap();
    pool.move_home(["ada"], "us").await.unwrap();
    pool.move_home(["ada", "bob"], "eu").await.unwrap();
    write(&mut bob, 4, "bob").await.unwrap();
    assert_eq!(rows(promoted, SUM), "6");
}
