//! `serve`: trained weights behind HTTP.

mod counters;
mod engine;
mod front;
mod openai;
mod page;
mod patient;
pub(crate) mod predictions;
pub(crate) mod texts;

use std::net::{TcpListener, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use candle_core::Device;
use clap::Args;
use serde_json::{Value, json};
use zoo_checkpoint::Error as CheckpointError;
use zoo_training::config::ConfigOf;
use zoo_training::{Error, Recipe};

use crate::arguments::{DeviceName, Json, Precision};
use crate::device::device;
use crate::output::{grouped, print, print_json, program};
use crate::program::Zoo;
use crate::signals::stop_flag;
use crate::weights::{Places, Usable, base_of, parameters, weights};
use engine::{About, Does, Place, Served, ids, work};
use front::{Limits, Shared, Signals};
use openai::{Allowed, now};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Weights, or run directories (their best weights); requests call them by these names, without endings
    #[arg(required = true, value_name = "FILE|RUN")]
    pub(crate) checkpoints: Vec<PathBuf>,
    /// The address to listen at. Beyond this machine (such as 0.0.0.0) a token is needed
    #[arg(long, value_name = "NAME", default_value = "127.0.0.1")]
    pub(crate) host: String,
    /// A name by which a proxy in front is reached; may be given several times
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Vec<String>,
    /// The port to listen at; 0 for any that is free
    #[arg(long, value_name = "N", default_value_t = 8080)]
    pub(crate) port: u16,
    /// What requests have to know (Authorization: Bearer TOKEN); read from the environment's ZOO_TOKEN if it is not given, where others cannot
    /// see it
    #[arg(long, value_name = "TOKEN")]
    pub(crate) token: Option<String>,
    /// The weights that an adapter stands over
    #[arg(long, value_name = "FILE|RUN")]
    pub(crate) base: Option<PathBuf>,
    /// What models that predict were trained on, where the prediction can use it
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Option<PathBuf>,
    /// Texts that are written, or inputs that are predicted from, at once; others wait
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) at_once: u16,
    /// Tokens that a text may have
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_tokens: u32,
    /// MiB that the body of a request may have
    #[arg(long, value_name = "MIB", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) max_body: u16,
    /// Seconds that a request may take
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=86400))]
    pub(crate) timeout: u32,
    #[command(flatten)]
    pub(crate) device: DeviceName,
    #[command(flatten)]
    pub(crate) precision: Precision,
    #[command(flatten)]
    pub(crate) json: Json,
}

/// What a checkpoint is served as.
pub(crate) struct Spec {
    id: String,
    checkpoint: PathBuf,
    base: Option<PathBuf>,
    data: Option<PathBuf>,
    device: Device,
    precision: Precision,
    at_once: usize,
}

/// Loads a checkpoint as one of a model.
pub(crate) type Opener = fn(&Spec) -> anyhow::Result<Opened>;

/// A model that is ready to answer.
pub(crate) struct Opened(Box<dyn Served>);

impl Spec {
    fn read<T: Recipe>(&self) -> anyhow::Result<(Usable<T>, PathBuf)> {
        let values = base_of(self.base.as_deref())?;
        Usable::read(&Places { checkpoint: &self.checkpoint, values: &values, set: &[] }, &self.device)
    }

    /// What is known of it as one of a model.
    fn about<T: Recipe>(&self, config: &ConfigOf<T>, checkpoint: PathBuf, does: Does) -> anyhow::Result<About> {
        let (id, parameters) = (self.id.clone(), parameters::<T>(config)?);
        Ok(About { id, model: T::NAME, summary: T::SUMMARY, checkpoint, parameters, created: now(), does })
    }

    /// Loads it as one of the model that it names, or that knows it.
    fn open(&self, zoo: &Zoo) -> anyhow::Result<Opened> {
        let path = weights(&self.checkpoint)?;
        let shown = path.display();
        let source = zoo_checkpoint::open(&path)?;
        if let Some(name) = source.metadata.get("model").and_then(Value::as_str) {
            let model = zoo.find(name).with_context(|| shown.to_string())?;
            let lacks = || Error::Usage(format!("{shown}: {name} neither writes text nor predicts"));
            return model.serve.ok_or_else(lacks)?(self);
        }
        let mut reason = anyhow!(
            "{shown}: it does not say which model's weights it has: convert it first ({} convert {shown} NEW.safetensors --model NAME)",
            program()
        );
        for open in zoo.models.iter().filter_map(|model| model.serve) {
            match open(self) {
                Ok(opened) => return Ok(opened),
                Err(e) if e.chain().any(|e| matches!(e.downcast_ref(), Some(CheckpointError::Undescribed { .. }))) => {}
                Err(e) => reason = e,
            }
        }
        Err(reason)
    }
}

