//! Certificates that people really have: of all kinds of keys, wrong ones, and such that are replaced while the pool runs.

use std::sync::Arc;

use diesel_async::RunQueryDsl;
use diesel_replicated::testing::{Authority, Certificate, LocalCluster};
use diesel_replicated::{Builder, ReplicatedPool};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, SignatureAlgorithm,
    date_time_ymd,
};

use crate::support::{blocking, eventually, insert, on};
use crate::tls::{Folder, expect, secure_cluster, try_url, url};

/// A server's certificate that signs itself, as `change` makes it.
fn signs_itself(
    algorithm: &'static SignatureAlgorithm,
    change: impl FnOnce(&mut CertificateParams),
) -> Certificate {
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let mut params = CertificateParams::new(names).unwrap();
    change(&mut params);
    let key = KeyPair::generate_for(algorithm).unwrap();
    let signed = params.self_signed(&key).unwrap();
    Certificate::new(signed.pem(), key.serialize_pem())
}

/// An authority whose parameters a test may choose.
fn issuer(change: impl FnOnce(&mut CertificateParams)) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    change(&mut params);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn issued(
    issuer: &CertifiedIssuer<'static, KeyPair>,
    change: impl FnOnce(&mut CertificateParams),
) -> Certificate {
    let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let signed = params.signed_by(&key, issuer).unwrap();
    Certificate::new(signed.pem(), key.serialize_pem())
}

async fn install(local: &Arc<LocalCluster>, certificate: &Certificate) {
    let certificate = certificate.clone();
    on(local, move |local| {
        local.primary().set_certificate(&certificate).unwrap()
    })
    .await;
}

async fn one() -> Arc<LocalCluster> {
    Arc::new(blocking(|| secure_cluster(0)).await)
}

// rustls 1624, stalwart 3212, pgdog 1457, multigres 986: the hash that binds a login is that of the certificate's
// signature; one without a hash binds nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_kind_of_key_binds_a_login() {
    let local = one().await;
    let port = local.primary().port();
    let of = |algorithm| signs_itself(algorithm, |_| ());
    let pss = Certificate::new(
        include_str!("fixtures/pss.crt"),
        include_str!("fixtures/pss.key"),
    );
    let ed25519 = Certificate::new(
        include_str!("fixtures/ed25519.crt"),
        include_str!("fixtures/ed25519.key"),
    );
    for (name, certificate, binds) in [
        ("ECDSA P-256", of(&rcgen::PKCS_ECDSA_P256_SHA256), true),
        ("ECDSA P-384", of(&rcgen::PKCS_ECDSA_P384_SHA384), true),
        ("ECDSA P-521", of(&rcgen::PKCS_ECDSA_P521_SHA512), true),
        ("RSA SHA-256", of(&rcgen::PKCS_RSA_SHA256), true),
        ("RSA SHA-384", of(&rcgen::PKCS_RSA_SHA384), true),
        ("RSA SHA-512", of(&rcgen::PKCS_RSA_SHA512), true),
        ("RSASSA-PSS SHA-384", pss, true),
        ("Ed25519", ed25519, false),
    ] {
        install(&local, &certificate).await;
        let required = url("app:pencil", "localhost", port, "channel_binding=require");
        match try_url(&required).await {
            Ok(session) => assert!(binds && session.ssl, "{name}"),
            Err(said) => assert!(!binds && said.contains("channel binding"), "{name}: {said}"),
        }
        let preferred = url("app:pencil", "localhost", port, "sslmode=require");
        assert!(try_url(&preferred).await.unwrap().ssl, "{name}");
    }
}

