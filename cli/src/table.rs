//! The table of verbs: the name of each, a line of help, its arguments, and what runs it.

use std::path::Path;
use std::process::ExitCode;

use clap::{ArgMatches, Args, Command, FromArgMatches};
use zoo_training::{Error, Flag, RunFiles};

use crate::arguments::{Flags, ModelName, add_flags, given_flags};
use crate::health::Judged;
use crate::model::Model;
#[cfg(not(all(feature = "hub", feature = "man", feature = "serve", feature = "watch")))]
use crate::output::not_built;
use crate::output::{program, version};
use crate::program::Zoo;
use crate::ranks::among_several;
use crate::system;
#[cfg(feature = "hub")]
use crate::verbs::hub;
#[cfg(feature = "man")]
use crate::verbs::man;
#[cfg(feature = "serve")]
use crate::verbs::serve;
#[cfg(feature = "watch")]
use crate::verbs::watch;
use crate::verbs::{
    bench, bench_ops, bench_ranks, completions, convert, doctor, eval, export, generate, inspect, list, new, params,
    predict, replay, report, reproduce, tokenizer, train, tune,
};

/// The arguments of a verb that is not built in.
#[cfg(not(all(feature = "hub", feature = "serve", feature = "watch")))]
#[derive(Args)]
struct Anything {
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    _rest: Vec<std::ffi::OsString>,
}

/// What a verb is.
pub(crate) struct Verb {
    pub(crate) name: &'static str,
    help: &'static str,
    /// Adds its arguments.
    arguments: fn(Command) -> Command,
    /// The flags that it takes from a model.
    flags: fn(&Model) -> Vec<Flag>,
    pub(crate) run: fn(&Zoo, &ArgMatches) -> anyhow::Result<ExitCode>,
}

impl Verb {
    /// A verb without flags of models.
    const fn new<A: Args>(
        name: &'static str,
        help: &'static str,
        run: fn(&Zoo, &ArgMatches) -> anyhow::Result<ExitCode>,
    ) -> Self {
        Self { name, help, arguments: A::augment_args, flags: |_| vec![], run }
    }

    const fn with_flags(mut self, flags: fn(&Model) -> Vec<Flag>) -> Self {
        self.flags = flags;
        self
    }

    pub(crate) fn command(&self, zoo: &Zoo) -> Command {
        let command = add_flags((self.arguments)(Command::new(self.name)), &flags(zoo, self.flags)).about(self.help);
        // What no model of the program can do is not offered; who asks for it is told so.
        let any = |able: fn(&Model) -> bool| zoo.models.iter().any(able);
        match self.name {
            "reproduce" if zoo.experiments.is_empty() => command.hide(true),
            "reproduce" => command.after_help(reproduce::help(&zoo.experiments)),
            "predict" => command.hide(!any(|m| m.predict.is_some())),
            "generate" => command.hide(!any(|m| m.generate.is_some())),
            "tokenizer" => command.hide(!any(|m| m.tokenize.is_some())),
            _ => command,
        }
    }

    /// The flags of the verb that stand for keys of the configuration.
    pub(crate) fn keys(&self, zoo: &Zoo) -> Vec<(&'static str, &'static str)> {
        const OWN: [(&str, &str); 4] = [
            ("data.path", "data"),
            ("data.base", "base"),
            ("train.on_nonfinite", "on-nonfinite"),
            ("train.init_from", "init-from"),
        ];
        let command = self.command(zoo);
        let there = |flag: &str| command.get_arguments().any(|a| a.get_long() == Some(flag));
        let models = zoo.models.iter().flat_map(|m| (self.flags)(m)).map(|f| (f.key, f.name));
        let mut keys: Vec<_> = OWN.into_iter().chain(models).filter(|(_, flag)| there(flag)).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }
}

fn flags(zoo: &Zoo, of: fn(&Model) -> Vec<Flag>) -> Vec<Flags<'_>> {
    zoo.models.iter().map(|m| (m.name, of(m))).collect()
}

fn data_flags(model: &Model) -> Vec<Flag> {
    model.data_flags.to_vec()
}

fn predict_flags(model: &Model) -> Vec<Flag> {
    [model.data_flags, model.predict_flags].concat()
}

fn parsed<A: FromArgMatches>(matches: &ArgMatches) -> anyhow::Result<A> {
    // What clap has checked does not fail here.
    Ok(A::from_arg_matches(matches)?)
}

