//! Concentric shells of different conductivity: the potential of a dipole on the outermost, by a series of Legendre
//! polynomials (Rush and Driscoll 1969; de Munck 1988).
//!
//! For a dipole at distance b from the centre, with moments p_r outwards and p_t across, at an electrode at angle γ from it and
//! φ from the direction of p_t, on the outer radius R, with f = b/R and σ₁ the conductivity around the dipole:
//!
//! ```text
//! V = 1/(4π σ₁ R²) Σ over n ≥ 1 of (2n + 1)/(n g_n) fⁿ⁻¹ (n p_r P_n(cos γ) + p_t cos φ P_n¹(cos γ)),   P_n¹ = sin γ P_n'
//! ```
//!
//! g_n is how much larger the outward solution r^-(n+1) is in the innermost shell than in the outermost, where no current
//! leaves: one for equal conductivities. It follows from the outside inwards, by continuity of potential and current.

use zoo_training::{Error, Result};

use super::{Electrode, Head, Point, distance};

/// A shell.
#[derive(Clone, Copy, Debug)]
pub struct Shell {
    /// Its outer radius in millimetres.
    pub radius: f64,
    /// Its conductivity in siemens a metre.
    pub conductivity: f64,
}

/// Brain, cerebrospinal fluid, skull and scalp (radii of Berg and Scherg 1994; conductivities of Cuffin and Cohen 1979, the
/// skull's at 1/80 of the brain's).
pub const SHELLS: [Shell; 4] = [
    Shell { radius: 80.1, conductivity: 0.33 },
    Shell { radius: 81.2, conductivity: 1.0 },
    Shell { radius: 86.3, conductivity: 0.0042 },
    Shell { radius: 92.0, conductivity: 0.33 },
];

/// Terms are added until the bound on those that are left is this small against the largest.
const SMALL: f64 = 1e-13;
/// The most terms: for a dipole that close to the surface (f > 0.97) the series is no good way.
const TERMS: usize = 1000;

/// The potentials at `electrodes` on the outermost of `shells` (innermost first) of a dipole at `position` with moment `moment`:
/// volts for ampere metres. A position at the centre has no direction outwards: its moment counts as one along the third axis.
pub fn potential(shells: &[Shell], position: &Point, moment: &Point, electrodes: &[Point]) -> Vec<f64> {
    let (Some(inner), Some(outer)) = (shells.first(), shells.last()) else { return vec![f64::NAN; electrodes.len()] };
    let b = norm(position);
    let radial = if b > 0. { position.map(|p| p / b) } else { [0., 0., 1.] };
    let along = dot(moment, &radial);
    let across: Point = std::array::from_fn(|i| moment[i] - along * radial[i]);
    let f = b / outer.radius;
    let mut factors = vec![];
    for n in 1..=TERMS {
        let factor = (2. * n as f64 + 1.) / (n as f64 * gain(shells, n)) * f.powi(n as i32 - 1);
        factors.push(factor);
        // P_n is at most 1 and P_n¹ at most n: the terms fall at least as fast as n fⁿ.
        if n > 3 && factor * n as f64 / (1. - f) < SMALL * factors[0] {
            break;
        }
    }
    // Radii are in millimetres.
    let scale = 1. / (4. * std::f64::consts::PI * inner.conductivity * (outer.radius * 1e-3).powi(2));
    let one = |electrode: &Point| {
        let direction = electrode.map(|e| e / norm(electrode));
        let cos = dot(&direction, &radial).clamp(-1., 1.);
        // sin γ cos φ |p_t| at once.
        let sideways = dot(&direction, &across);
        let (mut before, mut here, mut slope_before, mut slope) = (1., cos, 0., 1.);
        let mut sum = 0.;
        for (i, factor) in factors.iter().enumerate() {
            let n = i as f64 + 1.;
            sum += factor * (n * along * here + sideways * slope);
            // P_(n+1) and its derivative.
            let next = ((2. * n + 1.) * cos * here - n * before) / (n + 1.);
            let steeper = slope_before + (2. * n + 1.) * here;
            (before, here) = (here, next);
            (slope_before, slope) = (slope, steeper);
        }
        scale * sum
    };
    electrodes.iter().map(one).collect()
}

/// g_n.
fn gain(shells: &[Shell], n: usize) -> f64 {
    let (n, outer) = (n as f64, shells[shells.len() - 1].radius);
    // a rⁿ + b r^-(n+1), in units of the outer radius; there the current a n - b (n + 1) is zero.
    let (mut a, mut b) = ((n + 1.) / n, 1.);
    for pair in shells.windows(2).rev() {
        let (x, ratio) = (pair[0].radius / outer, pair[1].conductivity / pair[0].conductivity);
        let power = x.powf(2. * n + 1.);
        // Both times x^(n+1).
        let (alpha, beta) = (a * power, b);
        let current = ratio * (n * alpha - (n + 1.) * beta);
        a = ((n + 1.) * (alpha + beta) + current) / ((2. * n + 1.) * power);
        b = (n * (alpha + beta) - current) / (2. * n + 1.);
    }
    b
}

