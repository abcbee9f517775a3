use candle_core::{Result, Tensor, bail};
use candle_nn::VarBuilder;

use super::{Dropout, Mode};
use crate::init;
use crate::onnx::{Attribute, Graph, Value};
use crate::ops::{LstmState, LstmWeights, lstm};

/// Sizes of an [`Lstm`].
#[derive(Clone, Copy, Debug)]
pub struct LstmConfig {
    /// Features of a step.
    pub input: usize,
    /// Features of the state.
    pub hidden: usize,
    /// Layers, each reading the outputs of the one below.
    pub layers: usize,
    /// Dropout probability between layers.
    pub dropout: f64,
}

/// A stack of LSTM layers, batch first, with PyTorch's names and initial values (`torch.nn.LSTM`): `weight_ih_l0`,
/// `weight_hh_l0`, `bias_ih_l0`, `bias_hh_l0`, `weight_ih_l1`, …
#[derive(Clone, Debug)]
pub struct Lstm {
    layers: Vec<LstmWeights>,
    dropout: Vec<Dropout>,
}

/// What an [`Lstm`] returns.
#[derive(Clone, Debug)]
pub struct LstmOutput {
    /// The last layer's outputs (batch, time, hidden).
    pub outputs: Tensor,
    /// Every layer's final hidden state (layers, batch, hidden).
    pub h_n: Tensor,
    /// Every layer's final cell state (layers, batch, hidden).
    pub c_n: Tensor,
}

impl Lstm {
    /// Defines the parameters.
    ///
    /// # Errors
    /// No layers.
    pub fn new(config: LstmConfig, vb: VarBuilder) -> Result<Self> {
        let LstmConfig { input, hidden, layers, dropout } = config;
        if layers == 0 {
            bail!("lstm: expected at least one layer")
        }
        let Some(gates) = hidden.checked_mul(4) else { bail!("lstm: {hidden} features are too many") };
        let layer = |l: usize| -> Result<LstmWeights> {
            let get = |dims: &[usize], name: &str| vb.get_with_hints(dims, &format!("{name}_l{l}"), init::lstm(hidden));
            Ok(LstmWeights {
                weight_ih: get(&[gates, if l == 0 { input } else { hidden }], "weight_ih")?,
                weight_hh: get(&[gates, hidden], "weight_hh")?,
                bias_ih: get(&[gates], "bias_ih")?,
                bias_hh: get(&[gates], "bias_hh")?,
            })
        };
        let between = (1..layers).map(|l| Dropout::new(dropout, &format!("{}.dropout_l{l}", vb.prefix()))).collect();
        Ok(Self { layers: (0..layers).map(layer).collect::<Result<_>>()?, dropout: between })
    }

    /// All outputs and final states of `x` (batch, time, input), from a state of zeros.
    pub fn forward(&self, x: &Tensor, mode: Mode) -> Result<LstmOutput> {
        let (outputs, states) = self.run(x, mode, true)?;
        let Some(outputs) = outputs else { bail!("lstm: no outputs") };
        let stack = |part: fn(&LstmState) -> &Tensor| Tensor::stack(&states.iter().map(part).collect::<Vec<_>>(), 0);
        Ok(LstmOutput { outputs, h_n: stack(|s| &s.h)?, c_n: stack(|s| &s.c)? })
    }

    /// Only the last layer's last output (batch, hidden): equal to `outputs[:, -1]`, and cheaper.
    pub fn forward_last(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        match self.run(x, mode, false)?.1.pop() {
            Some(state) => Ok(state.h),
            None => bail!("lstm: no layers"),
        }
    }