/// The arguments with the model's flags among them, and the model.
fn with_model<'z, A: FromArgMatches>(
    zoo: &'z Zoo,
    matches: &ArgMatches,
    of: fn(&Model) -> Vec<Flag>,
    name: fn(&mut A) -> &mut ModelName,
) -> anyhow::Result<(&'z Model, A)> {
    let mut args: A = parsed(matches)?;
    let named = name(&mut args);
    let model = zoo.find(&named.model)?;
    named.flags = given_flags(matches, &flags(zoo, of), model.name)?;
    Ok((model, args))
}

fn done(result: anyhow::Result<()>) -> anyhow::Result<ExitCode> {
    result.map(|()| ExitCode::SUCCESS)
}

/// The model that has an ability, or the ones that have it.
fn able<'z, F: Copy>(zoo: &'z Zoo, model: &'z Model, lacks: &str, of: fn(&Model) -> Option<F>) -> anyhow::Result<F> {
    let names = || zoo.models.iter().filter(|m| of(m).is_some()).map(|m| m.name).collect::<Vec<_>>().join(", ");
    let refuse = || {
        let others = match names() {
            none if none.is_empty() => "no model does".into(),
            names => format!("of these models, {names} can"),
        };
        Error::Usage(format!("{} {lacks}; {others}", model.name))
    };
    Ok(of(model).ok_or_else(refuse)?)
}

