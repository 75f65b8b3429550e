//! What Prometheus reads: `/metrics`.

use std::sync::OnceLock;

use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use diesel_replicated::metrics::BUCKETS;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

/// Installs the recorder of this process. It comes before the pool, so that nothing is missed.
pub(crate) fn record() -> Option<&'static PrometheusHandle> {
    static RECORDER: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    let install = || {
        let builder = PrometheusBuilder::new().set_buckets(&BUCKETS);
        let installed = builder.and_then(PrometheusBuilder::install_recorder);
        installed
            .inspect_err(|error| tracing::warn!(%error, "nothing is recorded"))
            .ok()
    };
    RECORDER.get_or_init(install).as_ref()
}

pub(super) async fn page() -> impl IntoResponse {
    let page = record().map(PrometheusHandle::render).unwrap_or_default();
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], page)
}
