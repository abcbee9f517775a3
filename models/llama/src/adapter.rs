//! LoRA's weights beside those of a file that stays as it is.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Error, Result, Tensor, bail};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use zoo_checkpoint::{Description, Source};
use zoo_layers::optim::norm_squared;
use zoo_layers::{Params, Weight};

use crate::config::NAME;
use crate::{Config, Llama, Lora, Tokens, TokensFile, Writer, gguf};

/// What the weights of an adapter keep of the file that they belong to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseFile {
    /// Its name.
    pub file: String,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
}

/// What the weights of an adapter have in place of a tokenizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterFile {
    /// The file that they belong to.
    pub base: BaseFile,
}

/// Weights that stay as they are: in f32, or in the few bits of a GGUF file.
#[derive(Clone, Debug)]
pub struct Base {
    file: AdapterFile,
    config: Config,
    tokens: Tokens,
    weights: BTreeMap<String, Weight>,
}

/// The name of a tensor of LoRA's, taken apart: the map that it stands beside, and `A` or `B`.
#[cfg(feature = "train")]
pub(crate) fn of_lora(name: &str) -> Option<(&str, &str)> {
    let (map, matrix) = name.strip_suffix(".weight")?.rsplit_once(".lora_")?;
    matches!(matrix, "A" | "B").then_some((map, matrix))
}

/// An error with the file's name before it, unless it has it.
pub(crate) fn named(path: &Path) -> impl Fn(Error) -> Error + '_ {
    move |e| {
        let shown = path.display().to_string();
        match e.to_string() {
            // What the reader of files says names them.
            text if text.starts_with(&shown) => e,
            text => Error::msg(format!("{shown}: {text}")),
        }
    }
}

/// Sizes and tokenizer of weights: ours, or a GGUF file's.
///
/// # Errors
/// The file cannot be read, is not a Llama's, or is an adapter's.
#[cfg(feature = "train")]
pub(crate) fn sizes(path: &Path) -> Result<(Config, TokensFile)> {
    let source = zoo_checkpoint::open(path).map_err(Error::wrap)?;
    match Llama::is_gguf(&source) {
        true => {
            let (_, config, tokens) = gguf::header(&source).map_err(named(path))?;
            Ok((config, tokens.file().clone()))
        }
        false => ours(&source),
    }
}

/// Sizes and tokenizer of weights of ours.
fn ours(source: &Source) -> Result<(Config, TokensFile)> {
    let path = &source.path;
    let described = Description::of(source, NAME).map_err(Error::wrap)?;
    let (config, fitted): (Config, Value) = described.read(path).map_err(Error::wrap)?;
    if let Ok(AdapterFile { base: BaseFile { file, .. } }) = serde_json::from_value(fitted.clone()) {
        bail!(
            "{}: it is an adapter of {file:.80?}, not a model: merge the two first (zoo convert {} MERGED.safetensors --model llama --merge \
             --base FILE), or begin a run with it (--base FILE --init-from ADAPTER)",
            path.display(),
            path.display()
        )
    }
    let file = serde_json::from_value(fitted)
        .map_err(|e| Error::msg(format!("{}: the tokenizer in its metadata: {e}", path.display())))?;
    Ok((config, file))
}

