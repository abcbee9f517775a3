//! What is counted, in Prometheus' text.

use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfModel {
    model: String,
}

impl OfModel {
    /// A name may be any file's, and the library writes it as it is.
    fn new(id: &str) -> Self {
        Self { model: id.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n") }
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfRequest {
    path: String,
    code: u16,
}

pub(super) struct Counters {
    registry: Registry,
    requests: Family<OfRequest, Counter>,
    seconds: Histogram,
    batch: Family<OfModel, Histogram>,
    step: Family<OfModel, Histogram>,
    tokens: Family<OfModel, Counter>,
    pub(super) open: Gauge,
    pub(super) reloads: Counter,
    pub(super) failed_reloads: Counter,
}

impl Counters {
    pub(super) fn new() -> Self {
        let mut registry = Registry::with_prefix("zoo");
        let times = || Histogram::new(exponential_buckets(0.001, 2., 16));
        let new = Self {
            requests: Family::default(),
            seconds: times(),
            batch: Family::new_with_constructor(|| Histogram::new(exponential_buckets(1., 2., 8))),
            step: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.0005, 2., 16))),
            tokens: Family::default(),
            open: Gauge::default(),
            reloads: Counter::default(),
            failed_reloads: Counter::default(),
            registry: Registry::default(),
        };
        registry.register("requests", "Requests by path and status", new.requests.clone());
        let help = "Time from a request to the end of its answer";
        registry.register_with_unit("request", help, Unit::Seconds, new.seconds.clone());
        registry.register("batch_size", "Texts or inputs that were computed together", new.batch.clone());
        let help = "Time of a pass over them: a token of each text, or the predictions";
        registry.register_with_unit("step", help, Unit::Seconds, new.step.clone());
        registry.register("written_tokens", "Tokens of texts that ended", new.tokens.clone());
        registry.register("open_requests", "Requests that are being answered", new.open.clone());
        registry.register("reloads", "Checkpoints that were read again", new.reloads.clone());
        registry.register("failed_reloads", "Checkpoints that could not be read again", new.failed_reloads.clone());
        Self { registry, ..new }
    }

    /// A request to one of the known paths was answered.
    pub(super) fn answered(&self, path: &str, code: u16, time: Duration) {
        self.requests.get_or_create(&OfRequest { path: path.into(), code }).inc();
        self.seconds.observe(time.as_secs_f64());
    }

    /// A model computed for so many requests at once.
    pub(super) fn step(&self, id: &str, together: usize, time: Duration) {
        let of = OfModel::new(id);
        self.batch.get_or_create(&of).observe(together as f64);
        self.step.get_or_create(&of).observe(time.as_secs_f64());
    }

    /// A text ended.
    pub(super) fn written(&self, id: &str, tokens: usize) {
        self.tokens.get_or_create(&OfModel::new(id)).inc_by(tokens as u64);
    }

    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