// sqlx 2886, dbx 1655, webpki 29, deno 13350: a certificate of version 1, as `openssl x509 -req` made them.
// tokio-postgres-rustls 23: one that signs itself and lies in the file of roots, as PostgreSQL's manual makes them.
// lib_pq 1164, rustls 184: one without `subjectAltName`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_that_rustls_does_not_like() {
    let local = one().await;
    let port = local.primary().port();
    let folder = Folder::new("disliked");
    let old = Certificate::new(
        include_str!("fixtures/version_1.crt"),
        include_str!("fixtures/version_1.key"),
    );
    let manual = signs_itself(&rcgen::PKCS_ECDSA_P256_SHA256, |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    });
    let nameless = signs_itself(&rcgen::PKCS_ECDSA_P256_SHA256, |params| {
        params.subject_alt_names.clear()
    });
    for (name, certificate, verifies_fully) in [
        ("old", &old, false),
        ("manual", &manual, true),
        ("nameless", &nameless, false),
    ] {
        install(&local, certificate).await;
        let root = folder.write(name, &certificate.chain);
        let of = |parameters: &str| url("app:pencil", "localhost", port, parameters);
        expect(&of("sslmode=require"), Ok(true)).await;
        expect(&of("sslmode=require&channel_binding=require"), Ok(true)).await;
        expect(
            &of(&format!("sslmode=verify-ca&sslrootcert={root}")),
            Ok(true),
        )
        .await;
        let fully = of(&format!("sslmode=verify-full&sslrootcert={root}"));
        if verifies_fully {
            expect(&fully, Ok(true)).await;
        } else {
            expect(&fully, Err(&["TLS failed"])).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_that_are_wrong() {
    let local = one().await;
    let port = local.primary().port();
    let folder = Folder::new("wrong");
    let authority = issuer(|_| ());
    let root = folder.write("root.crt", &authority.pem());
    let past = date_time_ymd(2020, 1, 1);
    let expired = |params: &mut CertificateParams| {
        (params.not_before, params.not_after) = (past, date_time_ymd(2021, 1, 1));
    };
    let early = |params: &mut CertificateParams| {
        (params.not_before, params.not_after) =
            (date_time_ymd(2120, 1, 1), date_time_ymd(2121, 1, 1));
    };
    let own_expired = signs_itself(&rcgen::PKCS_ECDSA_P256_SHA256, expired);
    let own_root = folder.write("own.crt", &own_expired.chain);
    for (certificate, root, words) in [
        (issued(&authority, expired), &root, vec!["expired"]),
        (issued(&authority, early), &root, vec!["not valid yet"]),
        (
            signs_itself(&rcgen::PKCS_ECDSA_P256_SHA256, |_| ()),
            &root,
            vec!["`sslrootcert`"],
        ),
        (own_expired, &own_root, vec!["xpired"]),
    ] {
        install(&local, &certificate).await;
        for mode in ["verify-ca", "verify-full", "require"] {
            let parameters = format!("sslmode={mode}&sslrootcert={root}");
            expect(
                &url("app:pencil", "localhost", port, &parameters),
                Err(&["TLS failed"]),
            )
            .await;
            let said = try_url(&url("app:pencil", "localhost", port, &parameters))
                .await
                .unwrap_err();
            assert!(words.iter().all(|word| said.contains(word)), "{said}");
        }
        // Who does not ask for a trusted one gets in.
        expect(
            &url("app:pencil", "localhost", port, "sslmode=require"),
            Ok(true),
        )
        .await;
    }
}

// rpg 712: a chain of which the server sends only the end; pgjdbc 2481: an authority in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_in_between() {
    let local = one().await;
    let port = local.primary().port();
    let folder = Folder::new("between");
    let top = issuer(|_| ());
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "between");
    let between = CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &top).unwrap();
    let leaf = issued(&between, |_| ());
    let whole = Certificate::new(format!("{}{}", leaf.chain, between.pem()), leaf.key.clone());
    let root = folder.write("root.crt", &top.pem());
    let both = folder.write("both.crt", &format!("{}{}", between.pem(), top.pem()));
    let verify = |root: &str| {
        url(
            "app:pencil",
            "localhost",
            port,
            &format!("sslmode=verify-full&sslrootcert={root}"),
        )
    };
    install(&local, &whole).await;
    expect(&verify(&root), Ok(true)).await;
    install(&local, &leaf).await;
    expect(&verify(&root), Err(&["`sslrootcert`", "those in between"])).await;
    expect(&verify(&both), Ok(true)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_that_were_revoked() {
    let local = one().await;
    let port = local.primary().port();
    let folder = Folder::new("revoked");
    let authority = issuer(|_| ());
    let numbered = |number: u64| {
        move |params: &mut CertificateParams| {
            params.serial_number = Some(SerialNumber::from(number));
        }
    };
    let (good, bad) = (
        issued(&authority, numbered(7)),
        issued(&authority, numbered(8)),
    );
    let list = |year| {
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(8),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(year, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&authority).unwrap().pem().unwrap()
    };
    let root = folder.write("root.crt", &authority.pem());
    let lists = Folder::new("revoked-lists");
    let now = lists.write("now.crl", &list(2124));
    let old = folder.write("old.crl", &list(2025));
    let of = |parameter: &str| {
        url(
            "app:pencil",
            "localhost",
            port,
            &format!("sslmode=verify-full&sslrootcert={root}&{parameter}"),
        )
    };
    let folder_of_lists = format!("sslcrldir={}", lists.path().display());
    install(&local, &good).await;
    expect(&of(&format!("sslcrl={now}")), Ok(true)).await;
    expect(&of(&folder_of_lists), Ok(true)).await;
    // A list that is out of date tells nothing.
    expect(&of(&format!("sslcrl={old}")), Err(&["TLS failed"])).await;
    expect(
        &of(&format!("sslcrl={root}")),
        Err(&["has no list of what was revoked"]),
    )
    .await;
    expect(
        &of("sslcrl=/nowhere.crl"),
        Err(&["`/nowhere.crl` cannot be read"]),
    )
    .await;
    install(&local, &bad).await;
    expect(&of("sslsni=0"), Ok(true)).await;
    expect(&of(&format!("sslcrl={now}")), Err(&["evoked"])).await;
    expect(&of(&folder_of_lists), Err(&["evoked"])).await;
}

// pgx 2201, nosql 110, node-postgres 2618, pgjdbc 2481: certificates that are replaced every few hours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_replaced_while_the_pool_runs() {
    let local = one().await;
    let folder = Folder::new("replaced");
    let (old, new) = (Authority::new().unwrap(), Authority::new().unwrap());
    let root = folder.write("root.crt", &old.pem());
    install(&local, &old.server().unwrap()).await;
    let parameters = format!("sslmode=verify-full&sslrootcert={root}");
    let url = url(
        "app:pencil",
        "localhost",
        local.primary().port(),
        &parameters,
    );
    let builder = || Builder::from_url(&url).unwrap().max_size(5);
    let pool: ReplicatedPool = builder().build().await.unwrap();
    let mut held = pool.get().await.unwrap();
    insert("one").execute(&mut held).await.unwrap();
    // The server has a certificate of another authority, which nobody trusts yet.
    install(&local, &new.server().unwrap()).await;
    assert!(builder().build().await.is_err());
    insert("two").execute(&mut held).await.unwrap();
    // Both are trusted, as they are while one is replaced.
    folder.write("root.crt", &format!("{}{}", old.pem(), new.pem()));
    builder().build().await.unwrap();
    eventually("the running pool opens connections, too", async || {
        let mut conns = Vec::new();
        for number in 0..3 {
            let Ok(mut conn) = pool.get().await else {
                return false;
            };
            let name = format!("many-{number}-{:?}", std::time::Instant::now());
            if conn.begin_and(&name).await.is_err() {
                return false;
            }
            conns.push(conn);
        }
        true
    })
    .await;
}

trait BeginAnd {
    async fn begin_and(&mut self, name: &str) -> diesel::QueryResult<()>;
}

impl BeginAnd for diesel_replicated::ReplicatedConnection {
    /// Holds a server connection, by a transaction that stays open.
    async fn begin_and(&mut self, name: &str) -> diesel::QueryResult<()> {
        crate::support::run(self, "BEGIN").await?;
        insert(name).execute(self).await.map(drop)
    }
}