fn dot(a: &Point, b: &Point) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm(a: &Point) -> f64 {
    dot(a, a).sqrt()
}

/// Points spread evenly over a unit sphere from height `bottom` up, along a spiral of the golden angle.
fn spiral(n: usize, bottom: f64) -> impl Iterator<Item = Point> {
    let golden = std::f64::consts::PI * (3. - 5f64.sqrt());
    (0..n).map(move |i| {
        let z = 1. - (1. - bottom) * (i as f64 + 0.5) / n as f64;
        let (r, angle) = ((1. - z * z).sqrt(), golden * i as f64);
        [r * angle.cos(), r * angle.sin(), z]
    })
}

/// Where the regions lie: most of the cortex is 10 to 25 mm below the skull's inside.
const CORTEX: f64 = 68.;
/// How far down electrodes and regions go, as a share of the radius.
const BOTTOM: [f64; 2] = [-0.35, -0.55];
/// The most regions: their distances are looked at in pairs.
const LARGEST: usize = 20_000;
/// Regions within this many times the mean spacing are neighbours.
const REACH: f64 = 1.45;

pub(super) fn head(electrodes: usize, regions: usize) -> Result<Head> {
    if electrodes < 3 || regions < 3 {
        return Err(Error::Usage(format!(
            "the built-in head needs at least 3 electrodes and 3 regions, not {electrodes} and {regions}"
        )));
    }
    if regions > LARGEST {
        return Err(Error::Usage(format!("the built-in head has at most {LARGEST} regions, not {regions}")));
    }
    let outer = SHELLS[SHELLS.len() - 1].radius;
    let scaled = |radius: f64| move |p: Point| p.map(|x| x * radius);
    let positions: Vec<Point> = spiral(electrodes, BOTTOM[0]).map(scaled(outer)).collect();
    let centres: Vec<Point> = spiral(regions, BOTTOM[1]).map(scaled(CORTEX)).collect();
    let area = 2. * std::f64::consts::PI * CORTEX.powi(2) * (1. - BOTTOM[1]);
    let reach = REACH * (area / regions as f64).sqrt();
    let near = |i: usize| (0..regions).filter(|&j| j != i && distance(&centres[i], &centres[j]) < reach).collect();
    let neighbours = (0..regions).map(near).collect();
    let mut lead_field = vec![0.; electrodes * regions];
    for (i, centre) in centres.iter().enumerate() {
        let column = potential(&SHELLS, centre, &orientation(i, centre), &positions);
        column.into_iter().enumerate().for_each(|(e, v)| lead_field[e * regions + i] = v);
    }
    let electrode = |(i, position)| Electrode { label: format!("E{}", i + 1), position: Some(position) };
    Ok(Head {
        origin: "the built-in head of four spheres".into(),
        electrodes: positions.into_iter().enumerate().map(electrode).collect(),
        regions: centres,
        neighbours,
        lead_field,
        surface: None,
        noise: vec![],
    })
}

