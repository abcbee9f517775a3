use pulp::{Simd, WithSimd};
use zoo_kernels::cpu::simd::Level;
use zoo_kernels::cpu::{Pointer, parallel};

use super::{Moments, Rule, Update};

/// Elements a thread takes at a time.
const CHUNK: usize = 32 * 1024;

/// Moves `slices[0]` (parameter) and `slices[1..]` (state) by `grad`, in one pass over memory.
pub(super) fn update(level: Level, u: Update, grad: &[f32], slices: &mut [&mut [f32]]) {
    assert!(slices.iter().all(|s| s.len() == grad.len()), "parameter, state and gradient differ in length");
    let pointers: Vec<Pointer> = slices.iter_mut().map(|s| Pointer::of(s)).collect();
    parallel::for_each(grad.len().div_ceil(CHUNK), |task| {
        let first = task * CHUNK;
        let n = CHUNK.min(grad.len() - first);
        let slice = |i: usize| match pointers.get(i) {
            // SAFETY: chunks of different tasks are disjoint and within the slices, whose lengths were compared.
            Some(p) => unsafe { std::slice::from_raw_parts_mut(p.at(first), n) },
            None => &mut [],
        };
        level.run(Kernel { u, grad: &grad[first..first + n], p: slice(0), a: slice(1), b: slice(2) });
    });
}

struct Kernel<'a> {
    u: Update,
    grad: &'a [f32],
    p: &'a mut [f32],
    /// First and second state tensor, empty where the rule has none.
    a: &'a mut [f32],
    b: &'a mut [f32],
}

impl WithSimd for Kernel<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let u = self.u;
        let c = |v: f64| s.splat_f32s(v as f32);
        let coupled = c(u.weight_decay);
        match u.rule {
            Rule::AdamW(Moments { beta1, beta2, eps }) | Rule::Adam(Moments { beta1, beta2, eps }) => {
                let (c1, c2) = (1. - beta1.powf(u.step as f64), 1. - beta2.powf(u.step as f64));
                let decoupled = matches!(u.rule, Rule::AdamW(_));
                let keep = c(if decoupled { 1. - u.lr * u.weight_decay } else { 1. });
                let add = if decoupled { c(0.) } else { coupled };
                let (b1, b2, r1, r2) = (c(beta1), c(beta2), c(1. - beta1), c(1. - beta2));
                let (rate, root_scale, eps) = (c(u.lr / c1), c(1. / c2.sqrt()), c(eps));
                self.each(s, |p, g, m, v| {
                    let g = s.mul_add_e_f32s(add, p, g);
                    let m = s.mul_add_e_f32s(b1, m, s.mul_f32s(r1, g));
                    let v = s.mul_add_e_f32s(b2, v, s.mul_f32s(r2, s.mul_f32s(g, g)));
                    let root = s.mul_add_e_f32s(s.sqrt_f32s(v), root_scale, eps);
                    let moved = s.div_f32s(s.mul_f32s(rate, m), root);
                    (s.sub_f32s(s.mul_f32s(p, keep), moved), m, v)
                });
            }
            Rule::Sgd { momentum, nesterov } => {
                // Without momentum there is no state: b stays zero and the direction is g.
                let (mu, lr) = (c(momentum), c(u.lr));
                self.each(s, |p, g, b, none| {
                    let g = s.mul_add_e_f32s(coupled, p, g);
                    let b = s.mul_add_e_f32s(mu, b, g);
                    let direction = if nesterov { s.mul_add_e_f32s(mu, b, g) } else { b };
                    (s.negate_mul_add_e_f32s(lr, direction, p), b, none)
                });
            }
            // Whole matrices at a time: see the reference.
            Rule::Muon { .. } => {}
            Rule::RmsProp { alpha, eps, momentum } => {
                let (alpha, rest, eps, mu, lr) = (c(alpha), c(1. - alpha), c(eps), c(momentum), c(u.lr));
                self.each(s, |p, g, v, b| {
                    let g = s.mul_add_e_f32s(coupled, p, g);
                    let v = s.mul_add_e_f32s(alpha, v, s.mul_f32s(rest, s.mul_f32s(g, g)));
                    let b = s.mul_add_e_f32s(mu, b, s.div_f32s(g, s.add_f32s(s.sqrt_f32s(v), eps)));
                    (s.negate_mul_add_e_f32s(lr, b, p), v, b)
                });
            }
        }
    }
}

impl Kernel<'_> {
    #[inline(always)]
    fn each<S: Simd>(self, s: S, formula: impl Fn(S::f32s, S::f32s, S::f32s, S::f32s) -> (S::f32s, S::f32s, S::f32s)) {
        let scale = s.splat_f32s(self.u.scale as f32);
        let Self { grad, p, a, b, .. } = self;
        // Whole vectors, then the rest; state that the rule lacks stays empty. There is one call of the formula:
        // with two, the compiler keeps it apart, without the instruction set's own code.
        let (grad, grad_rest) = S::as_simd_f32s(grad);
        let (p, p_rest) = S::as_mut_simd_f32s(p);
        let (a, a_rest) = S::as_mut_simd_f32s(a);
        let (b, b_rest) = S::as_mut_simd_f32s(b);
        for i in 0..grad.len() + usize::from(!grad_rest.is_empty()) {
            let of = |whole: &[S::f32s], rest: &[f32]| match whole.get(i) {
                Some(v) => *v,
                None => s.partial_load_f32s(rest),
            };
            let g = s.mul_f32s(of(grad, grad_rest), scale);
            let (new_p, new_a, new_b) = formula(of(p, p_rest), g, of(a, a_rest), of(b, b_rest));
            for (whole, rest, new) in
                [(&mut *p, &mut *p_rest, new_p), (&mut *a, &mut *a_rest, new_a), (&mut *b, &mut *b_rest, new_b)]
            {
                match whole.get_mut(i) {
                    Some(to) => *to = new,
                    None => s.partial_store_f32s(rest, new),
                }
            }
        }
    }
}
