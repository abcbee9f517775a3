//! What layers are made of.

use candle_core::{Device, Result, Tensor, bail};

use super::{Attribute::*, Dim, Element, Graph, Value};
use crate::ops::Activation;

/// Keys and values of the places before those at hand, each (b, heads, places, features of a head).
#[derive(Clone, Debug)]
pub struct Past {
    /// The keys.
    pub keys: Value,
    /// The values.
    pub values: Value,
}

/// The places of a sequence that a causal attention works on.
#[derive(Clone, Debug)]
pub struct Places {
    /// Their numbers (t).
    own: Value,
    /// What is added to the scores of each place beside all that are there.
    mask: Value,
}

impl Graph {
    /// x Wᵀ + b with an activation.
    ///
    /// # Errors
    /// See [`Graph::parameter`].
    pub fn linear(
        &mut self,
        x: &Value,
        weight: &Tensor,
        bias: Option<&Tensor>,
        activation: Activation,
    ) -> Result<Value> {
        let mut y = match self.int8(weight)? {
            None => {
                let weight = self.parameter(weight)?;
                let turned = self.transpose(&weight, &[1, 0]);
                self.op("MatMul", &[x, &turned], &[])
            }
            Some([weight, scale]) => {
                let turned = self.transpose(&weight, &[1, 0]);
                let zero = self.small("uint8_128", || Tensor::new(128u8, &Device::Cpu))?;
                let [x, x_scale, x_zero]: [Value; 3] = self.ops("DynamicQuantizeLinear", &[Some(x)], &[]);
                let product = self.op("MatMulInteger", &[&x, &turned, &x_zero, &zero], &[]);
                let product = self.cast(&product, Element::F32);
                let scale = self.mul(&x_scale, &scale);
                self.mul(&product, &scale)
            }
        };
        if let Some(bias) = bias {
            let bias = self.parameter(bias)?;
            y = self.add(&y, &bias);
        }
        self.activation(&y, activation)
    }

    /// An activation, element by element.
    ///
    /// # Errors
    /// candle's.
    pub fn activation(&mut self, x: &Value, activation: Activation) -> Result<Value> {
        Ok(match activation {
            Activation::Identity => x.clone(),
            Activation::Relu => self.op("Relu", &[x], &[]),
            Activation::Silu => {
                let gate = self.op("Sigmoid", &[x], &[]);
                self.mul(x, &gate)
            }
            Activation::Elu(alpha) => self.op("Elu", &[x], &[("alpha", Float(alpha as f32))]),
            Activation::Gelu => {
                let scaled = self.scaled(x, std::f64::consts::FRAC_1_SQRT_2)?;
                let inner = self.op("Erf", &[&scaled], &[]);
                self.half_of_one_more(x, &inner)?
            }
            Activation::GeluTanh => {
                let square = self.mul(x, x);
                let cube = self.mul(&square, x);
                let cube = self.scaled(&cube, 0.044715)?;
                let sum = self.add(x, &cube);
                let scaled = self.scaled(&sum, (2. / std::f64::consts::PI).sqrt())?;
                let inner = self.op("Tanh", &[&scaled], &[]);
                self.half_of_one_more(x, &inner)?
            }
        })
    }

    /// x / 2 · (1 + inner).
    fn half_of_one_more(&mut self, x: &Value, inner: &Value) -> Result<Value> {
        let one = self.number(1., Element::F32)?;
        let more = self.add(inner, &one);
        let product = self.mul(x, &more);
        self.scaled(&product, 0.5)
    }

    /// x times a number.
    ///
    /// # Errors
    /// candle's.
    pub fn scaled(&mut self, x: &Value, factor: f64) -> Result<Value> {
        let factor = self.number(factor, Element::F32)?;
        Ok(self.mul(x, &factor))
    }

    /// The sum of two values.
    pub fn add(&mut self, a: &Value, b: &Value) -> Value {
        self.op("Add", &[a, b], &[])
    }