/// The direction of a region's currents: as on a folded cortex some point outwards and some sideways, by up to 80° from the
/// radius, in a fixed order that looks like none.
fn orientation(region: usize, centre: &Point) -> Point {
    let outwards = centre.map(|c| c / norm(centre));
    // The axis that is least along the radius makes the two directions across well defined.
    let axis = (0..3).min_by(|a, b| outwards[*a].abs().total_cmp(&outwards[*b].abs())).unwrap_or(0);
    let mut across: Point = std::array::from_fn(|i| f64::from(i == axis) - outwards[axis] * outwards[i]);
    let length = norm(&across);
    across = across.map(|a| a / length);
    let third: Point = std::array::from_fn(|i| {
        let (j, k) = ((i + 1) % 3, (i + 2) % 3);
        outwards[j] * across[k] - outwards[k] * across[j]
    });
    let share = |irrational: f64| (irrational * (region + 1) as f64).fract();
    let (tilt, turn) = (share(2f64.sqrt()) * 80f64.to_radians(), share(3f64.sqrt()) * std::f64::consts::TAU);
    std::array::from_fn(|i| tilt.cos() * outwards[i] + tilt.sin() * (turn.cos() * across[i] + turn.sin() * third[i]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The potential in a homogeneous sphere in closed form: the series summed, with D = √(1 - 2 f cos γ + f²).
    fn homogeneous(radius: f64, conductivity: f64, b: f64, [along, across]: [f64; 2], gamma: f64, phi: f64) -> f64 {
        let (f, c, s) = (b / radius, gamma.cos(), gamma.sin());
        let d = (1. - 2. * f * c + f * f).sqrt();
        let outwards = 2. * (c - f) / d.powi(3) + (1. / d - 1.) / f;
        let sideways = s * (2. / d.powi(3) + (d + 1.) / (d * (1. - f * c + d)));
        (along * outwards + across * phi.cos() * sideways)
            / (4. * std::f64::consts::PI * conductivity * (radius * 1e-3).powi(2))
    }

    fn electrode(gamma: f64, phi: f64, radius: f64) -> Point {
        [gamma.sin() * phi.cos(), gamma.sin() * phi.sin(), gamma.cos()].map(|x| x * radius)
    }

    const ANGLES: [(f64, f64); 6] = [(0.01, 0.), (0.3, 1.), (0.9, 2.), (1.6, 3.), (2.5, 4.), (3.1, 5.)];

    #[test]
    fn equal_conductivities_give_the_closed_form_of_a_homogeneous_sphere() {
        for b in [5., 40., 68., 79.] {
            for moment in [[1., 0.], [0., 1.], [0.6, 0.8]] {
                let shells = SHELLS.map(|s| Shell { conductivity: 0.33, ..s });
                let positions: Vec<Point> = ANGLES.iter().map(|&(g, p)| electrode(g, p, 92.)).collect();
                let got = potential(&shells, &[0., 0., b], &[moment[1], 0., moment[0]], &positions);
                for (got, (g, p)) in got.iter().zip(ANGLES) {
                    let exact = homogeneous(92., 0.33, b, moment, g, p);
                    assert!(
                        (got - exact).abs() <= 1e-6 * exact.abs().max(1.),
                        "b {b} {moment:?} γ {g}: {got} for {exact}"
                    );
                }
            }
        }
    }

    /// g_n by solving all boundary conditions of order n at once.
    fn dense_gain(shells: &[Shell], n: usize) -> f64 {
        let (count, m, outer) = (shells.len(), n as f64, shells[shells.len() - 1].radius);
        // Unknowns: a and b of each shell. The source puts b of the innermost at one.
        let size = 2 * count;
        let (mut matrix, mut right) = (nalgebra::DMatrix::zeros(size, size), nalgebra::DVector::zeros(size));
        (matrix[(0, 1)], right[0]) = (1., 1.);
        let mut row = 1;
        for (j, pair) in shells.windows(2).enumerate() {
            let x = pair[0].radius / outer;
            for (sign, shell, at) in [(1., pair[0], 2 * j), (-1., pair[1], 2 * j + 2)] {
                // Scaled by x^(n+1), as every row may be.
                let (up, down) = (x.powf(2. * m + 1.), 1.);
                (matrix[(row, at)], matrix[(row, at + 1)]) = (sign * up, sign * down);
                let current = sign * shell.conductivity;
                (matrix[(row + 1, at)], matrix[(row + 1, at + 1)]) = (current * m * up, -current * (m + 1.) * down);
            }
            row += 2;
        }
        (matrix[(row, size - 2)], matrix[(row, size - 1)]) = (m, -(m + 1.));
        let Some(solution) = matrix.lu().solve(&right) else { panic!("no solution of order {n}") };
        1. / solution[size - 1]
    }

    #[test]
    fn shells_give_the_series_with_all_boundary_conditions_solved_at_once() {
        let (b, moment) = (68., [0.6, 0., 0.8]);
        let positions: Vec<Point> = ANGLES.iter().map(|&(g, p)| electrode(g, p, 92.)).collect();
        let got = potential(&SHELLS, &[0., 0., b], &moment, &positions);
        for (got, (gamma, phi)) in got.iter().zip(ANGLES) {
            let (x, f) = (f64::cos(gamma), b / 92.);
            let (mut legendre, mut sum) = (vec![1., x], 0.);
            for n in 1..=120usize {
                let m = n as f64;
                legendre.push(((2. * m + 1.) * x * legendre[n] - m * legendre[n - 1]) / (m + 1.));
                // (1 - x²) P_n' = n (P_(n-1) - x P_n)
                let associated = m * (legendre[n - 1] - x * legendre[n]) / gamma.sin();
                let term = m * moment[2] * legendre[n] + moment[0] * phi.cos() * associated;
                sum += (2. * m + 1.) / (m * dense_gain(&SHELLS, n)) * f.powi(n as i32 - 1) * term;
            }
            let exact = sum / (4. * std::f64::consts::PI * 0.33 * 0.092f64.powi(2));
            assert!((got - exact).abs() <= 1e-6 * exact.abs(), "γ {gamma}: {got} for {exact}");
        }
    }

    #[test]
    fn the_built_in_head_has_regions_with_neighbours_and_different_fields() -> Result<()> {
        let head = Head::spherical(75, 994)?;
        let counts: Vec<usize> = head.neighbours.iter().map(Vec::len).collect();
        assert!(counts.iter().all(|n| (3..=8).contains(n)), "{:?}", (counts.iter().min(), counts.iter().max()));
        assert!((0..994).all(|i| head.neighbours[i].iter().all(|&j| head.neighbours[j].contains(&i))));
        assert!(head.lead_field.iter().all(|v| v.is_finite()));
        Ok(())
    }
}
