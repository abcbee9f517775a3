//! A model on the command line: what each verb does with it.

use std::marker::PhantomData;
use std::path::Path;
use std::process::ExitCode;

use zoo_training::health::Profile;
use zoo_training::{Export, Flag, Generate, Import, Predict, Recipe, Tokenize};

use crate::health::Judged;
use crate::verbs::list::{Abilities, Described};
#[cfg(feature = "serve")]
use crate::verbs::serve;
use crate::verbs::{
    adapt, attempt, bench, convert, doctor, eval, export, generate, inspect, list, params, predict, replay, tokenizer,
    train, tune,
};
use crate::weights::fits;

/// A model, as the verbs see it.
///
/// ```
/// # use zoo_training::{Generate, Import, Predict, Recipe};
/// # fn models<A: Predict, B: Generate + Import>() -> [zoo_cli::Model; 2] {
/// use zoo_cli::Model;
/// [Model::of::<A>().predicts().into(), Model::of::<B>().generates().imports().into()]
/// # }
/// ```
pub struct Model {
    pub(crate) name: &'static str,
    /// Flags for keys of its data, and for the options of a prediction.
    pub(crate) data_flags: &'static [Flag],
    pub(crate) predict_flags: &'static [Flag],
    pub(crate) abilities: Abilities,
    pub(crate) profile: fn() -> Profile,
    pub(crate) describe: fn(&Abilities) -> anyhow::Result<Described>,
    pub(crate) params: fn(&params::Arguments) -> anyhow::Result<()>,
    pub(crate) train: fn(&train::Arguments) -> anyhow::Result<ExitCode>,
    pub(crate) tune: fn(&tune::Arguments) -> anyhow::Result<ExitCode>,
    pub(crate) eval: fn(&eval::Arguments) -> anyhow::Result<()>,
    pub(crate) examine: fn(&doctor::Arguments) -> anyhow::Result<()>,
    pub(crate) attempt: fn(&doctor::Arguments, &Path, &Judged) -> anyhow::Result<ExitCode>,
    pub(crate) replay: fn(&replay::Replay) -> anyhow::Result<ExitCode>,
    pub(crate) bisect: fn(&replay::Bisect) -> anyhow::Result<ExitCode>,
    pub(crate) bench: bench::Bench,
    pub(crate) fits: inspect::Fits,
    pub(crate) predict: Option<fn(&predict::Arguments) -> anyhow::Result<()>>,
    pub(crate) generate: Option<fn(&generate::Arguments) -> anyhow::Result<ExitCode>>,
    pub(crate) adapt: Option<convert::Converter>,
    pub(crate) export: Option<fn(&convert::Arguments) -> anyhow::Result<ExitCode>>,
    pub(crate) tokenize: Option<fn(&tokenizer::Action) -> anyhow::Result<()>>,
    #[cfg(feature = "serve")]
    pub(crate) serve: Option<serve::Opener>,
}

/// A model whose abilities are being named.
#[must_use = "a model is of no use before Zoo::model takes it"]
pub struct ModelOf<T> {
    model: Model,
    task: PhantomData<fn() -> T>,
}

impl Model {
    /// A model that is trained, tuned, evaluated, counted, benchmarked and diagnosed.
    pub fn of<T: Recipe>() -> ModelOf<T> {
        let model = Self {
            name: T::NAME,
            data_flags: T::FLAGS,
            predict_flags: &[],
            abilities: Abilities::default(),
            profile: T::health,
            describe: list::describe::<T>,
            params: params::run::<T>,
            train: train::run::<T>,
            tune: tune::run::<T>,
            eval: eval::run::<T>,
            examine: doctor::examine::<T>,
            attempt: attempt::run::<T>,
            replay: replay::replay::<T>,
            bisect: replay::bisect::<T>,
            bench: bench::cases::<T>,
            fits: fits::<T>,
            predict: None,
            generate: None,
            adapt: None,
            export: None,
            tokenize: None,
            #[cfg(feature = "serve")]
            serve: None,
        };
        ModelOf { model, task: PhantomData }
    }
}

impl<T: Predict> ModelOf<T> {
    /// It is applied to new data, too.
    pub fn predicts(mut self) -> Self {
        self.model.abilities.predict = true;
        self.model.predict_flags = <T as Predict>::FLAGS;
        self.model.predict = Some(predict::run::<T>);
        #[cfg(feature = "serve")]
        self.model.serve.get_or_insert(serve::predictions::open::<T>);
        self
    }
}

impl<T: Generate> ModelOf<T> {
    /// It writes text, too.
    pub fn generates(mut self) -> Self {
        self.model.abilities.generate = true;
        self.model.generate = Some(generate::run::<T>);
        #[cfg(feature = "serve")]
        self.model.serve.replace(serve::texts::open::<T>);
        self
    }
}

impl<T: Import> ModelOf<T> {
    /// It takes checkpoints of other programs, and is written as theirs.
    pub fn imports(mut self) -> Self {
        self.model.abilities.imports = T::LAYOUTS.iter().map(|layout| layout.name).collect();
        self.model.adapt = Some(convert::Converter { adapt: adapt::run::<T>, merge: adapt::merge::<T> });
        self
    }
}

impl<T: Export> ModelOf<T> {
    /// It is written as a graph of ONNX's operators, too.
    pub fn exports(mut self) -> Self {
        self.model.abilities.exports = true;
        self.model.export = Some(export::run::<T>);
        self
    }
}

impl<T: Tokenize> ModelOf<T> {
    /// Its tokenizer is a file, which can be trained and used, too.
    pub fn tokenizes(mut self) -> Self {
        self.model.tokenize = Some(tokenizer::run::<T>);
        self
    }
}

impl<T> From<ModelOf<T>> for Model {
    fn from(named: ModelOf<T>) -> Self {
        named.model
    }
}