    /// The product of two values, element by element.
    pub fn mul(&mut self, a: &Value, b: &Value) -> Value {
        self.op("Mul", &[a, b], &[])
    }

    /// The softmax over the last dimension.
    pub fn softmax(&mut self, x: &Value) -> Value {
        self.op("Softmax", &[x], &[("axis", Int(-1))])
    }

    /// Layer norm over the last dimension, of `weight`'s size.
    pub fn layer_norm(&mut self, x: &Value, weight: &Value, bias: Option<&Value>, eps: f64) -> Value {
        let inputs: Vec<Option<&Value>> = [Some(x), Some(weight)].into_iter().chain(bias.map(Some)).collect();
        let attributes = [("axis", Int(-1)), ("epsilon", Float(eps as f32))];
        let [y] = self.ops("LayerNormalization", &inputs, &attributes);
        y
    }

    /// RMS norm over the last dimension.
    ///
    /// # Errors
    /// candle's.
    pub fn rms_norm(&mut self, x: &Value, weight: &Value, eps: f64) -> Result<Value> {
        let square = self.mul(x, x);
        let mean = self.op("ReduceMean", &[&square], &[("axes", Ints(vec![-1])), ("keepdims", Int(1))]);
        let eps = self.number(eps, Element::F32)?;
        let sum = self.add(&mean, &eps);
        let root = self.op("Sqrt", &[&sum], &[]);
        let y = self.op("Div", &[x, &root], &[]);
        Ok(self.mul(&y, weight))
    }

    /// x in another shape: 0 keeps a dimension, -1 is what is left.
    ///
    /// # Errors
    /// candle's.
    pub fn reshape(&mut self, x: &Value, dims: &[i64]) -> Result<Value> {
        let dims = self.ints(dims)?;
        Ok(self.op("Reshape", &[x, &dims], &[]))
    }

    /// x with its dimensions in another order.
    pub fn transpose(&mut self, x: &Value, order: &[i64]) -> Value {
        self.op("Transpose", &[x], &[("perm", Ints(order.into()))])
    }

    /// How many there are in a dimension, as one number in a row.
    pub fn length(&mut self, x: &Value, axis: i64) -> Value {
        self.op("Shape", &[x], &[("start", Int(axis)), ("end", Int(axis + 1))])
    }

    /// The rows of a table from the first one, one for each step of x (b, t, c). Runtimes refuse more steps than it has rows.
    ///
    /// # Errors
    /// candle's.
    pub fn first_rows(&mut self, table: &Value, x: &Value) -> Result<Value> {
        let (zero, one, t) = (self.int(0)?, self.int(1)?, self.length(x, 1));
        let t = self.squeeze(&t, &[0])?;
        let steps = self.op("Range", &[&zero, &t, &one], &[]);
        // A part of the table would be stretched over too many steps if it were of one row.
        Ok(self.op("Gather", &[table, &steps], &[]))
    }

    /// Indices of a dimension from `first` up to `end`; negative ones count from behind, and `end` may be beyond.
    ///
    /// # Errors
    /// candle's.
    pub fn part(&mut self, x: &Value, axis: i64, first: i64, end: i64) -> Result<Value> {
        let (first, end, axis) = (self.ints(&[first])?, self.ints(&[end])?, self.ints(&[axis])?);
        Ok(self.op("Slice", &[x, &first, &end, &axis], &[]))
    }

    /// The last step (b, c) of x (b, t, c).
    ///
    /// # Errors
    /// candle's.
    pub fn last(&mut self, x: &Value) -> Result<Value> {
        let last = self.part(x, 1, -1, i64::MAX)?;
        self.squeeze(&last, &[1])
    }

    /// x in another type.
    pub fn cast(&mut self, x: &Value, element: Element) -> Value {
        self.op("Cast", &[x], &[("to", Int(element.number() as i64))])
    }