/// Every verb.
pub(crate) static VERBS: &[Verb] = &[
    Verb::new::<list::Arguments>(
        "list",
        "List models, what they can do, presets, parameter counts and data",
        |zoo, m| {
            let models = zoo.models.iter().map(|model| (model.describe)(&model.abilities));
            list::run(&parsed(m)?, models.collect::<anyhow::Result<_>>()?);
            Ok(ExitCode::SUCCESS)
        },
    ),
    Verb::new::<new::Arguments>(
        "new",
        "Write a crate with a model of your own, which builds and trains at once",
        |_, m| done(new::run(&parsed(m)?)),
    ),
    Verb::new::<params::Arguments>("params", "Count a model's parameters, tensor by tensor", |zoo, m| {
        let args: params::Arguments = parsed(m)?;
        done((zoo.find(&args.model.model)?.params)(&args))
    }),
    Verb::new::<train::Arguments>("train", "Train a model", |zoo, m| {
        let (model, args) = with_model(zoo, m, data_flags, |args: &mut train::Arguments| &mut args.model)?;
        (model.train)(&args)
    })
    .with_flags(data_flags),
    Verb::new::<tune::Arguments>(
        "tune",
        "Train with many settings and rank them, or look for a learning rate",
        |zoo, m| {
            let (model, args) = with_model(zoo, m, data_flags, |args: &mut tune::Arguments| &mut args.model)?;
            (model.tune)(&args)
        },
    )
    .with_flags(data_flags),
    Verb::new::<eval::Arguments>("eval", "Judge trained weights on the test split, beside baselines", |zoo, m| {
        let (model, args) = with_model(zoo, m, data_flags, |args: &mut eval::Arguments| &mut args.model)?;
        done((model.eval)(&args))
    })
    .with_flags(data_flags),
    Verb::new::<predict::Arguments>("predict", "Apply trained weights to new data", |zoo, m| {
        let (model, args) = with_model(zoo, m, predict_flags, |args: &mut predict::Arguments| &mut args.model)?;
        if let (None, Some(_)) = (model.predict, model.generate) {
            let name = model.name;
            let said = format!("{name} has no predict: it writes text ({} generate {name})", program());
            return Err(Error::Usage(said).into());
        }
        done(able(zoo, model, "has no predict", |m| m.predict)?(&args))
    })
    .with_flags(predict_flags),
    Verb::new::<generate::Arguments>("generate", "Write text with trained weights", |zoo, m| {
        let args: generate::Arguments = parsed(m)?;
        able(zoo, zoo.find(&args.model.model)?, "does not write text", |m| m.generate)?(&args)
    }),
    #[cfg(feature = "serve")]
    Verb::new::<serve::Arguments>(
        "serve",
        "Answer requests over HTTP: texts in OpenAI's shapes, predictions as JSON, CSV or pictures",
        |zoo, m| serve::run(zoo, &parsed(m)?),
    ),
    #[cfg(not(feature = "serve"))]
    Verb::new::<Anything>("serve", "Not in this build (it needs the feature serve)", |_, _| {
        Err(not_built("serve", "serve"))
    }),
    Verb::new::<tokenizer::Arguments>(
        "tokenizer",
        "Train a tokenizer on a text, or write a text's tokens as data that memory need not hold",
        |zoo, m| {
            let args: tokenizer::Arguments = parsed(m)?;
            let able = zoo.models.iter().find_map(|model| model.tokenize);
            let lacks = || Error::Usage("no model of this program has a tokenizer of its own".into());
            done(able.ok_or_else(lacks)?(&args.action))
        },
    ),
    Verb::new::<report::Arguments>(
        "report",
        "Write a page about one run or several: curves, judgement, settings",
        |zoo, m| done(report::run(&parsed(m)?, &|name| zoo.profile(name))),
    ),
    Verb::new::<doctor::Arguments>(
        "doctor",
        "Judge a run by its curves and gradients, or a model by one pass: what is wrong and what to try",
        doctor,
    ),
    Verb::new::<replay::Replay>(
        "replay",
        "Compute a run again up to a step, from the checkpoint before it, and show or keep what was there",
        |zoo, m| {
            let args: replay::Replay = parsed(m)?;
            (of_run(zoo, &args.run)?.replay)(&args)
        },
    ),
    Verb::new::<replay::Bisect>(
        "bisect",
        "Find the first step and the first tensor at which two runs part; exit code 1 if they do",
        |zoo, m| {
            let args: replay::Bisect = parsed(m)?;
            let [a, b] = [of_run(zoo, &args.a)?, of_run(zoo, &args.b)?];
            if a.name != b.name {
                let (one, other) = (args.a.display(), args.b.display());
                let said = format!("{one} is a run of {}, {other} of {}: they have nothing in common", a.name, b.name);
                return Err(Error::Usage(said).into());
            }
            (a.bisect)(&args)
        },
    ),
    Verb::new::<reproduce::Arguments>(
        "reproduce",
        "Run an experiment again; its figures beside the published",
        |zoo, m| reproduce::run(&parsed(m)?, &zoo.experiments),
    ),
    Verb::new::<convert::Arguments>(
        "convert",
        "Write a checkpoint in another format, other names, layouts or element types",
        |zoo, m| {
            let args: convert::Arguments = parsed(m)?;
            if export::is_asked_for(&args) {
                let model = zoo.find(&export::model_of(&args)?)?;
                return able(zoo, model, "is not written as a graph", |m| m.export)?(&args);
            }
            let model = args.model.as_deref().map(|name| zoo.find(name)).transpose()?;
            let adapt = model
                .map(|model| able(zoo, model, "takes no checkpoints of other programs", |m| m.adapt))
                .transpose()?;
            convert::run(&args, adapt)
        },
    ),
    Verb::new::<inspect::Inspect>("inspect", "Show what is in a checkpoint of any format", |_, m| {
        done(inspect::inspect(&parsed(m)?))
    }),
    Verb::new::<inspect::Diff>(
        "diff",
        "Compare two checkpoints, tensor by tensor; exit code 1 if they differ",
        |_, m| inspect::diff(&parsed(m)?),
    ),
    Verb::new::<inspect::Verify>(
        "verify",
        "Check a checkpoint: its structure, checksums and values, and whether a model takes it",
        |zoo, m| {
            let args: inspect::Verify = parsed(m)?;
            let fits = args.model.as_deref().map(|name| zoo.find(name).map(|m| m.fits)).transpose()?;
            done(inspect::verify(&args, fits))
        },
    ),
    Verb::new::<inspect::Average>("average", "Write the mean of several checkpoints", |_, m| {
        done(inspect::average(&parsed(m)?))
    }),
    #[cfg(feature = "watch")]
    Verb::new::<watch::Arguments>("watch", "Show runs in the terminal as they go on", |zoo, m| {
        done(watch::run(&parsed(m)?, &|name| zoo.profile(name)))
    }),
    #[cfg(not(feature = "watch"))]
    Verb::new::<Anything>("watch", "Not in this build (it needs the feature watch)", |_, _| {
        Err(not_built("watch", "watch"))
    }),
    #[cfg(feature = "hub")]
    Verb::new::<hub::Pull>(
        "pull",
        "Fetch a checkpoint from the hub, into the cache that Python's tools share",
        |_, m| done(hub::pull(&parsed(m)?)),
    ),
    #[cfg(feature = "hub")]
    Verb::new::<hub::Push>("push", "Put weights, or a run's best ones, on the hub, with a card", |_, m| {
        done(hub::push(&parsed(m)?))
    }),
    #[cfg(not(feature = "hub"))]
    Verb::new::<Anything>("pull", "Not in this build (it needs the feature hub)", |_, _| Err(not_built("pull", "hub"))),
    #[cfg(not(feature = "hub"))]
    Verb::new::<Anything>("push", "Not in this build (it needs the feature hub)", |_, _| Err(not_built("push", "hub"))),
    Verb::new::<bench::Arguments>(
        "bench",
        "Measure step time, inference time and the share of the machine's matmul peak",
        |zoo, m| {
            let args: bench::Arguments = parsed(m)?;
            args.check()?;
            if args.ops {
                return done(bench_ops::run(&args));
            }
            if args.ranks {
                return among_several(|ranks, engine| done(bench_ranks::run(&args, ranks, engine)));
            }
            let models: Vec<&Model> = match args.models.as_slice() {
                [] => zoo.models.iter().collect(),
                names => names.iter().map(|n| zoo.find(n)).collect::<anyhow::Result<_>>()?,
            };
            done(bench::run(&args, &models.iter().map(|m| (m.name, m.bench)).collect::<Vec<_>>()))
        },
    ),
    Verb::new::<completions::Arguments>("completions", "Print a completion script", |zoo, m| {
        completions::run(&parsed(m)?, command(zoo));
        Ok(ExitCode::SUCCESS)
    }),
    #[cfg(feature = "man")]
    Verb::new::<man::Arguments>("man", "Write manual pages", |zoo, m| done(man::run(&parsed(m)?, command(zoo)))),
    #[cfg(not(feature = "man"))]
    Verb::new::<Anything>("man", "Not in this build (it needs the feature man)", |_, _| Err(not_built("man", "man"))),
];