impl Base {
    /// Reads weights of ours to `device`, or a GGUF file, which is for the CPU.
    ///
    /// # Errors
    /// The file cannot be read, is not a Llama's, or is itself an adapter's.
    pub fn read(path: &Path, device: &Device) -> Result<Self> {
        let source = zoo_checkpoint::open(path).map_err(Error::wrap)?;
        let (config, tokens, weights) = match Llama::is_gguf(&source) {
            true if !device.is_cpu() => bail!("{}", gguf::on_cpu_alone(path)),
            true => gguf::read(&source).map_err(named(path))?,
            false => {
                let (config, file) = ours(&source)?;
                let tensors = source.read(device).map_err(Error::wrap)?.tensors;
                (config, Tokens::new(file).map_err(named(path))?, plain(tensors).map_err(named(path))?)
            }
        };
        if std::fs::metadata(path).is_ok_and(|file| file.len() != source.file_bytes) {
            bail!(
                "{}: a base of several files: write them as one first (zoo convert {} ONE.safetensors --model llama)",
                path.display(),
                path.display()
            )
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let sha256 = zoo_checkpoint::sha256(path).map_err(Error::wrap)?;
        Ok(Self { file: AdapterFile { base: BaseFile { file: name, sha256 } }, config, tokens, weights })
    }

    /// What an adapter's weights keep of it.
    pub fn file(&self) -> &AdapterFile {
        &self.file
    }

    /// Its tokenizer.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Its sizes, with LoRA.
    pub fn adapted(&self, lora: &Lora) -> Config {
        Config { lora: lora.clone(), ..self.config.clone() }
    }

    /// The model over it whose LoRA `vb` has, which is as `config` says.
    ///
    /// # Errors
    /// Another model's sizes, or no map that LoRA adapts.
    pub fn define(&self, config: &Config, vb: VarBuilder) -> Result<Llama> {
        let of = |config: &Config| serde_json::to_value(config).map_err(Error::wrap);
        let (own, theirs) = (of(&self.adapted(&config.lora))?, of(config)?);
        let differs = own.as_object().into_iter().flatten().find(|(key, value)| theirs.get(key) != Some(value));
        if let Some((key, value)) = differs {
            let expected = theirs.get(key).unwrap_or(&Value::Null);
            bail!("{} is no base of this adapter: its model.{key} is {value}, expected {expected}", self.file.base.file)
        }
        Llama::over(config, self.weights.clone(), vb)
    }

    /// What to know where this is another file than an adapter was trained beside.
    pub fn doubt(&self, trained: &AdapterFile) -> Option<String> {
        let (BaseFile { file, sha256 }, own) = (&trained.base, &self.file.base);
        (*sha256 != own.sha256).then(|| {
            format!(
                "the adapter was trained beside {file:.80} (SHA-256 {sha256:.12}), and this is {} (SHA-256 {:.12}): results are those of \
                 other weights",
                own.file, own.sha256
            )
        })
    }

    /// All weights in f32 with the tensors of an adapter added to them, and the largest distance of a sum from what f64 has, as a share of
    /// the largest element of its matrix.
    ///
    /// # Errors
    /// A tensor that is none of LoRA's, or stands beside no matrix.
    pub fn merged(&self, lora: &Lora, tensors: &BTreeMap<String, Tensor>) -> Result<(Vec<(String, Tensor)>, f64)> {
        let scale = lora.config().scale;
        let (mut worst, mut left) = (0f64, tensors.len());
        let mut all = vec![];
        for (name, weight) in &self.weights {
            let beside = |matrix: &str| {
                let map = name.strip_suffix(".weight")?;
                tensors.get(&format!("{map}.lora_{matrix}.weight"))
            };
            let base = weight.merged()?.to_device(&Device::Cpu)?;
            let merged = match (beside("A"), beside("B")) {
                (Some(a), Some(b)) => {
                    left -= 2;
                    let [base, a, b] = [&base, a, b].map(|t| t.to_device(&Device::Cpu)?.to_dtype(DType::F64));
                    let exact = (base? + (b?.matmul(&a?)? * scale)?)?;
                    let merged = exact.to_dtype(DType::F32)?;
                    let largest = exact.abs()?.max_all()?.to_scalar::<f64>()?;
                    let error = (merged.to_dtype(DType::F64)? - exact)?.abs()?.max_all()?.to_scalar::<f64>()?;
                    worst = worst.max(error / largest.max(f64::MIN_POSITIVE));
                    merged
                }
                _ => base,
            };
            all.push((name.clone(), merged));
        }
        match left {
            0 => Ok((all, worst)),
            n => bail!("{n} tensors of the adapter stand beside no matrix of {}", self.file.base.file),
        }
    }
}

/// Weights in f32 of tensors, whose values are finite.
fn plain(tensors: BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Weight>> {
    let weight = |(name, tensor): (String, Tensor)| {
        let tensor = tensor.to_dtype(DType::F32)?.detach();
        if !norm_squared(&tensor)?.is_finite() {
            bail!("{name} has values that are not finite numbers: the file is damaged, or its training failed")
        }
        Ok((name, Weight::Plain(tensor)))
    };
    tensors.into_iter().map(weight).collect()
}

impl Llama {
    /// Loads an adapter's weights (LoRA) over the weights that they were trained beside: ours, or a GGUF file, on the CPU. Another file of
    /// a model of these sizes is taken, too; then what to know about it is told beside the model.
    ///
    /// # Errors
    /// A file cannot be read, or the two do not fit each other.
    pub fn load_adapted(adapter: &Path, base: &Path, device: &Device) -> Result<(Writer, Option<String>)> {
        let (config, trained, tensors): (Config, AdapterFile, _) =
            Description::open(adapter, NAME, device).map_err(Error::wrap)?;
        let base = Base::read(base, device)?;
        let define = |vb: VarBuilder| base.define(&config, vb);
        let (model, _) = Params::restore(tensors, device, define).map_err(named(adapter))?;
        let doubt = base.doubt(&trained);
        Ok((Writer::new(model, base.tokens, device)?, doubt))
    }
}