/// A socket that listens, and the names that requests from this machine call it by; none if it can be reached from others.
fn listener(args: &Arguments, token: Option<&str>) -> anyhow::Result<(TcpListener, Option<Vec<String>>)> {
    let host = args.host.trim_start_matches('[').trim_end_matches(']');
    let unknown = |e| Error::Usage(format!("--host {host}: {e}"));
    let addresses: Vec<_> = (host, args.port).to_socket_addrs().map_err(unknown)?.collect();
    let alone = addresses.iter().all(|address| address.ip().is_loopback());
    if !alone && token.is_none() {
        let said = "without a token everybody who reaches this machine could use it: give --token, or ZOO_TOKEN in the environment";
        return Err(Error::Usage(format!("--host {host}: {said}")).into());
    }
    let listener = TcpListener::bind(&addresses[..]).with_context(|| format!("--host {host} --port {}", args.port))?;
    listener.set_nonblocking(true).context("listening")?;
    let names = ["localhost", "127.0.0.1", "[::1]"].map(String::from).into_iter();
    let names = names.chain([host.to_ascii_lowercase()]).chain(args.name.iter().map(|name| name.to_ascii_lowercase()));
    Ok((listener, alone.then(|| names.collect())))
}

pub(crate) fn run(zoo: &Zoo, args: &Arguments) -> anyhow::Result<ExitCode> {
    let in_environment = || std::env::var_os("ZOO_TOKEN").map(|token| token.to_string_lossy().into_owned());
    let token = args.token.clone().or_else(in_environment);
    if token.as_ref().is_some_and(|token| token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic())) {
        let said = "--token (or ZOO_TOKEN in the environment): expected visible ASCII characters, at least one";
        return Err(Error::Usage(said.into()).into());
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if let Some(name) = args.name.iter().find(|name| name.is_empty() || !name.chars().all(plain)) {
        return Err(Error::Usage(format!("--name {name}: expected the name of a host, such as zoo.example.org")).into());
    }
    let device = device(&args.device.device)?;
    let ids = ids(args)?;
    let (listener, hosts) = listener(args, token.as_deref())?;
    let place = |(checkpoint, id): (&PathBuf, String)| {
        let spec = Spec {
            id,
            checkpoint: checkpoint.clone(),
            base: args.base.clone(),
            data: args.data.clone(),
            device: device.clone(),
            precision: args.precision,
            at_once: args.at_once.into(),
        };
        Place::new(Box::new(move || Ok(spec.open(zoo)?.0)))
    };
    let places = args.checkpoints.iter().zip(ids).map(place).collect::<anyhow::Result<Vec<_>>>()?;
    // From here on a signal ends the server in order.
    let signals = Signals { stop: stop_flag()?, reload: Arc::default() };
    #[cfg(unix)]
    signal_hook::flag::register(signal_hook::consts::SIGHUP, signals.reload.clone())?;
    let shared = Arc::new(Shared::new(places.iter().map(|place| place.about().clone()).collect()));
    let limits = Limits {
        token,
        hosts,
        names: args.name.iter().map(|name| name.to_ascii_lowercase()).collect(),
        body: usize::from(args.max_body) << 20,
        time: Duration::from_secs(args.timeout.into()),
        allowed: Allowed { tokens: args.max_tokens as usize, choices: args.at_once.into() },
    };
    let url = format!("http://{}", listener.local_addr().context("listening")?);
    announce(args, &shared, &url);
    let (sender, orders) = channel();
    let front = {
        let shared = shared.clone();
        std::thread::spawn(move || front::run(listener, shared, limits, sender, &signals))
    };
    work(places, &orders, &shared);
    match front.join() {
        Ok(result) => result.map(|()| ExitCode::SUCCESS),
        Err(_) => bail!("the thread of the connections ended by a mistake of the program"),
    }
}

fn announce(args: &Arguments, shared: &Shared, url: &str) {
    let abouts = shared.abouts();
    if args.json.json {
        print_json(&json!({ "url": url, "models": abouts.iter().map(page::described).collect::<Vec<_>>() }));
        return;
    }
    for about in &abouts {
        let does = match &about.does {
            Does::Write { chat: true, .. } => "writes text and converses",
            Does::Write { .. } => "writes text",
            Does::Predict { .. } => "predicts",
        };
        print(&format!("{}: {}, {} parameters, {does}\n", about.id, about.model, grouped(about.parameters)));
    }
    print(&format!("listening at {url} (Ctrl-C ends it)\n"));
}