/// The whole command line.
pub(crate) fn command(zoo: &Zoo) -> Command {
    let command = Command::new(zoo.name)
        .version(version())
        .about("Trains, judges and uses models")
        .propagate_version(true)
        .disable_help_subcommand(true)
        .subcommand_required(true)
        .arg_required_else_help(true);
    VERBS.iter().map(|verb| verb.command(zoo)).fold(command, Command::subcommand)
}

/// The model that a run trains.
fn of_run<'z>(zoo: &'z Zoo, run: &Path) -> anyhow::Result<&'z Model> {
    let named = RunFiles::at(run).required()?.model();
    let unknown = || Error::Run(format!("{}: which model it trains is not on record", run.display()));
    zoo.find(&named.ok_or_else(unknown)?)
}

/// Whether the target is a run or a model, and then its judgement.
fn doctor(zoo: &Zoo, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let args: doctor::Arguments = parsed(matches)?;
    if args.system {
        return done(system::run(args.json.json));
    }
    let path = Path::new(&args.target);
    let is_model = zoo.models.iter().any(|m| m.name == args.target);
    match is_model {
        true if args.attempt && !RunFiles::at(path).exist() => {
            Err(Error::Usage(format!("--try is for runs: {} is a model", args.target)).into())
        }
        true if !RunFiles::at(path).exist() => done((zoo.find(&args.target)?.examine)(&args)),
        // Settings belong to a model: the name is wrong.
        _ if args.of_model() => done((zoo.find(&args.target)?.examine)(&args)),
        false if !path.exists() => {
            let names: Vec<&str> = zoo.models.iter().map(|m| m.name).collect();
            let (target, names) = (&args.target, names.join(", "));
            Err(Error::Usage(format!("{target} is neither a run directory nor a model ({names})")).into())
        }
        _ => {
            let judged = Judged::read(path, &|name| zoo.profile(name))?;
            match args.attempt {
                true => (of_run(zoo, path)?.attempt)(&args, path, &judged),
                false => {
                    doctor::of_run(path, args.json.json, &judged);
                    Ok(ExitCode::SUCCESS)
                }
            }
        }
    }
}