    /// x with a dimension of one before each of these.
    ///
    /// # Errors
    /// candle's.
    pub fn unsqueeze(&mut self, x: &Value, axes: &[i64]) -> Result<Value> {
        let axes = self.ints(axes)?;
        Ok(self.op("Unsqueeze", &[x, &axes], &[]))
    }

    /// x without these dimensions of one.
    ///
    /// # Errors
    /// candle's.
    pub fn squeeze(&mut self, x: &Value, axes: &[i64]) -> Result<Value> {
        let axes = self.ints(axes)?;
        Ok(self.op("Squeeze", &[x, &axes], &[]))
    }

    /// The places of `ids` (b, t) behind those of `past`, and what keeps each from seeing those behind it.
    fn places(&mut self, ids: &Value, past: Option<&Past>) -> Result<Places> {
        let t = self.length(ids, 1);
        let (first, end) = match past {
            None => (self.ints(&[0])?, t),
            Some(past) => {
                let first = self.length(&past.keys, 2);
                let end = self.add(&first, &t);
                (first, end)
            }
        };
        let (zero, one) = (self.int(0)?, self.int(1)?);
        let (from, to) = (self.squeeze(&first, &[0])?, self.squeeze(&end, &[0])?);
        let seen = self.op("Range", &[&zero, &to, &one], &[]);
        let own = self.op("Range", &[&from, &to, &one], &[]);
        let rows = self.unsqueeze(&own, &[1])?;
        let seen = self.op("LessOrEqual", &[&seen, &rows], &[]);
        let (open, shut) = (self.number(0., Element::F32)?, self.number(f32::MIN.into(), Element::F32)?);
        let mask = self.op("Where", &[&seen, &open, &shut], &[]);
        Ok(Places { own, mask })
    }

    /// The inputs of a model that writes: `tokens` (batch, length) of a vocabulary, and with `state` the keys and values before them of each
    /// attention, whose heads and features of a head are `heads`.
    ///
    /// # Errors
    /// candle's.
    pub fn tokens(
        &mut self,
        vocabulary: usize,
        context: usize,
        heads: impl IntoIterator<Item = [usize; 2]>,
        state: bool,
    ) -> Result<(Value, Vec<Past>, Places)> {
        let help = format!("Numbers from 0 to {}; at most {context}, with those before", vocabulary.saturating_sub(1));
        let tokens = self.input("tokens", Element::I64, &[Dim::Any("batch"), Dim::Any("length")], &help)?;
        let heads = heads.into_iter().filter(|_| state).enumerate();
        let past = heads.map(|(i, [heads, d])| self.past(i, heads, d)).collect::<Result<Vec<_>>>()?;
        let places = self.places(&tokens, past.first())?;
        Ok((tokens, past, places))
    }

    /// The output of a model that writes: `logits` (batch, length, vocabulary).
    ///
    /// # Errors
    /// candle's.
    pub fn logits(&mut self, logits: &Value, vocabulary: usize) -> Result<()> {
        let dims = [Dim::Any("batch"), Dim::Any("length"), Dim::Of(vocabulary)];
        self.output("logits", logits, Element::F32, &dims, "Logits of what follows each")
    }

    /// Inputs for the keys and values of a layer's attention, of `heads` heads of `d` features.
    fn past(&mut self, layer: usize, heads: usize, d: usize) -> Result<Past> {
        let dims = [Dim::Any("batch"), Dim::Of(heads), Dim::Any("past"), Dim::Of(d)];
        let help = "of the positions before: an array of length 0 in the first call";
        Ok(Past {
            keys: self.input(&format!("past_keys.{layer}"), Element::F32, &dims, &format!("Keys {help}"))?,
            values: self.input(&format!("past_values.{layer}"), Element::F32, &dims, &format!("Values {help}"))?,
        })
    }