    /// [`Lstm::forward`] as nodes of a graph, of `x` (batch, time, input): outputs (batch, time, hidden), and h and c (layers, batch, hidden)
    /// behind the last step. They begin with `state`, of zeros without one.
    ///
    /// # Errors
    /// See [`Graph::parameter`].
    pub fn export(&self, graph: &mut Graph, x: &Value, state: Option<[&Value; 2]>) -> Result<[Value; 3]> {
        let mut x = graph.transpose(x, &[1, 0, 2]); // (t, b, input)
        let (mut h, mut c) = (vec![], vec![]);
        for (l, weights) in self.layers.iter().enumerate() {
            let LstmWeights { weight_ih, weight_hh, bias_ih, bias_hh } = weights;
            let hidden = weight_hh.dim(1)?;
            let mut ordered = |tensor: &Tensor| -> Result<Value> {
                let value = graph.parameter(tensor)?;
                // ONNX has the gates in the order of input, output, forget and cell; PyTorch of input, forget, cell and output.
                let [i, f, g, o]: [Value; 4] = graph.ops("Split", &[Some(&value)], &[("axis", Attribute::Int(0))]);
                Ok(graph.op("Concat", &[&i, &o, &f, &g], &[("axis", Attribute::Int(0))]))
            };
            let [w, r, b_ih, b_hh] = [ordered(weight_ih)?, ordered(weight_hh)?, ordered(bias_ih)?, ordered(bias_hh)?];
            let b = graph.op("Concat", &[&b_ih, &b_hh], &[("axis", Attribute::Int(0))]);
            let (w, r, b) = (graph.unsqueeze(&w, &[0])?, graph.unsqueeze(&r, &[0])?, graph.unsqueeze(&b, &[0])?);
            let l = l as i64;
            let first = state.map(|parts| parts.map(|part| graph.part(part, 0, l, l + 1)));
            let [h0, c0] = match first {
                Some([h0, c0]) => [Some(h0?), Some(c0?)],
                None => [None, None],
            };
            let inputs = [Some(&x), Some(&w), Some(&r), Some(&b), None, h0.as_ref(), c0.as_ref()];
            let inputs = if state.is_some() { &inputs[..] } else { &inputs[..4] };
            let attributes = [("hidden_size", Attribute::Int(hidden as i64))];
            let [y, h_n, c_n]: [Value; 3] = graph.ops("LSTM", inputs, &attributes);
            x = graph.squeeze(&y, &[1])?; // (t, b, hidden)
            h.push(h_n);
            c.push(c_n);
        }
        let mut stacked = |all: &[Value]| match all {
            [one] => one.clone(),
            all => graph.op("Concat", &all.iter().collect::<Vec<_>>(), &[("axis", Attribute::Int(0))]),
        };
        let (h, c) = (stacked(&h), stacked(&c));
        Ok([graph.transpose(&x, &[1, 0, 2]), h, c])
    }

    fn run(&self, x: &Tensor, mode: Mode, all: bool) -> Result<(Option<Tensor>, Vec<LstmState>)> {
        let mut outputs = Some(x.clone());
        let mut states = vec![];
        for (l, weights) in self.layers.iter().enumerate() {
            let Some(below) = outputs else { bail!("lstm: no outputs of layer {l}") };
            let dropout = l.checked_sub(1).and_then(|l| self.dropout.get(l)?.stream(mode));
            let (y, state) = lstm(&below, weights, None, dropout, all || l + 1 < self.layers.len())?;
            outputs = y;
            states.push(state);
        }
        Ok((outputs, states))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, IndexOp};

    use super::*;
    use crate::Params;
    use zoo_kernels::check::random;

    #[test]
    fn the_last_output_is_the_last_hidden_state_for_any_number_of_layers() -> Result<()> {
        for layers in 1..=3 {
            let params = Params::init(3, &Device::Cpu);
            let lstm = Lstm::new(LstmConfig { input: 2, hidden: 7, layers, dropout: 0.5 }, params.builder())?;
            assert_eq!(params.all().len(), 4 * layers);
            let x = random(1, &[3, 5, 2])?;
            for mode in [Mode::Eval, Mode::Train { seed: 1, step: 2 }] {
                let LstmOutput { outputs, h_n, c_n } = lstm.forward(&x, mode)?;
                assert_eq!(
                    (outputs.dims(), h_n.dims(), c_n.dims()),
                    (&[3, 5, 7][..], &[layers, 3, 7][..], &[layers, 3, 7][..])
                );
                let last = outputs.i((.., 4, ..))?.to_vec2::<f32>()?;
                assert_eq!(last, h_n.i(layers - 1)?.to_vec2::<f32>()?);
                assert_eq!(last, lstm.forward_last(&x, mode)?.to_vec2::<f32>()?);
            }
        }
        Ok(())
    }
}