    /// Outputs for keys and values, which a next call takes as those before it.
    ///
    /// # Errors
    /// candle's.
    pub fn present(&mut self, layer: usize, now: &Past, heads: usize, d: usize) -> Result<()> {
        let dims = [Dim::Any("batch"), Dim::Of(heads), Dim::Any("past_and_length"), Dim::Of(d)];
        for (name, value) in [("keys", &now.keys), ("values", &now.values)] {
            let help = format!("past_{name}.{layer} of the next call");
            self.output(&format!("present_{name}.{layer}"), value, Element::F32, &dims, &help)?;
        }
        Ok(())
    }

    /// The rows of a table that belong to places. Runtimes refuse places beyond its end.
    pub fn rows_of(&mut self, table: &Value, places: &Places) -> Value {
        self.op("Gather", &[table, &places.own], &[])
    }

    /// x (b, t, heads d) as (b, heads, t, d).
    pub(crate) fn heads(&mut self, x: &Value, heads: usize, d: usize) -> Result<Value> {
        let split = self.reshape(x, &[0, 0, heads as i64, d as i64])?;
        Ok(self.transpose(&split, &[0, 2, 1, 3]))
    }

    /// Attention of queries (b, heads, t, d) over keys and values (b, key heads, s, d), which heads of queries share in groups: (b, t, heads d).
    pub(crate) fn attend(
        &mut self,
        q: &Value,
        now: Past,
        heads: [usize; 2],
        d: usize,
        places: Option<&Places>,
    ) -> Result<Value> {
        let [all, few] = heads.map(|h| h as i64);
        if few == 0 || all % few != 0 {
            bail!("onnx: {all} heads cannot share {few}")
        }
        let (group, width) = (all / few, d as i64);
        // Of each head of keys there is one, before which its queries stand in a dimension of their own: keys are not repeated.
        let (mut q, mut keys, mut values) = (q.clone(), now.keys, now.values);
        if group > 1 {
            q = self.reshape(&q, &[0, few, group, -1, width])?;
            (keys, values) = (self.unsqueeze(&keys, &[2])?, self.unsqueeze(&values, &[2])?);
        }
        let order: &[i64] = if group > 1 { &[0, 1, 2, 4, 3] } else { &[0, 1, 3, 2] };
        let turned = self.transpose(&keys, order);
        let scores = self.op("MatMul", &[&q, &turned], &[]);
        let mut scores = self.scaled(&scores, 1. / (d as f64).sqrt())?;
        if let Some(places) = places {
            scores = self.add(&scores, &places.mask);
        }
        let shares = self.softmax(&scores);
        let mut y = self.op("MatMul", &[&shares, &values], &[]);
        if group > 1 {
            y = self.reshape(&y, &[0, all, -1, width])?;
        }
        let y = self.transpose(&y, &[0, 2, 1, 3]);
        self.reshape(&y, &[0, 0, all * width])
    }

    /// Keys and values (b, heads, t, d) behind those that are there.
    pub(crate) fn behind(&mut self, past: Option<&Past>, now: Past) -> Past {
        let Some(past) = past else { return now };
        let mut join = |a: &Value, b: &Value| self.op("Concat", &[a, b], &[("axis", Int(2))]);
        Past { keys: join(&past.keys, &now.keys), values: join(&past.values, &now.values) }
    }

    /// Features of heads (…, t, d) turned by the angles of their places, whose cosines and sines are (t, d / 2): the first half of the
    /// features is paired with the second.
    pub(crate) fn turn(&mut self, x: &Value, [cos, sin]: &[Value; 2]) -> Value {
        let [first, second]: [Value; 2] = self.ops("Split", &[Some(x)], &[("axis", Int(-1))]);
        let (a, b) = (self.mul(&first, cos), self.mul(&second, sin));
        let (c, d) = (self.mul(&second, cos), self.mul(&first, sin));
        let (left, right) = (self.op("Sub", &[&a, &b], &[]), self.add(&c, &d));
        self.op("Concat", &[&left, &right], &[("axis", Int(-1))])
    }
}
